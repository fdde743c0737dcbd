//! The host of a restore: its vDSO, its userfaultfd, its memory, its pid space, room for the pager's files.
//!
//! Each check reads or tries what the restore itself will use in a moment, in our own process, which the child is a copy of.

use super::error::RestoreError;
use super::{maps_of, plan};
use images::manifest::Manifest;
use kernel::memory::ProcessMemory;
use kernel::uffd::Uffd;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, Pid, access};
use pages::{PAGE_SIZE_BYTES, VirtAddr};
use std::path::{Path, PathBuf};

/// All that this host lacks.
pub fn obstacles(manifest: &Manifest) -> Vec<RestoreError> {
    let checks = [vdso(manifest), userfaultfd(), memory(manifest), runtime_directory()];
    checks.into_iter().filter_map(Result::err).chain(impossible_numbers(manifest)).collect()
}

/// The child gets the vDSO that we have.
fn vdso(manifest: &Manifest) -> Result<(), RestoreError> {
    let us = Pid::this();
    let maps = maps_of(us)?;
    let memory = ProcessMemory::open(us).map_err(super::outside("open our own memory"))?;
    let vdso = maps.iter().find(|map| map.path == "[vdso]");
    let vdso = vdso.ok_or_else(|| RestoreError::Host("it has no vDSO: boot without vdso=0".to_owned()))?;
    let mut text = vec![0; (vdso.end - vdso.start) as usize];
    memory.read(VirtAddr(vdso.start), &mut text).map_err(super::outside("read the vDSO"))?;
    kernel::return_stub::clear_padding(&mut text);
    plan::check_host(manifest, &images::chunk_id(&text).0, &plan::kernel_release())
}

fn userfaultfd() -> Result<(), RestoreError> {
    Uffd::open().map(drop).map_err(|errno| {
        RestoreError::Host(match errno {
            Errno::EPERM => "userfaultfd is not permitted to this user: restore as root or with CAP_SYS_PTRACE".to_owned(),
            Errno::ENOSYS | Errno::EINVAL => format!("its userfaultfd lacks what a restore needs ({errno}): Linux 5.11 is needed"),
            errno => format!("userfaultfd cannot be opened: {errno}"),
        })
    })
}

/// Numbers end below pid_max.
fn impossible_numbers(manifest: &Manifest) -> Vec<RestoreError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let Ok(end) = text.trim().parse::<u32>() else { return Vec::new() };
    let impossible = manifest.threads.iter().map(|thread| thread.tid).filter(|tid| *tid >= end);
    impossible.map(|tid| kernel::spawn::SpawnError::Impossible(tid).into()).collect()
}

/// More memory than this host, or our control group, may have at all.
fn memory(manifest: &Manifest) -> Result<(), RestoreError> {
    let bytes = manifest.extents.iter().map(|extent| extent.pages).sum::<u64>().saturating_mul(PAGE_SIZE_BYTES);
    match memory_bounds().into_iter().find(|(_, bound)| bytes > *bound) {
        Some((whose, bound)) => {
            Err(RestoreError::Host(format!("its memory has {bytes} bytes, {whose} allows {bound}: restore where there is more memory")))
        }
        None => Ok(()),
    }
}

/// Upper bounds of the memory that a child of ours may use, each with its name.
fn memory_bounds() -> Vec<(String, u64)> {
    let mut bounds = Vec::new();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| meminfo.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let (Some(memory), Some(swap)) = (kib("MemTotal:"), kib("SwapTotal:")) {
        bounds.push(("this host (memory and swap)".to_owned(), (memory + swap) * 1024));
    }
    for (files, folder) in [("memory.max", "/sys/fs/cgroup"), ("memory.limit_in_bytes", "/sys/fs/cgroup/memory")] {
        for group in own_groups(Path::new(folder)) {
            let file = group.join(files);
            let limit = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            bounds.extend(limit.map(|limit| (file.display().to_string(), limit)));
        }
    }
    bounds
}

/// Our control group below a mount point, and those that it lies in.
fn own_groups(mount: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let ours = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        matches!(controllers, "" | "memory").then(|| path.trim_start_matches('/').to_owned())
    };
    let paths = text.lines().filter_map(ours);
    paths.flat_map(|path| mount.join(path).ancestors().map(Path::to_owned).collect::<Vec<_>>()).filter(|p| p.starts_with(mount)).collect()
}

/// The pager's sockets and journals lie there.
fn runtime_directory() -> Result<(), RestoreError> {
    let wanted = pager::control::runtime_dir();
    let there = wanted.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    access(there, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| {
        RestoreError::Pager(format!("its runtime directory {} cannot be written: {errno}: make it writable", wanted.display()))
    })
}
