//! What a connection makes the server hold, counted in bytes, for the connection and for all together.
//!
//! Counted are messages on their way in, until the call has taken them, and answers on their way out, until the kernel has taken them.
//! HTTP/2 itself holds at most a window for each connection beyond that. A connection at its limit gets no further answer until it has
//! taken some; one that sends more than its share is refused. While all together hold as much as is allowed, a connection gets an answer
//! only once it has taken the one before, and that a short one.

use crate::places::Place;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};

/// Bytes that a connection may hold when all together hold too much: smaller messages always pass.
pub(crate) const SMALL_BYTES: u64 = 256 << 10;

/// What all connections hold.
#[derive(Debug)]
pub(crate) struct Budget {
    most: u64,
    most_of_a_connection: u64,
    held: AtomicU64,
    waiting: Mutex<Vec<Waker>>,
}

impl Budget {
    pub(crate) fn new(most: u64, most_of_a_connection: u64) -> Arc<Self> {
        Arc::new(Self { most, most_of_a_connection, held: AtomicU64::new(0), waiting: Mutex::default() })
    }

    /// Whether all together hold as much as they may.
    pub(crate) fn is_full(&self) -> bool {
        self.held() >= self.most
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }

    fn wait(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
    }
}

/// A connection's other end.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its address, or its user and process.
    pub(crate) name: String,
    /// Why nothing is done for it, if so.
    pub(crate) refused: Option<String>,
    pub(crate) place: Arc<Place>,
    pub(crate) budget: Arc<Budget>,
    held: AtomicU64,
    /// Bytes that the kernel has taken.
    pub(crate) written: AtomicU64,
    /// Calls and streams that are open.
    pub(crate) streams: AtomicU64,
}

/// Bytes held for a peer, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    peer: Arc<Peer>,
    bytes: u64,
}

impl Peer {
    pub(crate) fn new(name: String, refused: Option<String>, place: Arc<Place>, budget: Arc<Budget>) -> Arc<Self> {
        let (held, written, streams) = Default::default();
        Arc::new(Self { name, refused, place, budget, held, written, streams })
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    fn hold(self: &Arc<Self>, bytes: u64) -> Held {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        self.budget.held.fetch_add(bytes, Ordering::AcqRel);
        Held { peer: self.clone(), bytes }
    }

    /// Hold an answer, which is there already.
    pub(crate) fn hold_answer(self: &Arc<Self>, bytes: usize) -> Held {
        self.hold(bytes as u64)
    }

    /// Hold what comes in; `None` where that is more than the peer's share.
    pub(crate) fn hold_request(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let (bytes, held) = (bytes as u64, self.held());
        let too_much = held + bytes > self.budget.most_of_a_connection;
        let all_too_much = held + bytes > SMALL_BYTES && self.budget.held() + bytes > self.budget.most;
        (!too_much && !all_too_much).then(|| self.hold(bytes))
    }

    fn has_room(&self) -> bool {
        let held = self.held();
        held == 0 || held < self.budget.most_of_a_connection / 2 && !self.budget.is_full()
    }

    /// Whether a further answer may be made now; the task is woken once one may.
    pub(crate) fn may_answer(&self, cx: &Context<'_>) -> bool {
        if self.has_room() {
            return true;
        }
        self.budget.wait(cx);
        self.has_room() // something may have been taken meanwhile
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.peer.held.fetch_sub(self.bytes, Ordering::AcqRel);
        self.peer.budget.held.fetch_sub(self.bytes, Ordering::AcqRel);
        self.peer.budget.wake();
    }
}
