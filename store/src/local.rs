//! A store in a directory.
//!
//! ```text
//! DIR/packs/ID.pack                  frames and their index, never changed once there (`packs`, `local_upload`)
//! DIR/snapshots/DIGEST.image         image files
//! DIR/snapshots/DIGEST.groups        of a large one: the values of its groups (`images::groups`); a hint, made anew where it does not fit
//! DIR/snapshots/DIGEST.working-set   what a restore touched first, kept beside the image
//! DIR/refs/NAME:TAG                  the digest that a name stands for
//! DIR/tmp/                           what is being written; swept when opened for writing
//! DIR/leases/DIGEST.HOLDER           a live restore needs this snapshot (`leases`)
//! DIR/lock.write, DIR/lock.lease     see `lock`, `leases`
//! ```
//!
//! Every file is written under tmp/, synced, renamed into place, and its folder synced: whatever dies, the store opens and has no
//! snapshot by halves. Packs and images are read and never mapped (decision 0025): a file that
//! was cut is an error of whoever needs it. Whatever gives or takes a name holds one lock, so that a
//! collection never removes what a commit has just found there, and `claims` keeps it from what an upload relies on.

use crate::image_file::ImageFile;
use crate::leases::Leases;
use crate::local_upload::LocalUpload;
use crate::lock::Lock;
use crate::packs::Packs;
use crate::{Damage, GcReport, SnapshotInfo, Store, StoreError, Upload, check_working_set};
use bytes::Bytes;
use images::head::SMALL_BYTES;
use images::{Groups, Head};
use pages::{ChunkId, SnapshotId, SnapshotName};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading: any number at once, also beside a writer. A working set may be kept all the same: it is only a hint.
    Read,
    /// Writing: one at a time.
    Write,
}

/// A directory of snapshots.
#[derive(Debug)]
pub struct LocalStore {
    dir: PathBuf,
    packs: Arc<Packs>,
    names: Mutex<()>,
    writing: Option<Lock>,
    leases: Leases,
    /// Names that the last listing found damaged.
    damaged_names: AtomicU64,
}

