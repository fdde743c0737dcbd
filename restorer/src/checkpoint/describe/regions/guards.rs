//! Guards (MADV_GUARD_INSTALL): pages where a touch is a fault, which lie in page tables and in no list of mappings.
//!
//! From Linux 6.19 on (and in some 6.18), VmFlags say which mappings may have any (`gu`); before, all are looked at. One scan
//! looks at the whole address space. A kernel before 6.15 has guards and does not tell: such pages cannot be read, and the
//! checkpoint fails.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use crate::process::maps::Mapping;
use images::manifest::{GuardRun, Region};
use kernel::pagemap::{Category, scan};
use pages::PageRange;

/// The first kernel whose VmFlags tell of guards.
const TELLS: (u32, u32) = (6, 19);

/// Note each region's guards.
pub fn note(proc: Proc, maps: &[Mapping], regions: &mut [Region]) -> Result<(), CheckpointError> {
    if release() >= TELLS && !maps.iter().any(|map| map.has("gu")) {
        return Ok(());
    }
    let (Some(first), Some(last)) = (regions.first(), regions.last()) else { return Ok(()) };
    let Some(everything) = PageRange::from_addrs(first.start, last.end) else { return Ok(()) };
    let failed = |error: std::io::Error| CheckpointError::Memory { pid: proc.pid, range: everything.to_string(), why: error.to_string() };
    let guards = scan(proc.task(), everything, Category::Guard).map_err(failed)?;
    spread(&guards, regions);
    Ok(())
}

/// Give each region its part; both ascend.
fn spread(guards: &[PageRange], regions: &mut [Region]) {
    let mut next = 0;
    for region in regions {
        let Some(own) = PageRange::from_addrs(region.start, region.end) else { continue };
        while guards.get(next).is_some_and(|run| run.end() <= own.start()) {
            next += 1;
        }
        let within = guards[next..].iter().map_while(|run| run.intersect(&own).filter(|part| !part.is_empty()));
        region.guards = within.map(|part| GuardRun { start: part.start().addr(), pages: part.pages() }).collect();
    }
}

/// The running kernel's version.
fn release() -> (u32, u32) {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_at_borders_of_regions() {
        let region = |start: u64, end: u64| Region { start: start << 12, end: end << 12, ..Region::default() };
        let run = |start: u64, end: u64| PageRange::from_addrs(start << 12, end << 12).expect("in order");
        let mut regions = [region(10, 20), region(20, 30), region(40, 50), region(60, 61)];
        spread(&[run(10, 11), run(12, 13), run(18, 25), run(45, 50)], &mut regions);
        let found: Vec<Vec<(u64, u64)>> =
            regions.iter().map(|region| region.guards.iter().map(|run| (run.start >> 12, run.pages)).collect()).collect();
        assert_eq!(found, [vec![(10, 1), (12, 1), (18, 2)], vec![(20, 5)], vec![(45, 5)], vec![]]);
    }
}
