//! `cargo xtask`: the house's own commands. `test` is what CI runs, `check` the part of it that needs no root, `demo` the whole story.

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use std::process::Command;

/// Debian packages that tests and demo use, with the file that tells whether each is there.
const PACKAGES: [(&str, &str); 5] = [
    ("redis-server", "/usr/bin/redis-server"),
    ("python3", "/usr/bin/python3"),
    ("gcc", "/usr/bin/cc"),
    ("libc6-dev", "/usr/include/stdio.h"),
    ("util-linux", "/usr/bin/setpriv"),
];

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Freeze, kill and lazily restore a redis-server with 700 000 values, and compare every one of them
    Demo,
    /// Everything CI tests
    Test,
    /// Format and lints
    Check,
}

fn main() -> Result<()> {
    match Cli::parse().verb {
        Verb::Check => check(),
        Verb::Test => {
            install()?;
            check()?;
            cargo(&["build", "--workspace"])?;
            cargo(&["test", "--workspace"])
        }
        Verb::Demo => {
            install()?;
            cargo(&["build", "--release", "--workspace", "--bins"])?;
            let mut demo = Command::new("target/release/defrost");
            demo.arg("demo");
            run(demo)
        }
    }
}

fn check() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

/// Install what is missing, and say so.
fn install() -> Result<()> {
    let missing: Vec<&str> = PACKAGES.iter().filter(|(_, file)| !std::path::Path::new(file).exists()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing Debian packages: {}", missing.join(", "));
    run(apt(&["update", "-qq"])).context("without root, install them yourself")?;
    run(apt(&[&["install", "-y", "-qq", "--no-install-recommends"], missing.as_slice()].concat()))
}

fn apt(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn cargo(args: &[&str]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    run(command)
}

fn run(mut command: Command) -> Result<()> {
    println!("→ {command:?}");
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
