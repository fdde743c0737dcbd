//! Places where a test may let a pager die, to show that whoever takes over loses nothing there.
//!
//! `DEFROST_CRASH_AT=NAME[:N[:all|:once|:stop|:stop-all]]`, read once by the program that starts a pager, ends the pager by SIGKILL
//! when it comes to place NAME for the N-th time; with `all` its supervisor too, with `once` no pager after it. With `stop` and
//! `stop-all` they are stopped (SIGSTOP) instead. Without it a place costs a look at one word.

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::getppid;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static WANTED: OnceLock<Wanted> = OnceLock::new();

struct Wanted {
    name: String,
    left: AtomicU64,
    all: bool,
    once: bool,
    signal: Signal,
}

/// Die at `place`, the form of which is told above.
pub fn arm(place: &str) {
    let mut parts = place.split(':');
    let name = parts.next().unwrap_or_default().to_owned();
    let left = AtomicU64::new(parts.next().and_then(|times| times.parse().ok()).unwrap_or(1));
    let flag = parts.next();
    let signal = if matches!(flag, Some("stop" | "stop-all")) { Signal::SIGSTOP } else { Signal::SIGKILL };
    let all = matches!(flag, Some("all" | "stop-all"));
    // Armed twice is armed as at first.
    let _ = WANTED.set(Wanted { name, left, all, once: flag == Some("once"), signal });
}

/// A pager has died, and another will be made.
pub(crate) fn another() {
    if let Some(wanted) = WANTED.get().filter(|wanted| wanted.once) {
        wanted.left.store(0, Ordering::Relaxed);
    }
}

/// A place.
pub(crate) fn point(name: &str) {
    if let Some(wanted) = WANTED.get()
        && wanted.name == name
        && wanted.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        if wanted.all {
            let _ = kill(getppid(), wanted.signal); // one that died by itself is as well
        }
        let _ = raise(wanted.signal); // it cannot fail for ourselves
    }
}
