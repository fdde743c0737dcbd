//! System calls of a pager at work fail, one kind after the other (strace injects the errors): the process is served all the same, by
//! this pager or its successor, late at worst, or it or a child is ended with a reason; it never reads a wrong byte, and never hangs once the
//! errors are over.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::guarded::Guarded;
use defrost_tests::{PATIENCE, Server, Victim, checkpoint, defrost, eventually, need_root};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// Calls, the error, and when: the first time and every so many times after that (strace(1), `inject`). Errors that would be a lie, as
/// that a page was there already, are not among them: nobody could be right after those.
const CASES: [(&str, &str, &str); 17] = [
    ("read", "EINTR", "2+7"),
    ("read", "EAGAIN", "2+7"),
    ("poll,ppoll", "EINTR", "1+3"),
    ("epoll_wait,epoll_pwait", "EINTR", "1+3"),
    ("ioctl", "EAGAIN", "1+5"),
    ("ioctl", "ENOMEM", "9"),
    ("ioctl", "ENOMEM", "3+2"),
    ("recvfrom,recvmsg", "EINTR", "2+5"),
    ("recvfrom,recvmsg", "ECONNRESET", "9"),
    ("sendto,sendmsg,writev", "ECONNRESET", "5"),
    ("sendto,sendmsg,writev", "EPIPE", "7+40"),
    ("sendmsg", "ENOBUFS", "1+2"),
    ("openat", "ENOSPC", "1+3"),
    ("openat", "EMFILE", "1+3"),
    ("fallocate", "ENOSPC", "1+2"),
    ("mmap", "ENOMEM", "1+2"),
    ("fcntl", "EINTR", "1+3"),
];

/// Errors that say that there is no room, or no number, for what is kept of a forked child: the child is refused, its parent goes on.
const NO_ROOM: [&str; 4] = ["ENOSPC", "EMFILE", "ENOMEM", "ENOBUFS"];
/// What a parent says of a child that touched what it was refused: SIGBUS.
const REFUSED: &str = "a child ended with status 0x7\n";

/// strace on all threads of a process; it lets go when dropped.
struct Injecting {
    strace: Child,
    log: NamedTempFile,
}

impl Injecting {
    fn on(pid: u32, (calls, error, when): (&str, &str, &str)) -> Result<Self> {
        let inject = format!("inject={calls}:error={error}:when={when}");
        let mut strace = Command::new("strace");
        let log = NamedTempFile::new()?;
        strace.args(["-f", "-qqq", "-e", &format!("trace={calls}"), "-e", &inject, "-p", &pid.to_string(), "-o"]).arg(log.path());
        let strace = strace.stdin(Stdio::null()).spawn().context("start strace: install its package")?;
        let injecting = Self { strace, log };
        let tasks = || std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let traced = |status: String| status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|by| by.trim() != "0"));
        eventually("strace has all threads", || tasks().all(|task| std::fs::read_to_string(task.path().join("status")).is_ok_and(traced)))?;
        Ok(injecting)
    }

    /// How many calls failed that would not have.
    fn count(&self) -> Result<usize> {
        Ok(std::fs::read_to_string(self.log.path())?.matches("(INJECTED)").count())
    }
}

impl Drop for Injecting {
    fn drop(&mut self) {
        let _ = self.strace.kill(); // it may have ended with the pager
        let _ = self.strace.wait();
    }
}

/// What its verdict is; `None` where it has ended without one.
fn outcome(victim: &Victim) -> Result<Option<String>> {
    let (begun, verdict) = (Instant::now(), victim.folder().join("verdict"));
    while begun.elapsed() < PATIENCE {
        if let Ok(said) = std::fs::read_to_string(&verdict) {
            return Ok(Some(said));
        }
        if std::fs::read_link(format!("/proc/{}/exe", victim.pid())).is_err() && !verdict.exists() {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    anyhow::bail!("it hangs")
}

#[test]
fn calls_of_a_pager_fail_one_after_the_other() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("storm", &["16", "500"])?;
    checkpoint(&mut victim, "storm", &server.store())?;
    let (mut right, mut ended, mut refused, mut injected) = (0, 0, 0, 0);
    for (seed, case) in (1..).zip(CASES) {
        let guarded = Guarded::restore(&victim, "storm", &server.store(), &["--no-background"])?;
        let injecting = Injecting::on(guarded.status()?.pager_pid.context("its pager")?, case)?;
        std::fs::write(victim.folder().join("go"), format!("{seed}"))?;
        std::thread::sleep(Duration::from_millis(800));
        let count = injecting.count()?;
        println!("{case:?}: {count} calls failed");
        injected += usize::from(count > 0);
        // While a connection is interrupted over and over the process may only be late: that must be over with the errors.
        drop(injecting);
        std::fs::write(victim.folder().join("stop"), "")?;
        let outcome = outcome(&victim).with_context(|| format!("{case:?}: {:?}", guarded.status()))?;
        match outcome.as_deref() {
            Some("OK\n") => right += 1,
            Some(said) if said.ends_with(REFUSED) && NO_ROOM.contains(&case.1) => refused += 1,
            None => {
                let status = guarded.status().with_context(|| format!("{case:?}: it ended, and nobody says why"))?;
                ensure!(status.state == "failed" && status.last_error.is_some(), "{case:?}: {status:?}");
                let told = defrost(&["wait", &victim.pid().to_string()])?; // the pager waits for somebody to be told
                println!("{case:?}: {}", String::from_utf8_lossy(&told.stderr).trim_end());
                ended += 1;
            }
            Some(wrong) => anyhow::bail!("{case:?}: {wrong}"),
        }
        victim.end()?;
        std::fs::remove_file(victim.folder().join("stop"))?;
        guarded.left_nothing().with_context(|| format!("{case:?}"))?;
    }
    println!("{right} right, {ended} ended with a reason, {refused} with a child refused");
    ensure!(injected > CASES.len() / 2, "only {injected} kinds of calls were made at all");
    ensure!(right >= CASES.len() / 2, "{right} right, {ended} ended with a reason");
    Ok(())
}
