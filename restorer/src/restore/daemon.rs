//! The pager's daemon, seen from the restore that starts it. The conversation is described in `pager::daemon`.

use super::Request;
use super::error::{RestoreError, not_started, outside};
use images::Head;
use kernel::uffd::Uffd;
use pager::answers::Answers;
use pager::mailbox::Mailbox;
use pager::phases::Phase;
use pages::PageAddr;
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The variable of the environment that names the file of the authority which servers must be known to.
pub const AUTHORITY: &str = "DEFROST_TLS_CA";

/// A daemon that was started. Dropped before [`Daemon::leave`], it is gone with the failed restore.
#[derive(Debug)]
pub struct Daemon {
    answers: Answers,
    ready: bool,
    /// The process that it was handed, and whether it said that it serves it.
    served: Option<u32>,
    serving: bool,
    left: bool,
    timings: Vec<Phase>,
}

impl Daemon {
    /// Start it for the process to have number `pid`, with the image's head and the lease on the snapshot; it opens the store while we rebuild.
    pub fn start(
        request: &Request,
        (head, lease): (&Head, &str),
        pid: u32,
        prefetch: Vec<PageAddr>,
        origin_us: u64,
    ) -> Result<Self, RestoreError> {
        let (ours, theirs) = UnixStream::pair().map_err(outside("make a socket pair"))?;
        let authority = request.authority.as_ref().map(|file| (AUTHORITY, file.as_os_str()));
        let child = pager::daemon::spawn(theirs, &[], authority).map_err(|error| not_started("the pager", pid, error))?;
        let start = pager::daemon::Start {
            name: request.name.to_string(),
            snapshot: head.id().to_string(),
            store: request.store_text.clone(),
            background: request.background,
            eager: request.eager,
            prefetch: prefetch.into_iter().map(PageAddr::addr).collect(),
            policy: request.policy,
            replay: request.replay,
            recording: request.recording,
            latency: request.latency,
            origin_us,
            report: request.report.clone(),
            lease: Some(lease.to_owned()),
        };
        let line = serde_json::to_string(&start).map_err(outside("write a request"))?;
        let file = store::head_file(head)?;
        let answers = Answers::of(child, ours).map_err(outside("listen to the pager"))?;
        let daemon = Self { answers, ready: false, served: None, serving: false, left: false, timings: Vec::new() };
        let mut socket = daemon.answers.socket();
        told(kernel::handoff::send_fds(socket, &[file.as_raw_fd()]).map_err(Into::into))?;
        told(writeln!(socket, "{line}"))?;
        Ok(daemon)
    }

    /// Wait for a word; yields what comes behind it.
    fn expect(&mut self, word: &str) -> Result<String, RestoreError> {
        let line = self.answers.next_line().map_err(|why| RestoreError::Pager(why.to_string()))?;
        match line.strip_prefix("failed ") {
            Some(why) => Err(RestoreError::Pager(why.to_owned())),
            None if line.split(' ').next() == Some(word) => Ok(line[word.len()..].trim_start().to_owned()),
            None => Err(RestoreError::Pager(format!("it said {line:?} instead of {word:?}: is another version in its place?"))),
        }
    }

    /// The process runs: the daemon outlives us, and whoever adopts it reaps it.
    pub fn leave(&mut self) {
        // One that is gone, or does not wait for it, need not know.
        let _ = writeln!(self.answers.socket(), "runs");
        self.left = true;
    }

    /// Why the pager ended the process, if it did: then every step after that fails, for a reason of its own that tells nothing.
    pub fn reason(&self, pid: u32) -> Option<RestoreError> {
        let status = if self.serving { pager::control::status(pid).ok()? } else { return None };
        let why = status.state.why_broken()?;
        // Told to the end, it need not wait for another to ask.
        pager::control::wait(pid).ok().map(|_| RestoreError::Pager(why.to_owned()))
    }

    /// Hand over the process: from now on its missing pages are served.
    pub fn serve(&mut self, uffd: &Uffd, pidfd: &OwnedFd, mailbox: &Mailbox, eager: bool) -> Result<(), RestoreError> {
        if !self.ready {
            self.expect("ready")?;
            self.ready = true;
        }
        let [receiving, sending] = mailbox.ends().map(AsRawFd::as_raw_fd);
        let fds = [uffd.as_raw_fd(), pidfd.as_raw_fd(), receiving, sending];
        self.served = kernel::handoff::pidfd_pid(pidfd).ok().flatten();
        told(kernel::handoff::send_fds(self.answers.socket(), &fds).map_err(Into::into))?;
        let timings = self.expect("serving")?;
        // They are told to whoever asks; without them nothing is wrong.
        self.timings = serde_json::from_str(&timings).unwrap_or_default();
        self.serving = true;
        if eager { self.expect("resident").map(drop) } else { Ok(()) }
    }

    /// What the daemon did until it served.
    pub fn take_timings(&mut self) -> Vec<Phase> {
        std::mem::take(&mut self.timings)
    }
}

/// What became of words to the pager: one that has ended has said why, which is heard when its answer is read, as is that it is stopped.
fn told(result: std::io::Result<()>) -> Result<(), RestoreError> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::WouldBlock) => Ok(()),
        other => other.map_err(outside("talk to the pager")),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.left {
            self.answers.end();
            self.served.into_iter().for_each(pager::daemon::clear_failed);
        }
    }
}