impl LocalStore {
    /// Open `dir`, making it where it is opened for writing and not there.
    pub fn open(dir: &Path, access: Access) -> Result<Self, StoreError> {
        let mut writing = None;
        if access == Access::Write {
            for folder in ["packs", "snapshots", "refs", "leases", "tmp"] {
                fs::create_dir_all(dir.join(folder)).map_err(StoreError::io(dir.join(folder)))?;
            }
            writing = Some(Lock::take(dir, "lock.write")?);
            sweep(&dir.join("tmp"))?;
        } else {
            must_be_store(dir)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            packs: Arc::new(Packs::open(dir, writing.is_some())?),
            names: Mutex::default(),
            writing,
            leases: Leases::of(dir),
            damaged_names: AtomicU64::new(0),
        })
    }

    fn for_writing(&self) -> Result<MutexGuard<'_, ()>, StoreError> {
        if self.writing.is_none() {
            return Err(StoreError::ReadOnly(self.dir.clone()));
        }
        // It guards files, each of which is whole at any time.
        Ok(self.names.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn ref_path(&self, name: &SnapshotName) -> PathBuf {
        self.dir.join("refs").join(name.to_string())
    }

    fn image_path(&self, id: &SnapshotId) -> PathBuf {
        self.dir.join("snapshots").join(format!("{id}.image"))
    }

    fn groups_path(&self, id: &SnapshotId) -> PathBuf {
        self.dir.join("snapshots").join(format!("{id}.groups"))
    }

    fn working_set_path(&self, id: &SnapshotId) -> PathBuf {
        self.dir.join("snapshots").join(format!("{id}.working-set"))
    }

    /// Make `name` stand for `id`; it must be free, and is free again after any error.
    fn give_name(&self, name: &SnapshotName, id: &SnapshotId) -> Result<(), StoreError> {
        let path = self.ref_path(name);
        self.write_durably(&path, id.to_string().as_bytes()).inspect_err(|_| {
            // It may be there although its folder could not be synced; mostly it is not.
            let _ = fs::remove_file(&path);
        })
    }

    fn must_be_free(&self, name: &SnapshotName) -> Result<(), StoreError> {
        if self.ref_path(name).exists() { Err(StoreError::NameTaken(name.clone())) } else { Ok(()) }
    }

    fn has_image(&self, id: &SnapshotId) -> Result<(), StoreError> {
        if self.image_path(id).exists() { Ok(()) } else { Err(StoreError::MissingImage(*id)) }
    }

    fn image_file(&self, id: &SnapshotId) -> Result<ImageFile, StoreError> {
        ImageFile::open(id, self.image_path(id))
    }

    /// The groups of an image file: those kept beside it, or computed of all of it.
    fn groups(&self, id: &SnapshotId, image: &ImageFile) -> Result<Groups, StoreError> {
        let kept = if is_small(image.bytes()) { None } else { fs::read(self.groups_path(id)).ok() };
        if let Some(groups) = kept.and_then(|values| Groups::checked(*id, image.bytes(), &values)) {
            return Ok(groups);
        }
        let groups = image.groups()?;
        if self.writing.is_some() && !is_small(image.bytes()) {
            self.keep_groups(&groups);
        }
        Ok(groups)
    }

    /// Keep the groups of a large image beside it. They are worth time only, and not synced: what a crash leaves of them does not fit.
    fn keep_groups(&self, groups: &Groups) {
        let path = self.groups_path(&groups.id());
        let written = tempfile::NamedTempFile::new_in(self.dir.join("tmp"))
            .and_then(|mut file| file.write_all(groups.values()).and_then(|()| file.persist(&path).map_err(|error| error.error)));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "not kept: each restore of this snapshot reads its whole image");
        }
    }

    /// What is wrong with a snapshot as far as can be told without reading its chunks.
    fn count_or_damage(&self, id: &SnapshotId, look_at_chunks: bool) -> Result<u64, StoreError> {
        let image = self.image_file(id)?;
        let chunks = image.count_chunks()?;
        if look_at_chunks && let Some((_, lost)) = self.packs.first_lost(&image.likely_table()?) {
            return Err(lost);
        }
        Ok(chunks)
    }

    /// The name stands for this snapshot already, whose image is damaged or gone: a commit of the same image mends it.
    fn mends(&self, name: &SnapshotName, id: &SnapshotId) -> bool {
        self.resolve(name).is_ok_and(|found| found == *id) && self.image_file(id).and_then(|image| image.whole()).is_err()
    }

    /// Write a whole file so that it is there completely or not at all.
    fn write_durably(&self, to: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let tmp = self.dir.join("tmp");
        let mut again = self.writing.is_none();
        loop {
            let mut file = tempfile::NamedTempFile::new_in(&tmp).map_err(StoreError::io(&tmp))?;
            file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(StoreError::io(to))?;
            match file.persist(to) {
                Ok(_) => return sync_folder(to),
                // We are no writer, and one that opened the store just now swept the folder.
                Err(error) if again && error.error.kind() == ErrorKind::NotFound => again = false,
                Err(error) => return Err(StoreError::io(to)(error.error)),
            }
        }
    }

    fn names(&self) -> Result<Vec<(SnapshotName, fs::DirEntry)>, StoreError> {
        let folder = self.dir.join("refs");
        let entries = fs::read_dir(&folder).map_err(StoreError::io(&folder))?.flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| Some((entry.file_name().to_string_lossy().parse().ok()?, entry))).collect();
        names.sort_by(|(a, _), (b, _)| SnapshotName::cmp(a, b));
        Ok(names)
    }
}

/// One whose groups are computed in no time.
fn is_small(image_bytes: u64) -> bool {
    image_bytes <= SMALL_BYTES
}

