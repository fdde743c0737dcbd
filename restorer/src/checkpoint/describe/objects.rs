//! Objects: contents that only the process holds, and that the image therefore keeps.
//!
//! A deleted file, a deleted directory, a memfd: each inode once ([`Object`] in the manifest),
//! however many descriptors and mappings lead to it. While the process is described, whatever
//! leads to such an inode asks [`Objects::hold`] for its number; [`super::super::capture`] then
//! reads the contents through the file that is kept open here.
//!
//! What another process holds as well, and either may write, cannot come back shared: it is refused
//! with the other's name ([`Objects::refuse_shared`]).

use super::place::{FileId, Place, place};
use super::sharers;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use images::manifest::{Object, ObjectKind, Xattr};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{self, FsType};
use nix::unistd::{Whence, lseek};
use pages::{PAGE_SIZE_BYTES, PageRange};
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;

/// Names that the kernel gives to memory that looks like a file.
const MEMFD: &str = "/memfd:";
/// XATTR_SIZE_MAX and XATTR_LIST_MAX.
const XATTR_BYTES: usize = 65_536;
/// A file of 64 MiB is kept in the image unless the user says otherwise.
pub const MAX_DELETED_BYTES: u64 = 64 << 20;

/// An object, and the file that its contents are read from.
#[derive(Debug)]
pub struct Held {
    /// As the image has it.
    pub object: Object,
    /// To read from; a directory has none.
    pub file: Option<File>,
    /// Which inode it is.
    pub id: FileId,
    /// The first thing that leads to it, for a refusal.
    pub what: String,
    /// Whether this process may write to it.
    pub written: bool,
}

/// All objects of a process, in the order in which they are found.
#[derive(Debug)]
pub struct Objects {
    proc: Proc,
    max_deleted_bytes: u64,
    memory_device: u64,
    held: Vec<Held>,
    /// The place of each among them.
    known: HashMap<FileId, usize>,
    next_start: u64,
}

impl Objects {
    /// None yet.
    pub fn new(proc: Proc, max_deleted_bytes: u64) -> Result<Self, CheckpointError> {
        let ours = memfd_create("defrost", MFdFlags::MFD_CLOEXEC).map(File::from);
        let device = ours.map_err(std::io::Error::from).and_then(|file| file.metadata()).map(|meta| meta.dev());
        let memory_device = device.map_err(|error| proc.refuse(format!("no memory file can be made ({error})"), "free some memory"))?;
        Ok(Self { proc, max_deleted_bytes, memory_device, held: Vec::new(), known: HashMap::new(), next_start: images::OBJECTS_START })
    }

    /// Where the file behind `handle` is.
    pub fn place(&self, handle: &str, what: &str, meta: &Metadata) -> Result<Place, CheckpointError> {
        if let Some(index) = self.known.get(&FileId::of(meta)) {
            let object = &self.held[*index].object;
            let path = object.path.clone();
            return Ok(match ObjectKind::try_from(object.kind) {
                Ok(ObjectKind::NamedFile) => Place::Named(path),
                Ok(ObjectKind::Memfd) => Place::Memory(format!("{MEMFD}{path}")),
                _ => Place::Deleted(path),
            });
        }
        place(self.proc, handle, what, meta, self.memory_device)
    }

    /// The number of the object behind `handle`, whose place is [`Place::Deleted`] or
    /// [`Place::Memory`]; `write`: it may be written to by that handle.
    pub fn hold(&mut self, handle: &str, what: &str, meta: &Metadata, place: Place, write: bool) -> Result<u64, CheckpointError> {
        let id = FileId::of(meta);
        let index = match self.known.get(&id) {
            Some(index) => *index,
            None => {
                let held = self.open(handle, what, meta, place)?;
                self.add(held)
            }
        };
        let held = &mut self.held[index];
        held.written |= write;
        if held.written && held.object.kind == ObjectKind::DeletedFile as i32 && meta.nlink() > 0 {
            let object = format!("{what}: {} has lost this name, and another name of it is not in the same directory", held.object.path);
            return Err(self.proc.refuse(object, "link it there again, or let it close the file"));
        }
        Ok(index as u64)
    }

