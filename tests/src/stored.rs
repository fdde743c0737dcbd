//! Folders that snapshots are stored in, as benches handle them: made anew, measured, in the page cache or out of it.

use anyhow::{Context as _, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::path::Path;

/// An empty folder, and nothing left to be written back.
pub fn fresh(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir(folder)?;
    nix::unistd::sync();
    Ok(())
}

/// The sum of all files' lengths below a folder.
pub fn bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for_files(folder, &mut |path| {
        sum += path.metadata()?.len();
        Ok(())
    })?;
    Ok(sum)
}

/// Read everything once, so that it is in the page cache.
pub fn warm(folder: &Path) -> Result<()> {
    for_files(folder, &mut |path| {
        std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
        Ok(())
    })
}

/// Write everything back and let the page cache forget it; nobody may have it mapped.
pub fn cold(folder: &Path) -> Result<()> {
    for_files(folder, &mut |path| {
        let file = File::open(path)?;
        file.sync_all()?; // what is dirty stays
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).with_context(|| path.display().to_string())
    })
}

/// Regular files only: CRIU leaves its socket among its images.
fn for_files(folder: &Path, each: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            for_files(&entry.path(), each)?;
        } else if kind.is_file() {
            each(&entry.path())?;
        }
    }
    Ok(())
}

/// Bytes as MiB.
#[must_use]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