/// Whether there is a store at all, as far as we may know.
fn must_be_store(dir: &Path) -> Result<(), StoreError> {
    match fs::metadata(dir.join("packs")) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(StoreError::io(dir)(error)),
        _ => {
            let source = std::io::Error::new(ErrorKind::NotFound, "there is no store: checkpoint something into it first");
            Err(StoreError::Io { path: dir.to_owned(), source })
        }
    }
}

/// Remove what a killed writer left.
fn sweep(tmp: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(tmp).map_err(StoreError::io(tmp))?.flatten() {
        match fs::remove_file(entry.path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(StoreError::io(entry.path())(error)),
            _ => {}
        }
    }
    Ok(())
}

/// Sync the folder that `file` was renamed into.
pub(crate) fn sync_folder(file: &Path) -> Result<(), StoreError> {
    let folder = file.parent().unwrap_or(file);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io(folder))
}

impl Store for LocalStore {
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        Ok(self.packs.unreliable(ids))
    }

    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        drop(self.for_writing()?);
        Ok(Box::new(LocalUpload::new(self.packs.clone())))
    }

    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let _names = self.for_writing()?;
        let (id, table) = crate::sent_image(&image)?;
        if let Some(missing) = self.packs.first_unreliable(images::digests(table)) {
            return Err(StoreError::MissingChunk(missing));
        }
        let mends = self.mends(name, &id);
        if !mends {
            self.must_be_free(name)?;
        }
        self.write_durably(&self.image_path(&id), &image)?;
        if !is_small(image.len() as u64) {
            self.keep_groups(&Groups::of(&image));
        }
        if !mends {
            self.give_name(name, &id)?;
        }
        self.packs.claims.named(images::digests(table));
        Ok(id)
    }

    fn tag(&self, from: &SnapshotName, to: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let _names = self.for_writing()?;
        let id = self.resolve(from)?;
        self.must_be_free(to)?;
        self.has_image(&id)?;
        self.give_name(to, &id)?;
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
        self.image_file(id)?.whole()
    }

    fn image_head(&self, id: &SnapshotId) -> Result<Head, StoreError> {
        let image = self.image_file(id)?;
        image.head(self.groups(id, &image)?)
    }

    fn image_groups(&self, id: &SnapshotId, groups: &Range<u32>, _: Option<usize>) -> Result<Bytes, StoreError> {
        self.image_file(id)?.groups_bytes(groups)
    }

    fn frames(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, StoreError> {
        let one = |id: &ChunkId| {
            match self.packs.frame(id) {
                Ok(Some(frame)) => return Ok(frame),
                Err(error) if self.writing.is_some() || !error.is_about_contents() => return Err(error),
                Ok(None) | Err(_) if self.writing.is_none() => self.packs.rescan()?, // a writer may have added a pack
                Ok(None) | Err(_) => {}
            }
            self.packs.frame(id)?.ok_or(StoreError::MissingChunk(*id))
        };
        let together = self.packs.frames_together(ids);
        ids.iter().zip(together).map(|(id, frame)| frame.map_or_else(|| one(id), Ok)).collect()
    }

    fn frames_bytes(&self, ids: &[ChunkId]) -> Option<u64> {
        Some(self.packs.frames_bytes(ids))
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        let (mut found, live, look_at_chunks) = (Vec::new(), self.leases.live(false)?, self.packs.damage() != (0, 0));
        for (name, entry) in self.names()? {
            let id = match self.resolve(&name) {
                Err(StoreError::NotFound { .. }) => continue, // removed while we looked
                other => other,
            };
            let counted = id.as_ref().map(|id| self.count_or_damage(id, look_at_chunks));
            let damage = match (&id, &counted) {
                (Err(error), _) | (_, Ok(Err(error))) => Some(error.to_string()),
                _ => None,
            };
            let made = entry.metadata().and_then(|meta| meta.modified()).ok();
            let age = made.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            let leases = id.as_ref().ok().and_then(|id| live.get(&id.to_string())).copied().unwrap_or_default();
            let chunks = counted.ok().and_then(Result::ok).unwrap_or_default();
            let id = id.unwrap_or(SnapshotId([0; 32]));
            found.push(SnapshotInfo { name, id, created_unix_s: age.map_or(0, |age| age.as_secs()), chunks, damage, leases });
        }
        let damaged = found.iter().filter(|snapshot| snapshot.damage.is_some()).count();
        self.damaged_names.store(damaged as u64, Ordering::Relaxed);
        Ok(found)
    }

    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        let _names = self.for_writing()?;
        let path = self.ref_path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(StoreError::NotFound { name: name.to_string() }),
            removed => removed.map_err(StoreError::io(&path)).and_then(|()| sync_folder(&path)),
        }
    }

    fn gc(&self) -> Result<GcReport, StoreError> {
        let _names = self.for_writing()?;
        let _no_new_lease = self.leases.lock()?;
        let (mut named, mut unreadable): (HashSet<String>, u64) = (self.leases.live(true)?.into_keys().collect(), 0);
        for (name, _) in self.names()? {
            match self.resolve(&name) {
                Ok(id) => drop(named.insert(id.to_string())),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => {
                    tracing::warn!(%name, %error, "nobody knows which image this name stands for: no image is collected until it is removed");
                    unreadable += 1;
                }
            }
        }
        let (folder, mut needed, mut unknown) = (self.dir.join("snapshots"), HashSet::new(), false);
        for entry in fs::read_dir(&folder).map_err(StoreError::io(&folder))?.flatten() {
            let path = entry.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()?.parse::<SnapshotId>().ok());
            match id {
                Some(id) if unreadable > 0 || named.contains(&id.to_string()) => {
                    if path.extension().is_some_and(|kind| kind == "image") {
                        match ImageFile::open(&id, path).and_then(|image| image.likely_table()) {
                            Ok(table) => needed.extend(table),
                            Err(error) => {
                                tracing::error!(%error, "nobody knows which chunks this image needs: no chunk is collected until it is read");
                                unknown = true;
                            }
                        }
                    }
                }
                _ => fs::remove_file(&path).map_err(StoreError::io(&path))?,
            }
        }
        let collected = if unknown { GcReport::default() } else { self.packs.collect(&needed)? };
        Ok(GcReport { unreadable, ..collected })
    }

    fn lease(&self, id: &SnapshotId, holder: &str) -> Result<(), StoreError> {
        let held = self.leases.lock()?;
        self.has_image(id)?;
        self.leases.renew(id, holder, &held)
    }

    fn release(&self, id: &SnapshotId, holder: &str) -> Result<(), StoreError> {
        self.leases.release(id, holder)
    }

    fn leases(&self, id: &SnapshotId) -> Result<u64, StoreError> {
        Ok(self.leases.live(false)?.get(&id.to_string()).copied().unwrap_or_default())
    }

    fn damage(&self) -> Damage {
        let (packs, frames) = self.packs.damage();
        Damage { packs, frames, names: self.damaged_names.load(Ordering::Relaxed) }
    }

    fn spool(&self) -> Result<File, StoreError> {
        drop(self.for_writing()?);
        let tmp = self.dir.join("tmp");
        tempfile::tempfile_in(&tmp).map_err(StoreError::io(tmp))
    }

    fn put_working_set(&self, id: &SnapshotId, bytes: Bytes) -> Result<(), StoreError> {
        check_working_set(&bytes)?;
        // With the lock, so that no collection comes between the look and the writing; a reader, who cannot have it, may leave one
        // behind, which the next collection removes.
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_image(id)?;
        self.write_durably(&self.working_set_path(id), &bytes)
    }

    fn working_set(&self, id: &SnapshotId) -> Result<Option<Bytes>, StoreError> {
        self.has_image(id)?;
        let path = self.working_set_path(id);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io(path)(error)),
        }
    }
}
