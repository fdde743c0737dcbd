//! The verbs of the command line: [`process`] checkpoints and restores, [`live`] asks the pagers of live restores, [`snapshots`] looks
//! after what a store holds, [`inspect`] shows what is in one, [`foreign`] brings in and out what others
//! made, [`frontend`] serves their restores. Each prints for people, or JSON for machines.

pub mod foreign;
pub mod frontend;
pub mod inspect;
pub mod live;
pub mod process;
pub mod snapshots;

use crate::cli::{CompressionArgs, StoreArg};
use anyhow::{Context as _, Result};
use defrost_restorer::checkpoint::Compression;
use defrost_restorer::restore::AUTHORITY;
use indicatif::{ProgressBar, ProgressStyle};
use pages::line::{is_obeyed, on_one_line};
use serde::Serialize;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use store::{Access, Address, Class, Options, Store, StoreError};

/// The store's address; a directory is made absolute, as a daemon lives elsewhere.
pub fn address_of(store: Option<String>) -> Result<String> {
    let address = store.unwrap_or_else(|| store::default_dir().display().to_string());
    if Address::is_meant_by(&address) {
        return Ok(address);
    }
    let dir = std::path::absolute(&address).with_context(|| format!("store {address}"))?;
    Ok(dir.display().to_string())
}

/// The file of the authority that servers with TLS must be known to; absolute, as a daemon lives elsewhere.
pub fn authority() -> Result<Option<PathBuf>, StoreError> {
    let absolute = |path: OsString| std::path::absolute(&path).map_err(StoreError::io(path));
    std::env::var_os(AUTHORITY).map(absolute).transpose()
}

/// Open a store. A server with TLS must be known to the authority in the file $DEFROST_TLS_CA, else to one of the system's.
pub fn open(address: &str, access: Access, class: Class) -> Result<Arc<dyn Store>, StoreError> {
    let ca_pem = authority()?.map(|path| std::fs::read(&path).map_err(StoreError::io(path))).transpose()?.map(Into::into);
    store::open_with(address, access, &Options { class, ca_pem })
}

/// Open the store that was named, or the default one, for everything but demand.
fn open_named(store: StoreArg, access: Access) -> Result<Arc<dyn Store>> {
    Ok(open(&address_of(store.store)?, access, Class::Bulk)?)
}

impl From<CompressionArgs> for Compression {
    fn from(CompressionArgs { level, chunk_size }: CompressionArgs) -> Self {
        Self { level, chunk_size_bytes: chunk_size }
    }
}

/// Print a report: as one line of JSON, or in words on one line.
fn show(json: bool, report: &impl Serialize, words: &dyn Display) -> Result<()> {
    match json {
        true => print(&as_json(report)?),
        false => print(&on_one_line(&words.to_string())),
    }
}

/// JSON on one line; characters that a terminal obeys are escaped, which they are allowed to be in its strings alone.
fn as_json(report: &impl Serialize) -> Result<String> {
    let mut line = String::new();
    for c in serde_json::to_string(report)?.chars() {
        match is_obeyed(c) {
            true => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => line.push(c),
        }
    }
    Ok(line)
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("write to standard output")
}

/// A bar over `total` of something; quiet where nobody watches.
fn bar(total: u64, form: &str) -> ProgressBar {
    ProgressBar::new(total).with_style(ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar()))
}