    /// The contents of a file that has a name, for when a restore finds it gone; `None` where it is
    /// too large or cannot be read.
    pub fn hold_named(&mut self, handle: &str, path: &str, meta: &Metadata) -> Option<u64> {
        let id = FileId::of(meta);
        if let Some(index) = self.known.get(&id) {
            return Some(*index as u64);
        }
        let file = File::open(self.proc.path(handle)).ok()?;
        let object = self.object(ObjectKind::NamedFile, path.to_owned(), meta, Some(&file));
        if contents_bytes(&file, meta).is_none_or(|bytes| bytes > self.max_deleted_bytes) {
            return None;
        }
        Some(self.add(Held { object, file: Some(file), id, what: path.to_owned(), written: false }) as u64)
    }

    fn add(&mut self, held: Held) -> usize {
        self.next_start += images::object_span(held.object.size_bytes);
        self.known.insert(held.id, self.held.len());
        self.held.push(held);
        self.held.len() - 1
    }

    fn open(&mut self, handle: &str, what: &str, meta: &Metadata, place: Place) -> Result<Held, CheckpointError> {
        let proc = self.proc;
        let refuse = |object: String, advice| Err(proc.refuse(object, advice));
        let (kind, name) = match place {
            Place::Deleted(path) if meta.is_dir() => (ObjectKind::DeletedDirectory, path),
            Place::Deleted(path) => (ObjectKind::DeletedFile, path),
            Place::Memory(name) => match name.strip_prefix(MEMFD) {
                Some(memfd) => (ObjectKind::Memfd, memfd.to_owned()),
                None if name.starts_with("/SYSV") => {
                    return refuse(format!("{what} is System V shared memory"), "let it detach the segment first");
                }
                None if name == "/dev/zero" => {
                    return refuse(format!("{what} is shared anonymous memory held by a descriptor"), "let it close this descriptor first");
                }
                None => return refuse(format!("{what}: {name} is memory of a driver"), "let it close the device first"),
            },
            Place::Named(path) => return refuse(format!("{what}: {path} is where it was"), "checkpoint again"),
        };
        let sort = if kind == ObjectKind::Memfd { MEMFD } else { "" };
        let what = format!("{what}: {sort}{name}");
        if kind == ObjectKind::DeletedDirectory {
            let object = self.object(kind, name, meta, None);
            return Ok(Held { object, file: None, id: FileId::of(meta), what, written: false });
        }
        if let Ok(stat) = statfs::statfs(&proc.path(handle))
            && let Some((sort, advice)) = unkept(stat.filesystem_type())
        {
            return refuse(format!("{what} is {sort}"), advice);
        }
        let file = match File::open(proc.path(handle)) {
            Ok(file) => file,
            Err(error) => return refuse(format!("{what} cannot be read ({error})"), "run defrost as root"),
        };
        if kind == ObjectKind::DeletedFile {
            let Some(bytes) = contents_bytes(&file, meta) else {
                return refuse(format!("{what} was deleted and cannot be read"), "let it close or reopen the file");
            };
            if bytes > self.max_deleted_bytes {
                let object = format!("{what} was deleted and has {bytes} bytes, more than {}", self.max_deleted_bytes);
                return refuse(object, "raise --max-deleted-bytes, or let it close or reopen the file");
            }
        }
        let mut object = self.object(kind, name, meta, Some(&file));
        if kind == ObjectKind::Memfd {
            object.seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_or(0, |seals| seals as u32);
        }
        Ok(Held { object, file: Some(file), id: FileId::of(meta), what, written: false })
    }

    fn object(&self, kind: ObjectKind, path: String, meta: &Metadata, file: Option<&File>) -> Object {
        Object {
            kind: kind as i32,
            path,
            size_bytes: if meta.is_dir() { 0 } else { meta.size() },
            start: self.next_start,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime_s: meta.mtime(),
            mtime_ns: meta.mtime_nsec() as u32,
            atime_s: meta.atime(),
            atime_ns: meta.atime_nsec() as u32,
            seals: 0,
            xattrs: file.map(attributes).unwrap_or_default(),
        }
    }

