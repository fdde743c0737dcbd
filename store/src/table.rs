//! The table of an image of which only the head is here: its groups are brought when they are wanted, and checked.
//!
//! A group that is wrong is fetched once more, from every copy of the store there is: as with chunks, it may have been damaged on its
//! way. Wrong in all of them, the table is damaged, and no digest of it is ever read.

use crate::{Store, StoreError};
use bytes::Bytes;
use images::{GROUP_BYTES, Groups, ImageError, Table};
use std::ops::Range;
use std::path::PathBuf;

/// Most groups in one answer: 1 MiB, as an image's other pieces have.
pub const MOST_GROUPS: u32 = proto::domain::MAX_GROUPS;

/// See to it that the digests of these chunks are there.
pub fn bring_table(store: &dyn Store, table: &Table, chunks: &Range<u32>) -> Result<(), StoreError> {
    while let (Some(lacking), Some(known)) = (table.lacks(chunks), table.groups()) {
        let groups = lacking.start..lacking.end.min(lacking.start.saturating_add(MOST_GROUPS));
        bring(store, table, known, &groups)?;
    }
    Ok(())
}

fn bring(store: &dyn Store, table: &Table, known: &Groups, groups: &Range<u32>) -> Result<(), StoreError> {
    let place = known.place(groups);
    let ask = |copy| {
        let bytes = store.image_groups(&known.id(), groups, copy)?;
        let fits = bytes.len() as u64 == place.end - place.start && table.fill(groups.start, &bytes);
        if fits { Ok(()) } else { Err(damaged(store, known)) }
    };
    let mut wrong = match ask(None) {
        Err(error) if error.is_about_contents() || matches!(error, StoreError::MissingImage(_)) => error,
        answer => return answer,
    };
    tracing::info!(snapshot = %known.id(), error = %wrong, "fetching a part of the image again");
    let mut away = None;
    for copy in 0..store.copies() {
        match ask(Some(copy)) {
            Ok(()) => {
                store.prefer(copy);
                return Ok(());
            }
            Err(error) if error.is_about_contents() => wrong = error,
            Err(error @ StoreError::MissingImage(_)) => drop(error),
            Err(error) => away = away.or(Some(error)),
        }
    }
    // A copy that does not answer may be right.
    Err(away.unwrap_or(wrong))
}

/// What is wrong: told by the server that is asked, or a store that can name its file.
fn damaged(store: &dyn Store, known: &Groups) -> StoreError {
    let source = ImageError::Checksum("image's table");
    match store.in_use() {
        Some(server) => StoreError::Damaged { path: PathBuf::from(server), source },
        None => store.image(&known.id()).err().unwrap_or(StoreError::Damaged { path: PathBuf::from("the image"), source }),
    }
}

/// The bytes of some groups of a whole file, as far as it has them.
pub(crate) fn part(file: &Bytes, groups: &Range<u32>) -> Bytes {
    let at = |group: u32| (group as usize).saturating_mul(GROUP_BYTES).min(file.len());
    file.slice(at(groups.start)..at(groups.end.max(groups.start)))
}
