//! A dump: its folder and its parents', taken apart and checked against each other.
//!
//! A file is either described (its bytes are here) or stored (only its length is): page data, and whatever else is large. A folder's
//! pagemaps and pages files must fit page for page, and what a pagemap leaves to the parent must be there. A file that we do not
//! take apart is any bytes at all.

use super::error::DumpError;
use super::mm::{Mapping, mappings};
use super::pagemap::{Entry, Pagemap};
use super::tree::{INVENTORY, TREE, check_inventory, tasks};
use crate::manifest::{CriuDump, CriuFile, CriuFolder, criu_file};
use bytes::Bytes;
use pages::{PageAddr, PageRange};
use std::collections::BTreeMap;

/// How many folders a dump may have: each is one pre-dump, and a pager opens all of them.
const FOLDERS_MAX: usize = 256;

/// A file of this length or less need not become chunks: most of a dump's are a few hundred bytes.
const SMALL_BYTES: u64 = 64 << 10;

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// All of it.
    Described(Bytes),
    /// Its length; its bytes are elsewhere.
    Stored {
        /// Its length.
        size_bytes: u64,
    },
}

/// The files of a folder, by name.
pub type Folder = BTreeMap<String, Body>;

/// Where a page's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the pages file of a folder (0 is the dump, 1 its parent): the run's first page there.
    File {
        /// Which folder.
        folder: usize,
        /// Which page of the file.
        page: u64,
    },
    /// It has none.
    Zeros,
    /// In the process that was dumped, if that is still there.
    Source,
}

/// A run of pages with contents from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which pages of the task or the shared memory.
    pub range: PageRange,
    /// A lazy restore leaves it to the lazy-pages daemon.
    pub lazy: bool,
    /// Where they are.
    pub origin: Origin,
}

impl Piece {
    /// The part of it within `range`.
    #[must_use]
    pub fn within(&self, range: &PageRange) -> Option<Self> {
        let part = self.range.intersect(range).filter(|part| !part.is_empty())?;
        let skipped = part.start().number() - self.range.start().number();
        let origin = match self.origin {
            Origin::File { folder, page } => Origin::File { folder, page: page + skipped },
            other => other,
        };
        Some(Self { range: part, origin, ..*self })
    }
}

/// Memory that a lazy restore leaves to the lazy-pages daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The mappings that it registers.
    pub mappings: Vec<PageRange>,
    /// What is to come in them, cut at their borders.
    pub lazy: Vec<Piece>,
}

/// A checked dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    folders: Vec<Folder>,
    /// Of each folder, by file name.
    pagemaps: Vec<BTreeMap<String, Pagemap>>,
    /// Of each folder: pages file → pagemap file.
    pages_files: Vec<BTreeMap<String, String>>,
    /// Of the dump itself: where each page of each pagemap is.
    pieces: BTreeMap<String, Vec<Piece>>,
    tasks: Vec<u32>,
}

/// Whether a file of a folder is described: those that all else follows from, and whatever is small and not pages.
#[must_use]
pub fn is_described(name: &str, size_bytes: u64) -> bool {
    let explains = name == INVENTORY || name == TREE || is_image(name, "pagemap-") || is_image(name, "mm-");
    explains || (size_bytes <= SMALL_BYTES && !is_image(name, "pages-"))
}

fn is_image(name: &str, begin: &str) -> bool {
    name.starts_with(begin) && name.ends_with(".img")
}

impl Dump {
    /// Check the folders: the dump's own, its parent's, and so on.
    pub fn new(folders: Vec<Folder>) -> Result<Self, DumpError> {
        if folders.len() > FOLDERS_MAX {
            return Err(DumpError::file("parent", format!("there are more than {FOLDERS_MAX} folders, one the parent of the other")));
        }
        let own = folders.first().ok_or_else(|| DumpError::file(INVENTORY, "it is missing"))?;
        check_inventory(described(own, INVENTORY)?)?;
        let tasks = tasks(described(own, TREE)?)?;
        let (mut pagemaps, mut pages_files) = (Vec::new(), Vec::new());
        for (depth, folder) in folders.iter().enumerate() {
            let (of_folder, files) = parse(folder).map_err(|error| error.below(depth))?;
            pagemaps.push(of_folder);
            pages_files.push(files);
        }
        let mut pieces = BTreeMap::new();
        for (depth, of_folder) in pagemaps.iter().enumerate().rev() {
            pieces = of_folder
                .iter()
                .map(|(name, pagemap)| Ok((name.clone(), follow(name, pagemap, depth, pieces.get(name).map_or(&[][..], Vec::as_slice))?)))
                .collect::<Result<_, DumpError>>()
                .map_err(|error| error.below(depth))?;
        }
        let dump = Self { folders, pagemaps, pages_files, pieces, tasks };
        // What a pager would ask for is asked for now.
        dump.tasks.iter().try_for_each(|pid| dump.memory(*pid).map(drop))?;
        Ok(dump)
    }

