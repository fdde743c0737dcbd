//! Sharers: other processes that hold an inode of which the image keeps the contents.
//!
//! One pass over /proc: mappings by the device and inode of `maps`, descriptors by stat. Processes
//! that end meanwhile, and those of other users where defrost does not run as root, do not count.

use super::objects::Held;
use super::place::FileId;
use crate::checkpoint::proc::Proc;
use crate::process::fdinfo::FdInfo;
use crate::process::others;
use std::collections::HashMap;

/// Another process that holds it.
#[derive(Debug)]
pub struct Sharer<'h> {
    /// Its pid.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// What both hold.
    pub held: &'h Held,
}

/// The first sharer of one of `held`, if it or `proc` may write to that.
pub fn find<'h>(proc: Proc, held: &[&'h Held]) -> Option<Sharer<'h>> {
    if held.is_empty() {
        return None;
    }
    let by_id: HashMap<FileId, &'h Held> = held.iter().map(|held| (held.id, *held)).collect();
    // All inodes of interest by number; most lines of maps have none of them.
    let by_inode: HashMap<u64, &'h Held> = held.iter().map(|held| (held.id.inode, *held)).collect();
    let us = std::process::id();
    for other in others::pids().filter(|pid| *pid != proc.pid && *pid != us).map(Proc::of) {
        let found = in_mappings(other, &by_inode).or_else(|| in_descriptors(other, &by_id));
        if let Some(held) = found {
            let comm = other.text("comm").unwrap_or_default().trim_end().to_owned();
            return Some(Sharer { pid: other.pid, comm, held });
        }
    }
    None
}

fn in_mappings<'h>(other: Proc, by_inode: &HashMap<u64, &'h Held>) -> Option<&'h Held> {
    let maps = other.text("maps").ok()?;
    maps.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (range, perms, _, _, inode) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let held = by_inode.get(&inode.parse().ok()?)?;
        let writes = perms.ends_with('s') && perms.contains('w');
        if !writes && !held.written {
            return None; // both only read: each may have a copy of its own
        }
        // An inode's number is one within a device only.
        let meta = std::fs::metadata(other.path(&format!("map_files/{}", unpadded(range)))).ok()?;
        (FileId::of(&meta) == held.id).then_some(*held)
    })
}

/// As map_files names the range that maps names with leading zeros.
fn unpadded(range: &str) -> String {
    let (start, end) = range.split_once('-').unwrap_or((range, ""));
    let short = |address: &str| match address.trim_start_matches('0') {
        "" => "0".to_owned(),
        short => short.to_owned(),
    };
    format!("{}-{}", short(start), short(end))
}

fn in_descriptors<'h>(other: Proc, by_id: &HashMap<FileId, &'h Held>) -> Option<&'h Held> {
    other.numbers("fd").ok()?.into_iter().find_map(|fd| {
        let meta = std::fs::metadata(other.path(&format!("fd/{fd}"))).ok()?;
        let held = by_id.get(&FileId::of(&meta))?;
        let info = other.text(&format!("fdinfo/{fd}")).ok()?;
        let writes = FdInfo::new(&info).flags() & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        (writes || held.written).then_some(*held)
    })
}
