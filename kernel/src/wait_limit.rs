//! A limit on how long a tracer waits for a thread: one that sleeps in the kernel, or whose control group is frozen, never stops.
//!
//! `waitpid` takes no time. While a [`WaitLimit`] lives, a watcher thread looks every [`TICK`] how long the tracer's current wait
//! has lasted; once that is too long, it interrupts the wait by a signal whose handler does nothing. No other call is interrupted.

use nix::errno::Errno;
use nix::unistd::{Pid, gettid};
use std::cell::RefCell;
use std::io::Result;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How often the watcher looks.
const TICK: Duration = Duration::from_millis(100);
/// No wait is under way.
const NONE: u64 = u64::MAX;
/// There will be no wait any more: the watcher ends.
const OVER: u64 = u64::MAX - 1;

#[derive(Debug)]
struct Watched {
    tracer: Pid,
    begun: Instant,
    limit: Duration,
    /// When the current wait began, in milliseconds after `begun`.
    since_ms: AtomicU64,
}

impl Watched {
    fn is_too_long(&self) -> bool {
        let since_ms = self.since_ms.load(Ordering::SeqCst);
        since_ms < OVER && self.begun.elapsed() > Duration::from_millis(since_ms) + self.limit
    }

    fn watch(&self) {
        while self.since_ms.load(Ordering::SeqCst) != OVER {
            std::thread::park_timeout(TICK);
            if self.is_too_long() {
                crate::sys::interrupt_thread(self.tracer);
            }
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Watched>>> = const { RefCell::new(None) };
}

/// The calling thread's waits for tracees are limited while this lives.
#[derive(Debug)]
pub struct WaitLimit {
    watched: Arc<Watched>,
    watcher: Option<JoinHandle<()>>,
    _not_send: PhantomData<*const ()>,
}

impl WaitLimit {
    /// From now on no wait takes longer than `limit`, by a little.
    pub fn begin(limit: Duration) -> Result<Self> {
        crate::sys::make_interruptible()?;
        let watched = Arc::new(Watched { tracer: gettid(), begun: Instant::now(), limit, since_ms: AtomicU64::new(NONE) });
        let watching = Arc::clone(&watched);
        let watcher = Builder::new().name("wait-limit".to_owned()).spawn(move || watching.watch())?;
        CURRENT.set(Some(Arc::clone(&watched)));
        Ok(Self { watched, watcher: Some(watcher), _not_send: PhantomData })
    }
}

impl Drop for WaitLimit {
    fn drop(&mut self) {
        CURRENT.set(None);
        self.watched.since_ms.store(OVER, Ordering::SeqCst);
        if let Some(watcher) = self.watcher.take() {
            watcher.thread().unpark();
            // A watcher that panicked has nothing to say.
            let _ = watcher.join();
        }
    }
}

/// A wait, which [`interrupted`] asks about whenever a signal ended a call of it.
pub(crate) fn limited<T>(wait: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    let set = |value: fn(&Watched) -> u64| {
        CURRENT.with_borrow(|current| {
            if let Some(watched) = current {
                watched.since_ms.store(value(watched), Ordering::SeqCst);
            }
        });
    };
    set(|watched| watched.begun.elapsed().as_millis() as u64);
    let outcome = wait();
    set(|_| NONE);
    outcome
}

/// A signal interrupted the wait: fails with ETIMEDOUT where it has lasted too long.
pub(crate) fn interrupted() -> nix::Result<()> {
    let too_long = CURRENT.with_borrow(|current| current.as_ref().is_some_and(|watched| watched.is_too_long()));
    if too_long { Err(Errno::ETIMEDOUT) } else { Ok(()) }
}
