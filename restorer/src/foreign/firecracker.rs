//! A microVM's snapshot in our stores: its memory file, page for page at its offsets, and its state file, which is any bytes to us.

use super::outtake::{Pages, write};
use super::{ExportError, ImportError};
use crate::intake::{Compression, Source, one_by_one, read_stored, take_in};
use images::Image;
use images::manifest::Manifest;
use images::memory_file;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use pages::{PAGE_SIZE_BYTES, PageRange, SnapshotId, SnapshotName};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use store::held::held;
use store::{Store, refuse_taken};

/// What was imported or exported.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// The snapshot's name.
    pub name: String,
    /// Its digest.
    pub snapshot: String,
    /// How long the memory is.
    pub memory_bytes: u64,
    /// How long the state is.
    pub state_bytes: u64,
    /// Bytes of pages with contents.
    pub contents_bytes: u64,
    /// Compressed bytes that the store did not have.
    pub sent_bytes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, snapshot, memory_bytes, state_bytes, contents_bytes, sent_bytes } = self;
        write!(f, "{name} is {snapshot}: {memory_bytes} bytes of memory and {state_bytes} of state, ")?;
        write!(f, "{contents_bytes} of them not zero; {sent_bytes} bytes sent")
    }
}

/// Make a snapshot of a memory file, and of the state file that belongs to it; `progress` is told of bytes read.
pub fn import(
    memory: &Path,
    state: Option<&Path>,
    name: &SnapshotName,
    compression: Compression,
    store: &dyn Store,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Report, ImportError> {
    refuse_taken(store, name)?;
    let (memory_bytes, opened_memory) = open(memory)?;
    let opened = state.map(open).transpose()?;
    let state_bytes = opened.as_ref().map_or(0, |(bytes, _)| *bytes);
    let wrong = || ImportError::File {
        path: memory.to_owned(),
        what: format!("{memory_bytes} bytes are no guest memory, which has whole pages: name the file that was given as mem_file_path"),
    };
    let (memory_file, regions) = memory_file::describe(memory_bytes, state_bytes).ok_or_else(wrong)?;
    let files: Vec<(&Path, u64, &File)> = std::iter::once((memory, memory_bytes, &opened_memory))
        .chain(state.zip(opened.as_ref()).map(|(path, (bytes, file))| (path, *bytes, file)))
        .collect();
    let places = files.iter().zip([0, memory_file.state_start]);
    let runs: Vec<PageRange> = places.flat_map(|((_, bytes, file), start)| written_runs(file, *bytes, start)).collect();
    let source = || -> Source<'_> {
        one_by_one(|range, raw| {
            let at = usize::from(range.start().addr() >= memory_file.state_start);
            let (path, size_bytes, file) = files.get(at).ok_or_else(|| format!("pages {range} lie nowhere"))?;
            let offset = range.start().addr() - if at == 0 { 0 } else { memory_file.state_start };
            read_stored(path, file, *size_bytes, offset, raw)
        })
    };
    let taken = take_in(&runs, &regions, &source, compression, store, progress)?;
    let manifest = Manifest { memory_file: Some(memory_file), ..taken.manifest(regions, compression) };
    let snapshot = store.commit(Image::encode(&manifest, &taken.table), name)?;
    let contents_bytes = taken.contents_bytes();
    let (name, snapshot) = (name.to_string(), snapshot.to_string());
    Ok(Report { name, snapshot, memory_bytes, state_bytes, contents_bytes, sent_bytes: taken.sent_bytes })
}

/// A file and its length.
fn open(path: &Path) -> Result<(u64, File), ImportError> {
    let failed = |what: String| ImportError::File { path: path.to_owned(), what };
    let cannot = |error: std::io::Error| failed(format!("{error}: name a file that can be read"));
    // A pipe without a writer would keep us waiting.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(cannot)?;
    let found = file.metadata().map_err(cannot)?;
    if found.is_file() { Ok((found.len(), file)) } else { Err(failed("it is no plain file".to_owned())) }
}

/// Pages of a file of so many bytes that were ever written, where the file lies at `start`; all of them where its file system does not
/// tell holes.
fn written_runs(file: &File, bytes: u64, start: u64) -> Vec<PageRange> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < bytes {
        let data = match lseek(file, at as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(Errno::ENXIO) => break, // nothing but a hole from here on
            Err(_) => at,
        };
        let hole = lseek(file, data as i64, Whence::SeekHole).map_or(bytes, |hole| hole as u64).clamp(data + 1, bytes.max(data + 1));
        let (from, to) = (data / PAGE_SIZE_BYTES * PAGE_SIZE_BYTES, hole.next_multiple_of(PAGE_SIZE_BYTES));
        runs.extend(PageRange::from_addrs(start + from.max(at), start + to).filter(|run| !run.is_empty()));
        at = to;
    }
    runs
}

/// Write the files again, those that are named; pages of zeros become holes.
pub fn export(name: &SnapshotName, memory: Option<&Path>, state: Option<&Path>, store: &dyn Store) -> Result<Report, ExportError> {
    held(store, name, None, |snapshot| export_held(name, snapshot, memory, state, store))
}

fn export_held(
    name: &SnapshotName,
    snapshot: &SnapshotId,
    memory: Option<&Path>,
    state: Option<&Path>,
    store: &dyn Store,
) -> Result<Report, ExportError> {
    let image = Image::parse(&store.image(snapshot)?).map_err(|source| ExportError::Image { name: name.clone(), source })?;
    let kept = image.manifest.memory_file.ok_or_else(|| ExportError::NoMemoryFile(name.clone()))?;
    let mut pages = Pages::new(name, store, &image);
    let mut contents_bytes = 0;
    for (path, start, bytes) in [(memory, 0, kept.memory_bytes), (state, kept.state_start, kept.state_bytes)] {
        let Some(path) = path else { continue };
        contents_bytes += file(&mut pages, path, start, bytes)?;
    }
    let (memory_bytes, state_bytes) = (kept.memory_bytes, kept.state_bytes);
    Ok(Report { name: name.to_string(), snapshot: snapshot.to_string(), memory_bytes, state_bytes, contents_bytes, sent_bytes: 0 })
}

/// One file, which appears under its name once it is whole. Yields how many bytes were written.
fn file(pages: &mut Pages<'_>, path: &Path, start: u64, bytes: u64) -> Result<u64, ExportError> {
    if path.symlink_metadata().is_ok() {
        return Err(ExportError::Taken(path.to_owned()));
    }
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    };
    let beside = tempfile::Builder::new().prefix(".defrost-export-").tempfile_in(parent).map_err(write(path))?;
    beside.as_file().set_len(bytes).map_err(write(path))?;
    let range = PageRange::from_addrs(start, (start + bytes).next_multiple_of(PAGE_SIZE_BYTES)).filter(|range| !range.is_empty());
    let written = range.map_or(Ok(0), |range| pages.copy(range, beside.as_file(), 0, bytes, path))?;
    beside.persist_noclobber(path).map_err(|failed| write(path)(failed.error))?;
    Ok(written)
}
