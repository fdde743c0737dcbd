//! A folder of CRIU's images and the parents it leads to, read into a checked [`Dump`]; page data stays in its files.
//!
//! `parent` may be a link or a folder. Everything else must be a plain file, and no link is followed: a dump comes from somewhere else
//! and must not make us read what it does not have. CRIU leaves its lazy-pages socket behind; that is passed over.

use images::criu::{Body, Dump, DumpError, Folder, is_described};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The name under which CRIU looks for a folder's parent.
const PARENT: &str = "parent";
/// What is read into memory of one file: the pagemap of 10 GB of memory of which every second page is missing has 60 MB.
const DESCRIBED_MAX_BYTES: u64 = 256 << 20;

/// Why a folder is no dump that can be used.
#[derive(Debug, thiserror::Error)]
pub enum DumpDirError {
    /// The folder or a file cannot be read.
    #[error("{path}: {source}: name the folder that `criu dump` wrote its images to")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something that no dump has.
    #[error("{path}: {what}, which no dump of CRIU's has: remove it, or name the folder that `criu dump` wrote to")]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A file of the dump is wrong.
    #[error("{dir}: {source}")]
    Dump {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        source: DumpError,
    },
}

/// Which files of the folders matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// All of them.
    Everything,
    /// Those that tell of memory; whatever else lies there is passed over.
    Memory,
}

/// A dump in its folders.
#[derive(Debug)]
pub struct DumpDir {
    dump: Dump,
    folders: Vec<PathBuf>,
}

impl DumpDir {
    /// Read what a folder and its parents have.
    pub fn open(dir: &Path, take: Take) -> Result<Self, DumpDirError> {
        let (mut folders, mut read): (Vec<PathBuf>, Vec<Folder>) = (Vec::new(), Vec::new());
        let mut next = Some(dir.to_owned());
        while let Some(path) = next {
            let path = path.canonicalize().map_err(io(&path))?;
            if folders.contains(&path) {
                return Err(DumpDirError::Foreign { path, what: "a folder that is its own parent" });
            }
            read.push(folder(&path, take)?);
            let parent = path.join(PARENT);
            folders.push(path);
            next = match parent.symlink_metadata() {
                Ok(_) => Some(parent),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(io(&parent)(error)),
            };
        }
        let dump = Dump::new(read).map_err(|source| DumpDirError::Dump { dir: dir.to_owned(), source })?;
        Ok(Self { dump, folders })
    }

    /// What they have.
    #[must_use]
    pub fn dump(&self) -> &Dump {
        &self.dump
    }

    /// The path of a file.
    #[must_use]
    pub fn path(&self, folder: usize, name: &str) -> PathBuf {
        self.folders.get(folder).map_or_else(|| PathBuf::from(name), |path| path.join(name))
    }

    /// Open a file of page data.
    pub fn open_stored(&self, folder: usize, name: &str) -> Result<File, DumpDirError> {
        let path = self.path(folder, name);
        open(&path).map_err(io(&path))
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DumpDirError {
    let path = path.to_owned();
    move |source| DumpDirError::Io { path, source }
}

/// Open a file that is one: a link is an error, and a pipe does not make us wait.
fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path)
}

/// Read one folder.
fn folder(path: &Path, take: Take) -> Result<Folder, DumpDirError> {
    let mut files = Folder::new();
    for entry in path.read_dir().map_err(io(path))? {
        let entry = entry.map_err(io(path))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(io(&entry.path()))?);
        let foreign = |what| DumpDirError::Foreign { path: path.clone(), what };
        let name = entry.file_name().into_string().ok();
        let wanted = take == Take::Everything || name.as_deref().is_some_and(is_about_memory);
        let Some(name) = name.filter(|name| wanted && name != PARENT) else {
            match take == Take::Everything && entry.file_name() != PARENT {
                true => return Err(foreign("a name that is no text")),
                false => continue,
            }
        };
        if kind.is_socket() {
            continue;
        }
        if !kind.is_file() {
            return Err(foreign("something else than a file"));
        }
        let file = open(&path).map_err(io(&path))?;
        let size_bytes = file.metadata().map_err(io(&path))?.len();
        if !is_described(&name, size_bytes) {
            files.insert(name, Body::Stored { size_bytes });
            continue;
        }
        let mut bytes = Vec::new();
        file.take(DESCRIBED_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io(&path))?;
        if bytes.len() as u64 > DESCRIBED_MAX_BYTES {
            return Err(foreign("a description of more than 256 MiB"));
        }
        files.insert(name, Body::Described(bytes.into()));
    }
    Ok(files)
}

/// Whether a pager needs it: what describes memory whatever its size, and pages.
fn is_about_memory(name: &str) -> bool {
    is_described(name, u64::MAX) || (name.starts_with("pages-") && name.ends_with(".img"))
}
