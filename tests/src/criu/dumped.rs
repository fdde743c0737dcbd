//! Victims that CRIU has dumped, and that are dead.

use super::{LazyPages, dump, restore_with, tree};
use crate::{Victim, defrost_ok, need_root};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// One of them, with its images in a folder.
#[derive(Debug)]
pub struct Dumped {
    /// The process, to be restored.
    pub victim: Victim,
    /// Where its images are, and room for more.
    pub folder: TempDir,
}

impl Dumped {
    /// The processes of [`super::TREE`].
    pub fn tree(mib: usize) -> Result<Self> {
        need_root()?;
        Self::of(tree(mib)?)
    }

    /// A victim, dumped now.
    pub fn of(victim: Victim) -> Result<Self> {
        let mut dumped = Self { victim, folder: tempfile::tempdir()? };
        dump(&dumped.victim, &dumped.images(), &[])?;
        dumped.victim.reap()?;
        Ok(dumped)
    }

    /// A place in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.path("images")
    }

    /// Import it, write back what a lazy restore needs, and remove the images.
    pub fn moved_to(&self, store: &str) -> Result<PathBuf> {
        let lazy = self.path("lazy");
        defrost_ok(&["import", "criu", &self.images().display().to_string(), "tree", "--store", store])?;
        defrost_ok(&["export", "criu", "tree", &lazy.display().to_string(), "--lazy", "--store", store])?;
        std::fs::remove_dir_all(self.images())?;
        Ok(lazy)
    }

    /// Restore lazily from `images`, compare everything, and end it. Yields what the daemon said.
    pub fn proves(&mut self, images: &Path, work: &Path, daemon: LazyPages) -> Result<String> {
        restore_with(images, work, &["--lazy-pages"]).with_context(|| daemon.said())?;
        self.victim.check("").with_context(|| daemon.said())?;
        let said = daemon.has_served()?;
        self.victim.end()?;
        Ok(said)
    }
}
