//! Pages from a page server; those that a parent of the dump has are here, as CRIU has it: only the dump's own are remote.

use super::{Kept, Link, PageServerError, Urgency};
use crate::frontend::FrontEndError;
use crate::frontend::criu::source::FromFolder;
use crate::frontend::criu::{CriuError, DumpDir, Plan};
use crate::frontend::source::{Install, Source, bring_zeros};
use images::criu::Origin;
use pages::{PageAddr, PageRange};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Pages asked for at a time where nobody waits for them: a fault waits for no more than these before its own.
pub(super) const BULK_PAGES: u64 = 64;

/// One for each thread that brings pages.
pub struct FromPageServer {
    link: Arc<Link>,
    plan: Arc<Plan>,
    parents: FromFolder,
    urgency: Urgency,
    kept: Option<Arc<Kept>>,
    buffer: Vec<u8>,
}

impl FromPageServer {
    /// Over `link`, what `plan` tells of. What passes goes to `kept`, and comes from there if it passed before.
    pub fn new(dir: &DumpDir, plan: &Arc<Plan>, link: &Arc<Link>, urgency: Urgency, kept: Option<&Arc<Kept>>) -> Result<Self, CriuError> {
        let (parents, buffer) = (FromFolder::open(dir, plan)?, Vec::new());
        Ok(Self { link: link.clone(), plan: plan.clone(), parents, urgency, kept: kept.cloned(), buffer })
    }

    /// Pages at the beginning of `wanted`, into the buffer: which.
    fn first_of(&mut self, pid: u32, wanted: PageRange) -> Result<PageRange, CriuError> {
        let Some(kept) = &self.kept else { return Ok(self.link.get(self.urgency, pid, wanted, &mut self.buffer)?) };
        if let Some(here) = kept.read(pid, wanted, &mut self.buffer) {
            return here;
        }
        let missing = kept.missing_first(pid, wanted);
        match self.link.get(self.urgency, pid, missing, &mut self.buffer) {
            Ok(range) => {
                kept.keep(pid, range, &self.buffer);
                Ok(range)
            }
            // Others brought it, and all else, since we looked.
            Err(PageServerError::Over(address)) => match kept.read(pid, wanted, &mut self.buffer) {
                Some(here) => here,
                None => Err(PageServerError::Over(address).into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

impl Source for FromPageServer {
    fn bring(&mut self, pid: u32, page: PageAddr, wanted: PageRange, stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError> {
        if self.urgency == Urgency::Bulk {
            // It begins once the restore is finished.
            self.link.tasks_run();
        }
        let piece = self.plan.wanted(pid, page, wanted)?;
        let wanted = piece.range;
        match piece.origin {
            Origin::File { folder: 1.., .. } => return self.parents.bring(pid, page, wanted, stop, install),
            Origin::Zeros => {
                bring_zeros(wanted, install);
                return Ok(());
            }
            Origin::File { .. } | Origin::Source => {}
        }
        let most = if self.urgency == Urgency::Bulk { BULK_PAGES } else { wanted.pages() };
        let mut next: PageAddr = wanted.start();
        while next < wanted.end() {
            let part = PageRange::with_len(next, most).and_then(|part| part.intersect(&wanted)).unwrap_or(wanted);
            let came = self.first_of(pid, part)?;
            if !install(came, &self.buffer) {
                return Ok(());
            }
            next = came.end();
        }
        Ok(())
    }
}
