//! Processes that cannot be checkpointed, or go away meanwhile: refused in one sentence with exit code 1, and they run on untouched.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::command::as_nobody;
use defrost_tests::guarded::state_of;
use defrost_tests::{
    Victim, binary, checkpoint, defrost, defrost_fails, defrost_fails_through, defrost_ok, defrost_tries_through, eventually, need_root,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

fn store() -> Result<(TempDir, String)> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    Ok((folder, store))
}

/// A checkpoint of `victim` is refused with these words; the victim then finds itself right.
fn refused(victim: &Victim, words: &[&str]) -> Result<()> {
    let (_folder, store) = store()?;
    let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    ensure!(words.iter().all(|word| text.contains(word)), "{text:?} lacks some of {words:?}");
    ensure!(defrost_ok(&["list", "--store", &store])?.is_empty(), "a refused checkpoint left a snapshot");
    victim.runs_untouched()?;
    victim.check("")
}

/// Tests named for what they prove, each one kind of `victims/refused.c` and words of the refusal: what it is, and what to do.
macro_rules! refusals {
    ($($name:ident: $kind:literal, $($word:literal),+;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            need_root()?;
            refused(&Victim::c("refused", &[$kind])?, &[$($word),+])
        })*
    };
}

refusals! {
    a_pty_pair_is_refused: "pty", "fd 3: /dev/ptmx", "let it close";
    an_io_uring_is_refused: "io_uring", "fd 3: anon_inode:[io_uring]", "start it without io_uring";
    unread_events_of_an_inotify_are_refused: "inotify", "fd 3: anon_inode:inotify has", "bytes of events that it has not read", "let it read them";
    a_pidfd_of_another_process_is_refused: "pidfd", "fd 3: anon_inode:[pidfd] is of another process: ", "let it close";
    a_fanotify_that_decides_is_refused: "fanotify", "fd 3: anon_inode:[fanotify] decides on the calls of others", "let it close";
    a_mount_under_way_is_refused: "mounting", "fd 3: anon_inode:[fscontext]", "let it finish mounting";
    a_bpf_map_is_refused: "bpf", "fd 3: anon_inode:bpf-map", "cannot be read back";
    a_message_queue_is_refused: "queue", "fd 3: /victim-", "a POSIX message queue", "let it close";
    a_watched_description_that_is_elsewhere_is_refused: "watched", "fd 3: epoll watches what was fd 4", "open in no descriptor any more";
    a_proc_file_of_another_process_is_refused: "other_proc", "fd 3: /proc/1/stat is of another process: 1 (", "let it close";
    another_namespace_by_descriptor_is_refused: "other_namespace", "fd 3: uts:[", "is a namespace that it does not live in";
    signals_to_another_process_are_refused: "owner", "fd 3: pipe:[", "sends its signals to process ", "F_SETOWN";
    directory_notification_is_refused: "notify", "fd 3: /", "is watched with F_NOTIFY", "inotify";
    packets_and_bytes_in_one_pipe_are_refused: "mixed", "fd 3: pipe:[", "packets (O_DIRECT) and other bytes", "let it read";
    a_userfaultfd_of_its_own_that_watches_nothing_is_refused: "idle_uffd", "fd 3: a userfaultfd of its own", "let it close";
    a_pipe_shared_with_another_process_is_refused: "shared_pipe", "fd 3: pipe:[", "leads to another process: ", "(refused)";
    an_established_tcp_connection_is_refused: "tcp", "fd 4: an established TCP connection from 127.0.0.1:", "stop its clients", "--tcp-close";
    a_unix_socket_to_another_process_is_refused: "unix", "fd 3: a unix socket connected to one", "let it close this connection";
    a_pipe_to_another_process_is_refused: "pipe", "fd 4: pipe:", "leads to another process: ", "(refused)", "let it close";
    a_named_pipe_to_another_process_is_refused: "fifo", "/fifo leads to another process: ", "(refused)", "let it close";
    a_device_is_refused: "device", "fd 3: /dev/kmsg", "the state of a device cannot be read back";
    a_child_process_is_refused: "child", "it has a child process (", "without children";
    a_seccomp_filter_is_refused: "seccomp", "seccomp filter", "start it without";
    shared_huge_pages_that_are_mapped_in_part_are_refused: "huge", "of shared huge pages is mapped in parts", "map all of it once";
    secret_memory_is_refused: "secret", "secret memory (memfd_secret)", "unmap this memory";
    system_v_shared_memory_is_refused: "sysv", "System V shared memory", "detach the segment";
    an_asynchronous_io_ring_is_refused: "aio", "an asynchronous I/O ring", "io_destroy";
    a_userfaultfd_of_its_own_is_refused: "uffd", "under a userfaultfd", "manages its own faults";
}

