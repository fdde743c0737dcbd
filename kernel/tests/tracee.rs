//! The type-stated ptrace and injected calls, tried on real children: Debian's `sleep`, a shell that counts, and this very test
//! program run again as somebody else's tracer.

use defrost_kernel::call_list::{CallList, STUB};
use defrost_kernel::memory::ProcessMemory;
use defrost_kernel::regs::REGISTERS_BYTES;
use defrost_kernel::remote::{Borrowed, CallError, Remote, block_signals};
use defrost_kernel::return_stub::ReturnStub;
use defrost_kernel::spawn::{SpawnError, kill_and_reap, spawn_stopped};
use defrost_kernel::tracee::{Running, TraceError};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pages::VirtAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A child that ends with its value.
struct Victim(Child);

impl Victim {
    fn start(program: &str, args: &[&str]) -> Self {
        let child = Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("start");
        let victim = Self(child);
        eventually("it is the program", || std::fs::read_to_string(victim.proc("comm")).is_ok_and(|comm| program.ends_with(comm.trim())));
        victim
    }

    fn sleep() -> Self {
        let sleep = Self::start("/usr/bin/sleep", &["1000"]);
        eventually("it sleeps", || sleep.state() == Some('S'));
        sleep
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }

    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(self.proc("stat")).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }

    fn status(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.proc("status")).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim_start_matches(':').trim().to_owned()
    }

    fn memory(&self) -> ProcessMemory {
        ProcessMemory::open(self.pid()).expect("open")
    }

    /// A return stub in its vDSO.
    fn stub<'m>(&self, memory: &'m ProcessMemory) -> ReturnStub<'m> {
        let (at, text) = vdso_of(self.pid());
        ReturnStub::place(memory, at, &text).expect("write").expect("there is room")
    }
}

/// Where the vDSO of a process lies, and its text.
fn vdso_of(pid: Pid) -> (VirtAddr, Vec<u8>) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("it has a vDSO");
    let (start, end) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
    let hex = |digits| u64::from_str_radix(digits, 16).expect("hexadecimal");
    let mut text = vec![0; (hex(end) - hex(start)) as usize];
    ProcessMemory::open(pid).expect("open").read(VirtAddr(hex(start)), &mut text).expect("read");
    (VirtAddr(hex(start)), text)
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill(); // ended already is as well
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn seized_interrupted_and_detached_it_runs_on() {
    let sleep = Victim::sleep();
    let running = Running::seize(sleep.pid()).expect("seize");
    assert_eq!((sleep.state(), sleep.status("TracerPid")), (Some('S'), nix::unistd::gettid().to_string()), "a seize alone stops nobody");
    let stopped = running.interrupt().expect("interrupt");
    assert_eq!(sleep.state(), Some('t'));
    stopped.detach().expect("detach");
    eventually("it sleeps again", || sleep.state() == Some('S'));
    assert_eq!(sleep.status("TracerPid"), "0");
}

