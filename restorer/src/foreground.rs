//! Following a restored process: its signals come through us, its terminal goes to it, and we end as it does.
//!
//! Signals are held back from right before the process runs: one that comes earlier ends us and the unfinished process with us, one
//! that comes later is forwarded. A terminal's own (Ctrl-C, a new size) go to its foreground group: that is the process's where it
//! has one in our session, as a shell's job has; then the terminal is lent to it, and taken back when it stops or ends. Where it is
//! in our group, it has got such a signal itself already.
//!
//! With the terminal go its settings ([`Terminals`]): those of the process while it runs in the
//! foreground, those from before once it stops or has ended, however it ends.

use anyhow::Result;
use defrost_restorer::restore::RestoreError;
use defrost_restorer::restore::terminals::Terminals;
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid, getpgrp, tcgetpgrp, tcsetpgrp};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;

/// Signals a user sends to the command when the process is meant.
const FORWARDED: [Signal; 7] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];
/// Signals that are ours: the process's state has changed, our shell lets us go on.
const OURS: [Signal; 2] = [Signal::SIGCHLD, Signal::SIGCONT];
/// si_code of a signal that no process sent, but a terminal (include/uapi/asm-generic/siginfo.h).
const SI_KERNEL: i32 = 0x80;

/// A process whose signals are ours to forward.
#[derive(Debug)]
pub struct Following {
    pid: Pid,
    signals: SignalFd,
    /// That of our session, where one of our streams leads there.
    terminal: Option<OwnedFd>,
    terminals: Terminals,
}

impl Following {
    /// Begin to follow `pid`, a child of ours that does not run yet and has `terminals` from us.
    pub fn begin(pid: Pid, mut terminals: Terminals) -> Result<Self, RestoreError> {
        let failed = |why: nix::Error| RestoreError::Outside { what: "follow it".to_owned(), why: why.to_string() };
        let awaited: SigSet = FORWARDED.into_iter().chain(OURS).collect();
        let mut held = awaited;
        held.add(Signal::SIGTTOU); // taking the terminal back from the background is no reason to stop
        held.remove(Signal::SIGWINCH);
        held.thread_block().map_err(failed)?;
        // A new window size, which we are told of as well, is not news for the process: it is the size that it knew.
        terminals.lend()?;
        SigSet::from(Signal::SIGWINCH).thread_block().map_err(failed)?;
        let mut following = Self { pid, signals: SignalFd::new(&awaited).map_err(failed)?, terminal: terminal(), terminals };
        following.lend_terminal();
        Ok(following)
    }

    /// Wait until it has ended, and end as it does.
    pub fn follow(mut self) -> Result<ExitCode> {
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED))? {
                WaitStatus::Exited(_, code) => return Ok(ExitCode::from(code as u8)),
                WaitStatus::Signaled(_, signal, _) => return Ok(ExitCode::from(128 + signal as u8)),
                WaitStatus::Stopped(_, signal) if self.take_terminal_back() || wants_terminal(signal) => {
                    // As Ctrl-Z does to any job: our shell takes over, until it lets us go on.
                    raise(Signal::SIGSTOP)?;
                    self.lend_terminal();
                    kill(self.pid, Signal::SIGCONT).ok(); // gone: the next wait tells
                }
                _ => {}
            }
            let Some(info) = self.signals.read_signal()? else { continue };
            let signal = Signal::try_from(info.ssi_signo as i32)?;
            let has_it = info.ssi_code == SI_KERNEL && getpgid(Some(self.pid)) == Ok(getpgrp());
            match signal {
                Signal::SIGCHLD => {}
                Signal::SIGCONT => self.lend_terminal(), // we may be in the foreground now
                signal if has_it => tracing::debug!("{signal} came to the process as well"),
                signal => drop(kill(self.pid, signal)), // gone: the next wait tells
            }
        }
    }

    /// Make it the terminal's foreground job, if that is us and it has a group of its own in our session.
    fn lend_terminal(&mut self) {
        let _ = self.terminals.lend(); // it worked at first: the terminal is gone, and the process will see that itself
        if let Some(terminal) = &self.terminal
            && tcgetpgrp(terminal) == Ok(getpgrp())
            && getpgid(Some(self.pid)) == Ok(self.pid)
        {
            // It fails where it has a session of its own: then we stay in the foreground and forward.
            let _ = tcsetpgrp(terminal, self.pid);
        }
    }

    /// Become the terminal's foreground job again; false if it was not lent.
    fn take_terminal_back(&mut self) -> bool {
        let is_lent = |terminal: &&OwnedFd| tcgetpgrp(terminal) == Ok(self.pid) && tcsetpgrp(terminal, getpgrp()).is_ok();
        let taken = self.terminal.as_ref().filter(is_lent).is_some();
        if taken {
            self.terminals.take_back();
        }
        taken
    }
}

/// Our session's terminal: of our streams the first that leads there, as any may be a pipe.
fn terminal() -> Option<OwnedFd> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    streams.into_iter().find(|stream| tcgetpgrp(stream).is_ok())?.try_clone_to_owned().ok()
}

/// It was stopped as it used the terminal from the background: our shell must know.
fn wants_terminal(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTTIN | Signal::SIGTTOU)
}

impl Drop for Following {
    fn drop(&mut self) {
        self.take_terminal_back();
        self.terminals.take_back(); // also where the process was in our group, or in a session of its own
    }
}