#[test]
fn other_namespaces_are_refused() -> Result<()> {
    need_root()?;
    for (option, name) in [("--net", "net"), ("--mount", "mnt"), ("--uts", "uts"), ("--ipc", "ipc"), ("--cgroup", "cgroup")] {
        let victim = Victim::c_as(&["unshare", option], "refused", &["nothing"])?;
        refused(&victim, &[&format!("it lives in another {name} namespace"), "run defrost inside that namespace"])?;
    }
    Ok(())
}

#[test]
fn a_pid_that_does_not_exist_is_named() -> Result<()> {
    let (_folder, store) = store()?;
    let text = defrost_fails(&["checkpoint", "4194000", "x", "--store", &store])?;
    assert!(text.contains("process 4194000 does not exist"), "{text}");
    Ok(())
}

#[test]
fn a_kernel_thread_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let text = defrost_fails(&["checkpoint", "2", "x", "--store", &store])?;
    assert!(text.contains("kernel thread"), "{text}");
    Ok(())
}

#[test]
fn a_process_of_root_is_refused_to_others() -> Result<()> {
    let (folder, store) = store()?;
    let victim = Victim::c("refused", &["nothing"])?;
    let nobody = as_nobody(folder.path())?;
    let text =
        defrost_fails_through(&nobody.each_ref().map(String::as_str), &["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    assert!(text.contains("may not be traced by this user: run defrost as its owner or as root"), "{text}");
    victim.runs_untouched()?;
    victim.check("")
}

#[test]
fn a_traced_process_is_refused_and_stays_traced() -> Result<()> {
    let (_folder, store) = store()?;
    let victim = Victim::c("refused", &["nothing"])?;
    let tracer = Victim::c("tracer", &[&victim.pid().to_string()])?;
    let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    assert!(text.contains(&format!("already traced by process {}: end that debugger", tracer.pid())), "{text}");
    tracer.check("")?;
    victim.runs_untouched()?;
    victim.check("")
}

/// Stopped and continued all the time: each checkpoint is right, and never ends the stop of somebody else.
#[test]
fn a_process_that_is_stopped_meanwhile_is_captured_and_stays_stopped() -> Result<()> {
    let (_folder, store) = store()?;
    let victim = Victim::c("spawner", &[])?;
    let pid = Pid::from_raw(victim.pid() as i32);
    for round in 0..30_u64 {
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(noise(round) % 30_000));
            kill(pid, Signal::SIGSTOP)
        });
        let args = ["checkpoint", &victim.pid().to_string(), &format!("x:{round}"), "--store", &store, "--leave-running"];
        defrost_ok(&args).with_context(|| format!("round {round}"))?;
        stopper.join().map_err(|_| anyhow::anyhow!("the stopper panicked"))??;
        eventually("the stop holds", || state_of(victim.pid()) == Some('T')).with_context(|| format!("round {round}"))?;
        kill(pid, Signal::SIGCONT)?;
    }
    eventually("it goes on", || state_of(victim.pid()) != Some('T'))?;
    victim.runs_untouched()?;
    victim.check("")
}

/// splitmix64: rounds differ, runs do not.
fn noise(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
}

/// It exits by itself (even rounds) or is killed (odd rounds) at some moment before, during or after the checkpoint.
#[test]
fn a_process_that_ends_meanwhile_is_captured_or_said_to_be_gone() -> Result<()> {
    let (folder, store) = store()?;
    let (mut captured, mut gone) = (0, 0);
    for round in 0..60_u64 {
        let mut victim = Victim::c("brief", &[])?;
        let after = Duration::from_micros(noise(round) % 40_000);
        let (pid, go) = (victim.pid(), victim.folder().join("go"));
        let ender = std::thread::spawn(move || -> Result<()> {
            if round % 2 == 0 {
                std::fs::write(go.with_extension("partial"), after.as_micros().to_string())?;
                Ok(std::fs::rename(go.with_extension("partial"), go)?)
            } else {
                std::thread::sleep(after);
                Ok(kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?)
            }
        });
        let told = format!("round {round}: to end after {after:?}");
        let args = ["checkpoint", &pid.to_string(), &format!("brief:{round}"), "--store", &store, "--leave-running"];
        match defrost_tries_through(&[], &args).with_context(|| told.clone())? {
            Ok(_) => captured += 1,
            Err(text) => {
                gone += 1;
                let right = text.contains(&format!("process {pid} ended during the checkpoint: nothing was stored"))
                    || text.contains(&format!("process {pid} does not exist"));
                assert!(right, "{told}: {text}");
            }
        }
        ender.join().map_err(|_| anyhow::anyhow!("the ender panicked"))??;
        eventually("it ends", || matches!(state_of(pid), None | Some('Z'))).with_context(|| told)?;
        victim.reap()?;
    }
    println!("{captured} captured, {gone} gone");
    assert_eq!(defrost_ok(&["list", "--store", &store])?.lines().count(), captured);
    assert_eq!(std::fs::read_dir(folder.path().join("tmp"))?.count(), 0);
    Ok(())
}

