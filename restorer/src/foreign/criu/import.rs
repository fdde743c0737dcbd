//! Import: read and check the folder, lay its page data out, take that in, commit the image.

use crate::foreign::ImportError;
use crate::intake::{Compression, Source, one_by_one, read_stored, take_in};
use images::Image;
use images::criu::Layout;
use images::manifest::Manifest;
use pager::frontend::criu::{DumpDir, Take};
use pages::{PAGE_SIZE_BYTES, PageRange, SnapshotName};
use std::fs::File;
use std::path::Path;
use store::{Store, refuse_taken};

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
    refuse_taken(store, name)?;
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
        one_by_one(|range, raw| {
            let at = placed.partition_point(|placed| placed.range.end() <= range.start());
            let found = placed.get(at).zip(files.get(at));
            let found = found.and_then(|(placed, file)| Some((placed, file, placed.run_at(range.start())?)));
            // Every batch is part of a run.
            let Some((placed, (size_bytes, file), (first, run))) = found else { return Err(format!("pages {range} lie nowhere")) };
            let offset = (first + (range.start().number() - run.start().number())) * PAGE_SIZE_BYTES;
            read_stored(&opened.path(placed.folder, &placed.name), file, *size_bytes, offset, raw)
        })
    };
    let taken = take_in(&runs, &regions, &source, compression, store, progress)?;
    let manifest = Manifest { criu_dump: Some(dump.keep()), ..taken.manifest(regions, compression) };
    let snapshot = store.commit(Image::encode(&manifest, &taken.table), name)?;
    Ok(ImportReport {
        name: name.to_string(),
        snapshot: snapshot.to_string(),
        tasks: dump.tasks().len() as u64,
        folders: dump.folders().count() as u64,
        files: dump.folders().map(|folder| folder.len() as u64).sum(),
        memory_bytes: taken.contents_bytes(),
        chunks: taken.table.len() as u64,
        new_chunks: taken.new_chunks,
        sent_bytes: taken.sent_bytes,
    })
}
