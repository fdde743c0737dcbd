//! A store that fails on purpose, so that whoever uses stores can be tested: another store behind a seeded dice.
//!
//! Each call throws the dice of its [`Plan`]: it may be late, find nobody, find damage, find the disk full, or hand out a frame with
//! one bit turned, which is what a lying server does. The same seed and the same calls fail the same way.

use crate::{GcReport, SnapshotInfo, Store, StoreError, Upload};
use bytes::Bytes;
use images::Head;
use images::codec::Made;
use pages::{ChunkId, SnapshotId, SnapshotName};
use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// How likely each failure is: 0 never, 1 always.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Where the dice begin.
    pub seed: u64,
    /// Nobody answers. Any call.
    pub unreachable: f64,
    /// What is stored is damaged. Frames and images.
    pub damaged: f64,
    /// The disk is full. Whatever stores something.
    pub full: f64,
    /// One frame of the answer has a bit turned.
    pub wrong_frame: f64,
    /// Groups of an image's table have a bit turned.
    pub wrong_groups: f64,
    /// A chunk that was damaged or wrong once never is again, as when the network or a memory cell was to blame.
    pub recovers: bool,
    /// The call is late.
    pub late: f64,
    /// By how much.
    pub late_by: Duration,
}

#[derive(Debug)]
struct Dice {
    plan: RwLock<Plan>,
    random: Mutex<fastrand::Rng>,
    spoiled: Mutex<HashSet<ChunkId>>,
    failures: AtomicU64,
}

/// A store that fails as planned.
#[derive(Debug)]
pub struct FlakyStore<S> {
    inner: S,
    dice: Arc<Dice>,
}

impl Dice {
    fn plan<T>(&self, of: impl FnOnce(&Plan) -> T) -> T {
        of(&self.plan.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn throw(&self, chance: impl FnOnce(&Plan) -> f64) -> bool {
        let likely = self.plan(chance);
        let hit = likely > 0.0 && self.random.lock().unwrap_or_else(PoisonError::into_inner).f64() < likely;
        if hit {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        hit
    }

    fn below(&self, end: usize) -> usize {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).usize(..end)
    }

    fn turn_a_bit(&self, bytes: &[u8]) -> Bytes {
        let mut bytes = bytes.to_vec();
        if !bytes.is_empty() {
            let at = self.below(bytes.len());
            bytes[at] ^= 1 << self.below(8);
        }
        Bytes::from(bytes)
    }

    /// One of the chunks asked for, to be spoiled; none where it was before and recovers.
    fn spoil(&self, chance: impl FnOnce(&Plan) -> f64, ids: &[ChunkId]) -> Option<usize> {
        if ids.is_empty() || !self.throw(chance) {
            return None;
        }
        let which = self.below(ids.len());
        let first = self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).insert(ids[which]);
        (first || !self.plan(|plan| plan.recovers)).then_some(which)
    }

    /// What may happen to any call.
    fn call(&self) -> Result<(), StoreError> {
        if self.throw(|plan| plan.late) {
            std::thread::sleep(self.plan(|plan| plan.late_by));
        }
        if self.throw(|plan| plan.unreachable) {
            return Err(StoreError::Unreachable("the store does not answer, as planned: try again".to_owned()));
        }
        Ok(())
    }

    fn storing(&self) -> Result<(), StoreError> {
        self.call()?;
        if self.throw(|plan| plan.full) { Err(StoreError::Full { path: PathBuf::from("as planned") }) } else { Ok(()) }
    }
}

fn damaged() -> StoreError {
    StoreError::Damaged { path: PathBuf::from("as planned"), source: images::ImageError::Checksum("stored frame") }
}

impl<S: Store> FlakyStore<S> {
    /// Put the dice before `inner`.
    pub fn new(inner: S, plan: Plan) -> Self {
        let random = Mutex::new(fastrand::Rng::with_seed(plan.seed));
        Self { inner, dice: Arc::new(Dice { plan: RwLock::new(plan), random, spoiled: Mutex::default(), failures: AtomicU64::new(0) }) }
    }

    /// Fail in another way from now on; the dice go on where they are.
    pub fn set_plan(&self, plan: Plan) {
        *self.dice.plan.write().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    /// How often something went wrong or came late so far.
    pub fn failures(&self) -> u64 {
        self.dice.failures.load(Ordering::Relaxed)
    }
}

impl<S: Store> Store for FlakyStore<S> {
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        self.dice.call()?;
        self.inner.find_missing(ids)
    }

    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        self.dice.storing()?;
        Ok(Box::new(FlakyUpload { inner: self.inner.upload()?, dice: self.dice.clone() }))
    }

    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.dice.storing()?;
        self.inner.commit(image, name)
    }

    fn tag(&self, from: &SnapshotName, to: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.dice.storing()?;
        self.inner.tag(from, to)
    }

    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.dice.call()?;
        self.inner.resolve(name)
    }

    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        self.dice.call()?;
        if self.dice.throw(|plan| plan.damaged) {
            return Err(damaged());
        }
        self.inner.image(id)
    }

    fn image_head(&self, id: &SnapshotId) -> Result<Head, StoreError> {
        self.dice.call()?;
        if self.dice.throw(|plan| plan.damaged) {
            return Err(damaged());
        }
        self.inner.image_head(id)
    }

    fn image_groups(&self, id: &SnapshotId, groups: &Range<u32>, copy: Option<usize>) -> Result<Bytes, StoreError> {
        self.dice.call()?;
        let bytes = self.inner.image_groups(id, groups, copy)?;
        Ok(if self.dice.throw(|plan| plan.wrong_groups) { self.dice.turn_a_bit(&bytes) } else { bytes })
    }

    fn frames(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, StoreError> {
        self.dice.call()?;
        if self.dice.spoil(|plan| plan.damaged, ids).is_some() {
            return Err(damaged());
        }
        let mut frames = self.inner.frames(ids)?;
        if let Some(which) = self.dice.spoil(|plan| plan.wrong_frame, ids) {
            frames[which] = self.dice.turn_a_bit(&frames[which]);
        }
        Ok(frames)
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        self.dice.call()?;
        self.inner.list()
    }

    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        self.dice.call()?;
        self.inner.remove(name)
    }

    fn gc(&self) -> Result<GcReport, StoreError> {
        self.dice.call()?;
        self.inner.gc()
    }

    fn lease(&self, id: &SnapshotId, holder: &str) -> Result<(), StoreError> {
        self.inner.lease(id, holder)
    }

    fn release(&self, id: &SnapshotId, holder: &str) -> Result<(), StoreError> {
        self.inner.release(id, holder)
    }

    fn leases(&self, id: &SnapshotId) -> Result<u64, StoreError> {
        self.inner.leases(id)
    }

    fn put_working_set(&self, id: &SnapshotId, bytes: Bytes) -> Result<(), StoreError> {
        self.dice.storing()?;
        self.inner.put_working_set(id, bytes)
    }

    fn working_set(&self, id: &SnapshotId) -> Result<Option<Bytes>, StoreError> {
        self.dice.call()?;
        self.inner.working_set(id)
    }
}

struct FlakyUpload {
    inner: Box<dyn Upload>,
    dice: Arc<Dice>,
}

impl Upload for FlakyUpload {
    fn put(&mut self, id: ChunkId, frame: Bytes) -> Result<(), StoreError> {
        self.dice.storing()?;
        self.inner.put(id, frame)
    }

    fn put_made(&mut self, made: Made) -> Result<(), StoreError> {
        self.dice.storing()?;
        self.inner.put_made(made)
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        self.dice.storing()?;
        self.inner.finish()
    }
}
