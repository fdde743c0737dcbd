//! Several page servers that hold the same snapshots, read as one.
//!
//! One of them is in use and asked first. One that does not answer is left alone for a while ([`Backoff`]) and the next is asked,
//! which is in use from then on; when its while is over, one call at a time may try it again, once it is its turn. What one lacks or
//! has damaged is asked from the others before that is an answer. A demand request whose answer is late ([`Latency`]) goes to a second
//! server too, and the first answer is taken; one that is overtaken time and again is no longer asked first.
//!
//! Nobody here waits between attempts: where all are left alone, whoever asked is told at once, and decides how long to wait.
//!
//! Known holes: which server is in use is not told from one store to another, so that the demand and the bulk connections of one
//! restore may use different ones. Writing is refused: two servers cannot be given the same name in one step.

use crate::backoff::Backoff;
use crate::latency::Latency;
use crate::remote::{RemoteStore, link};
use crate::{Ahead, GcReport, SnapshotInfo, Store, StoreError, Tally, Upload};
use bytes::Bytes;
use images::Head;
use pages::{ChunkId, SnapshotId, SnapshotName};
use proto::Address;
use proto::client::Options;
use proto::domain::Class;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Requests of a server in a row that another was faster with, after which that is asked first: one may be chance.
const OVERTAKEN: u32 = 3;

/// Several page servers as one store.
pub struct Replicas {
    servers: Vec<Server>,
    in_use: AtomicUsize,
    runtime: Arc<Runtime>,
    latency: Mutex<Latency>,
    hedging: bool,
    hedges: AtomicU64,
    hedges_won: AtomicU64,
    fail_overs: AtomicU64,
}

struct Server {
    store: RemoteStore,
    health: Mutex<Health>,
}

/// How a server did lately.
#[derive(Default)]
struct Health {
    /// Why it was lost, and when it may be asked again.
    lost: Option<(String, Instant)>,
    backoff: Backoff,
    overtaken: u32,
}

impl std::fmt::Debug for Replicas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.servers.iter().map(|server| &server.store)).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
}

impl Server {
    /// Whether it may be asked now; one that was lost by one caller at a time.
    fn may_be_asked(&self) -> bool {
        let mut health = lock(&self.health);
        let now = Instant::now();
        let pause = match &health.lost {
            None => return true,
            Some((_, not_before)) if now < *not_before => return false,
            Some(_) => health.backoff.pause(),
        };
        if let Some((_, not_before)) = &mut health.lost {
            *not_before = now + pause;
        }
        true
    }

    /// It was asked; anything but an error that another server may do better at is an answer.
    fn took_note<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        let mut health = lock(&self.health);
        match &answer {
            Err(error) if !error.is_an_answer() => {
                if health.lost.is_none() {
                    tracing::warn!(server = self.store.address(), %error, "a page server is lost");
                }
                let pause = health.backoff.pause();
                health.lost = Some((error.to_string(), Instant::now() + pause));
            }
            _ => {
                if health.lost.take().is_some() {
                    tracing::warn!(server = self.store.address(), "a page server answers again");
                    health.backoff = Backoff::default();
                }
            }
        }
        answer
    }

    fn why_lost(&self) -> Option<String> {
        lock(&self.health).lost.as_ref().map(|(why, _)| why.clone())
    }
}

impl Replicas {
    /// Take servers that hold the same snapshots; one of them must answer.
    pub fn open(addresses: &[Address], options: &Options) -> Result<Self, StoreError> {
        let runtime = link::runtime(options.class)?;
        let server = |address| Server { store: RemoteStore::lazily(address, options, runtime.clone()), health: Mutex::default() };
        let replicas = Self {
            servers: addresses.iter().map(server).collect(),
            in_use: AtomicUsize::new(0),
            runtime,
            latency: Mutex::default(),
            hedging: options.class == Class::Demand,
            hedges: AtomicU64::new(0),
            hedges_won: AtomicU64::new(0),
            fail_overs: AtomicU64::new(0),
        };
        replicas.in_turn(RemoteStore::connect)?;
        Ok(replicas)
    }

    /// Those that may be asked now, the one in use first.
    fn askable(&self) -> impl Iterator<Item = (usize, &Server)> {
        let (first, count) = (self.in_use.load(Ordering::Relaxed), self.servers.len());
        (first..first + count)
            .filter_map(move |n| self.servers.get(n % count).map(|server| (n % count, server)))
            .filter(|(_, s)| s.may_be_asked())
    }

