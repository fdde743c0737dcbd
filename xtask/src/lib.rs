//! What `cargo xtask` and `cargo xtask bench` share: commands that are shown and must succeed, and Debian packages.

#![forbid(unsafe_code)]

pub mod cargo;
pub mod packages;

use anyhow::{Context as _, Result};
use std::path::Path;

/// Make the top of the repository the working directory.
pub fn go_to_top() -> Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is in the workspace")?;
    Ok(std::env::set_current_dir(top)?)
}
