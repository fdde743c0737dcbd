//! Places where a test may let a pager die, to show that whoever takes over loses nothing there.
//!
//! `DEFROST_CRASH_AT=NAME[:N]`, read once by whoever starts a pager, ends it by SIGKILL when it comes to place NAME for the N-th time.
//! Without it a place costs a look at one word.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static WANTED: OnceLock<(String, AtomicU64)> = OnceLock::new();

/// Die at `place`, the form of which is told above.
pub fn arm(place: &str) {
    let (name, times) = place.split_once(':').unwrap_or((place, "1"));
    // Armed twice is armed as at first.
    let _ = WANTED.set((name.to_owned(), AtomicU64::new(times.parse().unwrap_or(1))));
}

/// A place.
pub(crate) fn point(name: &str) {
    if let Some((wanted, left)) = WANTED.get()
        && wanted == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL); // it cannot fail for ourselves
    }
}
