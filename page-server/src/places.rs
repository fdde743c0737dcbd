//! Places for connections: how many there are in all and for each peer, and who gets the last ones.
//!
//! A connection that has made no request yet is silent: where there is no place left, the oldest silent one gives up its own, so that
//! connections that say nothing shut out nobody. The last quarter of the places is for demand, as a client says with Hello: without a
//! demand connection a restored thread would wait. A peer is an address, or a user behind a socket file.

use crate::metrics::Metrics;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Places for connections.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    most_of_a_peer: usize,
    taken: Mutex<Taken>,
    left: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// By number, so that the oldest comes first.
    members: BTreeMap<u64, Member>,
    of_peer: HashMap<String, usize>,
}

#[derive(Debug)]
struct Member {
    peer: String,
    kind: Kind,
    evicted: Arc<Notify>,
}

/// What a connection has shown itself to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It has made no request.
    Silent,
    Demand,
    Other,
}

impl Taken {
    fn remove(&mut self, number: u64) -> Option<Member> {
        let member = self.members.remove(&number)?;
        if let Some(count) = self.of_peer.get_mut(&member.peer) {
            *count -= 1;
            if *count == 0 {
                self.of_peer.remove(&member.peer);
            }
        }
        Some(member)
    }

    /// Make room: the oldest silent connection, of one peer or of any, is told to end and counts no more.
    fn evict(&mut self, peer: Option<&str>) -> bool {
        let silent = |member: &Member| member.kind == Kind::Silent && peer.is_none_or(|peer| member.peer == peer);
        let oldest = self.members.iter().find(|(_, member)| silent(member)).map(|(number, _)| *number);
        let evicted = oldest.and_then(|number| self.remove(number));
        evicted.map(|member| member.evicted.notify_one()).is_some()
    }
}

/// A connection's place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    /// Told once the place was given to another.
    pub(crate) evicted: Arc<Notify>,
}

impl Places {
    pub(crate) fn new(most: usize, most_of_a_peer: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { most, most_of_a_peer, taken: Mutex::default(), left: Condvar::new(), metrics })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is whole
    }

    /// Take one for a connection from `peer`, if there is one.
    pub(crate) fn take(self: &Arc<Self>, peer: &str) -> Result<Arc<Place>, &'static str> {
        let mut taken = self.taken();
        let refused = if taken.of_peer.get(peer).is_some_and(|count| *count >= self.most_of_a_peer) && !taken.evict(Some(peer)) {
            Some("its peer has as many as max-connections-per-peer allows")
        } else if taken.members.len() >= self.most && !taken.evict(None) {
            Some("there are as many as max-connections allows")
        } else {
            None
        };
        if let Some(why) = refused {
            self.metrics.connections_refused.add(1);
            return Err(why);
        }
        let (number, evicted) = (taken.next, Arc::new(Notify::new()));
        taken.next += 1;
        taken.members.insert(number, Member { peer: peer.to_owned(), kind: Kind::Silent, evicted: evicted.clone() });
        *taken.of_peer.entry(peer.to_owned()).or_default() += 1;
        self.metrics.connections.add(1);
        self.metrics.connections_open.add(1);
        Ok(Arc::new(Place { places: self.clone(), number, evicted }))
    }

    /// Wait until all are free, no longer than `patience`; how many are not.
    pub(crate) fn wait_free(&self, patience: Duration) -> usize {
        let until = Instant::now() + patience;
        let mut taken = self.taken();
        while !taken.members.is_empty() {
            let Some(left) = until.checked_duration_since(Instant::now()) else { break };
            taken = self.left.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        taken.members.len()
    }
}

impl Place {
    /// A request comes over this connection; whether it may go on.
    pub(crate) fn speaks(&self, for_demand: bool) -> bool {
        let mut taken = self.places.taken();
        if taken.members.get(&self.number).is_some_and(|member| member.kind != Kind::Silent) {
            return true;
        }
        let others = taken.members.values().filter(|member| member.kind == Kind::Other).count();
        let room = for_demand || others < self.places.most - self.places.most / 4;
        match taken.members.get_mut(&self.number) {
            None => false, // evicted just now
            Some(member) if room => {
                member.kind = if for_demand { Kind::Demand } else { Kind::Other };
                true
            }
            Some(_) => {
                self.places.metrics.connections_refused.add(1);
                false
            }
        }
    }

    /// Whether no request has come yet.
    pub(crate) fn is_silent(&self) -> bool {
        self.places.taken().members.get(&self.number).is_none_or(|member| member.kind == Kind::Silent)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.places.metrics.connections_failed.add(1);
        }
        self.places.metrics.connections_open.sub(1);
        self.places.taken().remove(self.number);
        self.places.left.notify_all();
    }
}
