//! Descriptors that are neither regular files nor sockets: what a checkpoint accepts of them comes back as it was.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Victim, checkpoint, defrost_fails, defrost_ok, eventually, need_root, proves, restore, victims};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::process::Stdio;

victims! {
    an_epoll_watches_a_pipe_whose_number_is_closed: "kinds", "epollgone";
    an_epoll_watches_a_pipe_whose_number_is_another_files: "kinds", "epollnull";
    an_epoll_watches_a_pipe_whose_number_is_another_pipes: "kinds", "epollpipe";
    one_number_may_be_watched_several_times: "kinds", "epolltwice";
    one_shot_interests_that_have_fired_stay_quiet: "kinds", "epollfired";
    epolls_watch_epolls: "kinds", "epollnested";
    descriptions_of_one_pipe_stay_apart: "kinds", "pipes";
    packets_in_a_pipe_keep_their_bounds: "kinds", "packets";
    pipes_without_another_end_stay_so: "kinds", "halfpipes";
    named_pipes_come_back: "kinds", "fifo";
    files_that_the_kernel_makes_up_are_the_processs_own: "kinds", "kernel";
    inotify_watches_keep_their_numbers: "kinds", "inotify";
    fanotify_marks_come_back: "kinds", "fanotify";
    pidfds_and_mere_paths_come_back: "kinds", "paths";
    locks_and_leases_are_taken_again: "kinds", "locks";
    signals_of_descriptors_find_their_owner: "kinds", "owners";
    timers_keep_flags_and_ticks: "kinds", "timers";
    flags_positions_and_the_highest_number_stay: "kinds", "flags";
}

/// What is in fdinfo of each kind of descriptor on this kernel is in the table.
#[test]
fn the_table_has_every_key_of_this_kernel() -> Result<()> {
    need_root()?;
    let victim = Victim::python(include_str!("../victims/every_kind.py"))?;
    victim.wait_for("ready", 1)?;
    let mut seen = 0;
    for entry in std::fs::read_dir(format!("/proc/{}/fd", victim.pid()))?.flatten() {
        let link = std::fs::read_link(entry.path())?.to_string_lossy().into_owned();
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{}", victim.pid(), entry.file_name().to_string_lossy()))?;
        let key = kernel::known::fdinfo::unknown_key(&link, &info);
        ensure!(key.is_none(), "{link} has {key:?}, which kernel/src/known/fdinfo.rs lacks: {info}");
        seen += usize::from(kernel::known::fdinfo::kind_of(&link).is_some());
    }
    ensure!(seen >= 15, "only {seen} kinds were looked at");
    Ok(())
}

/// The file of a named pipe is made again where it is gone, with its owner and mode.
#[test]
fn a_named_pipe_that_is_gone_is_made_again() -> Result<()> {
    need_root()?;
    let mut victim = Victim::c("kinds", &["fifo"])?;
    let store = tempfile::tempdir()?;
    let store = store.path().to_string_lossy();
    checkpoint(&mut victim, "fifo", &store)?;
    std::fs::remove_file(victim.folder().join("fifo"))?;
    std::fs::remove_file(victim.folder().join("quiet fifo"))?;
    restore(&victim, "fifo", &store)?;
    let meta = std::fs::metadata(victim.folder().join("fifo"))?;
    ensure!(meta.file_type().is_fifo() && (meta.uid(), meta.gid(), meta.mode() & 0o7777) == (33, 34, 0o642), "{meta:?}");
    victim.check("")
}

/// What waits in a pipe from outside is read after a restore that leaves the outside behind.
#[test]
fn what_standard_input_held_is_read() -> Result<()> {
    need_root()?;
    let through = ["sh", "-c", "exec \"$0\" stdin"];
    let mut victim = Victim::c_on(&through, [Stdio::piped(), Stdio::null(), Stdio::null()], "kinds")?;
    victim.stdin().context("a pipe")?.write_all(b"not read")?;
    let store = tempfile::tempdir()?;
    let store = store.path().to_string_lossy();
    checkpoint(&mut victim, "stdin", &store)?;
    let text = defrost_fails(&["restore", "stdin", "--store", &store])?;
    ensure!(text.contains("8 bytes that came before ours were not read yet: restore with --detach"), "{text}");
    restore(&victim, "stdin", &store)?;
    victim.check("")
}

/// A lock of a description that another process has open too outlives the process, as where `flock FILE PROGRAM` runs it: it could
/// not be taken again, so the process is not ended.
#[test]
fn a_lock_that_would_outlive_its_process_is_refused_first() -> Result<()> {
    need_root()?;
    let mut victim = Victim::c("kinds", &["locks"])?;
    let store = tempfile::tempdir()?;
    let store = store.path().to_string_lossy();
    for name in ["lock1", "lock2", "lock3"] {
        let path = victim.folder().join(name);
        let text = format!(
            "import ctypes, os, time\n\
             pidfd = os.pidfd_open({pid})\n\
             fds = [f for f in os.listdir('/proc/{pid}/fd') if os.readlink('/proc/{pid}/fd/' + f) == {path:?}]\n\
             assert all(ctypes.CDLL(None).syscall(438, pidfd, int(f), 0) > 0 for f in fds) and fds\n\
             print('ready', flush=True)\ntime.sleep(600)\n",
            pid = victim.pid()
        );
        let holder = Victim::python(&text)?;
        holder.wait_for("ready", 1)?;
        let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "locks", "--store", &store])?;
        let words = format!("{} is locked by process {} (python3)", path.display(), holder.pid());
        ensure!(text.contains(&words), "{text} lacks {words}");
    }
    checkpoint(&mut victim, "locks", &store).context("once the others are gone")?;
    restore(&victim, "locks", &store)?;
    victim.check("")
}