    /// The dump that a checked image keeps.
    pub fn of(kept: &CriuDump) -> Result<Self, DumpError> {
        let body = |file: &CriuFile| match &file.body {
            Some(criu_file::Body::StoredBytes(size_bytes)) => Body::Stored { size_bytes: *size_bytes },
            Some(criu_file::Body::Contents(bytes)) => Body::Described(Bytes::copy_from_slice(bytes)),
            None => Body::Described(Bytes::new()),
        };
        let folder = |folder: &CriuFolder| folder.files.iter().map(|file| (file.name.clone(), body(file))).collect();
        Self::new(kept.folders.iter().map(folder).collect())
    }

    /// The same for a manifest.
    #[must_use]
    pub fn keep(&self) -> CriuDump {
        let body = |body: &Body| match body {
            Body::Stored { size_bytes } => criu_file::Body::StoredBytes(*size_bytes),
            Body::Described(bytes) => criu_file::Body::Contents(bytes.to_vec()),
        };
        let file = |(name, found): (&String, &Body)| CriuFile { name: name.clone(), body: Some(body(found)) };
        CriuDump { folders: self.folders.iter().map(|folder| CriuFolder { files: folder.iter().map(file).collect() }).collect() }
    }

    /// A pagemap without parents and without the lazy pages' contents, and where the pages that its pages file then has are now: what a
    /// lazy restore needs.
    pub fn without_lazy(&self, pagemap: &str) -> Result<(Pagemap, Vec<Piece>), DumpError> {
        let pages_id = self.pagemaps.first().and_then(|of_folder| of_folder.get(pagemap)).map_or(0, |pagemap| pagemap.pages_id);
        let (mut entries, mut eager) = (Vec::new(), Vec::new());
        for piece in self.pieces(pagemap) {
            let present = !piece.lazy && matches!(piece.origin, Origin::File { .. });
            if !piece.lazy && piece.origin == Origin::Source {
                let pages = piece.range;
                return Err(DumpError::file(pagemap, format!("pages {pages} are at their source, and a restore cannot wait for them")));
            }
            entries.push(Entry { range: piece.range, in_parent: false, lazy: piece.lazy, present });
            eager.extend(present.then_some(*piece));
        }
        Ok((Pagemap { pages_id, entries }, eager))
    }

    /// Its folders, the dump's own first.
    pub fn folders(&self) -> impl Iterator<Item = &Folder> {
        self.folders.iter()
    }

    /// The pids of its tasks, dead ones too.
    #[must_use]
    pub fn tasks(&self) -> &[u32] {
        &self.tasks
    }

    /// The pagemaps of a folder, by file name.
    pub fn pagemaps(&self, folder: usize) -> impl Iterator<Item = (&str, &Pagemap)> {
        self.pagemaps.get(folder).into_iter().flatten().map(|(name, pagemap)| (name.as_str(), pagemap))
    }

    /// The pagemap that a pages file belongs to.
    #[must_use]
    pub fn pagemap_of(&self, folder: usize, pages_file: &str) -> Option<&Pagemap> {
        self.pagemaps.get(folder)?.get(self.pages_files.get(folder)?.get(pages_file)?)
    }

    /// The pages file of a pagemap.
    #[must_use]
    pub fn pages_file(&self, folder: usize, pagemap: &str) -> Option<String> {
        self.pagemaps.get(folder)?.get(pagemap).map(Pagemap::pages_file)
    }

    /// Whether a folder has a file whose bytes are elsewhere.
    #[must_use]
    pub fn is_stored(&self, folder: usize, name: &str) -> bool {
        matches!(self.folders.get(folder).and_then(|files| files.get(name)), Some(Body::Stored { .. }))
    }

    /// Where each page that a pagemap of the dump tells of is; ascending.
    #[must_use]
    pub fn pieces(&self, pagemap: &str) -> &[Piece] {
        self.pieces.get(pagemap).map_or(&[], Vec::as_slice)
    }