    fn use_from_now_on(&self, which: usize, why: &str) {
        let before = self.in_use.swap(which, Ordering::Relaxed);
        if let (true, Some(old), Some(new)) = (before != which, self.servers.get(before), self.servers.get(which)) {
            self.fail_overs.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(from = old.store.address(), to = new.store.address(), why, "another page server is asked first");
        }
    }

    /// Ask one after the other until one has it.
    fn in_turn<T>(&self, ask: impl Fn(&RemoteStore) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let (mut lacking, mut answers) = (None, 0);
        for (which, server) in self.askable() {
            match server.took_note(ask(&server.store)) {
                Ok(answer) => {
                    // One that merely lacked something is as good as before.
                    if lacking.is_none() {
                        self.use_from_now_on(which, "the other does not answer");
                    }
                    return Ok(answer);
                }
                Err(error) if error.is_an_answer() => {
                    answers += 1;
                    lacking.get_or_insert(error);
                }
                Err(_) => {}
            }
        }
        match lacking {
            // One that does not answer may have the chunk: that is worth waiting for.
            Some(error) if error.is_about_contents() && answers < self.servers.len() => Err(self.lost(Some(error))),
            Some(error) => Err(error),
            None => Err(self.lost(None)),
        }
    }

    /// Not all servers answer; with what those that do said.
    fn lost(&self, said: Option<StoreError>) -> StoreError {
        let why = said.map(|error| error.to_string()).into_iter().chain(self.servers.iter().filter_map(Server::why_lost));
        let why: Vec<String> = why.collect();
        StoreError::Unreachable(if why.is_empty() { "another call is asking the page servers".to_owned() } else { why.join("; ") })
    }

    /// Frames from the server in use, or from the next one where that is late; none where neither has them. Only the first is asked for
    /// `ahead`, as nobody waits for that.
    async fn hedged(&self, ids: &[ChunkId], ahead: &[ChunkId]) -> Option<(Vec<Bytes>, Ahead)> {
        let mut servers = self.askable();
        let (first, server) = servers.next()?;
        let (begun, late) = (Instant::now(), lock(&self.latency).asked());
        let asked = async { server.took_note(server.store.ask_frames(ids, ahead).await) };
        let second = async {
            tokio::time::sleep(late).await;
            let Some((second, other)) = servers.next() else { return std::future::pending().await };
            if !lock(&self.latency).may_hedge() {
                return std::future::pending().await;
            }
            self.hedges.fetch_add(1, Ordering::Relaxed);
            match other.took_note(other.store.ask_frames(ids, &[]).await) {
                Ok(frames) => (second, frames),
                Err(_) => std::future::pending().await, // the first may still answer
            }
        };
        let frames = self.first_of(first, asked, second).await;
        if frames.is_some() {
            lock(&self.latency).answered(begun.elapsed());
        }
        frames
    }

    async fn first_of(
        &self,
        first: usize,
        asked: impl Future<Output = Result<(Vec<Bytes>, Ahead), StoreError>>,
        second: impl Future<Output = (usize, (Vec<Bytes>, Ahead))>,
    ) -> Option<(Vec<Bytes>, Ahead)> {
        let (asked, second) = (pin!(asked), pin!(second));
        let overtaken = self.servers.get(first).map(|server| &server.health)?;
        tokio::select! {
            biased;
            answer = asked => {
                lock(overtaken).overtaken = 0;
                if answer.is_ok() {
                    self.use_from_now_on(first, "the other does not answer");
                }
                answer.ok()
            }
            (second, frames) = second => {
                self.hedges_won.fetch_add(1, Ordering::Relaxed);
                let times = { let mut health = lock(overtaken); health.overtaken += 1; health.overtaken };
                if times >= OVERTAKEN {
                    lock(overtaken).overtaken = 0;
                    self.use_from_now_on(second, "the other is late");
                }
                Some(frames)
            }
        }
    }

    fn several<T>(&self) -> Result<T, StoreError> {
        let all: Vec<String> = self.servers.iter().map(|server| server.store.address()).collect();
        Err(StoreError::Several(all.join(",")))
    }
}

