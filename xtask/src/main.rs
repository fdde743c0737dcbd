//! `cargo xtask`: the house's own commands. `test` is what CI runs, `check` the part of it that needs no root, `demo` the whole story,
//! `fuzz` what no peer should send, `bench` what it costs.

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::Command;
use xtask::cargo::{cargo, run};
use xtask::go_to_top;
use xtask::packages::{self, DEMO, TESTS};

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
    /// Fuzz parsers and daemons
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = 20, conflicts_with = "hours")]
        seconds: u64,
        /// Hours in all, shared by the targets
        #[arg(long)]
        hours: Option<u64>,
    },
    /// Measure, and write docs/benchmarks
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// How long each parser is fuzzed in a test run.
const FUZZ_SECONDS: u64 = 5;
/// Targets of `images/fuzz` and of `tests/tests/fuzz.rs`, which take their turns.
const PARSERS: u64 = 6;
const DAEMONS: u64 = 5;

fn main() -> Result<()> {
    go_to_top()?;
    match Cli::parse().verb {
        Verb::Check => check(),
        Verb::Test => test(),
        Verb::Demo => demo(),
        Verb::Fuzz { seconds, hours } => fuzz(hours.map_or(seconds, |hours| hours * 3600 / (PARSERS + DAEMONS))),
        Verb::Bench { args } => {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            cargo(&[&["run", "--quiet", "--release", "--package", "xtask-bench", "--"], args.as_slice()].concat())
        }
    }
}

fn demo() -> Result<()> {
    packages::install(DEMO)?;
    cargo(&["build", "--release", "--package", "defrost-restorer", "--package", "defrost-page-server", "--bins"])?;
    let mut demo = Command::new("target/release/defrost");
    demo.arg("demo");
    run(demo)
}

fn test() -> Result<()> {
    packages::install(TESTS)?;
    check()?;
    fuzz_parsers(FUZZ_SECONDS)?;
    cargo(&["build", "--workspace"])?;
    // Last: CI reads the count of tests from the end. Doc tests are among them. One run shows
    // every test that fails.
    cargo(&["test", "--workspace", "--no-fail-fast"])
}

fn fuzz(seconds: u64) -> Result<()> {
    packages::install(TESTS)?;
    fuzz_parsers(seconds)?;
    cargo(&["build", "--workspace"])?;
    // One after the other: each counts the memory of its daemon.
    let mut daemons = Command::new("cargo");
    daemons.args(["test", "--workspace", "--test", "fuzz", "--", "--nocapture", "--test-threads=1"]);
    daemons.env("DEFROST_FUZZ_SECONDS", seconds.to_string());
    run(daemons)
}

fn fuzz_parsers(seconds: u64) -> Result<()> {
    let mut fuzz = Command::new("images/fuzz/run.sh");
    fuzz.arg(seconds.to_string());
    run(fuzz)
}

fn check() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
}
