//! Hosts that lack what a restore needs: files, pids, room for processes or descriptors. Said in one sentence, nothing left behind.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{
    Ended, Victim, binary, checkpoint, checkpoint_for_elsewhere, defrost_fails, defrost_fails_through, defrost_ok, defrost_tries_through,
    eventually, need_root, restore,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

fn store() -> Result<(TempDir, String)> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    Ok((folder, store))
}

fn ensure_words(text: &str, words: &[&str]) -> Result<()> {
    ensure!(words.iter().all(|word| text.contains(word)), "{text:?} lacks some of {words:?}");
    Ok(())
}

/// A restore is refused with these words and leaves nothing.
fn refused(victim: &Victim, store: &str, words: &[&str]) -> Result<()> {
    ensure_words(&defrost_fails(&["restore", "x", "--store", store, "--detach"])?, words)?;
    victim.left_nothing()
}

#[test]
fn a_mapped_file_that_changed_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("memory", &["1"])?;
    checkpoint(&mut victim, "x", &store)?;
    let mapped = victim.folder().join("mapped");
    let (contents, path) = (fs::read(&mapped)?, mapped.to_string_lossy().into_owned());
    let modified = fs::metadata(&mapped)?.modified()?;
    let mut other = contents.clone();
    other[0] ^= 1;
    fs::write(&mapped, &other)?;
    refused(&victim, &store, &[&path, "was modified since the checkpoint: it has other contents", "bring back the file as it was"])?;
    fs::write(&mapped, &contents[1..])?;
    refused(&victim, &store, &[&path, "bytes instead of", "bring back the file as it was"])?;
    fs::remove_file(&mapped)?;
    refused(&victim, &store, &[&path, "cannot be found", "bring back the file as it was"])?;
    fs::create_dir(&mapped)?;
    refused(&victim, &store, &[&path, "bring back the file as it was"])?;
    fs::remove_dir(&mapped)?;
    fs::write(&mapped, &contents)?;
    fs::File::options().write(true).open(&mapped)?.set_modified(modified)?;
    restore(&victim, "x", &store)?;
    victim.check("")
}

/// A file that was merely open may have grown or been rewritten meanwhile, as logs and databases are by others: its descriptor goes
/// on at its position, as it would have without a checkpoint. Missing it is refused, and so is one that is smaller than it was: the
/// position and what the process knows of the contents may lie beyond its end. (CRIU refuses any other size unless told not to
/// look.)
#[test]
fn an_open_file_that_is_gone_or_smaller_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("descriptors", &["regular"])?;
    checkpoint(&mut victim, "x", &store)?;
    let text = victim.folder().join("text");
    let (contents, path) = (fs::read(&text)?, text.to_string_lossy().into_owned());
    fs::write(&text, &contents[1..])?;
    refused(&victim, &store, &[&path, "9 bytes instead of 10", "bring back the file as it was"])?;
    fs::remove_file(&text)?;
    refused(&victim, &store, &[&path, "cannot be found", "bring back the file as it was"])?;
    fs::create_dir(&text)?;
    refused(&victim, &store, &[&path, "is no regular file", "bring back the file as it was"])?;
    fs::remove_dir(&text)?;
    fs::write(&text, &contents)?;
    restore(&victim, "x", &store)?;
    victim.check("")
}

#[test]
fn a_folder_that_is_gone_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("descriptors", &["directory"])?;
    checkpoint(&mut victim, "x", &store)?;
    let (folder, away) = (victim.folder().join("folder"), victim.folder().join("away"));
    fs::rename(&folder, &away)?;
    refused(&victim, &store, &[&folder.to_string_lossy(), "cannot be found"])?;
    fs::write(&folder, "")?;
    refused(&victim, &store, &[&folder.to_string_lossy(), "is no directory any more"])?;
    fs::remove_file(&folder)?;
    fs::rename(&away, &folder)?;
    restore(&victim, "x", &store)?;
    victim.check("")
}

#[test]
fn a_port_in_use_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let text = "import socket, time\na = socket.create_server(('127.0.0.1', 0))\nprint('port', a.getsockname()[1], flush=True)\ntime.sleep(1000)\n";
    let mut victim = Victim::python(text)?;
    victim.wait_for("port", 1)?;
    eventually("the whole line", || victim.output().ends_with('\n'))?;
    let said = victim.output();
    let port: u16 = said.trim().trim_start_matches("port ").parse().with_context(|| format!("it said {said:?}"))?;
    checkpoint(&mut victim, "x", &store)?;
    let held = std::net::TcpListener::bind(("127.0.0.1", port))?;
    refused(&victim, &store, &["reopen fd 3", &format!("127.0.0.1:{port}"), "end the process that uses it"])?;
    drop(held);
    restore(&victim, "x", &store)
}

