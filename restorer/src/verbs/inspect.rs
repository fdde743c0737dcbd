//! What a snapshot holds, told from its image alone: no chunk is fetched.

use super::{open_named, print, show};
use crate::cli::OneSnapshot;
use anyhow::{Context as _, Result};
use images::criu::Dump;
use images::manifest::description::Kind;
use images::manifest::{Backing, Description, Manifest, Object, ObjectKind, Region};
use images::working_set::WorkingSet;
use images::{Image, PageMap};
use pages::line::on_one_line;
use pages::{PAGE_SIZE_BYTES, SnapshotId, SnapshotRef};
use serde::Serialize;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use store::{Access, Store};

#[derive(Serialize)]
struct Summary {
    name: String,
    id: String,
    created_unix_s: u64,
    kernel_release: String,
    pid: u32,
    comm: String,
    exe: String,
    cwd: String,
    threads: Vec<ThreadLine>,
    memory: Memory,
    regions: Vec<RegionLine>,
    files: Vec<FileLine>,
    objects: Vec<ObjectLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    criu_dump: Option<CriuDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_set: Option<Working>,
}

/// What restores touched first, as far as they were recorded.
#[derive(Serialize)]
struct Working {
    restores: u32,
    chunks: u64,
    bytes: u64,
}

/// In place of a process.
#[derive(Serialize)]
struct Machine {
    memory_bytes: u64,
    state_bytes: u64,
}

/// In place of a process.
#[derive(Serialize)]
struct CriuDump {
    tasks: Vec<u32>,
    folders: u64,
    files: u64,
}

#[derive(Serialize)]
struct ThreadLine {
    tid: u32,
    comm: String,
}

#[derive(Serialize)]
struct Memory {
    mapped_bytes: u64,
    contents_bytes: u64,
    lazy_bytes: u64,
    chunk_size_bytes: u32,
    chunks: u64,
    different_chunks: u64,
}

#[derive(Serialize)]
struct RegionLine {
    start: u64,
    end: u64,
    prot: String,
    backing: &'static str,
    path: String,
    contents_bytes: u64,
    lazy: bool,
}

#[derive(Serialize)]
struct FileLine {
    fds: Vec<u32>,
    kind: String,
}

/// What has its contents in the image.
#[derive(Serialize)]
struct ObjectLine {
    name: String,
    size_bytes: u64,
    contents_bytes: u64,
}

/// Show one snapshot.
pub fn inspect(one: OneSnapshot) -> Result<()> {
    let (SnapshotRef { name, digest }, store) = (one.name, open_named(one.store, Access::Read)?);
    let id = store::resolve_as(store.as_ref(), &name, digest)?;
    let image = Image::parse(&store.image(&id)?).with_context(|| format!("snapshot {name}"))?;
    let mut summary = summary(name.to_string(), id, &image);
    summary.working_set = working_set(store.as_ref(), &image)?;
    match one.json {
        true => show(true, &summary, &""),
        false => print(summary.to_string().trim_end()),
    }
}

/// What earlier restores left.
fn working_set(store: &dyn Store, image: &Image) -> Result<Option<Working>> {
    let Some(bytes) = store.working_set(&image.id)? else { return Ok(None) };
    let map = PageMap::new(image);
    Ok(WorkingSet::parse(&bytes, map.chunks()).map(|set| Working {
        restores: set.restores(),
        chunks: set.chunks().len() as u64,
        bytes: set.chunks().iter().filter_map(|chunk| map.pages_of(*chunk)).map(|range| range.bytes()).sum(),
    }))
}

fn summary(name: String, id: SnapshotId, image: &Image) -> Summary {
    let manifest = &image.manifest;
    let process = manifest.process.clone().unwrap_or_default();
    let regions: Vec<RegionLine> = manifest.regions.iter().map(|region| region_line(region, manifest)).collect();
    let contents = |lazy_only: bool| regions.iter().filter(|r| r.lazy || !lazy_only).map(|r| r.contents_bytes).sum();
    Summary {
        name,
        id: id.to_string(),
        created_unix_s: manifest.created_unix_s,
        kernel_release: manifest.host.as_ref().map(|host| host.kernel_release.clone()).unwrap_or_default(),
        pid: process.pid,
        comm: process.comm,
        exe: process.exe,
        cwd: process.cwd,
        threads: manifest.threads.iter().map(|thread| ThreadLine { tid: thread.tid, comm: thread.comm.clone() }).collect(),
        memory: Memory {
            mapped_bytes: regions.iter().map(|region| region.end - region.start).sum(),
            contents_bytes: contents(false),
            lazy_bytes: contents(true),
            chunk_size_bytes: manifest.chunk_size_bytes,
            chunks: image.table.len() as u64,
            different_chunks: image.table.iter().collect::<HashSet<_>>().len() as u64,
        },
        regions,
        files: manifest.files.iter().zip(descriptors(manifest)).map(|(file, fds)| file_line(fds, file, manifest)).collect(),
        objects: manifest.objects.iter().map(|object| object_line(object, manifest)).collect(),
        // A checked image's dump is whole.
        criu_dump: manifest.criu_dump.as_ref().and_then(|kept| Dump::of(kept).ok()).map(|dump| CriuDump {
            tasks: dump.tasks().to_vec(),
            folders: dump.folders().count() as u64,
            files: dump.folders().map(|folder| folder.len() as u64).sum(),
        }),
        machine: manifest.memory_file.map(|file| Machine { memory_bytes: file.memory_bytes, state_bytes: file.state_bytes }),
        working_set: None,
    }
}

