//! A file system with little room, to be filled.

use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Mounted on a folder; unmounted with its value.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mount one with room for `size` (as tmpfs takes it) on a folder that is there.
    pub fn mount(folder: &Path, size: &str) -> Result<Self> {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "small"]).arg(folder).status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(Self(folder.to_owned()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.as_ref().is_ok_and(ExitStatus::success) {
            eprintln!("unmount {}: {unmounted:?}", self.0.display());
        }
    }
}
