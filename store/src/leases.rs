//! Leases of live restores: `DIR/leases/DIGEST.HOLDER`, a file that the holder renews and whose time of change tells until when the
//! snapshot is needed. A collection spares the snapshots of leases that have not expired.
//!
//! A lease is taken and a collection reads leases under one lock (`DIR/lock.lease`), so that a lease either is seen by a collection or is
//! refused, as the image is gone. A reader needs no more than the right to write to the folder; where it has none, the restore has no
//! lease, and keeps what it has opened.
//!
//! Known hole: the time is that of the machine's clock; one that is put forward by more than [`LEASE`] lets leases expire early.

use crate::StoreError;
use nix::fcntl::{Flock, FlockArg};
use pages::SnapshotId;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a lease lasts that is not renewed.
pub const LEASE: Duration = Duration::from_secs(600);
/// The longest name of a holder.
const MAX_HOLDER_BYTES: usize = 64;
/// The most leases that one store keeps.
const MAX_LEASES: usize = 65_536;

/// The leases of one directory.
#[derive(Debug)]
pub(crate) struct Leases {
    dir: PathBuf,
}

/// A collection is under way, or a lease is being written, until this goes.
pub(crate) type Held = Flock<File>;

impl Leases {
    pub(crate) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn folder(&self) -> PathBuf {
        self.dir.join("leases")
    }

    /// Wait until no collection is under way and no lease is being written.
    pub(crate) fn lock(&self) -> Result<Held, StoreError> {
        let path = self.dir.join("lock.lease");
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(StoreError::io(&path))?
            }
            opened => opened.map_err(StoreError::io(&path))?,
        };
        let mut locked = Flock::lock(file, FlockArg::LockExclusive);
        while let Err((file, nix::errno::Errno::EINTR)) = locked {
            locked = Flock::lock(file, FlockArg::LockExclusive);
        }
        locked.map_err(|(_, errno)| StoreError::Io { path, source: errno.into() })
    }

    /// Write or renew a lease of `holder`; the caller holds the lock, and the image is there.
    pub(crate) fn renew(&self, id: &SnapshotId, holder: &str, _held: &Held) -> Result<(), StoreError> {
        let folder = self.folder();
        fs::create_dir_all(&folder).map_err(StoreError::io(&folder))?;
        let path = self.path(id, holder)?;
        if !path.exists() && fs::read_dir(&folder).map_err(StoreError::io(&folder))?.count() >= MAX_LEASES {
            return Err(StoreError::TooLarge { what: "number of leases", bytes: MAX_LEASES, most: MAX_LEASES });
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(StoreError::io(&path))?;
        file.set_modified(SystemTime::now()).map_err(StoreError::io(&path))
    }

    /// Give a lease back.
    pub(crate) fn release(&self, id: &SnapshotId, holder: &str) -> Result<(), StoreError> {
        let path = self.path(id, holder)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io(path)(error)),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &SnapshotId, holder: &str) -> Result<PathBuf, StoreError> {
        let fits = !holder.is_empty() && holder.len() <= MAX_HOLDER_BYTES && holder.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !fits {
            return Err(StoreError::Holder);
        }
        Ok(self.folder().join(format!("{id}.{holder}")))
    }

    /// The snapshots that live restores need, and how many need each. Leases that have expired are removed if `sweep`.
    pub(crate) fn live(&self, sweep: bool) -> Result<HashMap<String, u64>, StoreError> {
        let (folder, now, mut live) = (self.folder(), SystemTime::now(), HashMap::new());
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(live),
            entries => entries.map_err(StoreError::io(&folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(StoreError::io(&folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((id, _)) = name.split_once('.') else { continue };
            let renewed = match entry.metadata().and_then(|meta| meta.modified()) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue, // given back while we looked
                renewed => renewed.map_err(StoreError::io(entry.path()))?,
            };
            // One of the future is live: clocks differ.
            if now.duration_since(renewed).is_ok_and(|age| age > LEASE) {
                if sweep {
                    let _ = fs::remove_file(entry.path()); // the next collection tries again
                }
            } else {
                *live.entry(id.to_owned()).or_default() += 1;
            }
        }
        Ok(live)
    }
}
