//! The host of a restore: its vDSO, its userfaultfd, its memory, its pid space, room for the pager's files.
//!
//! Each check reads or tries what the restore itself will use in a moment, in our own process, which the child is a copy of.

pub(super) mod cgroups;
pub(super) mod limits;
pub mod made_here;
pub(super) mod memory;
pub mod namespace;
pub(super) mod numbers;
pub(super) mod rights;

use super::error::RestoreError;
use super::obstacles::Plan;
use super::{maps_of, plan};
use crate::process::hierarchy::folder;
use images::manifest::Manifest;
use kernel::memory::ProcessMemory;
use kernel::uffd::Uffd;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, Pid, access};
use pages::{PAGE_SIZE_BYTES, VirtAddr};
use std::path::{Path, PathBuf};

/// All that this host lacks.
pub fn obstacles(manifest: &Manifest, plan: &Plan) -> Vec<RestoreError> {
    let checks = [vdso(manifest), userfaultfd(), memory(manifest, plan, Bound::Most), runtime_directory()];
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

/// Which memory a process may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// All that there is.
    Most,
    /// What others leave now: where a process needs more at once, the kernel ends one of them.
    Now,
}

/// More memory than this host, or the control group that the process comes to lie in, has for it.
pub fn memory(manifest: &Manifest, plan: &Plan, bound: Bound) -> Result<(), RestoreError> {
    let beside = if bound == Bound::Now { " beside what others have" } else { "" };
    let bytes = manifest.extents.iter().map(|extent| extent.pages).sum::<u64>().saturating_mul(PAGE_SIZE_BYTES);
    match memory_bounds(manifest, plan, bound).into_iter().find(|(_, most)| bytes > *most) {
        Some((whose, most)) => Err(RestoreError::Host(format!(
            "its memory has {bytes} bytes, {whose} allows {most}{beside}: restore where there is more memory, or raise that limit"
        ))),
        None => Ok(()),
    }
}

/// Upper bounds of the memory that the process may use, swap included, each with its name.
fn memory_bounds(manifest: &Manifest, plan: &Plan, bound: Bound) -> Vec<(String, u64)> {
    let mut bounds = Vec::new();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| meminfo.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let swap_bytes = kib("SwapTotal:").unwrap_or(0) * 1024;
    if let Some(memory) = kib("MemTotal:") {
        bounds.push(("this host (memory and swap)".to_owned(), memory * 1024 + swap_bytes));
    }
    for group in memory_groups(manifest, plan).iter().flat_map(|group| group.ancestors()) {
        let limit = |file: &str| std::fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
        // Version 2, where a limit may be `max`; version 1, where that is a number beyond all memory.
        let version_2 = limit("memory.max").map(|most| most.saturating_add(limit("memory.swap.max").unwrap_or(swap_bytes).min(swap_bytes)));
        let version_1 = limit("memory.limit_in_bytes").map(|most| {
            let with_swap = limit("memory.memsw.limit_in_bytes").unwrap_or(u64::MAX);
            most.saturating_add(swap_bytes).min(with_swap.max(most))
        });
        // What the group has of files can be dropped.
        let taken = if bound == Bound::Now { anonymous(group) } else { 0 };
        let left = version_2.or(version_1).map(|most| most.saturating_sub(taken));
        bounds.extend(left.map(|left| (format!("control group {}", group.display()), left)));
    }
    bounds
}

/// Anonymous memory of a group and those below it.
fn anonymous(group: &Path) -> u64 {
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let value = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    value("total_rss").or_else(|| value("anon")).unwrap_or(0)
}

/// Folders of the groups that limit the memory of the process: its own, or ours where it is to lie in ours.
fn memory_groups(manifest: &Manifest, plan: &Plan) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut lines: Vec<&str> = manifest.process.iter().flat_map(|process| process.cgroups.iter().map(String::as_str)).collect();
    if plan.inherit_cgroups || lines.is_empty() {
        lines = ours.lines().filter_map(|line| Some(line.split_once(':')?.1)).collect();
    }
    let limits_memory = |controllers: &str| controllers.is_empty() || controllers.split(',').any(|one| one == "memory");
    let groups = lines.iter().filter_map(|line| line.split_once(':')).filter(|(controllers, _)| limits_memory(controllers));
    groups.filter_map(|(controllers, path)| folder(&mounts, controllers, path)).collect()
}

/// The pager's sockets and journals lie there.
fn runtime_directory() -> Result<(), RestoreError> {
    let wanted = pager::control::runtime_dir();
    let there = wanted.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    access(there, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| {
        RestoreError::Pager(format!("its runtime directory {} cannot be written: {errno}: make it writable", wanted.display()))
    })
}