/// The child is in the middle of work in vector and general registers: a checksum comes out right although they were borrowed all the
/// time.
#[test]
fn a_borrowed_session_puts_everything_back() {
    let folder = tempfile::tempdir().expect("folder");
    let (data, sum) = (folder.path().join("data"), folder.path().join("sum"));
    std::fs::write(&data, vec![7; 300 << 20]).expect("write");
    let output = std::fs::File::create(&sum).expect("create");
    let child = Command::new("/usr/bin/sha256sum").stdin(std::fs::File::open(&data).expect("open")).stdout(output).spawn().expect("start");
    let mut victim = Victim(child);
    eventually("it is the program", || std::fs::read_to_string(victim.proc("comm")).is_ok_and(|comm| comm.trim() == "sha256sum"));
    eventually("it reads", || std::fs::read_to_string(victim.proc("io")).is_ok_and(|io| !io.contains("rchar: 0\n")));
    let (mut sessions, pid) = (0, victim.pid());
    while let Ok(running) = Running::seize(pid) {
        let Ok(stopped) = running.interrupt() else { break };
        let (registers, xstate) = (stopped.registers().expect("registers"), stopped.xstate().expect("xstate"));
        let mask = stopped.signal_mask().expect("mask");
        if sessions == 0 {
            assert_eq!(registers.to_bytes().len(), REGISTERS_BYTES);
        }
        let memory = victim.memory();
        let stub = victim.stub(&memory);
        let mut session = Borrowed::begin(&stopped, &stub).expect("begin");
        assert_eq!(session.signal_mask(), mask);
        assert_eq!(session.registers().to_bytes(), registers.to_bytes());
        for _ in 0..5 {
            assert_eq!(session.call(libc::SYS_getpid, [0; 6]).expect("getpid"), pid.as_raw() as u64);
        }
        session.give_back().expect("give back");
        let now = stopped.xstate().expect("xstate");
        // But for XSTATE_BV (bytes 512 to 519), where the CPU notes which parts it found in their initial state.
        let differing: Vec<_> =
            (0..xstate.len()).filter(|at| !(512..520).contains(at)).filter(|at| now.get(*at) != xstate.get(*at)).collect();
        assert_eq!((now.len(), differing), (xstate.len(), Vec::new()), "bytes of the vector state that differ");
        assert_eq!(stopped.signal_mask().expect("mask"), mask);
        // What an interrupted call left is settled; all else is as it was.
        let mut back = stopped.registers().expect("registers");
        (back.0.rax, back.0.rip, back.0.orig_rax) = (registers.0.rax, registers.0.rip, registers.0.orig_rax);
        assert_eq!(back.to_bytes(), registers.to_bytes());
        stopped.detach().expect("detach");
        sessions += 1;
        std::thread::sleep(Duration::from_micros(500));
    }
    assert!(sessions > 20, "it was over after {sessions} sessions");
    // Where it ended under our trace, its status was taken by that.
    assert!(victim.0.wait().map_or(true, |status| status.success()));
    let expected = Command::new("/usr/bin/sha256sum").stdin(std::fs::File::open(&data).expect("open")).output().expect("run");
    assert_eq!(std::fs::read(&sum).expect("read"), expected.stdout, "the checksum it came to");
}

#[test]
fn a_list_of_calls_has_an_answer_for_each() {
    let sleep = Victim::sleep();
    let stopped = Running::seize(sleep.pid()).and_then(Running::interrupt).expect("stop");
    let memory = sleep.memory();
    let stub = sleep.stub(&memory);
    let mut session = Borrowed::begin(&stopped, &stub).expect("begin");
    let scratch = session.map_scratch(8192).expect("scratch pages");
    for round in 0..20 {
        let mut list = CallList::default();
        list.push(libc::SYS_getpid, [0; 6]);
        list.push(libc::SYS_close, [12345, 0, 0, 0, 0, 0]);
        list.push(libc::SYS_prctl, [libc::PR_GET_NAME as u64, scratch, 0, 0, 0, 0]);
        if round % 2 == 1 {
            // It would ignore this one; the list goes on behind it.
            kill(sleep.pid(), Signal::SIGURG).expect("kill");
        }
        let answers = session.call_all(list, VirtAddr(scratch + 4096), libc::SIGURG).expect("a list");
        assert_eq!(answers, [i64::from(sleep.pid().as_raw()), -i64::from(libc::EBADF), 0]);
        let mut name = [0; 6];
        memory.read(VirtAddr(scratch), &mut name).expect("read");
        assert_eq!(&name, b"sleep\0");
    }
    session.unmap_scratch(scratch, 8192).expect("unmap");
    session.give_back().expect("give back");
    stopped.detach().expect("detach");
    eventually("it sleeps again", || sleep.state() == Some('S'));
    assert_eq!(sleep.status("SigBlk"), "0000000000000000");
}