impl Store for Replicas {
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        self.in_turn(|store| store.find_missing(ids))
    }

    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        self.several()
    }

    fn commit(&self, _: Bytes, _: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.several()
    }

    fn tag(&self, _: &SnapshotName, _: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.several()
    }

    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.in_turn(|store| store.resolve(name))
    }

    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        self.in_turn(|store| store.image(id))
    }

    fn image_head(&self, id: &SnapshotId) -> Result<Head, StoreError> {
        self.in_turn(|store| store.image_head(id))
    }

    fn image_groups(&self, id: &SnapshotId, groups: &Range<u32>, copy: Option<usize>) -> Result<Bytes, StoreError> {
        let Some(copy) = copy else { return self.in_turn(|store| store.image_groups(id, groups, None)) };
        match self.servers.get(copy) {
            Some(server) if server.may_be_asked() => server.took_note(server.store.image_groups(id, groups, None)),
            _ => Err(self.lost(None)),
        }
    }

    fn frames(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, StoreError> {
        self.frames_ahead(ids, &[]).map(|(frames, _)| frames)
    }

    fn frames_ahead(&self, ids: &[ChunkId], ahead: &[ChunkId]) -> Result<(Vec<Bytes>, Ahead), StoreError> {
        if self.hedging
            && let Some(answer) = self.runtime.block_on(self.hedged(ids, ahead))
        {
            return Ok(answer);
        }
        let frames = match self.in_turn(|store| store.frames(ids)) {
            // No server has all of them: perhaps each chunk has one that does.
            Err(error) if error.is_about_contents() && ids.len() > 1 => ids.iter().map(|id| self.frame(id)).collect(),
            answer => answer,
        };
        Ok((frames?, Ahead::Lost))
    }

    /// The server in use alone: who waits in vain asks the others, too.
    fn ask(&self, ids: &[ChunkId]) -> Ahead {
        let server = self.servers.get(self.in_use.load(Ordering::Relaxed)).filter(|server| server.may_be_asked());
        server.map_or(Ahead::Lost, |server| server.store.ask(ids))
    }

    fn copies(&self) -> usize {
        self.servers.len()
    }

    fn frame_of_copy(&self, id: &ChunkId, copy: usize) -> Result<Bytes, StoreError> {
        match self.servers.get(copy) {
            Some(server) if server.may_be_asked() => server.took_note(server.store.frame(id)),
            _ => Err(self.lost(None)),
        }
    }

    fn prefer(&self, copy: usize) {
        self.use_from_now_on(copy, "the other sent a chunk that is wrong");
    }

    fn spin(&self, at_most: Duration) {
        self.servers.iter().for_each(|server| server.store.spin(at_most));
    }

    fn in_use(&self) -> Option<String> {
        self.servers.get(self.in_use.load(Ordering::Relaxed)).map(|server| server.store.address())
    }

    fn tally(&self) -> Tally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally { hedges: read(&self.hedges), hedges_won: read(&self.hedges_won), fail_overs: read(&self.fail_overs) }
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        self.in_turn(RemoteStore::list)
    }

    fn remove(&self, _: &SnapshotName) -> Result<(), StoreError> {
        self.several()
    }

    fn gc(&self) -> Result<GcReport, StoreError> {
        self.several()
    }

    /// With each server that answers: any of them may come to be asked.
    fn lease(&self, id: &SnapshotId, holder: &str) -> Result<(), StoreError> {
        let answers = self.servers.iter().filter(|server| server.may_be_asked()).map(|server| server.store.lease(id, holder));
        let answers: Vec<_> = answers.collect();
        if answers.iter().any(Result::is_ok) { Ok(()) } else { answers.into_iter().next().unwrap_or(Ok(())) }
    }

    fn release(&self, id: &SnapshotId, holder: &str) -> Result<(), StoreError> {
        self.servers.iter().filter(|server| server.may_be_asked()).try_for_each(|server| server.store.release(id, holder))
    }

    /// With the server in use alone: it is a hint.
    fn put_working_set(&self, id: &SnapshotId, bytes: Bytes) -> Result<(), StoreError> {
        self.in_turn(|store| store.put_working_set(id, bytes.clone()))
    }

    fn working_set(&self, id: &SnapshotId) -> Result<Option<Bytes>, StoreError> {
        self.in_turn(|store| store.working_set(id))
    }
}