#[test]
fn a_pid_in_use_is_refused_with_its_holder() -> Result<()> {
    let (_folder, store) = store()?;
    let victim = Victim::c("spawner", &[])?;
    defrost_ok(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store, "--leave-running"])?;
    let text = defrost_fails(&["restore", "x", "--store", &store, "--detach"])?;
    ensure_words(&text, &[&format!("pid {} is taken by spawner: end it first", victim.pid())])?;
    victim.runs_untouched()?;
    victim.check("")
}

/// A process that the victim left behind is in its session still: the number cannot be given out again.
#[test]
fn a_pid_whose_session_has_members_is_refused_with_one() -> Result<()> {
    let (_folder, store) = store()?;
    let text = "import os, time\nif os.fork() == 0:\n    if os.fork(): os._exit(0)\n    os.execv('/usr/bin/sleep', ['sleep', '1000'])\n\
                os.wait()\nprint('ready', flush=True)\ntime.sleep(1000)\n";
    let mut victim = Victim::python(text)?;
    victim.wait_for("ready", 1)?;
    checkpoint_for_elsewhere(&mut victim, "x", &store)?;
    let tried = defrost_fails(&["restore", "x", "--store", &store, "--detach"]);
    let pgrep = Command::new("pgrep").args(["--session", &victim.pid().to_string()]).output()?;
    let member: u32 = String::from_utf8_lossy(&pgrep.stdout).trim().parse().context("the one that was left behind")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(member as i32), nix::sys::signal::Signal::SIGKILL)?;
    let words = format!("pid {} is taken by the process group or session of sleep ({member}): end it first", victim.pid());
    ensure_words(&tried?, &[&words])?;
    eventually("it is gone", || !Path::new(&format!("/proc/{member}")).exists())?;
    restore(&victim, "x", &store)
}

/// A dead process of the victim's session, whose reaper takes its time: the number is waited for, to the moment it is free.
#[test]
fn a_pid_whose_session_is_dead_and_not_reaped_is_waited_for() -> Result<()> {
    let (_folder, store) = store()?;
    let text = "import os, time\n\
                def until(name):\n while not os.path.exists(name): time.sleep(0.001)\n\
                if os.fork() == 0:\n\
                \x20if os.fork(): os._exit(0)\n\
                \x20left = os.fork()\n\
                \x20if left == 0: until('end'); os._exit(0)\n\
                \x20os.setsid(); until('reap'); os.waitpid(left, 0); os._exit(0)\n\
                os.wait()\nprint('ready', flush=True)\ntime.sleep(1000)\n";
    for round in 0..8 {
        let mut victim = Victim::python(text)?;
        victim.wait_for("ready", 1)?;
        let name = format!("x:{round}");
        checkpoint_for_elsewhere(&mut victim, &name, &store)?;
        victim.publish("end", "")?;
        std::thread::scope(|scope| {
            let restored = scope.spawn(|| restore(&victim, &name, &store));
            // Longer than a number is waited for that nobody has.
            std::thread::sleep(std::time::Duration::from_millis(400 + round));
            let early = restored.is_finished();
            victim.publish("reap", "")?;
            restored.join().map_err(|_| anyhow::anyhow!("the restore panicked"))??;
            ensure!(!early, "round {round}: its number was free before the dead was reaped");
            Ok(())
        })
        .with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// A process under a pid of our choice: others may get it first, so it is tried again.
fn process_with_pid(pid: u32) -> Result<Child> {
    let mut found = None;
    eventually("a process gets the pid asked for", || {
        let Ok(()) = fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()) else { return false };
        let Ok(mut child) = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn() else { return false };
        if child.id() == pid {
            found = Some(child);
            return true;
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    })?;
    found.context("eventually() says that it is there")
}

#[test]
fn a_tid_in_use_is_refused_with_its_holder() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("threads", &["futex"])?;
    let tasks = fs::read_dir(format!("/proc/{}/task", victim.pid()))?;
    let tids: Vec<u32> = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    let tid = *tids.iter().max().context("it has threads")?;
    checkpoint(&mut victim, "x", &store)?;
    let mut holder = process_with_pid(tid)?;
    let tried = refused(&victim, &store, &[&format!("pid {tid} is taken by sleep: end it first")]);
    holder.kill()?;
    holder.wait()?;
    tried?;
    restore(&victim, "x", &store)?;
    victim.check("")
}

/// In a pid namespace whose numbers end below the pid that is wanted.
#[test]
fn an_impossible_pid_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("refused", &["nothing"])?;
    ensure!(victim.pid() > 400, "this machine is too young: its pids are still below 400");
    checkpoint(&mut victim, "x", &store)?;
    let everywhere = "/proc/sys/kernel/pid_max";
    let before = fs::read_to_string(everywhere)?;
    // Since Linux 6.14 each pid namespace has a limit of its own.
    let shell = "echo 400 > /proc/sys/kernel/pid_max && \"$0\" \"$@\"";
    let through = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", shell];
    let text = defrost_fails_through(&through, &["restore", "x", "--store", &store, "--detach"]);
    let after = fs::read_to_string(everywhere)?;
    if after != before {
        fs::write(everywhere, &before)?; // an older kernel: put it back
        anyhow::bail!("pid_max is not the namespace's own here: Linux 6.14 is needed");
    }
    ensure_words(&text?, &[&format!("pid {} is not possible in this pid namespace", victim.pid())])?;
    victim.left_nothing()
}

