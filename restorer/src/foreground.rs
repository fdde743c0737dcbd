//! Following a restored process: its signals come through us, and we end as it does.

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::process::ExitCode;

/// Signals a user sends to the command when the process is meant.
const FORWARDED: [Signal; 7] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];

/// Wait for `pid`, a child of ours, and end as it does.
pub fn follow(pid: Pid) -> Result<ExitCode> {
    let mut awaited: SigSet = FORWARDED.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    awaited.thread_block()?;
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, code) => return Ok(ExitCode::from(code as u8)),
            WaitStatus::Signaled(_, signal, _) => return Ok(ExitCode::from(128 + signal as u8)),
            _ => {}
        }
        let signal = awaited.wait()?;
        if signal != Signal::SIGCHLD {
            kill(pid, signal).ok(); // gone: the next wait tells
        }
    }
}
