//! A damaged snapshot mended from another store that has it: chunks whose stored frames are wrong or gone, and the image.
//!
//! The damaged store says which frames it does not have whole ([`Store::find_missing`]); each is decoded and digested on its way.

use crate::copy::copy_chunks;
use crate::{CopyError, Store, StoreError};
use pages::SnapshotName;

/// What was mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Chunks that had no sound frame.
    pub chunks: u64,
    /// Whether the image was damaged or gone.
    pub image: bool,
}

/// Mend `name` of `store` with what `from` has of the same snapshot; `progress` is told of chunks done and chunks in all.
pub fn repair(store: &dyn Store, from: &dyn Store, name: &SnapshotName, progress: &dyn Fn(u64, u64)) -> Result<RepairReport, CopyError> {
    let id = store.resolve(name)?;
    let mut report = RepairReport::default();
    let bytes = match store.image(&id) {
        Err(error) if error.is_about_contents() || matches!(error, StoreError::MissingImage(_)) => {
            report.image = true;
            from.image(&id)?
        }
        image => image?,
    };
    report.chunks = copy_chunks(from, store, name, &bytes, progress)?.copied;
    if report.image {
        store.commit(bytes, name)?;
    }
    Ok(report)
}
