//! A store in a directory.
//!
//! ```text
//! DIR/packs/ID.pack            frames and their index, never changed once there
//! DIR/snapshots/DIGEST.image   image files
//! DIR/refs/NAME:TAG            the digest that a name stands for
//! DIR/tmp/                     what is being written; swept when opened for writing
//! DIR/lock.write, lock.read    see `lock`
//! ```
//!
//! Every file is written under tmp/, synced, renamed into place, and its folder synced: whatever dies, the store opens and has no
//! snapshot by halves. Frames are answered straight from the mapped pack.

use crate::local_upload::LocalUpload;
use crate::lock::Lock;
use crate::{GcReport, SnapshotInfo, Store, StoreError, Upload};
use bytes::Bytes;
use images::pack::PackReader;
use kernel::mapped_file::MappedFile;
use nix::fcntl::FlockArg;
use pages::{ChunkId, SnapshotId, SnapshotName};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading: any number at once, also beside a writer.
    Read,
    /// Writing: one at a time.
    Write,
}

/// A pack that is mapped; frames keep it alive.
#[derive(Clone, Debug)]
struct Pack {
    bytes: Bytes,
    reader: Arc<PackReader<Bytes>>,
}

/// The packs of one directory, shared with uploads, which add to them.
#[derive(Debug)]
pub(crate) struct Packs {
    pub(crate) dir: PathBuf,
    open: RwLock<BTreeMap<String, Pack>>,
}

/// A directory of snapshots.
#[derive(Debug)]
pub struct LocalStore {
    dir: PathBuf,
    access: Access,
    packs: Arc<Packs>,
    _locks: Vec<Lock>,
}

impl LocalStore {
    /// Open `dir`, making it where it is opened for writing and not there.
    pub fn open(dir: &Path, access: Access) -> Result<Self, StoreError> {
        if access == Access::Write {
            for folder in ["packs", "snapshots", "refs", "tmp"] {
                fs::create_dir_all(dir.join(folder)).map_err(StoreError::io(dir.join(folder)))?;
            }
        } else if !dir.join("packs").is_dir() {
            let source = std::io::Error::new(ErrorKind::NotFound, "there is no store: checkpoint something into it first");
            return Err(StoreError::Io { path: dir.to_owned(), source });
        }
        let mut locks = vec![Lock::take(dir, "lock.read", FlockArg::LockSharedNonblock)?];
        if access == Access::Write {
            locks.push(Lock::take(dir, "lock.write", FlockArg::LockExclusiveNonblock)?);
            sweep(&dir.join("tmp"))?;
        }
        let packs = Arc::new(Packs { dir: dir.to_owned(), open: RwLock::default() });
        packs.rescan()?;
        Ok(Self { dir: dir.to_owned(), access, packs, _locks: locks })
    }

    fn for_writing(&self) -> Result<(), StoreError> {
        if self.access == Access::Write { Ok(()) } else { Err(StoreError::ReadOnly(self.dir.clone())) }
    }

    fn ref_path(&self, name: &SnapshotName) -> PathBuf {
        self.dir.join("refs").join(name.to_string())
    }

    fn image_path(&self, id: &SnapshotId) -> PathBuf {
        self.dir.join("snapshots").join(format!("{id}.image"))
    }
}

/// Remove what a killed writer left.
fn sweep(tmp: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(tmp).map_err(StoreError::io(tmp))?.flatten() {
        fs::remove_file(entry.path()).map_err(StoreError::io(entry.path()))?;
    }
    Ok(())
}

/// Write a whole file so that it is there completely or not at all.
fn write_durably(dir: &Path, to: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = tempfile::NamedTempFile::new_in(dir.join("tmp")).map_err(StoreError::io(dir.join("tmp")))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(StoreError::io(to))?;
    file.persist(to).map_err(|error| StoreError::io(to)(error.error))?;
    sync_folder(to)
}

/// Sync the folder that `file` was renamed into.
pub(crate) fn sync_folder(file: &Path) -> Result<(), StoreError> {
    let folder = file.parent().unwrap_or(file);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io(folder))
}

