//! What a pager that starts says to the program that started it, line by line, until it serves.
//!
//! A pager that is stopped, or stuck, would keep that program waiting for ever. While no line comes
//! the program looks twice a second whether the pager is at work: a thread of it runs, or gave up
//! the processor since the last look, as every request to a store and every retry do. Looks are
//! counted, not time, so that a machine that stands still counts none (as in `crate::watchdog`).
//!
//! Known hole: on a kernel without CONFIG_PROC_CHILDREN only the supervisor is looked at, which
//! is always at work unless it is stopped.

use crate::control::runtime_dir;
use crate::task_stat;
use crate::watchdog::{LOOK, SILENT_LOOKS};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

/// Looks in a row at a pager that is not stopped and does nothing: longer than any request to a
/// store may take without an answer.
const STUCK_LOOKS: u32 = 60;
/// How long a pager that is not wanted any more may take to end by itself: it may be waiting for a
/// server.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// Why no answer comes.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// By a signal, or a tracer.
    #[error("its process {0} is stopped (SIGSTOP, or a debugger): the start was given up, begin it again")]
    Stopped(u32),
    /// It waits for something that does not come.
    #[error("its process {0} did nothing for {time} s (a file system that does not answer?): the start was given up", time = STUCK_LOOKS / 2)]
    Stuck(u32),
    /// It has ended.
    #[error("it ended before it served: {log} may say why", log = runtime_dir().join("pager.log").display())]
    Ended,
    /// The socket failed.
    #[error("listen to it: {0}")]
    Io(#[from] std::io::Error),
}

/// The other end of a socket that a pager was started with, and its supervisor.
#[derive(Debug)]
pub struct Answers {
    lines: BufReader<UnixStream>,
    supervisor: Child,
    given_up: bool,
}

impl Answers {
    /// Of the daemon that was started with the other end of `socket`.
    pub fn of(supervisor: Child, socket: UnixStream) -> std::io::Result<Self> {
        socket.set_read_timeout(Some(LOOK))?;
        socket.set_write_timeout(Some(LOOK * STUCK_LOOKS))?;
        Ok(Self { lines: BufReader::new(socket), supervisor, given_up: false })
    }

    /// The socket, to be written to.
    #[must_use]
    pub fn socket(&self) -> &UnixStream {
        self.lines.get_ref()
    }

    /// The next line.
    pub fn next_line(&mut self) -> Result<String, NoAnswer> {
        let (mut line, mut looks) = (Vec::new(), Looks::default());
        let failed = loop {
            match self.lines.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => return Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
                Ok(_) => break NoAnswer::Ended,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break NoAnswer::Ended,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if let Some(why) = looks.look(self.supervisor.id()) {
                        break why;
                    }
                }
                Err(error) => break error.into(),
            }
        };
        self.given_up = true;
        Err(failed)
    }

    /// See the daemon gone, which is not wanted any more.
    pub fn end(&mut self) {
        // It ends as it finds us gone. What fails here fails because it is gone already.
        let _ = self.socket().shutdown(std::net::Shutdown::Both);
        let begun = Instant::now();
        while matches!(self.supervisor.try_wait(), Ok(None)) {
            if self.given_up || begun.elapsed() > ENDED_WITHIN {
                // Supervisor and pager are a group of their own, and the number is taken until it is waited for.
                let _ = killpg(Pid::from_raw(self.supervisor.id() as i32), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Looks {
    stopped: u32,
    stuck: u32,
    switches: HashMap<u32, u64>,
}

impl Looks {
    /// One look; why nothing more is to be expected.
    fn look(&mut self, supervisor: u32) -> Option<NoAnswer> {
        let pagers = children(supervisor);
        let all = || std::iter::once(supervisor).chain(pagers.iter().copied());
        let stopped = all().find(|pid| task_stat::is_stopped(*pid));
        self.stopped = stopped.map_or(0, |_| self.stopped + 1);
        // The supervisor looks after its pager, and so is always at work.
        let at_work = *pagers.last().unwrap_or(&supervisor);
        self.stuck = if self.works(at_work) { 0 } else { self.stuck + 1 };
        match stopped {
            Some(pid) if self.stopped >= SILENT_LOOKS => Some(NoAnswer::Stopped(pid)),
            _ if self.stuck >= STUCK_LOOKS => Some(NoAnswer::Stuck(at_work)),
            _ => None,
        }
    }

    /// Whether a thread of it runs, or did since the last look; one that has ended does not wait.
    fn works(&mut self, pid: u32) -> bool {
        let before = std::mem::take(&mut self.switches);
        let mut works = false;
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let runs = status.lines().any(|line| line.starts_with("State:\tR"));
            let counts = status.lines().filter(|line| line.contains("ctxt_switches:"));
            let count = counts.filter_map(|line| line.rsplit(char::is_whitespace).next()?.parse::<u64>().ok()).sum();
            works |= runs || before.get(&tid) != Some(&count);
            self.switches.insert(tid, count);
        }
        works || self.switches.len() != before.len()
    }
}

/// The processes that `pid` started.
fn children(pid: u32) -> Vec<u32> {
    let found = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    found.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
