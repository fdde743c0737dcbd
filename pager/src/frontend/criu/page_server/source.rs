//! Pages from a page server; those that a parent of the dump has are here, as CRIU has it: only the dump's own are remote.

use super::{Kept, Link, PageServerError, Urgency};
use crate::frontend::FrontEndError;
use crate::frontend::criu::source::FromFolder;
use crate::frontend::criu::{CriuError, DumpDir, Plan};
use crate::frontend::source::{Install, Source, Wanted, bring_zeros};
use images::criu::Origin;
use pages::PageRange;
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

impl FromPageServer {
    /// Bring pages of one piece; false: no more.
    fn get(&mut self, want: &Wanted, stop: &AtomicBool, install: Install<'_>) -> Result<bool, FrontEndError> {
        let pid = want.id;
        let piece = self.plan.wanted(pid, want.pages)?;
        let wanted = piece.range;
        match piece.origin {
            Origin::File { folder: 1.., .. } => {
                let mut goes_on = true;
                self.parents.bring(&[Wanted { id: pid, pages: wanted }], &[], stop, &mut |pid, range, data| {
                    goes_on = install(pid, range, data);
                    goes_on
                })?;
                return Ok(goes_on);
            }
            Origin::Zeros => return Ok(bring_zeros(pid, wanted, install)),
            Origin::File { .. } | Origin::Source => {}
        }
        let most = if self.urgency == Urgency::Bulk { BULK_PAGES } else { wanted.pages() };
        let mut next = wanted.start();
        while next < wanted.end() {
            let part = PageRange::with_len(next, most).and_then(|part| part.intersect(&wanted)).unwrap_or(wanted);
            let came = self.first_of(pid, part)?;
            if !install(pid, came, &self.buffer) {
                return Ok(false);
            }
            next = came.end();
        }
        Ok(true)
    }
}

impl Source for FromPageServer {
    fn bring(&mut self, wanted: &[Wanted], behind: &[Wanted], stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError> {
        if self.urgency == Urgency::Bulk {
            // It begins once the restore is finished.
            self.link.tasks_run();
        }
        for want in wanted.iter().chain(behind) {
            if !self.get(want, stop, install)? {
                break;
            }
        }
        Ok(())
    }

    fn reach(&mut self, pid: u32, wanted: PageRange) -> PageRange {
        self.parents.reach(pid, wanted)
    }
}
