//! Plan: what must hold on this host before anything is made, and where the rebuild may work.
//!
//! The functions that decide are pure; [`super::found`] looks at the file system and [`super::obstacles`] joins them.

use super::error::RestoreError;
use images::manifest::{Backing, Manifest, Region};
use images::region_at;
use pages::{PAGE_SIZE_BYTES, PageAddr};

/// Lowest address a mapping may have: vm.mmap_min_addr is at most 64 KiB.
const LOWEST: u64 = 0x1_0000;
/// Highest address of user space with four-level page tables.
const HIGHEST: u64 = 0x7fff_ffff_f000;

/// The manifest's parts that every snapshot has, or why not.
pub fn whole(manifest: &Manifest) -> Result<(), RestoreError> {
    let missing = |what: &str| Err(RestoreError::Image(format!("has no {what}")));
    match manifest {
        Manifest { criu_dump: Some(_), .. } => Err(RestoreError::OfCriu),
        Manifest { memory_file: Some(_), .. } => Err(RestoreError::OfMachine),
        Manifest { process: None, .. } => missing("process"),
        Manifest { host: None, .. } => missing("host"),
        m if m.threads.is_empty() => missing("threads"),
        m if m.process.as_ref().is_some_and(|p| p.mm.is_none()) => missing("memory layout"),
        _ => Ok(()),
    }
}

/// A run of `pages` free pages that neither the snapshot nor the child, as it is now, uses.
pub fn free_gap(regions: &[Region], ours: &[(u64, u64)], pages: u64) -> Option<u64> {
    let mut used: Vec<(u64, u64)> = regions.iter().map(|r| (r.start, r.end)).chain(ours.iter().copied()).collect();
    used.sort_unstable();
    let wanted = pages * PAGE_SIZE_BYTES;
    let margin = 256 * PAGE_SIZE_BYTES; // away from stacks that grow down and their guard gap
    let mut free_from = LOWEST;
    for (start, end) in used {
        if start > free_from && start - free_from >= wanted + 2 * margin {
            return Some(free_from + margin);
        }
        free_from = free_from.max(end);
    }
    (HIGHEST > free_from + wanted + 2 * margin).then_some(free_from + margin)
}

/// The kernel that runs here.
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Kinds of memory and of descriptions that this version does not build.
pub fn unknown_kinds(manifest: &Manifest) -> Vec<RestoreError> {
    let unknown = |what: String| RestoreError::Image(format!("{what} of a later version"));
    let backing = |region: &&Region| Backing::try_from(region.backing).map_or(true, |backing| backing == Backing::Unknown);
    let regions = manifest.regions.iter().filter(backing);
    let regions = regions.map(|region| unknown(format!("region {:x} has a backing", region.start)));
    let files = manifest.files.iter().enumerate().filter(|(_, file)| file.kind.is_none());
    regions.chain(files.map(|(index, _)| unknown(format!("file {index} is of a kind")))).collect()
}

/// The vDSO and vector state must be this host's own.
pub fn check_host(manifest: &Manifest, vdso_digest: &[u8], kernel_release: &str) -> Result<(), RestoreError> {
    let Some(host) = &manifest.host else { return whole(manifest) };
    if host.vdso_digest != vdso_digest {
        return Err(RestoreError::Host(format!(
            "its vDSO is that of kernel {}, here runs {kernel_release}: restore on a host with the same kernel build",
            host.kernel_release
        )));
    }
    Ok(())
}

/// Pages of arguments and environment that the pager is told of: 2 MiB, what a stack of 8 MiB leaves them (execve(2)). An image may claim more.
const MOST_ARGUMENTS: usize = 512;

/// Pages that the process touches in its first instructions: stacks, thread control blocks, code in anonymous memory. And its arguments,
/// which we write ourselves: a touch of these tells nobody that they are not owed any more.
#[must_use]
pub fn first_touched(manifest: &Manifest) -> Vec<PageAddr> {
    let mut first = Vec::new();
    for thread in &manifest.threads {
        if let Some(registers) = kernel::regs::Registers::from_bytes(&thread.registers) {
            let r = registers.0;
            let rseq = thread.rseq.as_ref().map_or(0, |rseq| rseq.address);
            first.extend([r.rsp, r.rip, r.fs_base, rseq].map(|address| pages::VirtAddr(address).page()));
        }
    }
    first.extend(
        super::memory::eager::arguments(manifest).flat_map(|(start, end)| start..end).take(MOST_ARGUMENTS).map(PageAddr::from_number),
    );
    let lazy = |page: &PageAddr| region_at(&manifest.regions, page.addr()).is_some_and(|region| region.lazy);
    first.retain(lazy);
    first.sort_unstable();
    first.dedup();
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_free_in_both_layouts() {
        let region = |start, end| Region { start, end, ..Region::default() };
        let gap = free_gap(&[region(0x40_0000, 0x50_0000)], &[(0x5000_0000, 0x6000_0000)], 4).expect("there is room");
        let clear = |start: u64, end: u64| gap + 4 * PAGE_SIZE_BYTES <= start || end <= gap;
        assert!(clear(0x40_0000, 0x50_0000) && clear(0x5000_0000, 0x6000_0000), "{gap:#x}");
        assert!(free_gap(&[region(LOWEST, HIGHEST)], &[], 4).is_none());
    }
}