/// A cgroup that allows so much of something; gone with its value.
struct Crowd(PathBuf);

impl Crowd {
    fn of(controller: &str) -> Result<Self> {
        let (v1, v2) = (Path::new("/sys/fs/cgroup").join(controller), PathBuf::from("/sys/fs/cgroup"));
        let path = if v1.is_dir() { v1 } else { v2 }.join(format!("defrost-test-{controller}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// The dead count until they were reaped.
    fn is_empty(&self) -> Result<()> {
        let current = self.0.join("pids.current");
        eventually("the cgroup is empty", || fs::read_to_string(&current).is_ok_and(|count| count == "0\n"))
    }

    fn allow(&self, processes: u32) -> Result<()> {
        Ok(fs::write(self.0.join("pids.max"), processes.to_string())?)
    }

    /// So much memory, and no swap.
    fn allow_memory(&self, bytes: u64) -> Result<()> {
        let mut found = false;
        // Version 1 wants the smaller limit to be set first.
        for _ in 0..2 {
            for (file, value) in
                [("memory.limit_in_bytes", bytes), ("memory.memsw.limit_in_bytes", bytes), ("memory.max", bytes), ("memory.swap.max", 0)]
            {
                let path = self.0.join(file);
                found |= path.exists() && fs::write(path, value.to_string()).is_ok();
            }
        }
        ensure!(found, "{} has no memory controller", self.0.display());
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Err(error) = eventually("the cgroup is empty", || fs::remove_dir(&self.0).is_ok()) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}

/// With room for one more process, then two, … until it is enough: each time short of that it is said, and nothing is left.
#[test]
fn too_few_processes_are_told_until_there_are_enough() -> Result<()> {
    let (_folder, store) = store()?;
    let crowd = Crowd::of("pids")?;
    let mut victim = Victim::c("threads", &["all"])?;
    checkpoint(&mut victim, "x", &store)?;
    let enter = format!("echo 0 > {}/cgroup.procs && exec \"$0\" \"$@\"", crowd.0.display());
    let mut said = Vec::new();
    for processes in 1..100 {
        crowd.allow(processes)?;
        crowd.is_empty()?;
        let tried = defrost_tries_through(
            &["sh", "-c", &enter],
            &["restore", "x", "--store", &store, "--detach", "--no-background", "--inherit-cgroups"],
        )
        .with_context(|| format!("room for {processes}"))?;
        match tried {
            Ok(_) => break,
            Err(text) => {
                victim.left_nothing().with_context(|| format!("room for {processes}: {text}"))?;
                said.push(text);
            }
        }
    }
    ensure!(said.len() > 10, "fifteen threads fit where {} processes are allowed", said.len());
    for text in &said {
        ensure!(text.contains("a process limit is full"), "{text}");
    }
    crowd.allow(1000)?;
    let outcome = victim.check("");
    victim.end()?;
    outcome
}

/// An eager restore into a group that allows less memory than the process has is refused before anything is made.
#[test]
fn an_eager_restore_does_not_begin_in_too_small_a_cgroup() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let (_folder, store) = store()?;
    let group = Crowd::of("memory")?;
    let mut victim = Victim::c("memory", &["64"])?;
    fs::write(group.0.join("cgroup.procs"), victim.pid().to_string())?;
    checkpoint(&mut victim, "x", &store)?;
    group.allow_memory(48 * MIB)?;
    let text = defrost_fails(&["restore", "x", "--store", &store, "--detach", "--eager"])?;
    ensure_words(&text, &[&group.0.display().to_string(), "allows", "raise that limit"])?;
    victim.left_nothing()?;
    // Room enough, but for another process, which the kernel would end.
    group.allow_memory(100 * MIB)?;
    let neighbour = format!("echo 0 > {}/cgroup.procs && exec \"$0\" \"$@\"", group.0.display());
    let held = "held = bytearray(b'x') * (64 << 20); print('held', flush=True); import time; time.sleep(1000)";
    let mut holder = Ended(Command::new("sh").args(["-c", &neighbour, "python3", "-c", held]).stdout(Stdio::piped()).spawn()?);
    let mut said = [0; 5];
    std::io::Read::read_exact(holder.0.stdout.as_mut().context("its output is piped")?, &mut said)?;
    let text = defrost_fails(&["restore", "x", "--store", &store, "--detach", "--eager"])?;
    ensure_words(&text, &[&group.0.display().to_string(), "beside what others have"])?;
    victim.left_nothing()?;
    ensure!(holder.0.try_wait()?.is_none(), "its neighbour was ended");
    drop(holder);
    group.allow_memory(512 * MIB)?;
    defrost_ok(&["restore", "x", "--store", &store, "--detach", "--eager"])?;
    let outcome = victim.check("");
    victim.end()?;
    outcome
}

/// With `ulimit -n` too small for the snapshot, then larger, … until it is enough.
#[test]
fn too_few_descriptors_are_told_until_there_are_enough() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("descriptors", &["pipe"])?;
    checkpoint(&mut victim, "x", &store)?;
    let mut said = Vec::new();
    // Fewer, and the program cannot even be loaded. A restore raises its soft limit itself, so the hard one is lowered as well.
    for descriptors in 5..60 {
        let limit = format!("--nofile={descriptors}:{descriptors}");
        let tried = defrost_tries_through(&["prlimit", &limit], &["restore", "x", "--store", &store, "--detach"])
            .with_context(|| format!("room for {descriptors}"))?;
        match tried {
            Ok(_) => break,
            Err(text) => {
                victim.left_nothing().with_context(|| format!("room for {descriptors}: {text}"))?;
                said.push((descriptors, text));
            }
        }
    }
    ensure!(said.len() > 10, "the descriptors of the snapshot and ours fit in {}", said.len());
    for (descriptors, text) in &said {
        // With enough of them, the process's own limit is what cannot be set.
        let expected = text.contains("raise ulimit -n") || text.contains("resource 7 was limited to");
        ensure!(expected, "room for {descriptors}: {text}");
    }
    ensure!(said[0].1.contains("raise ulimit -n"), "{}", said[0].1);
    restore(&victim, "x", &store)?;
    victim.check("")
}

/// Root without CAP_SYS_RESOURCE cannot raise a hard limit; with it the restore would succeed, so it goes without.
#[test]
fn a_hard_limit_that_is_too_low_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("refused", &["nothing"])?;
    checkpoint(&mut victim, "x", &store)?;
    let through = ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=300:300"];
    let text = defrost_fails_through(&through, &["restore", "x", "--store", &store, "--detach"])?;
    ensure_words(&text, &["this host cannot run the snapshot", "resource 7 was limited to", "ulimit -H"])?;
    victim.left_nothing()
}

/// The program itself, too, is a file that must be as it was.
#[test]
fn another_program_is_refused() -> Result<()> {
    let (folder, store) = store()?;
    let program = folder.path().join("program");
    fs::copy("/usr/bin/sleep", &program)?;
    let mut victim = Victim::start(&program.to_string_lossy(), &["1000"])?;
    eventually("it is exchanged for the launcher", || {
        fs::read_link(format!("/proc/{}/exe", victim.pid())).is_ok_and(|exe| exe == program)
    })?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    checkpoint(&mut victim, "x", &store)?;
    fs::copy(binary("defrost")?, &program)?;
    refused(&victim, &store, &[&program.to_string_lossy(), "bytes instead of"])
}
