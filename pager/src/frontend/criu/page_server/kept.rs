//! What came from a page server, kept as the dump that it would have been: a folder of images which is whole once all pages are here.
//!
//! A dump with `--lazy-pages` says of each page where it belongs and leaves out the contents. Their places in the pages files that a
//! full dump has follow from that, so each page is written to its own as it comes, and read back from there by whoever wants it later.
//! [`Kept::complete`] adds what the dump has already, and the pagemaps that tell of it all.
//!
//! A failure here is nobody's but the snapshot's: it is told once, nothing more is kept, and pages go on coming from the server.

use crate::frontend::criu::{CriuError, DumpDir};
use images::criu::Pagemap;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Copied at a time of what the dump has itself.
const COPY_PAGES: u64 = 256;

/// Why a dump cannot be completed.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// A file of it cannot be written, or one of the dump's not be read.
    #[error("{path}: {source}: free some space there, or name another folder with --work-dir")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not all pages came.
    #[error("{0} pages did not come")]
    Partial(u64),
    /// They came, and could not be kept.
    #[error("{0}")]
    Broken(String),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> KeptError {
    let path = path.to_owned();
    move |source| KeptError::Io { path, source }
}

/// A dump that is being completed.
#[derive(Debug)]
pub struct Kept {
    folder: PathBuf,
    tasks: BTreeMap<u32, Task>,
    /// Why nothing is kept any more.
    broken: OnceLock<String>,
}

/// One task's pages file.
#[derive(Debug)]
struct Task {
    pagemap: Pagemap,
    path: PathBuf,
    file: File,
    /// Runs of pages, and the first one's number in the file.
    runs: Vec<(PageRange, u64)>,
    here: Mutex<Here>,
}

/// Which pages of a file are.
#[derive(Debug)]
struct Here {
    /// A bit for each.
    bits: Vec<u64>,
    missing: u64,
    /// All before it are.
    next: u64,
}

impl Kept {
    /// Begin in a folder that is there and empty. Pages that the dump has itself are copied now.
    pub fn begin(dir: &DumpDir, folder: &Path) -> Result<Self, KeptError> {
        let mut tasks = BTreeMap::new();
        for &pid in dir.dump().tasks() {
            let name = format!("pagemap-{pid}.img");
            let Some((_, found)) = dir.dump().pagemaps(0).find(|(pagemap, _)| *pagemap == name) else { continue };
            let task = Task::new(found, folder)?;
            task.take_over(found, dir)?;
            tasks.insert(pid, task);
        }
        Ok(Self { folder: folder.to_owned(), tasks, broken: OnceLock::new() })
    }

    /// Whether all pages are here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.broken.get().is_none() && self.missing() == 0
    }

    fn missing(&self) -> u64 {
        self.tasks.values().map(|task| task.here().missing).sum()
    }

    /// The next pages that are not here, so many at most; none either where nothing is kept any more.
    pub(super) fn next_missing(&self, most: u64) -> Option<(u32, PageRange)> {
        if self.broken.get().is_some() {
            return None;
        }
        self.tasks.iter().find_map(|(pid, task)| Some((*pid, task.next_missing(most)?)))
    }

    /// Those at the beginning of `wanted` that are not here, at least one.
    pub(super) fn missing_first(&self, pid: u32, wanted: PageRange) -> PageRange {
        let missing = self.tasks.get(&pid).and_then(|task| {
            let (range, first) = task.place(wanted)?;
            PageRange::with_len(range.start(), task.here().run(first, range.pages(), false))
        });
        missing.filter(|range| !range.is_empty()).unwrap_or(wanted)
    }

    /// Those at the beginning of `wanted` that are here; `None` if the first is not.
    pub(super) fn read(&self, pid: u32, wanted: PageRange, buffer: &mut Vec<u8>) -> Option<Result<PageRange, CriuError>> {
        let task = self.tasks.get(&pid)?;
        let (range, first) = task.place(wanted)?;
        let range = PageRange::with_len(range.start(), task.here().run(first, range.pages(), true)).filter(|range| !range.is_empty())?;
        buffer.resize(range.bytes() as usize, 0);
        let read = task.file.read_exact_at(buffer, first * PAGE_SIZE_BYTES);
        Some(read.map(|()| range).map_err(|source| CriuError::Pages { path: task.path.clone(), page: first, source }))
    }

    /// Pages that came.
    pub(super) fn keep(&self, pid: u32, range: PageRange, contents: &[u8]) {
        let Some((task, (range, first))) = self.tasks.get(&pid).and_then(|task| Some((task, task.place(range)?))) else { return };
        if self.broken.get().is_some() {
            return;
        }
        if let Err(error) = task.write(first, range.pages(), contents) {
            let error = io(&task.path)(error).to_string();
            tracing::error!(%error, "no snapshot will be made; the restored processes are served all the same");
            let _ = self.broken.set(error); // by another thread as well
        }
    }

    /// All pages are here: add everything else. Yields the folder, which is a dump.
    pub fn complete(&self, dir: &DumpDir) -> Result<&Path, KeptError> {
        if let Some(why) = self.broken.get() {
            return Err(KeptError::Broken(why.clone()));
        }
        if !self.is_whole() {
            return Err(KeptError::Partial(self.missing()));
        }
        for (pid, task) in &self.tasks {
            let path = self.folder.join(format!("pagemap-{pid}.img"));
            let mut file = create(&path)?;
            std::io::Write::write_all(&mut file, &task.pagemap.encode()).map_err(io(&path))?;
        }
        let images = dir.path(0, "");
        for entry in images.read_dir().map_err(io(&images))? {
            let entry = entry.map_err(io(&images))?;
            let (from, to) = (entry.path(), self.folder.join(entry.file_name()));
            // Sockets and folders are no part of it, and what is there already is better.
            if entry.file_type().map_err(io(&from))?.is_file() && !to.exists() {
                let mut file = create(&to)?;
                File::open(&from).and_then(|mut read| std::io::copy(&mut read, &mut file)).map_err(io(&from))?;
            }
        }
        if dir.dump().folders().count() > 1 {
            let link = self.folder.join("parent");
            std::os::unix::fs::symlink(dir.path(1, ""), &link).map_err(io(&link))?;
        }
        Ok(&self.folder)
    }
}

