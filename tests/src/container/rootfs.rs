//! The root file system of all containers: Debian with redis, by debootstrap, made once and never written to again.

use crate::command::succeeds;
use crate::peers;
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::process::Command;

/// Its folder, made if it is not there yet.
pub fn rootfs() -> Result<PathBuf> {
    let root = peers::home()?.join("rootfs");
    peers::once(
        "a root file system",
        || root.join("usr/bin/redis-server").exists(),
        |home| {
            // It gets its name once everything is in it.
            let partial = home.join("rootfs.partial");
            if partial.exists() {
                std::fs::remove_dir_all(&partial)?;
            }
            let mirror = peers::mirror()?;
            // With mounts of its own: none of debootstrap's is left, however it ends.
            let mut make = Command::new("unshare");
            make.args(["--mount", "debootstrap", "--variant=minbase", "--include=redis-server", &mirror.release]);
            make.arg(&partial).arg(&mirror.uri);
            succeeds(make).context("debootstrap is needed: run as root, with debootstrap installed")?;
            Ok(std::fs::rename(&partial, &root)?)
        },
    )?;
    Ok(root)
}
