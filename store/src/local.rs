//! A store in a directory.
//!
//! ```text
//! DIR/packs/ID.pack                  frames and their index, never changed once there (`packs`, `local_upload`)
//! DIR/snapshots/DIGEST.image         image files
//! DIR/snapshots/DIGEST.groups        of a large one: the values of its groups (`images::groups`); a hint, made anew where it does not fit
//! DIR/snapshots/DIGEST.working-set   what a restore touched first, kept beside the image
//! DIR/refs/NAME:TAG                  the digest that a name stands for
//! DIR/tmp/                           what is being written; swept when opened for writing
//! DIR/lock.write                     see `lock`
//! ```
//!
//! Every file is written under tmp/, synced, renamed into place, and its folder synced: whatever dies, the store opens and has no
//! snapshot by halves. Frames are answered straight from the mapped pack. Whatever gives or takes a name holds one lock, so that a
//! collection never removes what a commit has just found there, and `claims` keeps it from what an upload relies on.

use crate::local_upload::LocalUpload;
use crate::lock::Lock;
use crate::packs::Packs;
use crate::{GcReport, SnapshotInfo, Store, StoreError, Upload, check_working_set, table};
use bytes::Bytes;
use images::head::SMALL_BYTES;
use images::{GROUP_BYTES, Groups, Head};
use kernel::mapped_file::MappedFile;
use pages::{ChunkId, SnapshotId, SnapshotName};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
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
    /// The image that was last read in part, mapped, by the number of its inode.
    in_parts: Mutex<Option<(u64, Bytes)>>,
}

impl LocalStore {
    /// Open `dir`, making it where it is opened for writing and not there.
    pub fn open(dir: &Path, access: Access) -> Result<Self, StoreError> {
        let mut writing = None;
        if access == Access::Write {
            for folder in ["packs", "snapshots", "refs", "tmp"] {
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
            in_parts: Mutex::default(),
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

    /// An image file, mapped; nothing of it is checked.
    fn map_image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        let path = self.image_path(id);
        let mapped = File::open(&path).and_then(|file| MappedFile::open(&file)).map_err(no_image(id, &path))?;
        Ok(Bytes::from_owner(mapped))
    }

    /// The same for whoever reads it part by part.
    fn map_for_parts(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        let path = self.image_path(id);
        let file = File::open(&path).map_err(no_image(id, &path))?;
        let inode = file.metadata().map_err(StoreError::io(&path))?.ino();
        let mut last = self.in_parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, image)) = last.as_ref().filter(|(of, _)| *of == inode) {
            return Ok(image.clone());
        }
        let image = Bytes::from_owner(MappedFile::open(&file).map_err(StoreError::io(&path))?);
        *last = Some((inode, image.clone()));
        Ok(image)
    }

    /// An image file, and what `check` finds in it.
    fn read_image<T>(
        &self,
        id: &SnapshotId,
        check: impl Fn(&[u8], &SnapshotId) -> Result<T, images::ImageError>,
    ) -> Result<(Bytes, T), StoreError> {
        let image = self.map_image(id)?;
        let found = check(&image, id).map_err(|source| StoreError::Damaged { path: self.image_path(id), source })?;
        Ok((image, found))
    }

    /// What is wrong with an image file some part of which is.
    fn damaged(&self, id: &SnapshotId, image: &[u8]) -> StoreError {
        let source = crate::check_image(image, id).err().unwrap_or(images::ImageError::Checksum("image"));
        StoreError::Damaged { path: self.image_path(id), source }
    }

