//! CRIU: what `criu lazy-pages` is to `criu restore --lazy-pages`, with the images' own page data or a snapshot of it.
//!
//! The restore connects to a socket in the work folder and sends, for each task, its pid and its userfaultfd ([`conversation`]). What
//! that task owes is known from the dump ([`plan`]); it is served at once, since tasks may touch lazy memory while they are still being
//! rebuilt. Contents come from a [`source`]: the folder ([`dump_dir`]), chunks of a store, or CRIU's page server, which may be the frozen
//! process itself ([`page_server`]). Once the restore says that all tasks run, the rest is brought, what
//! earlier restores of a snapshot touched first; the daemon ends when nothing is owed any more.
//!
//! What the protocol leaves open to never-zeros: the task closes its copy of the userfaultfd, so that ours is the last. Whatever we can
//! notice (a page that cannot be had, a restore that hangs up, SIGTERM) ends in all pages there or poisoned. If the daemon is killed
//! outright, what is missing reads as zeros, as with CRIU's own daemon.
//!
//! Known holes: there is no supervisor and no take-over here.

mod conversation;
mod dump_dir;
mod error;
mod page_server;
mod plan;
mod source;
mod tasks;

pub use dump_dir::{DumpDir, DumpDirError, Take};
pub use error::CriuError;
pub use page_server::{FromPageServer, Kept, KeptError, Link, MakeSource, PageServer, PageServerError, Pull, Until, Urgency};
pub use plan::Plan;
pub use source::{FromFolder, FromStore};

use super::{Held, Served, Sources, serve};
use conversation::Listening;
use std::path::Path;
use std::sync::Arc;
use tasks::Tasks;

/// Name of the socket, in the work folder, as CRIU has it.
pub const SOCKET: &str = "lazy-pages.socket";

/// A daemon that listens.
pub struct Daemon {
    plan: Arc<Plan>,
    listening: Listening,
    held: Held,
}

impl Daemon {
    /// Listen in the work folder for the restore of what `plan` tells of. Our working directory becomes that folder: a socket's path may
    /// have 107 bytes, and CRIU connects by the name alone.
    pub fn listen(plan: Arc<Plan>, work_dir: &Path, held: Held) -> Result<Self, CriuError> {
        Ok(Self { plan, listening: Listening::open(work_dir)?, held })
    }

    /// Serve one restore until all its memory is there. Without `background` only what its tasks touch is brought, until they have ended or
    /// a signal comes: then the rest is.
    pub fn serve(self, sources: Sources, background: bool) -> Result<Served, CriuError> {
        let conversation = self.listening.accept(self.plan.tasks().count(), &self.held)?;
        let on_demand = (!background).then_some(self.held);
        Ok(serve(Tasks::new(self.plan, conversation, on_demand)?, sources)?)
    }
}