    /// What another process holds too, where one of the two may write to it.
    pub fn refuse_shared(&self) -> Result<(), CheckpointError> {
        let asked: Vec<&Held> = self.held.iter().filter(|held| held.object.kind != ObjectKind::NamedFile as i32).collect();
        let Some(sharer) = sharers::find(self.proc, &asked) else { return Ok(()) };
        let sharers::Sharer { pid, comm, held } = sharer;
        let object = format!("{} is shared with process {pid} ({comm})", held.what);
        Err(self.proc.refuse(object, "end that process first, or let one of the two close it"))
    }

    /// For the manifest.
    #[must_use]
    pub fn manifest(&self) -> Vec<Object> {
        self.held.iter().map(|held| held.object.clone()).collect()
    }

    /// To be captured.
    #[must_use]
    pub fn into_held(self) -> Vec<Held> {
        self.held
    }
}

impl Held {
    /// Its pages that have contents, where the image lays them out.
    pub fn runs(&self) -> nix::Result<Vec<PageRange>> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        let at = |offset: u64| self.object.start + offset;
        let pages = |(from, to): (u64, u64)| {
            let from = from / PAGE_SIZE_BYTES * PAGE_SIZE_BYTES;
            PageRange::from_addrs(at(from), at(to.next_multiple_of(PAGE_SIZE_BYTES)))
        };
        let mut runs: Vec<PageRange> = Vec::new();
        for run in data(file, self.object.size_bytes)?.into_iter().filter_map(pages) {
            match runs.last_mut() {
                // Two runs of a file system with small blocks may share a page.
                Some(last) if last.end() >= run.start() => *last = PageRange::new(last.start(), run.end()).unwrap_or(*last),
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }
}

/// Runs of bytes that are no holes.
fn data(file: &File, size_bytes: u64) -> nix::Result<Vec<(u64, u64)>> {
    let (mut found, mut at) = (Vec::new(), 0_i64);
    while (at as u64) < size_bytes {
        let from = match lseek(file, at, Whence::SeekData) {
            Err(nix::Error::ENXIO) => break, // nothing more
            other => other?,
        };
        at = lseek(file, from, Whence::SeekHole)?.min(size_bytes as i64);
        if at <= from {
            break;
        }
        found.push((from as u64, at as u64));
    }
    Ok(found)
}

/// How many bytes of it are no holes; `None` where that cannot be told.
fn contents_bytes(file: &File, meta: &Metadata) -> Option<u64> {
    data(file, meta.size()).ok().map(|runs| runs.iter().map(|(from, to)| to - from).sum())
}

/// File systems whose deleted files are not contents that can be kept.
fn unkept(kind: FsType) -> Option<(&'static str, &'static str)> {
    const SECRETMEM_MAGIC: i64 = 0x5345_434d;
    const SYSFS_MAGIC: i64 = 0x6265_6572;
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    match kind.0 {
        libc::HUGETLBFS_MAGIC => Some(("hugetlb memory", "let it use transparent huge pages instead")),
        SECRETMEM_MAGIC => Some(("secret memory (memfd_secret)", "let it unmap and close this first")),
        libc::PROC_SUPER_MAGIC | SYSFS_MAGIC | NSFS_MAGIC | libc::CGROUP2_SUPER_MAGIC | libc::CGROUP_SUPER_MAGIC => {
            Some(("a file of the kernel's that is gone", "let it close this descriptor first"))
        }
        _ => None,
    }
}

/// Extended attributes, as far as they can be read.
fn attributes(file: &File) -> Vec<Xattr> {
    let mut names = vec![0; XATTR_BYTES];
    let Ok(length) = rustix::fs::flistxattr(file, &mut names[..]) else { return Vec::new() };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let read = |name: &[u8]| {
        let mut value = vec![0; XATTR_BYTES];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..]).ok()?;
        value.truncate(length);
        Some(Xattr { name: String::from_utf8(name.to_vec()).ok()?, value })
    };
    names.filter_map(read).collect()
}
