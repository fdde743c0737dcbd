//! Import: read and check the folder, lay its page data out, take that in, commit the image.

use crate::foreign::ImportError;
use crate::intake::{Compression, Source, take_in};
use images::Image;
use images::criu::Layout;
use images::manifest::Manifest;
use pager::frontend::criu::{DumpDir, Take};
use pages::{PAGE_SIZE_BYTES, PageRange, SnapshotName};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::SystemTime;
use store::{Store, StoreError};

/// What was imported.
#[derive(Debug, serde::Serialize)]
pub struct ImportReport {
    /// The snapshot's name.
    pub name: String,
    /// Its digest.
    pub snapshot: String,
    /// Tasks of the dump.
    pub tasks: u64,
    /// Folders: the dump's own and its parents.
    pub folders: u64,
    /// Files in them.
    pub files: u64,
    /// Bytes of pages with contents.
    pub memory_bytes: u64,
    /// Chunks of the snapshot.
    pub chunks: u64,
    /// Chunks the store did not have.
    pub new_chunks: u64,
    /// Compressed bytes sent.
    pub sent_bytes: u64,
}

impl std::fmt::Display for ImportReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, snapshot, tasks, files, memory_bytes, chunks, new_chunks, sent_bytes, .. } = self;
        write!(f, "{name} is {snapshot}: {tasks} tasks in {files} files, {memory_bytes} bytes of pages in {chunks} chunks, ")?;
        write!(f, "{new_chunks} new ({sent_bytes} bytes)")
    }
}

/// Make a snapshot of the dump in `dir`; `progress` is told of bytes read.
pub fn import(
    dir: &Path,
    name: &SnapshotName,
    compression: Compression,
    store: &dyn Store,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<ImportReport, ImportError> {
    match store.resolve(name) {
        Ok(_) => return Err(StoreError::NameTaken(name.clone()).into()),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let opened = DumpDir::open(dir, Take::Everything)?;
    let dump = opened.dump();
    let layout = Layout::new(dump).map_err(|source| ImportError::Dump { dir: dir.to_owned(), source })?;
    let files: Vec<(u64, File)> = layout
        .files()
        .map(|placed| Ok((placed.size_bytes, opened.open_stored(placed.folder, &placed.name)?)))
        .collect::<Result<_, ImportError>>()?;
    let runs: Vec<PageRange> = layout.files().flat_map(|placed| placed.runs().iter().map(|(_, range)| *range)).collect();
    let (regions, placed) = (layout.regions(), layout.files().collect::<Vec<_>>());
    let source = || -> Source<'_> {
        Box::new(|range, raw| {
            let at = placed.partition_point(|placed| placed.range.end() <= range.start());
            let found = placed.get(at).zip(files.get(at));
            let found = found.and_then(|(placed, file)| Some((placed, file, placed.run_at(range.start())?)));
            // Every batch is part of a run.
            let Some((placed, (size_bytes, file), (first, run))) = found else { return Err(format!("pages {range} lie nowhere")) };
            let offset = (first + (range.start().number() - run.start().number())) * PAGE_SIZE_BYTES;
            let length = (size_bytes - offset.min(*size_bytes)).min(raw.len() as u64) as usize;
            let (contents, beyond) = raw.split_at_mut(length);
            beyond.fill(0);
            let path = opened.path(placed.folder, &placed.name);
            file.read_exact_at(contents, offset).map_err(|error| format!("{}, page {}: {error}", path.display(), offset / PAGE_SIZE_BYTES))
        })
    };
    let taken = take_in(&runs, &regions, &source, compression, store, progress)?;
    let manifest = Manifest {
        regions: layout.regions(),
        extents: taken.extents,
        chunk_size_bytes: compression.chunk_size_bytes,
        created_unix_s: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs()),
        criu_dump: Some(dump.keep()),
        ..Manifest::default()
    };
    let snapshot = store.commit(Image::encode(&manifest, &taken.table), name)?;
    Ok(ImportReport {
        name: name.to_string(),
        snapshot: snapshot.to_string(),
        tasks: dump.tasks().len() as u64,
        folders: dump.folders().count() as u64,
        files: dump.folders().map(|folder| folder.len() as u64).sum(),
        memory_bytes: manifest.extents.iter().map(|extent| extent.pages * PAGE_SIZE_BYTES).sum(),
        chunks: taken.table.len() as u64,
        new_chunks: taken.new_chunks,
        sent_bytes: taken.sent_bytes,
    })
}
