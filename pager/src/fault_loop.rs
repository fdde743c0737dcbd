//! The thread that answers faults: waits on every userfaultfd and on the process, fetches the chunk, installs it.
//!
//! A fault that cannot be answered yet (an event came in between) is parked until the events were read. When nothing is owed any
//! more, all watched memory is released; the thread then only waits for the process to end.

use crate::chunks::{Chunks, Unfit};
use crate::farewell;
use crate::pager::Shared;
use crate::space::{Outcome, Space};
use crate::status::State;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pages::{PageAddr, PageRange};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use store::Store;

/// How long parked faults wait for the event that parked them, in milliseconds; the event itself wakes us sooner.
const PARKED_MS: u16 = 1;
/// How often to look whether everything is there, in milliseconds: bulk threads finish without telling.
const LOOK_MS: u16 = 10;

type Parked = VecDeque<(Arc<Space>, PageAddr, Instant)>;

pub(crate) fn spawn(shared: Arc<Shared>, store: Arc<dyn Store>, prefetch: Vec<PageAddr>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("faults".to_owned()).spawn(move || {
        let mut chunks = Chunks::new(shared.image.clone(), shared.map.clone(), store);
        if let Some(space) = shared.spaces().first() {
            for page in prefetch {
                // Not waited for by anybody yet: whatever goes wrong shows when it is.
                let _ = bring(&shared, space, page, &mut chunks);
            }
        }
        run(&shared, &mut chunks);
    })
}

fn run(shared: &Shared, chunks: &mut Chunks) {
    let mut parked = Parked::new();
    let (mut released, mut ended) = (false, false);
    while !shared.stop.load(Ordering::Relaxed) {
        let spaces = shared.spaces();
        if wait(shared, &spaces, &parked, released, ended) && !ended {
            // Its own space answers no more; children that it forked may live on.
            ended = true;
            if let Some(space) = spaces.first() {
                space.end();
            }
        }
        if ended {
            spaces.iter().for_each(|space| space.end_if_dead());
        }
        if ended && shared.settled() {
            shared.enter(State::Gone);
            shared.halt();
            return;
        }
        let _ = shared.nudge.read(); // empty: something else woke us
        for space in &spaces {
            match shared.pump(space) {
                Ok(faults) => parked.extend(faults.into_iter().map(|page| (space.clone(), page, Instant::now()))),
                Err(error) => return shared.fail(&format!("what happened to its memory cannot be kept: {error}")),
            }
        }
        for _ in 0..parked.len() {
            let Some((space, page, since)) = parked.pop_front() else { break };
            match answer(shared, &space, page, chunks) {
                Ok(Outcome::Retry) => parked.push_back((space, page, since)),
                Ok(Outcome::Failed(errno)) => return shared.fail(&format!("page {page} cannot be installed: {errno}")),
                Ok(Outcome::Settled | Outcome::Gone) => {
                    let us = since.elapsed().as_micros().min(u128::from(u32::MAX)) as u32;
                    shared.stalls.lock().unwrap_or_else(PoisonError::into_inner).add(us);
                }
                Err(Unfit::Stopped) if shared.stop.load(Ordering::Relaxed) => return,
                Err(Unfit::Stopped) => {} // given up: its page was poisoned, and it looks again
                Err(error) => return shared.fail(&error.to_string()),
            }
        }
        if !released && !ended && parked.is_empty() && shared.settled() {
            released = release(shared);
        }
    }
}

/// Wait for something to do; true once the process has ended.
fn wait(shared: &Shared, spaces: &[Arc<Space>], parked: &Parked, released: bool, ended: bool) -> bool {
    let readable = PollFlags::POLLIN;
    let mut fds = vec![PollFd::new(shared.nudge.as_fd(), readable)];
    fds.extend(spaces.iter().skip(usize::from(ended)).map(|space| PollFd::new(space.as_fd(), readable)));
    if !ended {
        fds.push(PollFd::new(shared.pidfd.as_fd(), readable));
    }
    let timeout = match (parked.is_empty(), released) {
        (false, _) => PollTimeout::from(PARKED_MS),
        (true, false) => PollTimeout::from(LOOK_MS),
        (true, true) => PollTimeout::NONE,
    };
    // An interrupted wait is an early look.
    let _ = poll(&mut fds, timeout);
    ended || fds.last().and_then(PollFd::revents).is_some_and(|events| events.contains(PollFlags::POLLIN))
}

fn answer(shared: &Shared, space: &Space, page: PageAddr, chunks: &mut Chunks) -> Result<Outcome, Unfit> {
    if space.owed_at(page).is_none() {
        let outcome = space.zero(page);
        if outcome == Outcome::Settled {
            shared.zero_faults.fetch_add(1, Ordering::Relaxed);
        }
        return Ok(outcome);
    }
    let outcome = bring(shared, space, page, chunks)?;
    if outcome == Outcome::Settled {
        shared.demand_faults.fetch_add(1, Ordering::Relaxed);
        // COPY woke whoever waited for a page it filled; a page that bulk was faster with needs this.
        space.wake(page);
    }
    Ok(outcome)
}

/// Fetch and install the chunk of an owed page.
fn bring(shared: &Shared, space: &Space, page: PageAddr, chunks: &mut Chunks) -> Result<Outcome, Unfit> {
    let Some(origin) = space.owed_at(page) else { return Ok(Outcome::Retry) };
    let Some((index, range)) = chunks.range_of(origin) else { return Ok(Outcome::Retry) };
    shared.hot.store(range.end().number(), Ordering::Relaxed);
    shared.note_fault();
    let _awaiting = shared.outage.awaits();
    let chunk = chunks.fetch(index, range, &shared.outage.over, &|error| shared.lost(error))?;
    Ok(space.install(range, chunk))
}

/// Everything is there: stop watching, so that the process is its own again.
///
/// Memory that grew out of a watched region (stack, heap) is watched too; /proc/PID/smaps names all of it. It may grow once more
/// before the last call, so the look is repeated until nothing is found.
pub(crate) fn release(shared: &Shared) -> bool {
    let spaces = shared.spaces();
    if let Some(space) = spaces.first() {
        space.enter_settled();
        let watched = watched_ranges(shared.pid());
        if !watched.is_empty() {
            watched.into_iter().for_each(|range| space.unregister(range));
            return false; // look again
        }
    }
    // Children's spaces end with their last descriptor: the kernel then stops watching, and nothing is owed.
    shared.spaces.lock().unwrap_or_else(PoisonError::into_inner).truncate(1);
    if let Some(keep) = &shared.keep {
        farewell::take_leave(shared.pid(), keep);
    }
    shared.enter(State::Resident);
    true
}

fn watched_ranges(pid: u32) -> Vec<PageRange> {
    let Ok(smaps) = std::fs::read_to_string(format!("/proc/{pid}/smaps")) else { return Vec::new() };
    let (mut found, mut current) = (Vec::new(), None);
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or("");
        if let Some((start, end)) = first.split_once('-') {
            let parse = |hex| u64::from_str_radix(hex, 16).ok();
            current = parse(start).zip(parse(end)).and_then(|(start, end)| PageRange::from_addrs(start, end));
        } else if line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "um") {
            found.extend(current);
        }
    }
    found
}
