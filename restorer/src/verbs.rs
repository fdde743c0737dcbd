//! The verbs of the command line: [`process`] checkpoints and restores, [`live`] asks the pagers of live restores, [`snapshots`] looks
//! after what a store holds, [`inspect`] shows what is in one. Each prints for people, or JSON for machines.

pub mod inspect;
pub mod live;
pub mod process;
pub mod snapshots;

use crate::cli::StoreArg;
use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt::Display;
use std::io::Write as _;
use std::sync::Arc;
use store::{Access, Store};

/// The store's address; a directory is made absolute, as a daemon lives elsewhere.
pub fn address_of(store: Option<String>) -> Result<String> {
    let address = store.unwrap_or_else(|| store::default_dir().display().to_string());
    if address.contains("://") || address.starts_with("unix:") {
        return Ok(address);
    }
    let dir = std::path::absolute(&address).with_context(|| format!("store {address}"))?;
    Ok(dir.display().to_string())
}

fn open(store: StoreArg, access: Access) -> Result<Arc<dyn Store>> {
    Ok(store::open(&address_of(store.store)?, access)?)
}

/// Print a report: as one line of JSON, or in words.
fn show(json: bool, report: &impl Serialize, words: &dyn Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = if json { writeln!(out, "{}", serde_json::to_string(report)?) } else { writeln!(out, "{words}") };
    written.context("write to standard output")
}

/// A bar over `total` of something; quiet where nobody watches.
fn bar(total: u64, form: &str) -> ProgressBar {
    ProgressBar::new(total).with_style(ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar()))
}