    /// The groups of an image file: those kept beside it, or computed of all of it.
    fn groups(&self, id: &SnapshotId, image: &[u8]) -> Result<Groups, StoreError> {
        let kept = if is_small(image) { None } else { fs::read(self.groups_path(id)).ok() };
        if let Some(groups) = kept.and_then(|values| Groups::checked(*id, image.len() as u64, &values)) {
            return Ok(groups);
        }
        let groups = Groups::of(image);
        if groups.id() != *id {
            return Err(self.damaged(id, image));
        }
        if self.writing.is_some() && !is_small(image) {
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

    /// The chunks that an image file names.
    fn table(&self, id: &SnapshotId) -> Result<Vec<ChunkId>, StoreError> {
        self.read_image(id, crate::checked_table).map(|(_, table)| table)
    }

    /// How many chunks an image names, by its header: the rest is checked by whoever reads it.
    fn count_chunks(&self, id: &SnapshotId) -> Result<u64, StoreError> {
        let path = self.image_path(id);
        let mut header = Vec::with_capacity(images::HEADER_BYTES);
        let file = File::open(&path).map_err(no_image(id, &path))?;
        file.take(images::HEADER_BYTES as u64).read_to_end(&mut header).map_err(StoreError::io(&path))?;
        images::count_chunks(&header).map_err(|source| StoreError::Damaged { path, source })
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
fn is_small(image: &[u8]) -> bool {
    image.len() as u64 <= SMALL_BYTES
}

/// An image's file cannot be read.
fn no_image<'a>(id: &'a SnapshotId, path: &'a Path) -> impl FnOnce(std::io::Error) -> StoreError + 'a {
    move |error| match error.kind() {
        ErrorKind::NotFound => StoreError::MissingImage(*id),
        _ => StoreError::io(path)(error),
    }
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
        Ok(ids.iter().filter(|id| !self.packs.can_be_relied_on(id)).copied().collect())
    }

    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        drop(self.for_writing()?);
        Ok(Box::new(LocalUpload::new(self.packs.clone())))
    }

    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let _names = self.for_writing()?;
        let (id, table) = crate::sent_image(&image)?;
        if let Some(missing) = self.packs.first_missing(&table) {
            return Err(StoreError::MissingChunk(missing));
        }
        self.must_be_free(name)?;
        self.write_durably(&self.image_path(&id), &image)?;
        if !is_small(&image) {
            self.keep_groups(&Groups::of(&image));
        }
        self.give_name(name, &id)?;
        self.packs.claims.named(&table);
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
        self.read_image(id, crate::check_image).map(|(image, ())| image)
    }

    fn image_head(&self, id: &SnapshotId) -> Result<Head, StoreError> {
        let image = self.map_for_parts(id)?;
        Head::of_file(self.groups(id, &image)?, &image).map_err(|_| self.damaged(id, &image))
    }

    fn image_groups(&self, id: &SnapshotId, groups: &Range<u32>, _: Option<usize>) -> Result<Bytes, StoreError> {
        if self.writing.is_some() {
            return Ok(table::part(&self.map_for_parts(id)?, groups));
        }
        // Read, as frames are (`packs`): they are kept, and a mapped file would be counted with all that lies around them.
        let (path, group_bytes) = (self.image_path(id), GROUP_BYTES as u64);
        let file = File::open(&path).map_err(no_image(id, &path))?;
        let (mut bytes, most) = (Vec::new(), groups.len() as u64 * group_bytes);
        let sought = (&file).seek(SeekFrom::Start(u64::from(groups.start) * group_bytes));
        sought.and_then(|_| file.take(most).read_to_end(&mut bytes)).map_err(StoreError::io(&path))?;
        Ok(bytes.into())
    }

    fn frames(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, StoreError> {
        let one = |id: &ChunkId| {
            if let Some(frame) = self.packs.frame(id)? {
                return Ok(frame);
            }
            if self.writing.is_none() {
                self.packs.rescan()?; // a writer may have added a pack
            }
            self.packs.frame(id)?.ok_or(StoreError::MissingChunk(*id))
        };
        let together = self.packs.frames_together(ids);
        ids.iter().zip(together).map(|(id, frame)| frame.map_or_else(|| one(id), Ok)).collect()
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        let mut found = Vec::new();
        for (name, entry) in self.names()? {
            let id = match self.resolve(&name) {
                Err(StoreError::NotFound { .. }) => continue, // removed while we looked
                other => other?,
            };
            let chunks = self.count_chunks(&id)?;
            let made = entry.metadata().and_then(|meta| meta.modified()).ok();
            let age = made.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            found.push(SnapshotInfo { name, id, created_unix_s: age.map_or(0, |age| age.as_secs()), chunks });
        }
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
        let (mut named, mut needed) = (HashSet::new(), HashSet::new());
        for (name, _) in self.names()? {
            let id = self.resolve(&name)?;
            if named.insert(id.to_string()) {
                needed.extend(self.table(&id)?);
            }
        }
        let folder = self.dir.join("snapshots");
        for entry in fs::read_dir(&folder).map_err(StoreError::io(&folder))?.flatten() {
            let path = entry.path();
            if !path.file_stem().is_some_and(|stem| named.contains(&*stem.to_string_lossy())) {
                fs::remove_file(&path).map_err(StoreError::io(&path))?;
            }
        }
        let (packs, bytes) = self.packs.collect(&needed)?;
        Ok(GcReport { packs, bytes })
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
