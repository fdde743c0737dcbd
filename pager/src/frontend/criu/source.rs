//! Where a task's pages come from: the pages files of a dump, or the chunks of a snapshot of it. What is brought in one go is of one
//! piece, and so lies in one mapping.

use super::{CriuError, DumpDir, Plan};
use crate::frontend::FrontEndError;
use crate::frontend::snapshot::{Mapped, Snapshot, SnapshotPages};
use crate::frontend::source::{Install, Source, bring_zeros};
use images::criu::{Dump, DumpError, Layout, Origin};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use store::Store;

/// The pages files themselves.
#[derive(Debug)]
pub struct FromFolder {
    plan: Arc<Plan>,
    /// By folder and pid.
    files: BTreeMap<(usize, u32), (PathBuf, File)>,
    buffer: Vec<u8>,
}

impl FromFolder {
    /// The files of all tasks' pages, opened.
    pub fn open(dir: &DumpDir, plan: &Arc<Plan>) -> Result<Self, CriuError> {
        let (dump, mut files) = (dir.dump(), BTreeMap::new());
        for (folder, _) in dump.folders().enumerate() {
            for pid in plan.tasks() {
                let Some(name) = dump.pages_file(folder, &pagemap(pid)).filter(|name| dump.is_stored(folder, name)) else { continue };
                files.insert((folder, pid), (dir.path(folder, &name), dir.open_stored(folder, &name)?));
            }
        }
        Ok(Self { plan: plan.clone(), files, buffer: Vec::new() })
    }
}

impl Source for FromFolder {
    fn bring(&mut self, pid: u32, page: PageAddr, wanted: PageRange, _: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError> {
        let piece = self.plan.wanted(pid, page, wanted)?;
        let range = piece.range;
        let (folder, page) = match piece.origin {
            Origin::File { folder, page } => (folder, page),
            Origin::Zeros => {
                bring_zeros(range, install);
                return Ok(());
            }
            Origin::Source => return Err(CriuError::AtSource { pid, pages: range }.into()),
        };
        // The plan is that of the dump whose files were opened.
        let missing = || CriuError::from(DumpError { file: pagemap(pid), record: None, what: "its pages file is gone".to_owned() });
        let (path, file) = self.files.get(&(folder, pid)).ok_or_else(missing)?;
        self.buffer.resize(range.bytes() as usize, 0);
        let read = file.read_exact_at(&mut self.buffer, page * PAGE_SIZE_BYTES);
        read.map_err(|source| CriuError::Pages { path: path.clone(), page, source })?;
        install(range, &self.buffer);
        Ok(())
    }
}

/// A snapshot that an import made.
pub struct FromStore {
    plan: Arc<Plan>,
    dump: Arc<Dump>,
    layout: Arc<Layout>,
    pages: SnapshotPages,
}

impl FromStore {
    /// The snapshot's own, from `store`.
    #[must_use]
    pub fn new(snapshot: &Snapshot, plan: &Arc<Plan>, dump: &Arc<Dump>, layout: &Arc<Layout>, store: Arc<dyn Store>) -> Self {
        Self { plan: plan.clone(), dump: dump.clone(), layout: layout.clone(), pages: snapshot.pages(store) }
    }
}

impl Source for FromStore {
    fn bring(&mut self, pid: u32, page: PageAddr, wanted: PageRange, stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError> {
        let (whole, part) = (self.plan.piece(pid, page)?, self.plan.wanted(pid, page, wanted)?);
        let (folder, first) = match whole.origin {
            Origin::File { folder, page } => (folder, page),
            Origin::Zeros => {
                bring_zeros(part.range, install);
                return Ok(());
            }
            Origin::Source => return Err(CriuError::AtSource { pid, pages: part.range }.into()),
        };
        let placed = self.dump.pages_file(folder, &pagemap(pid)).and_then(|name| self.layout.file(folder, &name));
        let missing = || CriuError::from(DumpError { file: pagemap(pid), record: None, what: "its pages are not laid out".to_owned() });
        let placed = placed.ok_or_else(missing)?;
        // A piece is a run of its pagemap or part of one, and as such lies in one piece here as well.
        let at = placed.find(first).ok_or_else(missing)?.start();
        let mapped = Mapped { at: whole.range, from: at };
        let there = mapped.to_snapshot(part.range);
        Ok(self.pages.bring(there, mapped.source(), stop, &mut |range, data| install(mapped.to_memory(range), data))?)
    }
}

fn pagemap(pid: u32) -> String {
    format!("pagemap-{pid}.img")
}
