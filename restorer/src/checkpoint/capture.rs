//! Capture: which pages of a process have contents, and their way into the store ([`crate::intake`]).
//!
//! PAGEMAP_SCAN lists populated pages (of shared memory SEEK_DATA does); process_vm_readv brings them. Shared memory is read as a file
//! where that does not do: behind guards, and of huge pages, which a look from outside would allocate. Objects are read from their
//! files ([`super::describe::objects`]); they follow the memory.

use super::CheckpointError;
use super::describe::objects::Held;
use super::proc::Proc;
use crate::intake::{Compression, IntakeError, Source, Taken, read_stored, take_in};
use crate::process::maps::Mapping;
use images::manifest::{Backing, Region};
use images::region_at;
use kernel::memory::ProcessMemory;
use kernel::pagemap::{self, Pagemap};
use nix::unistd::{Whence, lseek};
use pages::PageRange;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use store::Store;

/// Capture all contents of `regions` into `store`; `progress` is told of bytes read.
pub fn capture(
    proc: Proc,
    regions: &[Region],
    maps: &[Mapping],
    held: &[Held],
    compression: Compression,
    store: &dyn Store,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Taken, CheckpointError> {
    let mut runs = populated(proc, regions, maps)?;
    for held in held {
        let failed = |errno: nix::Error| CheckpointError::Memory { pid: proc.pid, range: held.object.path.clone(), why: errno.to_string() };
        runs.extend(held.runs().map_err(failed)?);
    }
    // The region of a range that is read as a file, and where in the file.
    let as_file = |range: &PageRange| {
        let start = range.start().addr();
        let region = region_at(regions, start).filter(|region| is_read_as_file(region))?;
        Some((region, region.file_offset + (start - region.start)))
    };
    let of_object = |range: &PageRange| range.start().addr() >= images::OBJECTS_START;
    let alone = |range: &PageRange| of_object(range) || as_file(range).is_some();
    let source = || -> Source<'_> {
        let memory = ProcessMemory::open(proc.task()).map_err(|error| error.to_string());
        Box::new(move |ranges: &[PageRange], raw: &mut [u8]| {
            let memory = memory.as_ref().map_err(String::clone)?;
            let mut rest = raw;
            for run in ranges.chunk_by(|one, next| !alone(one) && !alone(next)) {
                let (part, behind) = rest.split_at_mut(run.iter().map(|range| range.bytes() as usize).sum());
                if let Some(range) = run.first().filter(|range| of_object(range)) {
                    read_held(held, *range, part)?;
                    rest = behind;
                    continue;
                }
                match run.first().and_then(as_file) {
                    Some((region, offset)) => {
                        let file = file_of(proc, region).map_err(|error| error.to_string())?;
                        file.read_exact_at(part, offset).map_err(|error| error.to_string())?;
                    }
                    None => memory.read_ranges(run, part).map_err(|error| error.to_string())?,
                }
                rest = behind;
            }
            Ok(())
        })
    };
    take_in(&runs, regions, &source, compression, store, progress).map_err(|error| match error {
        IntakeError::Pages { range, why } => CheckpointError::Memory { pid: proc.pid, range: range.to_string(), why },
        IntakeError::NoThread => CheckpointError::NoThread(proc.pid),
        IntakeError::Store(error) => error.into(),
    })
}

/// Pages of an object, read from its file.
fn read_held(held: &[Held], range: PageRange, raw: &mut [u8]) -> Result<(), String> {
    let address = range.start().addr();
    let at = held.partition_point(|held| held.object.start <= address).checked_sub(1).ok_or("no object is there")?;
    let Held { object, file: Some(file), .. } = &held[at] else { return Err(format!("{} has no contents", held[at].object.path)) };
    read_stored(Path::new(&object.path), file, object.size_bytes, address - object.start, raw)
}

/// Populated runs of pages, region after region.
fn populated(proc: Proc, regions: &[Region], maps: &[Mapping]) -> Result<Vec<PageRange>, CheckpointError> {
    let (pid, mut runs) = (proc.pid, Vec::new());
    let mut pagemap = Pagemap::open(proc.task()).map_err(|error| CheckpointError::Memory {
        pid,
        range: "all of it".to_owned(),
        why: error.to_string(),
    })?;
    for region in regions {
        if region.backing == Backing::SharedAnonymous as i32 {
            runs.extend(shared_contents(proc, region)?);
            continue;
        }
        if is_read_as_file(region) {
            runs.extend(PageRange::from_addrs(region.start, region.end)); // nothing tells of holes; zeros are left out anyway
            continue;
        }
        let only_copied = match Backing::try_from(region.backing) {
            Ok(Backing::Anonymous | Backing::Hugetlb) => false,
            Ok(Backing::FilePrivate | Backing::KeptPrivate) => true,
            // Shared files keep their own contents; the kernel provides vDSO and vvar; what is droppable may be gone at any moment.
            _ => continue,
        };
        let map = maps.binary_search_by_key(&region.start, |map| map.start).ok().and_then(|at| maps.get(at));
        let readable = map.is_some_and(|map| !map.has("pf"));
        let Some(range) = PageRange::from_addrs(region.start, region.end).filter(|_| readable) else { continue };
        let failed = |error: &dyn std::fmt::Display| CheckpointError::Memory { pid, range: range.to_string(), why: error.to_string() };
        let category = if only_copied { pagemap::Category::NotFile } else { pagemap::Category::Populated };
        pagemap.scan(range, category, &mut runs).map_err(|error| failed(&error))?;
    }
    Ok(runs)
}

/// What a piece of shared memory holds: it may hold pages that this process never touched, so the memory is asked as a file.
fn shared_contents(proc: Proc, region: &Region) -> Result<Vec<PageRange>, CheckpointError> {
    let failed = |why: String| CheckpointError::Memory { pid: proc.pid, range: name(region), why };
    let file = file_of(proc, region)?;
    let end = (region.file_offset + region.end - region.start) as i64;
    let (mut found, mut at) = (Vec::new(), region.file_offset as i64);
    while at < end {
        let data = match lseek(&file, at, Whence::SeekData) {
            Err(nix::Error::ENXIO) => break, // nothing more
            other => other.map_err(|errno| failed(errno.to_string()))?.min(end),
        };
        at = lseek(&file, data, Whence::SeekHole).map_err(|errno| failed(errno.to_string()))?.min(end);
        let address = |offset: i64| region.start + (offset as u64 - region.file_offset);
        found.extend(PageRange::from_addrs(address(data), address(at)).filter(|range| !range.is_empty()));
    }
    Ok(found)
}

fn is_read_as_file(region: &Region) -> bool {
    let shared_huge = region.backing == Backing::Hugetlb as i32 && region.object != 0;
    shared_huge || (region.backing == Backing::SharedAnonymous as i32 && !region.guards.is_empty())
}

fn name(region: &Region) -> String {
    format!("{:x}-{:x}", region.start, region.end)
}

/// The file that the kernel keeps shared memory in.
fn file_of(proc: Proc, region: &Region) -> Result<File, CheckpointError> {
    let range = name(region);
    let why = |error| CheckpointError::Memory { pid: proc.pid, range: range.clone(), why: format!("{error}: run defrost as root") };
    File::open(proc.path(&format!("map_files/{range}"))).map_err(why)
}
