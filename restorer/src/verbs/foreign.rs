//! Snapshots of what others made: imported, exported.

use super::{bar, open_named, show};
use crate::cli::{CompressionArgs, ExportFirecrackerArgs, ImportFirecrackerArgs, StoreArg};
use anyhow::Result;
use defrost_restorer::foreign::{criu, firecracker};
use pages::SnapshotName;
use std::path::Path;
use store::Access;

/// A dump of CRIU's.
pub fn import_criu(dir: &Path, name: &SnapshotName, store: StoreArg, compression: CompressionArgs, json: bool) -> Result<()> {
    let store = open_named(store, Access::Write)?;
    let bar = bar(0, "{spinner} {bytes} read, {bytes_per_sec}");
    let report = criu::import(dir, name, compression.into(), store.as_ref(), &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let report = report?;
    show(json, &report, &report)
}

/// A dump of CRIU's again.
pub fn export_criu(name: &SnapshotName, dir: &Path, lazy: bool, store: StoreArg, json: bool) -> Result<()> {
    let report = criu::export(name, dir, lazy, open_named(store, Access::Read)?.as_ref())?;
    show(json, &report, &report)
}

/// A microVM's snapshot.
pub fn import_firecracker(args: ImportFirecrackerArgs) -> Result<()> {
    let ImportFirecrackerArgs { memory, state, name, store, compression, json } = args;
    let store = open_named(store, Access::Write)?;
    let bar = bar(0, "{spinner} {bytes} read, {bytes_per_sec}");
    let report = firecracker::import(&memory, state.as_deref(), &name, compression.into(), store.as_ref(), &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let report = report?;
    show(json, &report, &report)
}

/// A microVM's files again.
pub fn export_firecracker(args: ExportFirecrackerArgs) -> Result<()> {
    let ExportFirecrackerArgs { name, memory, state, store, json } = args;
    let report = firecracker::export(&name, memory.as_deref(), state.as_deref(), open_named(store, Access::Read)?.as_ref())?;
    show(json, &report, &report)
}