impl Packs {
    /// Map packs that turned up in the folder.
    pub(crate) fn rescan(&self) -> Result<(), StoreError> {
        let folder = self.dir.join("packs");
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        for entry in fs::read_dir(&folder).map_err(StoreError::io(&folder))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".pack") || open.contains_key(&name) {
                continue;
            }
            let path = entry.path();
            let mapped = File::open(&path).and_then(|file| MappedFile::open(&file)).map_err(StoreError::io(&path))?;
            let bytes = Bytes::from_owner(mapped);
            let reader = PackReader::open(bytes.clone()).map_err(|source| StoreError::Damaged { path, source })?;
            open.insert(name, Pack { bytes, reader: Arc::new(reader) });
        }
        Ok(())
    }

    pub(crate) fn contains(&self, id: &ChunkId) -> bool {
        self.open.read().unwrap_or_else(PoisonError::into_inner).values().any(|pack| pack.reader.contains(id))
    }

    fn frame(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        for (name, pack) in open.iter() {
            let damaged = |source| StoreError::Damaged { path: self.dir.join("packs").join(name), source };
            if let Some(range) = pack.reader.frame(id).map_err(damaged)? {
                return Ok(Some(pack.bytes.slice(range)));
            }
        }
        Ok(None)
    }
}

impl Store for LocalStore {
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        Ok(ids.iter().filter(|id| !self.packs.contains(id)).copied().collect())
    }

    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        self.for_writing()?;
        Ok(Box::new(LocalUpload::new(self.packs.clone())))
    }

    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.for_writing()?;
        let damaged = |source| StoreError::Damaged { path: PathBuf::from("the image sent"), source };
        let (id, table) = images::parse_table(&image).map_err(damaged)?;
        if let Some(missing) = table.iter().find(|id| !self.packs.contains(id)) {
            return Err(StoreError::MissingChunk(*missing));
        }
        let to = self.ref_path(name);
        if to.exists() {
            return Err(StoreError::NameTaken(name.clone()));
        }
        write_durably(&self.dir, &self.image_path(&id), &image)?;
        write_durably(&self.dir, &to, id.to_string().as_bytes())?;
        Ok(id)
    }

    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let path = self.ref_path(name);
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| StoreError::Damaged { path, source: images::ImageError::Magic("reference") }),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(StoreError::NotFound { name: name.to_string() }),
            Err(error) => Err(StoreError::io(path)(error)),
        }
    }

    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        let path = self.image_path(id);
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => StoreError::MissingImage(*id),
            _ => StoreError::io(&path)(error),
        })?;
        let (found, _) = images::parse_table(&bytes).map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        if found != *id {
            return Err(StoreError::Damaged { path, source: images::ImageError::Checksum("image") });
        }
        Ok(Bytes::from(bytes))
    }

    fn frame(&self, id: &ChunkId) -> Result<Bytes, StoreError> {
        if let Some(frame) = self.packs.frame(id)? {
            return Ok(frame);
        }
        self.packs.rescan()?; // somebody may have added a pack
        self.packs.frame(id)?.ok_or(StoreError::MissingChunk(*id))
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        let folder = self.dir.join("refs");
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(StoreError::io(&folder))?.flatten() {
            let Ok(name) = entry.file_name().to_string_lossy().parse::<SnapshotName>() else { continue };
            let id = self.resolve(&name)?;
            let (_, table) =
                images::parse_table(&self.image(&id)?).map_err(|source| StoreError::Damaged { path: self.image_path(&id), source })?;
            let made = entry.metadata().and_then(|meta| meta.modified()).ok();
            let age = made.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            found.push(SnapshotInfo { name, id, created_unix_s: age.map_or(0, |age| age.as_secs()), chunks: table.len() as u64 });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        self.for_writing()?;
        self.resolve(name)?;
        let path = self.ref_path(name);
        fs::remove_file(&path).map_err(StoreError::io(&path))?;
        sync_folder(&path)
    }

    fn gc(&self) -> Result<GcReport, StoreError> {
        self.for_writing()?;
        let named = self.list()?;
        let mut needed = HashSet::new();
        for snapshot in &named {
            let image = self.image(&snapshot.id)?;
            needed.extend(images::parse_table(&image).map(|(_, table)| table).unwrap_or_default());
        }
        let images = self.dir.join("snapshots");
        for entry in fs::read_dir(&images).map_err(StoreError::io(&images))?.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            if !named.iter().any(|snapshot| file == format!("{}.image", snapshot.id)) {
                fs::remove_file(entry.path()).map_err(StoreError::io(entry.path()))?;
            }
        }
        let mut report = GcReport::default();
        let mut open = self.packs.open.write().unwrap_or_else(PoisonError::into_inner);
        let useless: Vec<String> = open
            .iter()
            .filter(|(_, pack)| !pack.reader.entries().any(|(id, _)| needed.contains(&id)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in useless {
            let path = self.dir.join("packs").join(&name);
            fs::remove_file(&path).map_err(StoreError::io(&path))?;
            if let Some(pack) = open.remove(&name) {
                report.packs += 1;
                report.bytes += pack.bytes.len() as u64;
            }
        }
        Ok(report)
    }
}
