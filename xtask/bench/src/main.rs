//! `cargo xtask bench`: starts benches, keeps their records, and writes docs/benchmarks.md from them.
//!
//! A program of its own: it links all that the test crate does, which `cargo xtask demo` and
//! `cargo xtask test` need not wait for.

mod aims;
mod bench;
mod plot;
mod report;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    what: bench::Bench,
}

fn main() -> Result<()> {
    xtask::go_to_top()?;
    Cli::parse().what.run()
}
