//! Who may write to a store's directory: flock on a file that holds nothing but the holder's pid.
//!
//! `lock.write` is held by the one writer (a server, or a checkpoint into an embedded store); the kernel lets go of it when the
//! holder dies. Readers need none: what they use they have mapped since they opened the store, and a file that a collection
//! removes stays with whoever has it mapped.

use crate::StoreError;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;

/// A held lock; let go when dropped.
#[derive(Debug)]
pub struct Lock {
    _held: Flock<File>,
}

impl Lock {
    /// Take `dir/name`, or say who has it.
    pub fn take(dir: &Path, name: &str) -> Result<Self, StoreError> {
        let path = dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(StoreError::io(&path))?;
        let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        while let Err((file, nix::errno::Errno::EINTR)) = locked {
            locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        }
        match locked {
            Ok(mut held) => {
                // The pid only helps whoever is refused: a full disk must not refuse us.
                let _ = held.set_len(0).and_then(|()| write!(held, "{}", std::process::id()));
                Ok(Self { _held: held })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder); // an unreadable pid is merely not named
                Err(StoreError::Busy { path: dir.to_owned(), holder })
            }
            Err((_, errno)) => Err(StoreError::Io { path, source: errno.into() }),
        }
    }
}
