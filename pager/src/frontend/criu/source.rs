//! Where a task's pages come from: the pages files of a dump, or the chunks of a snapshot of it. What is handed on at once is of one
//! piece, and so lies in one mapping.

use super::{CriuError, DumpDir, Plan};
use crate::frontend::source::{Install, Source, Wanted, bring_zeros};
use crate::frontend::{FromSnapshot, FrontEndError, Mapped, Places, Recall, Snapshot, Sources};
use images::criu::{Dump, DumpError, Layout, Origin};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
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

impl FromFolder {
    /// Read pages of one piece.
    fn read(&mut self, pid: u32, wanted: PageRange, install: Install<'_>) -> Result<bool, CriuError> {
        let piece = self.plan.wanted(pid, wanted)?;
        let range = piece.range;
        let (folder, page) = match piece.origin {
            Origin::File { folder, page } => (folder, page),
            Origin::Zeros => return Ok(bring_zeros(pid, range, install)),
            Origin::Source => return Err(CriuError::AtSource { pid, pages: range }),
        };
        // The plan is that of the dump whose files were opened.
        let missing = || CriuError::from(DumpError { file: pagemap(pid), record: None, what: "its pages file is gone".to_owned() });
        let (path, file) = self.files.get(&(folder, pid)).ok_or_else(missing)?;
        self.buffer.resize(range.bytes() as usize, 0);
        let read = file.read_exact_at(&mut self.buffer, page * PAGE_SIZE_BYTES);
        read.map_err(|source| CriuError::Pages { path: path.clone(), page, source })?;
        Ok(install(pid, range, &self.buffer))
    }
}

impl Source for FromFolder {
    fn bring(&mut self, wanted: &[Wanted], behind: &[Wanted], _: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError> {
        for Wanted { id, pages } in wanted.iter().chain(behind) {
            if !self.read(*id, *pages, install)? {
                break;
            }
        }
        Ok(())
    }

    fn reach(&mut self, pid: u32, wanted: PageRange) -> PageRange {
        self.plan.wanted(pid, wanted).map_or(wanted, |piece| piece.range)
    }
}

/// A snapshot that an import made.
pub struct FromStore {
    plan: Arc<Plan>,
    pages: FromSnapshot,
    /// What is wanted of it now; kept for its room.
    wanted: Vec<Wanted>,
}

impl FromStore {
    /// The snapshot's own sources, from the stores; `recall` says what to do about what is touched first.
    pub fn sources(
        snapshot: &Snapshot,
        plan: &Arc<Plan>,
        dump: &Dump,
        layout: &Layout,
        (demand, bulk): (Arc<dyn Store>, Arc<dyn Store>),
        recall: Recall,
    ) -> Result<Sources, CriuError> {
        let places = Arc::new(places(plan, dump, layout)?);
        let within = |pages| -> Box<dyn Source> { Box::new(Self { plan: plan.clone(), pages, wanted: Vec::new() }) };
        Ok(snapshot.sources_within(&places, demand, bulk, recall, &within))
    }
}

/// Where in the snapshot the pages of all tasks are that have contents.
fn places(plan: &Plan, dump: &Dump, layout: &Layout) -> Result<Places, CriuError> {
    let mut parts = Vec::new();
    for (pid, piece) in plan.pieces() {
        let Origin::File { folder, page } = piece.origin else { continue };
        let missing = || CriuError::from(DumpError { file: pagemap(pid), record: None, what: "its pages are not laid out".to_owned() });
        let placed = dump.pages_file(folder, &pagemap(pid)).and_then(|name| layout.file(folder, &name)).ok_or_else(missing)?;
        // A piece is a run of its pagemap or part of one, and as such lies in one piece here as well.
        parts.push((pid, Mapped { at: piece.range, from: placed.find(page).ok_or_else(missing)?.start() }));
    }
    Ok(Places::new(parts))
}

impl Source for FromStore {
    fn bring(&mut self, wanted: &[Wanted], behind: &[Wanted], stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError> {
        self.wanted.clear();
        for want in wanted {
            let Wanted { id: pid, pages } = *want;
            match self.plan.wanted(pid, pages)?.origin {
                Origin::File { .. } => self.wanted.push(*want),
                Origin::Zeros => {
                    if !bring_zeros(pid, pages, install) {
                        return Ok(());
                    }
                }
                Origin::Source => return Err(CriuError::AtSource { pid, pages }.into()),
            }
        }
        self.pages.bring(&self.wanted, behind, stop, install)
    }

    fn reach(&mut self, pid: u32, wanted: PageRange) -> PageRange {
        let piece = self.plan.wanted(pid, wanted).ok();
        match piece.filter(|piece| piece.origin == Origin::Zeros) {
            Some(zeros) => zeros.range,
            None => self.pages.reach(pid, wanted),
        }
    }

    fn fault(&mut self, pid: u32, page: PageAddr) -> (PageRange, PageRange) {
        self.pages.fault(pid, page)
    }

    fn later(&mut self, install: Install<'_>) -> Option<Duration> {
        self.pages.later(install)
    }
}

fn pagemap(pid: u32) -> String {
    format!("pagemap-{pid}.img")
}
