//! CRIU: what `criu lazy-pages` is to `criu restore --lazy-pages`, with the images' own page data or a snapshot of it.
//!
//! The restore connects to a socket in the work folder and sends, for each task, its pid and its userfaultfd ([`conversation`]). What
//! that task owes is known from the dump ([`plan`]); each becomes a [`crate::space`] and is served at once, since tasks may touch lazy
//! memory while they are still being rebuilt. Contents come from a [`source`]: the folder ([`dump_dir`]), or chunks of a store. Once the
//! restore says that all tasks run, [`fill`] brings the rest; the daemon ends when nothing is owed any more ([`serve`]).
//!
//! What the protocol leaves open to never-zeros: the task closes its copy of the userfaultfd, so that ours is the last. Whatever we can
//! notice (a page that cannot be had, a restore that hangs up, SIGTERM) ends in all pages there or poisoned. If the daemon is killed
//! outright, what is missing reads as zeros, as with CRIU's own daemon.
//!
//! Known holes: there is no supervisor and no take-over here; pages that are only in a process that was dumped (`criu dump
//! --lazy-pages`) are refused, as no page server is asked for them yet.

mod conversation;
mod dump_dir;
mod error;
mod fill;
mod plan;
mod serve;
mod source;

pub use dump_dir::{DumpDir, DumpDirError, Take};
pub use error::FrontendError;
pub use plan::Plan;
pub use source::{FromFolder, FromStore, Source};

use conversation::Listening;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::path::Path;

/// Name of the socket, in the work folder, as CRIU has it.
pub const SOCKET: &str = "lazy-pages.socket";

/// Requests to end, held back: once the memory of others depends on us, they wait until it does no more.
#[derive(Debug)]
pub struct Held(SignalFd);

impl Held {
    /// From now on, in this thread and those it starts: so call it before there are any.
    pub fn hold() -> Result<Self, FrontendError> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().map_err(std::io::Error::from)?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(std::io::Error::from)?))
    }
}

/// A daemon that listens.
pub struct Daemon {
    plan: Plan,
    listening: Listening,
    held: Held,
}

impl Daemon {
    /// Listen in the work folder for the restore of what `plan` tells of. Our working directory becomes that folder: a socket's path may
    /// have 107 bytes, and CRIU connects by the name alone.
    pub fn listen(plan: Plan, work_dir: &Path, held: Held) -> Result<Self, FrontendError> {
        Ok(Self { plan, listening: Listening::open(work_dir)?, held })
    }

    /// Serve one restore until all its memory is there. Faults are answered from the first source, the rest comes from the second.
    pub fn serve(self, demand: Box<dyn Source>, bulk: Box<dyn Source>) -> Result<Served, FrontendError> {
        let conversation = self.listening.accept(self.plan.tasks().count(), &self.held.0)?;
        serve::serve(self.plan, conversation, demand, bulk)
    }
}

/// What was brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Tasks with memory, forked ones too.
    pub tasks: u64,
    /// Faults answered with a page of the dump.
    pub demand_faults: u64,
    /// Faults answered with zeros: memory that never had contents, or was dropped.
    pub zero_faults: u64,
    /// Pages brought though nobody waited for them.
    pub bulk_pages: u64,
}
