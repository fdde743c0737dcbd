//! A store that does not answer: since when, who waits for what, and what is done about it in the end.
//!
//! Whoever fetches tells of losses and recoveries ([`Outage::lost`]) and, where a thread of the process waits for the page, of that
//! ([`Outage::awaits`]). A thread of its own watches the clock, as those that fetch may stand in a call for longer than the
//! [`Policy`] allows. When a page's time is up it ends the process, or poisons all that is missing: from then on nothing is fetched
//! any more, what is missing answers touches by SIGBUS, everything else is the process's own.
//!
//! Known holes: a page that only the restore waits for (`--eager`) is not waited for by the process, and has no time limit. One that bulk
//! brought while its handler stands in a call counts until that call ends: handlers that all stand in calls read no further faults, and
//! those have a time limit only so.

use crate::pager::Shared;
use crate::policy::{Due, Policy};
use crate::space::Outcome;
use crate::status::State;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use store::{Store, Tally};

/// Pause while an event is in the way of poison.
const PAUSE: Duration = Duration::from_micros(200);

/// How often poison is tried where memory for it is short, and how far apart: a second in all.
const POISON_TRIES: u32 = 100;
const POISON_PAUSE: Duration = Duration::from_millis(10);

/// What is known of a store's absence.
pub(crate) struct Outage {
    policy: Policy,
    demand: Arc<dyn Store>,
    /// Another connection, or the same.
    bulk: Arc<dyn Store>,
    /// Nothing is fetched any more.
    pub(crate) over: AtomicBool,
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Default)]
struct Known {
    /// Threads that found the store away and have not heard from it since.
    lost: usize,
    since: Option<SystemTime>,
    /// Pages that somebody waits for, by when that began.
    awaited: BTreeMap<u64, Instant>,
    last: u64,
}

/// Somebody waits for a page, until this goes.
pub(crate) struct Awaiting<'a>(&'a Outage, u64);

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.known().awaited.remove(&self.1);
    }
}

impl Outage {
    pub(crate) fn new(policy: Policy, demand: Arc<dyn Store>, bulk: Arc<dyn Store>) -> Self {
        Self { policy, demand, bulk, over: AtomicBool::new(false), known: Mutex::default(), changed: Condvar::new() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
    }

    /// A thread of the process waits for a page from now on.
    pub(crate) fn awaits(&self) -> Awaiting<'_> {
        let mut known = self.known();
        known.last += 1;
        let ticket = known.last;
        known.awaited.insert(ticket, Instant::now());
        Awaiting(self, ticket)
    }

    /// One of the threads that fetch lost the store, or has it again; true where that is news.
    pub(crate) fn lost(&self, lost: bool) -> bool {
        let mut known = self.known();
        let before = known.lost;
        known.lost = if lost { before + 1 } else { before.saturating_sub(1) };
        let news = (before == 0) != (known.lost == 0);
        if news {
            known.since = lost.then(SystemTime::now);
        }
        news
    }

    /// Since when the store is away, in seconds since 1970.
    pub(crate) fn since_unix_s(&self) -> Option<u64> {
        self.known().since.and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|since| since.as_secs())
    }

    /// The server that is asked first now.
    pub(crate) fn endpoint(&self) -> Option<String> {
        self.demand.in_use()
    }

    /// What several servers were used for: hedges are the demand connection's, fail-overs those of both.
    pub(crate) fn tally(&self) -> Tally {
        let demand = self.demand.tally();
        let others = if Arc::ptr_eq(&self.demand, &self.bulk) { 0 } else { self.bulk.tally().fail_overs };
        Tally { fail_overs: demand.fail_overs + others, ..demand }
    }

    /// Fetch no more.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        let _known = self.known(); // whoever looks at the flag with it held does not miss this
        self.changed.notify_all();
    }

    /// Wait until a page's time is up; none once nothing is fetched any more. Nobody tells of pages that are waited for, as every fault
    /// would pay for it: one whose wait begins right now is due no sooner than this looks again.
    fn wait_until_due(&self) -> Option<Due> {
        let mut known = self.known();
        while !self.over.load(Ordering::Relaxed) {
            let longest = known.awaited.values().next().map_or(Duration::ZERO, Instant::elapsed);
            known = match self.policy.due(longest) {
                Due::Later(None) => self.changed.wait(known).unwrap_or_else(PoisonError::into_inner),
                Due::Later(Some(left)) => self.changed.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0,
                due => return Some(due),
            };
        }
        None
    }
}

/// Watch the clock.
pub(crate) fn spawn(shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("outage".to_owned()).spawn(move || {
        let Some(due) = shared.outage.wait_until_due() else { return };
        let after_s = shared.outage.policy.lost_after_s;
        let reason = shared.status().last_error.unwrap_or_else(|| "the store does not answer".to_owned());
        let why = format!("a page that a thread waits for did not come within {after_s} s: {reason}");
        if due == Due::Kill {
            shared.outage.end();
            return shared.fail(&why);
        }
        tracing::error!(pid = shared.pid(), why, "giving up what is missing: touches of it are a SIGBUS");
        shared.note(&why);
        shared.enter(State::Poisoned(why.clone()));
        shared.outage.end();
        // Nothing is owed any more after that, which completion sees.
        if let Err(errno) = poison(&shared, 0) {
            shared.fail(&format!("{why}; and what is missing cannot be poisoned: {errno}"));
        }
    })
}

/// The process is being ended: children that it forked are not ours to end, would wait for ever for what they still miss, and must not
/// read zeros once we are gone.
pub(crate) fn give_up_children(shared: &Shared) {
    if let Err(errno) = insist(|| poison(shared, 1)) {
        tracing::error!(pid = shared.pid(), %errno, "what its forked children miss cannot be poisoned: they wait for it");
    }
}

/// Poison again and again where memory for it is short, for a second.
pub(crate) fn insist(mut poison: impl FnMut() -> Result<(), nix::errno::Errno>) -> Result<(), nix::errno::Errno> {
    for _ in 1..POISON_TRIES {
        if poison().is_ok() {
            return Ok(());
        }
        std::thread::sleep(POISON_PAUSE);
    }
    poison()
}

/// Poison all that is missing in all spaces but the first so many.
fn poison(shared: &Shared, first: usize) -> Result<(), nix::errno::Errno> {
    let mut settled = false;
    while !settled {
        settled = true;
        for space in shared.spaces().iter().skip(first) {
            // Who waits looks again: at poison, or at a page that is nobody's, and then comes back as a fault.
            shared.pump(space).map_err(|_| nix::errno::Errno::EIO)?.into_iter().for_each(|page| space.wake_at(page));
            match space.poison() {
                Outcome::Settled | Outcome::Gone => {}
                Outcome::Retry => settled = false,
                Outcome::Failed(errno) => return Err(errno),
            }
        }
        settled = settled && shared.settled_behind(first);
        if !settled {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}
