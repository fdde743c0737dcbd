//! Whether a pager that lives is at work: one that is stopped, frozen or stuck answers nobody, and is replaced like one that died.
//!
//! While pages are missing a pager beats many times a second ([`crate::told`]). The supervisor looks twice a second. A pager that has
//! not beaten for ten looks in a row, while threads wait for pages or for events to be read, is silent. Looks are counted, not time: a
//! machine that stands still counts none. One that has not begun to serve is not silent, unless it is stopped.
//!
//! Known hole: one whose threads all wait for a store that does not answer beats, and is left alone (`--on-lost` says what is done).

use crate::told::{Beat, Told};
use crate::{table, task_stat};
use nix::unistd::Pid;
use std::time::Duration;

/// Between two looks.
pub(crate) const LOOK: Duration = Duration::from_millis(500);
/// So many looks in a row without a beat.
pub(crate) const SILENT_LOOKS: u32 = 10;

/// Over one pager.
#[derive(Debug)]
pub(crate) struct Watchdog {
    pager: Pid,
    last: Beat,
    looks: u32,
}

impl Watchdog {
    pub(crate) fn over(pager: Pid) -> Self {
        Self { pager, last: Beat::None, looks: 0 }
    }

    /// One look: whether the pager is silent while somebody waits.
    pub(crate) fn look(&mut self, told: &Told) -> bool {
        let beat = told.last_beat();
        let at_work = match beat {
            Beat::AtRest => true,
            Beat::None => !task_stat::is_stopped(self.pager.as_raw() as u32),
            Beat::Nth(_) => beat != self.last,
        };
        self.last = beat;
        self.looks =
            if at_work || !table::ours().any(|open| open.is_userfaultfd() && table::is_waited_on(open.fd)) { 0 } else { self.looks + 1 };
        self.looks >= SILENT_LOOKS
    }
}