#[test]
fn an_error_of_a_call_is_an_errno() {
    let sleep = Victim::sleep();
    let stopped = Running::seize(sleep.pid()).and_then(Running::interrupt).expect("stop");
    let memory = sleep.memory();
    let stub = sleep.stub(&memory);
    let mut session = Borrowed::begin(&stopped, &stub).expect("begin");
    let cases: [(i64, [u64; 6], Errno); 5] = [
        (libc::SYS_close, [12345, 0, 0, 0, 0, 0], Errno::EBADF),
        (libc::SYS_openat, [u64::MAX, 1, 0, 0, 0, 0], Errno::EFAULT),
        (libc::SYS_munmap, [1, 1, 0, 0, 0, 0], Errno::EINVAL),
        (libc::SYS_kill, [0x3fff_ffff, 0, 0, 0, 0, 0], Errno::ESRCH),
        (100_000, [0; 6], Errno::ENOSYS),
    ];
    for (number, args, errno) in cases {
        match session.call(number, args) {
            Err(CallError::Errno(found)) => assert_eq!(found, errno, "call {number}"),
            other => panic!("call {number} gave {other:?}"),
        }
    }
    // A large value that is no error.
    let page = session.call(libc::SYS_mmap, [0, 4096, 3, 0x22, u64::MAX, 0]).expect("mmap");
    assert!(page > 1 << 40, "{page:#x}");
    session.call(libc::SYS_munmap, [page, 4096, 0, 0, 0, 0]).expect("munmap");
    session.give_back().expect("give back");
    stopped.detach().expect("detach");
    eventually("it sleeps again", || sleep.state() == Some('S'));
}

