//! Where pages come from: the pages files of a dump, or the chunks of a snapshot of it.
//!
//! A fault and bulk each have a source of their own, so that neither waits for the other's request. A source brings what it can have in one
//! go around a page; what it brings is of one task, and within one piece, so that it lies in one mapping.

use super::{DumpDir, FrontendError, Plan};
use crate::chunks::Chunks;
use images::criu::{Dump, DumpError, Layout, Origin, Piece};
use images::{Image, PageMap};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use store::Store;

/// Takes pages of the task, as they were at the dump; false: no more.
pub type Install<'a> = &'a mut dyn FnMut(PageRange, &[u8]) -> bool;

/// What pages come from.
pub trait Source: Send {
    /// Bring those of `wanted`, which are all in `piece` of task `pid`; perhaps more around them. `stop` ends a wait for a store.
    fn bring(&mut self, pid: u32, piece: &Piece, wanted: PageRange, stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontendError>;
}

/// Zeros, for pages that the dump says have no contents.
const ZEROS: [u8; PAGE_SIZE_BYTES as usize] = [0; PAGE_SIZE_BYTES as usize];

/// Pages of `range` that have no contents.
fn bring_zeros(range: PageRange, install: Install<'_>) {
    let mut single = (range.start().number()..range.end().number()).filter_map(|n| PageRange::with_len(PageAddr::from_number(n), 1));
    let _ = single.all(|page| install(page, &ZEROS)); // told to stop
}

/// The pages files themselves.
#[derive(Debug)]
pub struct FromFolder {
    /// By folder and pid.
    files: BTreeMap<(usize, u32), (PathBuf, File)>,
    buffer: Vec<u8>,
}

impl FromFolder {
    /// The files of all tasks' pages, opened.
    pub fn open(dir: &DumpDir, plan: &Plan) -> Result<Self, FrontendError> {
        let (dump, mut files) = (dir.dump(), BTreeMap::new());
        for (folder, _) in dump.folders().enumerate() {
            for pid in plan.tasks() {
                let Some(name) = dump.pages_file(folder, &pagemap(pid)).filter(|name| dump.is_stored(folder, name)) else { continue };
                files.insert((folder, pid), (dir.path(folder, &name), dir.open_stored(folder, &name)?));
            }
        }
        Ok(Self { files, buffer: Vec::new() })
    }
}

impl Source for FromFolder {
    fn bring(&mut self, pid: u32, piece: &Piece, wanted: PageRange, _: &AtomicBool, install: Install<'_>) -> Result<(), FrontendError> {
        let Some(Piece { origin: Origin::File { folder, page }, range, .. }) = piece.within(&wanted) else {
            bring_zeros(wanted, install);
            return Ok(());
        };
        // The plan is that of the dump whose files were opened.
        let missing = || DumpError { file: pagemap(pid), record: None, what: "its pages file is gone".to_owned() };
        let (path, file) = self.files.get(&(folder, pid)).ok_or_else(missing)?;
        self.buffer.resize(range.bytes() as usize, 0);
        let read = file.read_exact_at(&mut self.buffer, page * PAGE_SIZE_BYTES);
        read.map_err(|source| FrontendError::Pages { path: path.clone(), page, source })?;
        install(range, &self.buffer);
        Ok(())
    }
}

/// A snapshot that an import made.
pub struct FromStore {
    dump: Arc<Dump>,
    layout: Arc<Layout>,
    map: Arc<PageMap>,
    chunks: Chunks,
}

impl FromStore {
    /// The image's own, from `store`.
    #[must_use]
    pub fn new(image: &Arc<Image>, dump: &Arc<Dump>, layout: &Arc<Layout>, store: Arc<dyn Store>) -> Self {
        let map = Arc::new(PageMap::new(image));
        Self { dump: dump.clone(), layout: layout.clone(), chunks: Chunks::new(image.clone(), map.clone(), store), map }
    }
}

impl Source for FromStore {
    fn bring(&mut self, pid: u32, piece: &Piece, wanted: PageRange, stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontendError> {
        let Origin::File { folder, page: first } = piece.origin else {
            bring_zeros(wanted, install);
            return Ok(());
        };
        let placed = self.dump.pages_file(folder, &pagemap(pid)).and_then(|name| self.layout.file(folder, &name));
        let missing = || DumpError { file: pagemap(pid), record: None, what: "its pages are not laid out".to_owned() };
        let placed = placed.ok_or_else(missing)?;
        // A piece is a run of its pagemap or part of one, and as such lies in one piece here as well.
        let at = placed.find(first).ok_or_else(missing)?.start().number();
        let shift = |page: PageAddr| PageAddr::from_number(page.number() - piece.range.start().number() + at);
        let back = |page: PageAddr| PageAddr::from_number(page.number() - at + piece.range.start().number());
        let (mut run, mut next, end) = (Vec::new(), shift(wanted.start()), shift(wanted.end()));
        let whole = PageRange::new(shift(piece.range.start()), shift(piece.range.end())).unwrap_or(wanted);
        while next < end {
            match self.map.chunk_of(next) {
                Some((index, range)) => {
                    run.push((index, range));
                    next = range.end();
                }
                None => {
                    let zeros = PageRange::with_len(back(next), 1);
                    if !zeros.is_none_or(|page| install(page, &ZEROS)) {
                        return Ok(());
                    }
                    next = PageAddr::from_number(next.number() + 1);
                }
            }
        }
        let lost = |error: Option<&store::StoreError>| match error {
            Some(error) => tracing::warn!(%error, "the store does not answer: the restored processes wait"),
            None => tracing::warn!("the store answers again"),
        };
        let result = self.chunks.fetch_run(&run, &[], stop, &lost, &mut |(_, range), chunk| {
            // Where a chunk holds pages of another piece as well, these are left out.
            let Some(part) = range.intersect(&whole).filter(|part| !part.is_empty()) else { return true };
            let skip = ((part.start().number() - range.start().number()) * PAGE_SIZE_BYTES) as usize;
            let here = PageRange::new(back(part.start()), back(part.end()));
            here.is_none_or(|here| install(here, &chunk[skip..skip + part.bytes() as usize]))
        });
        result?;
        Ok(())
    }
}

fn pagemap(pid: u32) -> String {
    format!("pagemap-{pid}.img")
}
