//! A store in memory: the same contract, gone with the process. For tests, and for whoever uses these crates as a library.

use crate::{GcReport, SnapshotInfo, Store, StoreError, Upload, check_working_set, checked_table};
use bytes::Bytes;
use images::codec::{Decoder, Verified};
use pages::{ChunkId, SnapshotId, SnapshotName};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

/// Snapshots in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    held: Arc<RwLock<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    frames: HashMap<ChunkId, Bytes>,
    images: HashMap<SnapshotId, Bytes>,
    working_sets: HashMap<SnapshotId, Bytes>,
    names: BTreeMap<SnapshotName, (SnapshotId, u64)>,
}

impl Held {
    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.names.get(name).map(|(id, _)| *id).ok_or_else(|| StoreError::NotFound { name: name.to_string() })
    }

    fn give_name(&mut self, name: &SnapshotName, id: SnapshotId) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        self.names.insert(name.clone(), (id, now));
    }

    fn must_be_free(&self, name: &SnapshotName) -> Result<(), StoreError> {
        if self.names.contains_key(name) { Err(StoreError::NameTaken(name.clone())) } else { Ok(()) }
    }

    fn image(&self, id: &SnapshotId) -> Result<&Bytes, StoreError> {
        self.images.get(id).ok_or(StoreError::MissingImage(*id))
    }

    fn table(&self, id: &SnapshotId) -> Result<Vec<ChunkId>, StoreError> {
        checked_table(self.image(id)?, id).map_err(|source| StoreError::Damaged { path: PathBuf::from("memory"), source })
    }
}

impl MemoryStore {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        let held = self.read();
        Ok(ids.iter().filter(|id| !held.frames.contains_key(id)).copied().collect())
    }

    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        let (store, decoder, contents) = (self.clone(), Decoder::new(), Verified::default());
        Ok(Box::new(MemoryUpload { store, frames: HashMap::new(), decoder, contents }))
    }

    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let (id, table) = crate::sent_image(&image)?;
        let mut held = self.write();
        if let Some(missing) = images::digests(table).find(|id| !held.frames.contains_key(id)) {
            return Err(StoreError::MissingChunk(missing));
        }
        held.must_be_free(name)?;
        held.images.insert(id, image);
        held.give_name(name, id);
        Ok(id)
    }

    fn tag(&self, from: &SnapshotName, to: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let mut held = self.write();
        let id = held.resolve(from)?;
        held.must_be_free(to)?;
        held.give_name(to, id);
        Ok(id)
    }

    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.read().resolve(name)
    }

    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        self.read().image(id).cloned()
    }

    fn frames(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, StoreError> {
        let held = self.read();
        ids.iter().map(|id| held.frames.get(id).cloned().ok_or(StoreError::MissingChunk(*id))).collect()
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        let held = self.read();
        let line = |(name, (id, at)): (&SnapshotName, &(SnapshotId, u64))| {
            Ok(SnapshotInfo {
                name: name.clone(),
                id: *id,
                created_unix_s: *at,
                chunks: held.table(id)?.len() as u64,
                damage: None,
                leases: 0,
            })
        };
        held.names.iter().map(line).collect()
    }

    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        let mut held = self.write();
        held.resolve(name)?;
        held.names.remove(name);
        Ok(())
    }

    fn gc(&self) -> Result<GcReport, StoreError> {
        let mut held = self.write();
        let named: HashSet<SnapshotId> = held.names.values().map(|(id, _)| *id).collect();
        let mut needed = HashSet::new();
        for id in &named {
            needed.extend(held.table(id)?);
        }
        held.images.retain(|id, _| named.contains(id));
        held.working_sets.retain(|id, _| named.contains(id));
        let mut report = GcReport::default();
        held.frames.retain(|id, frame| {
            let keep = needed.contains(id);
            if !keep {
                report.packs += 1;
                report.bytes += frame.len() as u64;
            }
            keep
        });
        Ok(report)
    }

    fn put_working_set(&self, id: &SnapshotId, bytes: Bytes) -> Result<(), StoreError> {
        check_working_set(&bytes)?;
        let mut held = self.write();
        held.image(id)?;
        held.working_sets.insert(*id, bytes);
        Ok(())
    }

    fn working_set(&self, id: &SnapshotId) -> Result<Option<Bytes>, StoreError> {
        let held = self.read();
        held.image(id)?;
        Ok(held.working_sets.get(id).cloned())
    }
}

/// Chunks that are not stored yet.
#[derive(Debug)]
struct MemoryUpload {
    store: MemoryStore,
    frames: HashMap<ChunkId, Bytes>,
    decoder: Decoder,
    contents: Verified,
}

impl Upload for MemoryUpload {
    fn put(&mut self, id: ChunkId, frame: Bytes) -> Result<(), StoreError> {
        crate::check_sent(&mut self.decoder, &mut self.contents, &id, &frame)?;
        self.frames.entry(id).or_insert(frame);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let mut held = self.store.write();
        for (id, frame) in self.frames {
            held.frames.entry(id).or_insert(frame);
        }
        Ok(())
    }
}