fn region_line(region: &Region, manifest: &Manifest) -> RegionLine {
    let letter = |bit: i32, letter: char| if region.prot & bit as u32 != 0 { letter } else { '-' };
    RegionLine {
        start: region.start,
        end: region.end,
        prot: [letter(libc::PROT_READ, 'r'), letter(libc::PROT_WRITE, 'w'), letter(libc::PROT_EXEC, 'x')].iter().collect(),
        backing: match Backing::try_from(region.backing) {
            Ok(Backing::Anonymous) => "anonymous",
            Ok(Backing::FilePrivate) => "private file",
            Ok(Backing::FileShared) => "shared file",
            Ok(Backing::SharedAnonymous) => "shared anonymous",
            Ok(Backing::KeptPrivate) => "private, kept here",
            Ok(Backing::KeptShared) => "shared, kept here",
            Ok(Backing::Vdso) => "vdso",
            Ok(Backing::Vvar) => "vvar",
            Ok(Backing::Droppable) => "droppable",
            Ok(Backing::Hugetlb) if region.object == 0 => "huge pages",
            Ok(Backing::Hugetlb) => "shared huge pages",
            _ => "unknown",
        },
        path: match (&region.file, Backing::try_from(region.backing)) {
            (Some(file), _) => file.path.clone(),
            (None, Ok(Backing::KeptPrivate | Backing::KeptShared)) => {
                manifest.objects.get(region.kept.saturating_sub(1) as usize).map_or_else(String::new, object_name)
            }
            _ => region.name.clone(),
        },
        contents_bytes: contents(manifest, region.start..region.end),
        lazy: region.lazy,
    }
}

/// How many bytes there have contents.
fn contents(manifest: &Manifest, place: Range<u64>) -> u64 {
    let first = manifest.extents.partition_point(|extent| extent.start < place.start);
    let extents = manifest.extents[first..].iter().take_while(|extent| extent.start < place.end);
    extents.map(|extent| extent.pages * PAGE_SIZE_BYTES).sum()
}

/// The descriptors of each description.
fn descriptors(manifest: &Manifest) -> Vec<Vec<u32>> {
    let mut fds = vec![Vec::new(); manifest.files.len()];
    for descriptor in &manifest.descriptors {
        fds[descriptor.file as usize].push(descriptor.fd); // a checked image names no other file
    }
    fds
}

fn object_line(object: &Object, manifest: &Manifest) -> ObjectLine {
    let contents_bytes = contents(manifest, object.start..object.start + object.size_bytes);
    ObjectLine { name: object_name(object), size_bytes: object.size_bytes, contents_bytes }
}

fn object_name(object: &Object) -> String {
    match ObjectKind::try_from(object.kind) {
        Ok(ObjectKind::Memfd) => format!("memfd {}", object.path),
        Ok(ObjectKind::DeletedFile) => format!("deleted file {}", object.path),
        Ok(ObjectKind::DeletedDirectory) => format!("deleted directory {}", object.path),
        _ => format!("file {}", object.path),
    }
}

