//! Running commands: shown first, failed loudly.

use anyhow::{Context as _, Result, ensure};
use std::process::Command;

/// Run cargo.
pub fn cargo(args: &[&str]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    run(command)
}

/// Run a command and expect success.
pub fn run(mut command: Command) -> Result<()> {
    println!("→ {command:?}");
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
