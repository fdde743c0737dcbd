//! A dump of CRIU's: names that are names, files that fit each other, and regions that are exactly where its page data is laid out.

use super::{NAME_MAX_BYTES, ensure, text};
use crate::criu::{Dump, Layout};
use crate::error::ImageError;
use crate::manifest::{Backing, Manifest, Region};
use pages::PageRange;

pub(super) fn check(manifest: &Manifest) -> Result<(), ImageError> {
    let Some(kept) = &manifest.criu_dump else { return Ok(()) };
    ensure(manifest.process.is_none(), || "a process and a dump of CRIU's".to_owned())?;
    for folder in &kept.folders {
        let mut before = "";
        for file in &folder.files {
            let name = file.name.as_str();
            let plain = text(name, NAME_MAX_BYTES) && !name.contains('/') && !matches!(name, "" | "." | ".." | "parent");
            ensure(plain && before < name && file.body.is_some(), || format!("file {name:?} of a dump"))?;
            before = name;
        }
    }
    let refused = |error| ImageError::Manifest(format!("{error}"));
    let layout = Layout::new(&Dump::of(kept).map_err(refused)?).map_err(refused)?;
    let expected = layout.files().map(|placed| placed.range).filter(|range| !range.is_empty());
    ensure(expected.eq(manifest.regions.iter().filter_map(range)), || "regions other than a dump's page data".to_owned())
}

/// Where a region may be that stands for page data; `None` never equals a place.
fn range(region: &Region) -> Option<PageRange> {
    let plain = region.backing == Backing::Anonymous as i32 && region.prot == 0 && !region.lazy;
    PageRange::from_addrs(region.start, region.end).filter(|_| plain)
}