/// A lock that another process took in between is named with its holder.
#[test]
fn a_lock_that_is_taken_is_named() -> Result<()> {
    need_root()?;
    let mut victim = Victim::c("kinds", &["locks"])?;
    let store = tempfile::tempdir()?;
    let store = store.path().to_string_lossy();
    checkpoint(&mut victim, "locks", &store)?;
    for (name, lock) in [("lock0", "fcntl.lockf(f, fcntl.LOCK_EX, 1, 4)"), ("lock1", "fcntl.flock(f, fcntl.LOCK_SH)")] {
        let path = victim.folder().join(name);
        let text = format!("import fcntl, time\nf = open({path:?}, 'r+')\n{lock}\nprint('ready', flush=True)\ntime.sleep(600)\n");
        let holder = Victim::python(&text)?;
        holder.wait_for("ready", 1)?;
        let text = defrost_fails(&["restore", "locks", "--store", &store, "--detach"])?;
        let words = format!("{} is locked by process {} (python3)", path.display(), holder.pid());
        ensure!(text.contains(&words), "{text} lacks {words}");
    }
    restore(&victim, "locks", &store)?;
    victim.check("").context("once the locks are free")
}

/// `tail -f` goes on with the file that it follows.
#[test]
fn tail_follows_its_file() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    std::fs::write(&log, "first\n")?;
    let mut tail = Victim::start("/usr/bin/tail", &["-f", &log.to_string_lossy()])?;
    tail.wait_for("first", 1)?;
    let watches = |pid: u32| -> Result<bool> {
        let links = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        Ok(links.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|link| link.to_string_lossy() == "anon_inode:inotify"))
    };
    let pid = tail.pid();
    eventually("tail waits for changes", || watches(pid).unwrap_or(false))?;
    let store = tempfile::tempdir()?;
    let store = store.path().to_string_lossy();
    for (name, line) in [("tail:1", "second"), ("tail:2", "third")] {
        checkpoint(&mut tail, name, &store)?;
        restore(&tail, name, &store)?;
        ensure!(watches(tail.pid())?, "it watches nothing any more");
        std::fs::OpenOptions::new().append(true).open(&log)?.write_all(format!("{line}\n").as_bytes())?;
        tail.wait_for(line, 1)?;
        defrost_ok(&["wait", &tail.pid().to_string()])?;
    }
    ensure!(tail.output() == "first\nsecond\nthird\n", "{}", tail.output());
    Ok(())
}

/// A database in WAL mode keeps the lock that says that somebody uses it.
#[test]
fn an_sqlite_database_in_wal_mode_goes_on() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("db");
    let text = format!(
        "import sqlite3, time\n\
         db = sqlite3.connect({path:?}, isolation_level=None)\n\
         db.execute('pragma journal_mode=wal')\n\
         db.execute('create table if not exists t(n integer)')\n\
         n = 0\n\
         while True:\n \
           db.execute('insert into t values(?)', (n,))\n \
           print('rows', *db.execute('select count(*), sum(n) from t').fetchone(), *db.execute('pragma quick_check').fetchone(), flush=True)\n \
           n += 1\n \
           time.sleep(0.05)\n"
    );
    let mut writer = Victim::python(&text)?;
    writer.wait_for("rows", 3)?;
    let store = tempfile::tempdir()?;
    let store = store.path().to_string_lossy();
    let locks = |pid: u32| -> Result<Vec<String>> {
        let mut locks = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
            let text = std::fs::read_to_string(entry.path())?;
            let lines = text.lines().filter(|line| line.starts_with("lock:"));
            locks.extend(lines.map(|line| line.split_once(" P").map_or(line, |(_, rest)| rest).to_owned()));
        }
        locks.sort();
        Ok(locks)
    };
    let before = locks(writer.pid())?;
    ensure!(!before.is_empty(), "it holds no lock");
    checkpoint(&mut writer, "wal", &store)?;
    let rows = writer.count("rows");
    restore(&writer, "wal", &store)?;
    let shared = |locks: Vec<String>| locks.into_iter().filter(|lock| lock.contains("READ")).collect::<Vec<_>>();
    ensure!(shared(locks(writer.pid())?) == shared(before), "other locks are held");
    writer.wait_for("rows", rows + 3)?;
    for (at, line) in writer.output().lines().enumerate() {
        let sum = at * (at + 1) / 2;
        ensure!(line == format!("rows {} {sum} ok", at + 1), "line {at}: {line}");
    }
    Ok(())
}