/// Thirty checkpoints of a process whose threads come and go; the last of them is restored.
#[test]
fn threads_that_come_and_go_are_all_frozen() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("spawner", &[])?;
    let pid = victim.pid().to_string();
    for round in 0..29 {
        let args = ["checkpoint", &pid, &format!("spawner:{round}"), "--store", &store, "--leave-running"];
        defrost_ok(&args).with_context(|| format!("round {round}"))?;
        victim.runs_untouched().with_context(|| format!("round {round}"))?;
    }
    checkpoint(&mut victim, "spawner:last", &store)?;
    // The tids were drawn from those that are free, so that another process may have one by now, for a while.
    let mut said = String::new();
    eventually("its tids are free", || match defrost_tries_through(&[], &["restore", "spawner:last", "--store", &store, "--detach"]) {
        Ok(Ok(_)) => true,
        Ok(Err(text)) => {
            said = text;
            !said.contains("is taken by")
        }
        Err(error) => {
            said = format!("{error:#}");
            true
        }
    })?;
    victim.check("").with_context(|| said)
}

#[test]
fn defrost_itself_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let program = binary("defrost")?;
    let exec = format!("exec {} checkpoint $$ x --store {store}", program.display());
    // The shell becomes the defrost that is told its own pid; the words behind are the shell's and not looked at.
    let text = defrost_fails_through(&["sh", "-c", &exec], &[])?;
    assert!(text.contains("it is defrost itself") && text.contains("name another process"), "{text}");
    Ok(())
}

#[test]
fn a_thread_is_no_process() -> Result<()> {
    let (_folder, store) = store()?;
    let victim = Victim::c("spawner", &[])?;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", victim.pid()))?;
    let mut tids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok());
    // Those that spawn stay, and are listed first, as they began first: numbers start again at the lowest once they are used up.
    let tid = tids.find(|tid| *tid != victim.pid()).context("it has threads")?;
    let text = defrost_fails(&["checkpoint", &tid.to_string(), "x", "--store", &store])?;
    let words = format!("{tid} is a thread of process {}", victim.pid());
    assert!(text.contains(&words) && text.contains("name the process"), "{text}");
    victim.runs_untouched()?;
    victim.check("")
}

#[test]
fn malformed_arguments_are_usage_errors() -> Result<()> {
    let (_folder, store) = store()?;
    let pid = std::process::id().to_string();
    let usages: &[&[&str]] = &[
        &["checkpoint", "x", "name"],
        &["checkpoint", "-1", "name"],
        &["checkpoint", &pid, "../name"],
        &["checkpoint", &pid, "a:b:c"],
        &["checkpoint", &pid, ".hidden"],
        &["checkpoint", &pid, "a/b"],
        &["checkpoint", &pid, ""],
        &["checkpoint", &pid, "x", "--chunk-size", "5000"],
        &["checkpoint", &pid, "x", "--level", "high"],
        &["checkpoint", &pid],
        &["restore", "a b"],
        &["restore", "x", "--eager", "--no-background"],
        &["verify", ":"],
        &["remove", "-x"],
        &["wait", "x"],
        &["freeze", &pid],
    ];
    for usage in usages {
        let output = defrost(&[usage, &["--store", &store][..]].concat())?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{usage:?}: {text}");
        assert!(text.starts_with("error: ") && output.stdout.is_empty(), "{usage:?}: {text}");
    }
    assert!(!Path::new(&store).join("packs").exists(), "a usage error made a store");
    Ok(())
}
