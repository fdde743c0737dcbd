//! The pids and tids that a restored process wants back: free, waited for, or who has them.
//!
//! [`taken`] looks before anything is made; [`take`] makes a task under its number, and looks again where the kernel says that the
//! number is taken. A task that ends at this moment, or merely waits to be reaped, gets the time; one that lives is named. Hole: a
//! number is only as free as the last look: who takes it in between is named all the same, by then.

use super::super::error::RestoreError;
use super::super::obstacles::Outlook;
use crate::process::others;
use crate::process::stat::Stat;
use images::manifest::Manifest;
use kernel::spawn::SpawnError;
use std::time::{Duration, Instant};

/// Some reapers look only every few seconds.
const REAPED_WITHIN: Duration = Duration::from_secs(10);

/// A number is free a moment after the last who had it is gone from /proc: longer where that one is put aside in between.
const FREED_WITHIN: Duration = Duration::from_millis(200);

/// Who has a number.
struct Holder {
    name: String,
    /// It ends, or has: only its reaper keeps the number.
    ending: bool,
}

impl Holder {
    fn error(self, number: u32) -> RestoreError {
        let state = if self.ending { " (dead, not yet reaped by its parent)" } else { "" };
        RestoreError::PidTaken { pid: number, holder: format!("{}{state}", self.name) }
    }
}

/// Every pid and tid of the snapshot that another task has. A frozen process has its own, which are free with its end; but its pid is
/// not, while others are members of its group or session.
pub fn taken(manifest: &Manifest, outlook: Outlook) -> Vec<RestoreError> {
    let pid = manifest.process.as_ref().map_or(0, |process| process.pid);
    if outlook == Outlook::Frozen {
        return group(pid, |other| other != pid && !ends_with(pid, other)).map(|holder| holder.error(pid)).into_iter().collect();
    }
    let begun = Instant::now();
    let mut found = Vec::new();
    for thread in &manifest.threads {
        while let Some(holder) = task(thread.tid) {
            if !holder.ending || begun.elapsed() > REAPED_WITHIN {
                found.push(holder.error(thread.tid));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    found
}

/// What `make` makes under `number`, as soon as that is free.
pub fn take<T>(number: u32, mut make: impl FnMut() -> Result<T, RestoreError>) -> Result<T, RestoreError> {
    let begun = Instant::now();
    let mut last_seen = begun;
    loop {
        let error = match make() {
            Err(error @ RestoreError::Spawn(SpawnError::PidTaken(_))) => error,
            other => return other,
        };
        match task(number).or_else(|| group(number, |_| true)) {
            Some(holder) if holder.ending && begun.elapsed() < REAPED_WITHIN => {
                // The time to be freed in counts from when it was last seen: it may go between the attempt and the look.
                last_seen = Instant::now();
                std::thread::sleep(Duration::from_millis(5));
            }
            Some(holder) => return Err(holder.error(number)),
            None if last_seen.elapsed() < FREED_WITHIN => std::thread::sleep(Duration::from_millis(1)),
            None => return Err(error),
        }
    }
}

/// A task with this pid or tid.
fn task(number: u32) -> Option<Holder> {
    let stat = look(number)?;
    Some(Holder { name: stat.comm().to_owned(), ending: stat.is_ending() })
}

/// A number that no task has may still be that of a group or session with members: one of them, who lives if any does.
fn group(number: u32, counts: impl Fn(u32) -> bool) -> Option<Holder> {
    let member = |pid: u32| {
        let stat = look(pid)?;
        // Process group and session.
        let within = [5, 6].iter().any(|field| stat.field(*field) == i64::from(number));
        within.then(|| (pid, Holder { name: format!("the process group or session of {} ({pid})", stat.comm()), ending: stat.is_ending() }))
    };
    others::pids().filter_map(member).filter(|(pid, _)| counts(*pid)).map(|(_, holder)| holder).min_by_key(|holder| holder.ending)
}

/// Whether `other` reads what `pid` writes, as the next command of a pipeline does: it ends once there is no writer.
fn ends_with(pid: u32, other: u32) -> bool {
    let link = |pid: u32, fd: u32| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok();
    let input = link(other, 0).filter(|input| input.to_string_lossy().starts_with("pipe:"));
    input.is_some_and(|input| (1..=2).any(|fd| link(pid, fd).as_ref() == Some(&input)))
}

fn look(number: u32) -> Option<Stat> {
    Stat::parse(&std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?)
}