/// A fresh child with a page for a list and one for what its calls point to, and the stub behind them.
fn with_lists(works: impl FnOnce(&mut Remote<'_>, &ProcessMemory, [VirtAddr; 3])) {
    let stopped = spawn_stopped(free_pid()).expect("spawn");
    let at = VirtAddr(stopped.registers().expect("registers").0.rip - 2);
    block_signals(&stopped, true).expect("block");
    let memory = ProcessMemory::open(stopped.tid()).expect("open");
    let mut remote = Remote::new(&stopped, at).expect("begin");
    let page = remote.call(libc::SYS_mmap, [0, 3 * 4096, 7, 0x22, u64::MAX, 0]).expect("mmap");
    let [list, data, stub] = [0, 4096, 8192].map(|offset| VirtAddr(page + offset));
    memory.write(stub, &STUB).expect("write");
    works(&mut remote, &memory, [list, data, stub]);
    kill_and_reap(stopped.tid());
}

#[test]
fn a_list_of_calls_is_made_in_order() {
    with_lists(|remote, memory, [list, data, stub]| {
        // A file of 70 bytes, written one by one at its end, read back as a whole.
        memory.write(data, b"a\0").expect("write");
        let file = remote.call(libc::SYS_memfd_create, [data.0, 0, 0, 0, 0, 0]).expect("memfd");
        memory.write(data, &(0..70).collect::<Vec<u8>>()).expect("write");
        let mut calls = CallList::default();
        (0..70).for_each(|byte| calls.push(libc::SYS_write, [file, data.0 + byte, 1, 0, 0, 0]));
        calls.push(libc::SYS_pread64, [file, data.0 + 1000, 100, 0, 0, 0]);
        memory.write(list, calls.bytes()).expect("write");
        remote.call_all(stub, list, calls.len()).expect("all are made");
        let mut read = vec![0; 71];
        memory.read(VirtAddr(data.0 + 1000), &mut read).expect("read");
        assert_eq!(read, (0..70).chain([0]).collect::<Vec<u8>>());
    });
}

#[test]
fn a_list_ends_with_the_call_that_fails() {
    with_lists(|remote, memory, [list, _, stub]| {
        remote.call(libc::SYS_umask, [0; 6]).expect("umask");
        for failing in [0, 1, 5, 9] {
            let mut calls = CallList::default();
            for at in 0..10 {
                let number = if at == failing { libc::SYS_close } else { libc::SYS_umask };
                calls.push(number, [100 + at, 0, 0, 0, 0, 0]);
            }
            memory.write(list, calls.bytes()).expect("write");
            let error = remote.call_all(stub, list, calls.len()).expect_err("one fails");
            assert!(error.at as u64 == failing && matches!(error.source, CallError::Errno(Errno::EBADF)), "{failing}: {error:?}");
            // What came before it was made, what comes after it was not.
            let before = remote.call(libc::SYS_umask, [0; 6]).expect("umask");
            assert_eq!(before, if failing == 0 { 0 } else { (100 + failing - 1) & 0o777 }, "{failing}");
        }
    });
}

#[test]
fn signals_from_outside_do_not_end_a_list() {
    with_lists(|remote, memory, [list, data, stub]| {
        // 20 ms a call: the signals come in between.
        memory.write(data, &[0_u64.to_ne_bytes(), 20_000_000_u64.to_ne_bytes()].concat()).expect("write");
        let mut calls = CallList::default();
        (0..10).for_each(|_| calls.push(libc::SYS_nanosleep, [data.0, 0, 0, 0, 0, 0]));
        memory.write(list, calls.bytes()).expect("write");
        let (tid, begun) = (remote.tid(), Instant::now());
        let sender = std::thread::spawn(move || {
            for signal in [Signal::SIGTERM, Signal::SIGSTOP, Signal::SIGUSR1, Signal::SIGSTOP] {
                std::thread::sleep(Duration::from_millis(30));
                kill(tid, signal).expect("kill");
            }
        });
        remote.call_all(stub, list, calls.len()).expect("all are made");
        sender.join().expect("it sends");
        assert!(begun.elapsed() >= Duration::from_millis(200), "a sleep was cut short");
        let pid = remote.call(libc::SYS_getpid, [0; 6]).expect("getpid");
        assert_eq!(pid, tid.as_raw() as u64);
    });
}

#[test]
fn an_interrupted_sleep_goes_on_to_its_end() {
    let begun = Instant::now();
    let mut sleep = Victim::start("/usr/bin/sleep", &["1"]);
    eventually("it sleeps", || sleep.state() == Some('S'));
    let stopped = Running::seize(sleep.pid()).and_then(Running::interrupt).expect("stop");
    let memory = sleep.memory();
    let stub = sleep.stub(&memory);
    let mut session = Borrowed::begin(&stopped, &stub).expect("begin");
    session.call(libc::SYS_getuid, [0; 6]).expect("getuid");
    session.give_back().expect("give back");
    stopped.detach().expect("detach");
    assert!(sleep.0.wait().is_ok_and(|status| status.success()));
    assert!(begun.elapsed() >= Duration::from_secs(1), "it slept for {:?} only", begun.elapsed());
}

#[test]
fn a_stop_signal_during_a_session_is_kept() {
    let sleep = Victim::sleep();
    let stopped = Running::seize(sleep.pid()).and_then(Running::interrupt).expect("stop");
    let memory = sleep.memory();
    let stub = sleep.stub(&memory);
    let mut session = Borrowed::begin(&stopped, &stub).expect("begin");
    kill(sleep.pid(), Signal::SIGSTOP).expect("kill");
    for _ in 0..3 {
        assert_eq!(session.call(libc::SYS_getpid, [0; 6]).expect("getpid"), sleep.pid().as_raw() as u64);
    }
    session.give_back().expect("give back");
    stopped.detach().expect("detach");
    eventually("it is stopped as somebody asked", || sleep.state() == Some('T'));
    kill(sleep.pid(), Signal::SIGCONT).expect("kill");
    eventually("it sleeps again", || sleep.state() == Some('S'));
}

#[test]
fn a_stopped_process_makes_calls_and_is_left_stopped() {
    let sleep = Victim::sleep();
    kill(sleep.pid(), Signal::SIGSTOP).expect("kill");
    eventually("it stops", || sleep.state() == Some('T'));
    let stopped = Running::seize(sleep.pid()).and_then(Running::interrupt).expect("stop");
    assert_eq!(stopped.group_stop(), Some(libc::SIGSTOP));
    let memory = sleep.memory();
    let stub = sleep.stub(&memory);
    let mut session = Borrowed::begin(&stopped, &stub).expect("begin");
    for _ in 0..3 {
        assert_eq!(session.call(libc::SYS_getpid, [0; 6]).expect("getpid"), sleep.pid().as_raw() as u64);
    }
    session.give_back().expect("give back");
    stopped.detach().expect("detach");
    eventually("it is stopped", || sleep.state() == Some('T'));
    assert_eq!(sleep.status("TracerPid"), "0");
    kill(sleep.pid(), Signal::SIGCONT).expect("kill");
    eventually("it sleeps again", || sleep.state() == Some('S'));
}

/// A signal that comes during a session ends a call that it would have ended without: `pause` returns.
#[test]
fn a_signal_during_a_session_interrupts_the_threads_own_call() {
    let text = "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: None)\nsignal.pause()\nsys.exit(7)";
    let mut python = Victim(Command::new("/usr/bin/python3").args(["-c", text]).spawn().expect("start"));
    eventually("it pauses", || std::fs::read_to_string(python.proc("syscall")).is_ok_and(|call| call.starts_with("34 ")));
    let stopped = Running::seize(python.pid()).and_then(Running::interrupt).expect("stop");
    let memory = python.memory();
    let stub = python.stub(&memory);
    let mut session = Borrowed::begin(&stopped, &stub).expect("begin");
    kill(python.pid(), Signal::SIGUSR1).expect("kill");
    session.call(libc::SYS_getpid, [0; 6]).expect("getpid");
    session.give_back().expect("give back");
    stopped.detach().expect("detach");
    eventually("it ends by itself", || python.0.try_wait().is_ok_and(|ended| ended.is_some()));
    assert_eq!(python.0.wait().expect("wait").code(), Some(7));
}

#[test]
fn threads_that_are_gone_or_not_ours_are_told_apart() {
    let mut sleep = Victim::sleep();
    let running = Running::seize(sleep.pid()).expect("seize");
    kill(sleep.pid(), Signal::SIGKILL).expect("kill");
    eventually("it is dead", || sleep.state() == Some('Z'));
    let outcome = running.interrupt();
    assert!(matches!(outcome, Err(TraceError::Gone(pid)) if pid == sleep.pid()), "{outcome:?}");
    let _ = sleep.0.wait(); // its status was taken by the tracer
    let outcome = Running::seize(sleep.pid());
    assert!(matches!(outcome, Err(TraceError::Gone(_))), "{outcome:?}");
    let kernel_thread = Running::seize(Pid::from_raw(2));
    assert!(matches!(kernel_thread, Err(TraceError::NotPermitted(_))), "{kernel_thread:?}");

    let sleep = Victim::sleep();
    let stopped = Running::seize(sleep.pid()).and_then(Running::interrupt).expect("stop");
    let memory = sleep.memory();
    let stub = sleep.stub(&memory);
    let mut session = Borrowed::begin(&stopped, &stub).expect("begin");
    kill(sleep.pid(), Signal::SIGKILL).expect("kill");
    eventually("it is dead", || matches!(sleep.state(), None | Some('Z' | 'X')));
    let outcome = session.call(libc::SYS_getpid, [0; 6]);
    assert!(matches!(outcome, Err(CallError::Trace(TraceError::Gone(_)))), "{outcome:?}");
}

/// Run as another process by [`a_tracers_death_lets_go`]: seize the pid given, get as far as told, and wait.
#[test]
fn somebody_elses_tracer() {
    let Ok(words) = std::env::var("DEFROST_TRACE") else { return };
    let (pid, until) = words.split_once(' ').expect("a pid and a word");
    let pid = Pid::from_raw(pid.parse().expect("a pid"));
    let stopped = Running::seize(pid).and_then(Running::interrupt).expect("stop");
    let memory = ProcessMemory::open(pid).expect("open");
    let (at, text) = vdso_of(pid);
    let stub = ReturnStub::place(&memory, at, &text).expect("write").expect("there is room");
    if until != "outside" {
        let mut session = Borrowed::begin(&stopped, &stub).expect("begin");
        let scratch = if until == "begun" { 0 } else { session.map_scratch(8192).expect("scratch pages") };
        if until == "listing" {
            memory.write(VirtAddr(scratch), &[1_u64, 0].map(u64::to_ne_bytes).concat()).expect("write"); // 1 s
            let mut list = CallList::default();
            list.push(libc::SYS_nanosleep, [scratch, 0, 0, 0, 0, 0]);
            let _ = session.call_all(list, VirtAddr(scratch + 4096), libc::SIGURG); // it does not come to its end
        }
        println!("\ntracing");
        std::thread::sleep(Duration::from_secs(1000));
    }
    std::thread::sleep(Duration::from_secs(1000));
}

#[test]
fn a_tracers_death_lets_go() {
    for until in ["outside", "begun", "mapped", "listing"] {
        let sleep = Victim::sleep();
        let before = std::fs::read_to_string(sleep.proc("maps")).expect("maps");
        let call = std::fs::read_to_string(sleep.proc("syscall")).expect("syscall");
        let mut command = Command::new(std::env::current_exe().expect("our path"));
        command.args(["--exact", "somebody_elses_tracer", "--nocapture"]).stdout(Stdio::null());
        command.env("DEFROST_TRACE", format!("{} {until}", sleep.pid()));
        let mut tracer = command.spawn().expect("start");
        eventually("it is stopped", || sleep.state() == Some('t'));
        std::thread::sleep(Duration::from_millis(200)); // to where it waits
        tracer.kill().expect("kill");
        tracer.wait().expect("wait");
        eventually("it has its own mask again", || sleep.status("SigBlk") == "0000000000000000");
        eventually("it sleeps again", || sleep.state() == Some('S'));
        assert_eq!(sleep.status("TracerPid"), "0");
        let after = std::fs::read_to_string(sleep.proc("maps")).expect("maps");
        assert_eq!(before, after, "{until}");
        // The same call with the same stack and instruction pointer; a sleep goes on by restart_syscall (219).
        let words = |text: &str| text.split_whitespace().rev().take(2).map(str::to_owned).collect::<Vec<_>>();
        let now = std::fs::read_to_string(sleep.proc("syscall")).expect("syscall");
        assert_eq!(words(&now), words(&call), "{until}: {now} instead of {call}");
    }
}

/// A pid that nobody has: one of a process that has just ended.
fn free_pid() -> u32 {
    let mut child = Command::new("true").spawn().expect("start");
    child.wait().expect("wait");
    child.id()
}

#[test]
fn a_child_is_made_under_the_pid_asked_for() {
    let pid = free_pid();
    let stopped = spawn_stopped(pid).expect("spawn");
    assert_eq!(stopped.tid().as_raw() as u32, pid);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    assert!(stat.contains(") t "), "{stat}");
    // Right behind a `syscall` instruction, which can be used again.
    let at = VirtAddr(stopped.registers().expect("registers").0.rip - 2);
    let mut instruction = [0; 2];
    ProcessMemory::open(stopped.tid()).expect("open").read(at, &mut instruction).expect("read");
    assert_eq!(instruction, [0x0f, 0x05]);
    let taken = spawn_stopped(pid);
    assert!(matches!(taken, Err(SpawnError::PidTaken(found)) if found == pid), "{taken:?}");
    kill_and_reap(stopped.tid());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn pids_that_cannot_be_are_named() {
    let taken = spawn_stopped(std::process::id());
    assert!(matches!(taken, Err(SpawnError::PidTaken(_))), "{taken:?}");
    // Above pid_max, which is 2^22 at most.
    for pid in [5_000_000, 0x7fff_ffff] {
        let impossible = spawn_stopped(pid);
        assert!(matches!(impossible, Err(SpawnError::Impossible(found)) if found == pid), "{impossible:?}");
    }
}

/// A child of several threads, killed while all are traced: its end is told, whichever thread is asked first.
#[test]
fn the_death_of_a_process_of_threads_is_told() {
    for leader_first in [true, false] {
        let text = "import threading, time\nfor i in range(5): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\ntime.sleep(1000)";
        let python = Victim(Command::new("/usr/bin/python3").args(["-c", text]).spawn().expect("start"));
        let tids = || -> Vec<i32> {
            let tasks = std::fs::read_dir(python.proc("task")).into_iter().flatten().flatten();
            let mut tids: Vec<i32> = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
            tids.sort_unstable_by_key(|tid| (*tid == python.pid().as_raw()) != leader_first);
            tids
        };
        eventually("its threads run", || tids().len() == 6);
        let running: Vec<_> = tids().into_iter().map(|tid| Running::seize(Pid::from_raw(tid)).expect("seize")).collect();
        kill(python.pid(), Signal::SIGKILL).expect("kill");
        for thread in running {
            let outcome = thread.stopped();
            assert!(matches!(outcome, Err(TraceError::Gone(_))), "{outcome:?}");
        }
        let ended = waitpid(python.pid(), Some(WaitPidFlag::WNOHANG));
        assert!(matches!(ended, Err(Errno::ECHILD) | Ok(WaitStatus::Signaled(..))), "{ended:?}");
    }
}
