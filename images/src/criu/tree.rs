//! inventory.img and pstree.img: that it is a dump we know, and its tasks.

use super::error::DumpError;
use super::records::{Kind, Records};
use super::wire::{Inventory, Task};
use std::collections::BTreeSet;

/// The file that says what a folder is.
pub(super) const INVENTORY: &str = "inventory.img";
/// The file that has the tasks.
pub(super) const TREE: &str = "pstree.img";

/// With it, files begin with the common magic number.
const IMG_VERSION: u32 = 2;

/// Check that this is an inventory of a version we know.
pub(super) fn check_inventory(bytes: &[u8]) -> Result<(), DumpError> {
    let inventory: Inventory = Records::open(INVENTORY, Kind::Inventory, bytes)?.only()?;
    match inventory.img_version {
        Some(IMG_VERSION) => Ok(()),
        other => {
            let found = other.map_or_else(|| "none".to_owned(), |version| version.to_string());
            Err(DumpError::record(INVENTORY, 0, format!("its image version is {found}, and only {IMG_VERSION} is known here")))
        }
    }
}

/// The tasks' pids, as they see themselves, in the file's order.
pub(super) fn tasks(bytes: &[u8]) -> Result<Vec<u32>, DumpError> {
    let mut records = Records::open(TREE, Kind::Tree, bytes)?;
    let (mut pids, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(task) = records.message::<Task>()? {
        // The protocol speaks of a pid as a signed number.
        let pid = task.pid.filter(|pid| (1..=i32::MAX as u32).contains(pid) && seen.insert(*pid));
        pids.push(pid.ok_or_else(|| DumpError::record(TREE, records.last(), "its pid is absent, impossible, or there twice"))?);
    }
    if pids.is_empty() { Err(DumpError::file(TREE, "it has no task")) } else { Ok(pids) }
}
