//! `cargo xtask`: the house's own commands. `test` is what CI runs, `check` the part of it that needs no root, `demo` the whole story,
//! `bench` what it costs.

mod aims;
mod bench;
mod cargo;
mod packages;
mod plot;
mod report;

use anyhow::{Context as _, Result};
use cargo::{cargo, run};
use clap::{Parser, Subcommand};
use std::path::Path;
use std::process::Command;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Freeze, kill and lazily restore a redis-server with 500 000 values, and compare every one of them
    Demo,
    /// Everything CI tests
    Test,
    /// Format and lints
    Check,
    /// Measure, and write docs/benchmarks
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
}

/// How long each parser is fuzzed in a test run.
const FUZZ_SECONDS: &str = "5";

fn main() -> Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is in the workspace")?;
    std::env::set_current_dir(top)?;
    match Cli::parse().verb {
        Verb::Check => check(),
        Verb::Test => {
            packages::install()?;
            check()?;
            let mut fuzz = Command::new("images/fuzz/run.sh");
            fuzz.arg(FUZZ_SECONDS);
            run(fuzz)?;
            cargo(&["build", "--workspace"])?;
            // Last: CI reads the count of tests from the end. Doc tests are among them. One run shows
            // every test that fails.
            cargo(&["test", "--workspace", "--no-fail-fast"])
        }
        Verb::Demo => {
            packages::install()?;
            cargo(&["build", "--release", "--workspace", "--bins"])?;
            let mut demo = Command::new("target/release/defrost");
            demo.arg("demo");
            run(demo)
        }
        Verb::Bench { what } => what.run(),
    }
}

fn check() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
}