fn file_line(fds: Vec<u32>, file: &Description, manifest: &Manifest) -> FileLine {
    let kind = match &file.kind {
        Some(Kind::Regular(regular)) => {
            let path = regular.identity.as_ref().map_or("", |identity| identity.path.as_str());
            format!("file {path} at {}", file.offset)
        }
        Some(Kind::Directory(directory)) => format!("directory {}", directory.path),
        Some(Kind::Kept(kept)) => {
            let object = manifest.objects.get(kept.object as usize);
            format!("{} at {}, kept here", object.map_or_else(String::new, object_name), file.offset)
        }
        Some(Kind::Device(device)) => format!("device {}", device.path),
        Some(Kind::Terminal(terminal)) if terminal.gone => "terminal that is gone".to_owned(),
        Some(Kind::Terminal(terminal)) if terminal.controlling => "controlling terminal".to_owned(),
        Some(Kind::Terminal(terminal)) => format!("terminal of stream {}", terminal.fd),
        Some(Kind::Pipe(end)) => format!("{} end of pipe {}", if end.write { "write" } else { "read" }, end.pipe),
        Some(Kind::NamedPipe(end)) => format!("named pipe {}", end.path),
        Some(Kind::KernelFile(kernel)) => format!("file of the kernel {}", kernel.path),
        Some(Kind::PathOnly(only)) => format!("path {}", only.path),
        Some(Kind::Inotify(inotify)) => format!("inotify with {} watches", inotify.watches.len()),
        Some(Kind::Fanotify(fanotify)) => format!("fanotify with {} marks", fanotify.marks.len()),
        Some(Kind::Pidfd(pidfd)) => format!("pidfd of {}", pidfd.pid),
        Some(Kind::Namespace(namespace)) => format!("its namespace {}", namespace.name),
        Some(Kind::OutsidePipe(end)) => format!("pipe to the outside, stream {}", end.fd),
        Some(Kind::OutsideSocket(end)) => format!("socket to the outside, stream {}", end.fd),
        Some(Kind::Eventfd(event)) => format!("eventfd at {}", event.count),
        Some(Kind::Epoll(epoll)) => format!("epoll with {} interests", epoll.interests.len()),
        Some(Kind::Timerfd(_)) => "timerfd".to_owned(),
        Some(Kind::Signalfd(_)) => "signalfd".to_owned(),
        Some(Kind::Socket(socket)) if socket.pair != 0 => format!("end of socket pair {}", socket.pair),
        Some(Kind::Socket(socket)) => {
            let address = String::from_utf8_lossy(&socket.address).replace('\0', "@");
            format!("socket {}{address}", if socket.listening { "listening on " } else { "" })
        }
        None => "unknown".to_owned(),
    };
    FileLine { fds, kind }
}

/// One line, whatever the names in it hold.
fn line(f: &mut fmt::Formatter<'_>, words: fmt::Arguments<'_>) -> fmt::Result {
    writeln!(f, "{}", on_one_line(&words.to_string()))
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, format_args!("{}  {}", self.name, self.id))?;
        if let Some(CriuDump { tasks, folders, files }) = &self.criu_dump {
            line(f, format_args!("a dump of CRIU's, {} tasks, {files} files in {folders} folders", tasks.len()))?;
        } else if let Some(Machine { memory_bytes, state_bytes }) = &self.machine {
            line(f, format_args!("a microVM, {memory_bytes} bytes of memory, {state_bytes} of state"))?;
        } else {
            line(
                f,
                format_args!("process {} ({}), {} threads, of kernel {}", self.pid, self.comm, self.threads.len(), self.kernel_release),
            )?;
            line(f, format_args!("  exe {}", self.exe))?;
            line(f, format_args!("  cwd {}", self.cwd))?;
        }
        let m = &self.memory;
        line(
            f,
            format_args!("memory: {} bytes mapped, {} with contents, {} of them lazy", m.mapped_bytes, m.contents_bytes, m.lazy_bytes),
        )?;
        line(f, format_args!("  {} chunks of at most {} bytes, {} different", m.chunks, m.chunk_size_bytes, m.different_chunks))?;
        if let Some(Working { restores, chunks, bytes }) = &self.working_set {
            line(f, format_args!("  {bytes} bytes ({chunks} chunks) are what {restores} restores touched first"))?;
        }
        for r in &self.regions {
            let lazy = if r.lazy { " lazy" } else { "" };
            line(f, format_args!("  {:x}-{:x} {} {}{lazy} {} {}", r.start, r.end, r.prot, r.backing, r.contents_bytes, r.path))?;
        }
        if self.criu_dump.is_none() && self.machine.is_none() {
            line(f, format_args!("files:"))?;
        }
        for file in &self.files {
            let fds: Vec<String> = file.fds.iter().map(u32::to_string).collect();
            let fds = if fds.is_empty() { "in flight:".to_owned() } else { fds.join(",") };
            line(f, format_args!("  {fds} {}", file.kind))?;
        }
        if !self.objects.is_empty() {
            line(f, format_args!("contents kept here:"))?;
        }
        for object in &self.objects {
            line(f, format_args!("  {} of {} bytes, {} with contents", object.name, object.size_bytes, object.contents_bytes))?;
        }
        Ok(())
    }
}
