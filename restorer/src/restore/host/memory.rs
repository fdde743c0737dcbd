//! What the memory of a process needs of the host: huge pages in the pool, NUMA nodes, mounts that let code run.
//!
//! A process that is still there holds huge pages which its end gives back: it needs no others.

use super::super::error::RestoreError;
use super::super::memory::no_huge_pages;
use images::manifest::{Manifest, Region};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that is missing; `is_gone` says that the process has ended.
pub fn obstacles(manifest: &Manifest, is_gone: bool) -> Vec<RestoreError> {
    let huge = if is_gone { huge_pages(&manifest.regions) } else { Vec::new() };
    huge.into_iter().chain(nodes(&manifest.regions)).chain(mounts(&manifest.regions)).collect()
}

/// Sizes of huge pages of which the pool has too few.
fn huge_pages(regions: &[Region]) -> Vec<RestoreError> {
    let mut wanted: BTreeMap<u32, (u64, &Region)> = BTreeMap::new();
    let reserved = |region: &&Region| region.huge_page_bits != 0 && region.advice & images::manifest::RegionFlag::NoReserve as u32 == 0;
    for region in regions.iter().filter(reserved) {
        let (pages, _) = wanted.entry(region.huge_page_bits).or_insert((0, region));
        *pages += (region.end - region.start) >> region.huge_page_bits;
    }
    let lacking = wanted.into_iter().filter(|(bits, (pages, _))| free_huge_pages(*bits).is_some_and(|free| free < *pages));
    lacking.map(|(bits, (pages, first))| no_huge_pages(bits, pages, first.start)).collect()
}

/// Pages that a new mapping may reserve: those of the pool, and those that it may grow by.
fn free_huge_pages(bits: u32) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", 1_u64 << bits >> 10);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let free = number("free_hugepages")?.saturating_sub(number("resv_hugepages")?);
    Some(free + number("nr_overcommit_hugepages")?.saturating_sub(number("surplus_hugepages")?))
}

/// Nodes that policies name and that have no memory here.
fn nodes(regions: &[Region]) -> Option<RestoreError> {
    let mask = |region: &Region| region.policy.as_ref().map_or_else(Vec::new, |policy| policy.nodes.clone());
    let named: BTreeSet<u64> = regions.iter().flat_map(|region| bits_of(&mask(region))).collect();
    if named.is_empty() {
        return None;
    }
    let here = std::fs::read_to_string("/sys/devices/system/node/has_memory").map_or_else(|_| BTreeSet::new(), |text| list(&text));
    let missing: Vec<String> = named.difference(&here).map(u64::to_string).collect();
    (!missing.is_empty()).then(|| {
        let nodes = missing.join(", ");
        RestoreError::Host(format!("memory of the process is bound to NUMA node {nodes}, which has no memory here: use a host that has it"))
    })
}

fn bits_of(words: &[u64]) -> Vec<u64> {
    (0..words.len() as u64 * 64).filter(|bit| words[(bit / 64) as usize] & (1 << (bit % 64)) != 0).collect()
}

/// A list as the kernel writes it: `0-1,3`.
fn list(text: &str) -> BTreeSet<u64> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// Files that code ran from, on mounts that do not allow it.
fn mounts(regions: &[Region]) -> Vec<RestoreError> {
    let code = regions.iter().filter(|region| region.prot & libc::PROT_EXEC as u32 != 0);
    let paths: BTreeSet<&str> = code.filter_map(|region| Some(region.file.as_ref()?.path.as_str())).collect();
    let is_noexec = |path: &&str| statvfs(*path).is_ok_and(|mount| mount.flags().contains(FsFlags::ST_NOEXEC));
    let refused = |path: &str| RestoreError::Host(format!("file {path} is code and lies on a mount with noexec: remount that with exec"));
    paths.into_iter().filter(is_noexec).map(refused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_masks_name_nodes() {
        assert_eq!(list("0-1,3\n"), BTreeSet::from([0, 1, 3]));
        assert_eq!(list("\n"), BTreeSet::new());
        assert_eq!(bits_of(&[0b101, 1]), [0, 2, 64]);
    }
}
