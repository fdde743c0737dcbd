//! NUMA policies that mappings have of their own (mbind).
//!
//! The process is asked for the policy of one mapping after the other, or only of those that /proc/PID/numa_maps shows with
//! one: that shows the task's policy for mappings without their own, and it walks all page tables, so that it is read only
//! where that costs less than the calls. Known hole: a home node (set_mempolicy_home_node), which the kernel does not tell.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::ask::Session;
use crate::checkpoint::proc::Proc;
use images::manifest::{Backing, Region};
use std::collections::HashSet;

/// What a look at one page costs numa_maps, and a call in the process, in nanoseconds (measured on two CPUs at 3 GHz).
const PAGE_NS: u64 = 70;
const CALL_NS: u64 = 6000;

/// Note each region's own policy.
pub fn note(proc: Proc, session: &mut Session<'_>, regions: &mut [Region]) -> Result<(), CheckpointError> {
    let shown = match resident_pages(proc)? * PAGE_NS < regions.len() as u64 * CALL_NS {
        true => shown(proc)?,
        false => None,
    };
    for region in regions.iter_mut().filter(|region| may_have_one(region)) {
        if shown.as_ref().is_none_or(|shown| shown.contains(&region.start)) {
            match session.memory_policy(Some(region.start))? {
                Some(policy) => region.policy = policy,
                None => return Ok(()), // a kernel without NUMA
            }
        }
    }
    Ok(())
}

fn may_have_one(region: &Region) -> bool {
    !matches!(Backing::try_from(region.backing), Ok(Backing::Vdso | Backing::Vvar))
}

fn resident_pages(proc: Proc) -> Result<u64, CheckpointError> {
    let text = proc.text("statm")?;
    text.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse().ok()).ok_or_else(|| proc.malformed("statm"))
}

/// Where mappings begin that numa_maps shows with another policy than the usual one.
fn shown(proc: Proc) -> Result<Option<HashSet<u64>>, CheckpointError> {
    match proc.text("numa_maps") {
        Ok(text) => parse(&text).map(Some).ok_or_else(|| proc.malformed("numa_maps")),
        Err(CheckpointError::Proc { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Option<HashSet<u64>> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let start = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((start, words.next()? != "default"))
    };
    let mut starts = HashSet::new();
    for (start, own) in text.lines().map(line).collect::<Option<Vec<_>>>()? {
        if own {
            starts.insert(start);
        }
    }
    Some(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_with_a_policy_are_found() {
        let text =
            "55d0 default file=/usr/bin/a mapped=1 N0=1\n7f00 bind:0 anon=2\n7f10 prefer (many):0-1 heap\n7ffd default stack anon=3\n";
        assert_eq!(parse(text), Some(HashSet::from([0x7f00, 0x7f10])));
        assert_eq!(parse("zz default\n"), None);
    }
}
