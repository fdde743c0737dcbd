//! The thread that sees when there is nothing left to do: everything is there, or the process has ended.
//!
//! It never fetches, so that a store which does not answer keeps nobody from seeing the process's end. Once nothing is owed any more all
//! watched memory is released, and only the end is waited for. Memory of a process that has ended is owed nothing, once nobody shares it
//! any more; children that it forked live on, and are served until they are owed nothing either, or have ended too.
//!
//! Known hole: memory that the program itself watches, by a userfaultfd that it made after its restore, looks like ours: such a process
//! never counts as resident.

use crate::farewell;
use crate::pager::Shared;
use crate::space::Space;
use crate::status::State;
use crate::watched;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use pages::PageRange;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often to look: threads that bring pages finish without telling.
const LOOK: Duration = Duration::from_millis(10);
/// How often to look for memory that is gone, of children that ended without a word, while the process lives.
const BURY: Duration = Duration::from_millis(200);

/// Start it; `number` is its own among those that are nudged.
pub(crate) fn spawn(shared: Arc<Shared>, number: usize) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("completion".to_owned()).spawn(move || {
        let (mut released, mut buried) = (false, Instant::now());
        while !shared.stop.load(Ordering::Relaxed) {
            if released {
                shared.rest()
            } else {
                shared.beat()
            }
            if has_ended(&shared, number, (!released).then_some(LOOK)) {
                return see_out(&shared);
            }
            if buried.elapsed() >= BURY {
                bury_children(&shared);
                buried = Instant::now();
            }
            // A child whose event was read after that owes nothing, and is let go as well.
            // Before it runs, whoever makes it sets what is set back here.
            if shared.runs() && (!released || shared.spaces().len() > 1) {
                released = shared.settled() && release(&shared);
            }
        }
    })
}

/// Wait a while, or for the process's end: whether that has come.
fn has_ended(shared: &Shared, number: usize, timeout: Option<Duration>) -> bool {
    let mut fds = vec![PollFd::new(shared.pidfd.as_fd(), PollFlags::POLLIN)];
    fds.extend(shared.nudges.of(number).map(|nudge| PollFd::new(nudge, PollFlags::POLLIN)));
    // An interrupted wait is an early look.
    let _ = ppoll(&mut fds, timeout.map(TimeSpec::from), None);
    shared.nudges.heard(number);
    fds.first().and_then(PollFd::revents).is_some_and(|events| events.contains(PollFlags::POLLIN))
}

/// Memory of children that is gone is owed nothing, and let go.
fn bury_children(shared: &Shared) {
    let mut own = true;
    shared.spaces.lock().unwrap_or_else(PoisonError::into_inner).retain(|space| std::mem::take(&mut own) || !space.is_over());
    shared.keep.iter().for_each(|keep| keep.take_spare_back());
}

/// It has ended: nothing else is to be done once its memory is gone, which others may share, and its children are owed nothing.
fn see_out(shared: &Shared) {
    let missing_pages = shared.spaces().first().map_or(0, |own| own.owed_pages());
    if missing_pages > 0 {
        tracing::warn!(
            pid = shared.pid(),
            missing_pages,
            "the process ended while memory was missing: where a signal did it, no core dump was written"
        );
    }
    while !shared.stop.load(Ordering::Relaxed) {
        shared.beat();
        bury_children(shared);
        if let Some(own) = shared.spaces().first() {
            own.end_if_dead();
        }
        if shared.settled() {
            shared.enter(State::Gone);
            return shared.halt();
        }
        std::thread::sleep(LOOK);
    }
}

/// Stop watching: mappings that touch each other by one call, each by its own where that fails, as one of them may be the program's
/// own business.
fn unregister(space: &Space, watched: &[PageRange]) {
    for run in watched.chunk_by(|one, next| one.end() == next.start()) {
        let whole = run.first().zip(run.last()).and_then(|(first, last)| PageRange::new(first.start(), last.end()));
        if !whole.is_some_and(|whole| space.unregister(whole)) {
            run.iter().for_each(|range| _ = space.unregister(*range)); // gone meanwhile is as well
        }
    }
}

/// Everything is there: stop watching, so that the process is its own again.
///
/// Memory that grew out of a watched region (stack, heap) is watched too; /proc/PID/smaps names all of it. It may grow once more
/// before the last call, so the look is repeated until nothing is found.
fn release(shared: &Shared) -> bool {
    let spaces = shared.spaces();
    if let Some(space) = spaces.first() {
        space.enter_settled();
        let watched = watched::ranges(shared.pid());
        if !watched.is_empty() {
            unregister(space, &watched);
            return false; // look again
        }
    }
    // Children's spaces end with their last descriptor: the kernel then stops watching, and nothing is owed.
    shared.spaces.lock().unwrap_or_else(PoisonError::into_inner).truncate(1);
    shared.nudges.give(); // who waits on theirs holds them
    if let Some(keep) = &shared.keep {
        farewell::take_leave(shared.pid(), keep, shared.unharmed());
    }
    shared.enter(State::Resident);
    true
}