impl Task {
    fn new(dumped: &Pagemap, folder: &Path) -> Result<Self, KeptError> {
        let pagemap = dumped.with_lazy();
        let (mut runs, mut pages) = (Vec::new(), 0);
        for range in pagemap.present() {
            runs.push((range, pages));
            pages += range.pages();
        }
        let path = folder.join(pagemap.pages_file());
        let file = create(&path)?;
        file.set_len(pages * PAGE_SIZE_BYTES).map_err(io(&path))?;
        let bits = vec![0; pages.div_ceil(64) as usize];
        Ok(Self { pagemap, path, file, runs, here: Mutex::new(Here { bits, missing: pages, next: 0 }) })
    }

    /// Copy the pages that the dump has itself.
    fn take_over(&self, dumped: &Pagemap, dir: &DumpDir) -> Result<(), KeptError> {
        let name = dumped.pages_file();
        if dumped.present().next().is_none() {
            return Ok(());
        }
        let from = dir.path(0, &name);
        let source = dir.open_stored(0, &name).map_err(|error| io(&from)(std::io::Error::other(error)))?;
        let (mut page, mut buffer) = (0, Vec::new());
        for run in dumped.present() {
            let mut next = run.start();
            while next < run.end() {
                let part = PageRange::with_len(next, COPY_PAGES).and_then(|part| part.intersect(&run)).unwrap_or(run);
                buffer.resize(part.bytes() as usize, 0);
                source.read_exact_at(&mut buffer, page * PAGE_SIZE_BYTES).map_err(io(&from))?;
                if let Some((_, first)) = self.place(part) {
                    self.write(first, part.pages(), &buffer).map_err(io(&self.path))?;
                }
                (next, page) = (part.end(), page + part.pages());
            }
        }
        Ok(())
    }

    /// Where pages at the beginning of `range` are in the file.
    fn place(&self, range: PageRange) -> Option<(PageRange, u64)> {
        let at = self.runs.partition_point(|(run, _)| run.end() <= range.start());
        let (run, first) = self.runs.get(at).filter(|(run, _)| run.contains(range.start()))?;
        Some((run.intersect(&range)?, first + (range.start().number() - run.start().number())))
    }

    fn write(&self, first: u64, pages: u64, contents: &[u8]) -> std::io::Result<()> {
        let contents = contents.get(..(pages * PAGE_SIZE_BYTES) as usize).unwrap_or(contents);
        self.file.write_all_at(contents, first * PAGE_SIZE_BYTES)?;
        // Only now: who reads them finds them.
        self.here().set(first, pages);
        Ok(())
    }

    fn next_missing(&self, most: u64) -> Option<PageRange> {
        let mut here = self.here();
        here.next += here.run(here.next, u64::MAX, true);
        let (run, first) = self.runs.get(self.runs.partition_point(|(run, first)| first + run.pages() <= here.next))?;
        let skipped = here.next - first;
        let pages = here.run(here.next, (run.pages() - skipped).min(most), false);
        PageRange::with_len(PageAddr::from_number(run.start().number() + skipped), pages)
    }

    fn here(&self) -> MutexGuard<'_, Here> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Here {
    fn has(&self, page: u64) -> Option<bool> {
        self.bits.get((page / 64) as usize).map(|word| word >> (page % 64) & 1 == 1)
    }

    /// How many pages from `first` on, `most` at most, are here, or are not.
    fn run(&self, first: u64, most: u64, here: bool) -> u64 {
        let end = first.saturating_add(most);
        (first..end).take_while(|page| self.has(*page) == Some(here)).count() as u64
    }

    fn set(&mut self, first: u64, pages: u64) {
        for page in first..first + pages {
            let Some(word) = self.bits.get_mut((page / 64) as usize) else { return };
            self.missing -= u64::from(*word >> (page % 64) & 1 == 0);
            *word |= 1 << (page % 64);
        }
    }
}

/// A new file; memory is nobody else's to read.
fn create(path: &Path) -> Result<File, KeptError> {
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(io(path))
}