    /// A task's lazy memory; `None` for a task that has no memory, as a dead one.
    pub fn memory(&self, pid: u32) -> Result<Option<Memory>, DumpError> {
        let (mm, pagemap) = (format!("mm-{pid}.img"), pagemap_of_task(pid));
        let Some(own) = self.folders.first().filter(|folder| folder.contains_key(&mm)) else { return Ok(None) };
        let mappings: Vec<Mapping> = mappings(&mm, described(own, &mm)?)?.into_iter().filter(|mapping| mapping.lazy).collect();
        let mut lazy = Vec::new();
        for piece in self.pieces(&pagemap).iter().filter(|piece| piece.lazy) {
            let first = mappings.partition_point(|mapping| mapping.range.end() <= piece.range.start());
            let parts: Vec<Piece> = mappings[first..].iter().map_while(|mapping| piece.within(&mapping.range)).collect();
            if parts.iter().map(|part| part.range.pages()).sum::<u64>() != piece.range.pages() {
                let pages = piece.range;
                return Err(DumpError::file(&pagemap, format!("pages {pages} are lazy, but not the mapping that they are in")));
            }
            lazy.extend(parts);
        }
        Ok(Some(Memory { mappings: mappings.into_iter().map(|mapping| mapping.range).collect(), lazy }))
    }
}

/// The pagemap of a task.
pub(super) fn pagemap_of_task(pid: u32) -> String {
    format!("pagemap-{pid}.img")
}

fn described<'a>(folder: &'a Folder, name: &str) -> Result<&'a [u8], DumpError> {
    match folder.get(name) {
        Some(Body::Described(bytes)) => Ok(bytes),
        Some(Body::Stored { .. }) => Err(DumpError::file(name, "its contents are not here")),
        None => Err(DumpError::file(name, "it is missing")),
    }
}

type Parsed = (BTreeMap<String, Pagemap>, BTreeMap<String, String>);

/// The pagemaps of a folder, each with its pages file.
fn parse(folder: &Folder) -> Result<Parsed, DumpError> {
    let (mut pagemaps, mut files) = (BTreeMap::new(), BTreeMap::new());
    for name in folder.keys().filter(|name| is_image(name, "pagemap-")) {
        let pagemap = Pagemap::parse(name, described(folder, name)?)?;
        let file = pagemap.pages_file();
        let expected = pagemap.present().map(|run| run.bytes()).sum::<u64>();
        let found = match folder.get(&file) {
            Some(Body::Stored { size_bytes }) => *size_bytes,
            Some(Body::Described(bytes)) if bytes.is_empty() => 0,
            Some(Body::Described(_)) => return Err(DumpError::file(&file, "it is kept as a description, which only an empty one may be")),
            None if expected == 0 => 0,
            None => return Err(DumpError::file(&file, format!("it is missing, and {name} tells of pages in it"))),
        };
        if found != expected {
            return Err(DumpError::file(&file, format!("it has {found} bytes, and {name} tells of {expected}")));
        }
        if let Some(other) = files.insert(file, name.clone()) {
            return Err(DumpError::record(name, 0, format!("its pages file is that of {other}")));
        }
        pagemaps.insert(name.clone(), pagemap);
    }
    Ok((pagemaps, files))
}

/// Where the pages of a pagemap are, `parent` being where those of the parent's are.
fn follow(name: &str, pagemap: &Pagemap, folder: usize, parent: &[Piece]) -> Result<Vec<Piece>, DumpError> {
    let (mut pieces, mut page) = (Vec::new(), 0);
    for (entry, record) in pagemap.entries.iter().zip(1..) {
        let (range, lazy) = (entry.range, entry.lazy);
        if !entry.in_parent {
            let origin = match (entry.present, lazy) {
                (true, _) => Origin::File { folder, page },
                (false, true) => Origin::Source,
                (false, false) => Origin::Zeros,
            };
            pieces.push(Piece { range, lazy, origin });
            page += if entry.present { range.pages() } else { 0 };
            continue;
        }
        let first = parent.partition_point(|piece| piece.range.end() <= range.start());
        let mut next: PageAddr = range.start();
        for part in parent[first..].iter().map_while(|piece| piece.within(&range)) {
            if part.range.start() != next {
                break;
            }
            next = part.range.end();
            pieces.push(Piece { lazy, ..part });
        }
        if next != range.end() {
            let missing = next.addr();
            return Err(DumpError::record(name, record, format!("the page at {missing:#x} is left to the parent, which does not have it")));
        }
    }
    Ok(pieces)
}
