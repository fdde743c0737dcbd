//! Export: the files again, in a folder that appears under its name only once everything is in it.
//!
//! Complete, every folder of the dump is written. Lazily, one folder is: pagemaps have no parents any more, and pages that a lazy restore
//! waits for are neither there nor said to be there, so that a restore that is not lazy never reads zeros for them.
//!
//! Known hole: CRIU 4.2.1 then reads at the end of the pages file for ever, instead of failing; the process never runs.

use crate::foreign::ExportError;
use crate::foreign::outtake::{Pages, create, write};
use images::Image;
use images::criu::{Body, Dump, Layout, Origin};
use pages::{PAGE_SIZE_BYTES, PageRange, SnapshotId, SnapshotName};
use std::fs::DirBuilder;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use store::Store;
use store::held::held;

/// What was exported.
#[derive(Debug, serde::Serialize)]
pub struct ExportReport {
    /// The snapshot's name.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// Files written.
    pub files: u64,
    /// Bytes of page data written, zeros left out.
    pub page_bytes: u64,
    /// Without what a lazy restore waits for.
    pub lazy: bool,
}

impl std::fmt::Display for ExportReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, dir, files, page_bytes, .. } = self;
        write!(f, "{name}: {files} files in {}, {page_bytes} bytes of pages", dir.display())
    }
}

/// Write the dump `name` to `dir`, which is empty or not there yet.
pub fn export(name: &SnapshotName, dir: &Path, lazy: bool, store: &dyn Store) -> Result<ExportReport, ExportError> {
    held(store, name, None, |id| export_held((name, id), dir, lazy, store))
}

fn export_held((name, id): (&SnapshotName, &SnapshotId), dir: &Path, lazy: bool, store: &dyn Store) -> Result<ExportReport, ExportError> {
    let image = Image::parse(&store.image(id)?).map_err(|source| ExportError::Image { name: name.clone(), source })?;
    let kept = image.manifest.criu_dump.as_ref().ok_or_else(|| ExportError::NoDump(name.clone()))?;
    let wrong = |source| ExportError::Dump { name: name.clone(), source };
    let dump = Dump::of(kept).map_err(wrong)?;
    let layout = Layout::new(&dump).map_err(wrong)?;
    let dir = std::path::absolute(dir).map_err(write(dir))?;
    let is_free = match dir.read_dir() {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if !is_free {
        return Err(ExportError::Taken(dir));
    }
    let beside = dir.parent().unwrap_or(&dir);
    let partial = tempfile::Builder::new().prefix(".defrost-export-").tempdir_in(beside).map_err(write(beside))?;
    let mut writer = Writer { pages: Pages::new(name, store, &image), files: 0, page_bytes: 0 };
    if lazy {
        writer.lazily(&dump, &layout, partial.path())?
    } else {
        writer.completely(&dump, &layout, partial.path())?
    };
    std::fs::rename(partial.path(), &dir).map_err(write(&dir))?;
    let _ = partial.keep(); // it has another name now
    Ok(ExportReport { name: name.to_string(), dir, files: writer.files, page_bytes: writer.page_bytes, lazy })
}

struct Writer<'a> {
    pages: Pages<'a>,
    files: u64,
    page_bytes: u64,
}

impl Writer<'_> {
    fn completely(&mut self, dump: &Dump, layout: &Layout, to: &Path) -> Result<(), ExportError> {
        let mut path = to.to_owned();
        for (folder, files) in dump.folders().enumerate() {
            if folder > 0 {
                path.push("parent");
                DirBuilder::new().mode(0o700).create(&path).map_err(write(&path))?;
            }
            for (name, body) in files {
                self.whole(layout, folder, name, body, &path)?;
            }
        }
        Ok(())
    }

    fn lazily(&mut self, dump: &Dump, layout: &Layout, to: &Path) -> Result<(), ExportError> {
        for (name, body) in dump.folders().next().into_iter().flatten() {
            if dump.pagemap_of(0, name).is_none() && !dump.pagemaps(0).any(|(pagemap, _)| pagemap == name) {
                self.whole(layout, 0, name, body, to)?;
            }
        }
        for (name, _) in dump.pagemaps(0) {
            let source = |source| ExportError::Dump { name: self.pages.name().clone(), source };
            let (pagemap, eager) = dump.without_lazy(name).map_err(source)?;
            self.bytes(&to.join(name), &pagemap.encode())?;
            let path = to.join(pagemap.pages_file());
            let (file, mut page) = (create(&path)?, 0);
            for piece in &eager {
                let Origin::File { folder, page: first } = piece.origin else { continue };
                let placed = dump.pages_file(folder, name).and_then(|file| layout.file(folder, &file));
                let mut done = 0;
                // A piece may lie in several runs.
                while let Some(at) = placed.and_then(|placed| placed.find(first + done)).filter(|_| done < piece.range.pages()) {
                    let part = at.pages().min(piece.range.pages() - done);
                    let range = PageRange::with_len(at.start(), part).unwrap_or(at);
                    self.page_bytes += self.pages.copy(range, &file, (page + done) * PAGE_SIZE_BYTES, u64::MAX, &path)?;
                    done += part;
                }
                page += piece.range.pages();
            }
            file.set_len(page * PAGE_SIZE_BYTES).map_err(write(&path))?;
            self.files += 1;
        }
        Ok(())
    }

    /// A file as it was.
    fn whole(&mut self, layout: &Layout, folder: usize, name: &str, body: &Body, to: &Path) -> Result<(), ExportError> {
        let path = to.join(name);
        let size_bytes = match body {
            Body::Described(bytes) => return self.bytes(&path, bytes),
            Body::Stored { size_bytes } => *size_bytes,
        };
        let file = create(&path)?;
        file.set_len(size_bytes).map_err(write(&path))?;
        for (first, range) in layout.file(folder, name).map_or(&[][..], |placed| placed.runs()) {
            self.page_bytes += self.pages.copy(*range, &file, first * PAGE_SIZE_BYTES, size_bytes, &path)?;
        }
        self.files += 1;
        Ok(())
    }

    fn bytes(&mut self, path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
        self.files += 1;
        create(path)?.write_all(bytes).map_err(write(path))
    }
}
