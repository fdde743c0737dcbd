//! Starting benches: what they need is built and fetched first, the report is made afterwards.

use crate::cargo::cargo;
use crate::{criu, packages, report};
use anyhow::Result;
use clap::Subcommand;

/// Where records are kept.
pub const RECORDS: &str = "docs/benchmarks";

#[derive(Subcommand)]
pub enum Bench {
    /// A redis-server's checkpoint and restore beside CRIU
    Resume {
        #[arg(long, default_value = "5")]
        rounds: String,
        /// Values of about 1 KB that it holds
        #[arg(long, default_value = "700000")]
        values: String,
    },
    /// A touch of a page that is not there yet, as the program sees it
    Fault {
        #[arg(long, default_value = "5")]
        rounds: String,
        /// MiB of cold memory
        #[arg(long, default_value = "512")]
        mib: String,
    },
    /// docs/benchmarks.md from the records
    Report,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Resume { rounds, values } => {
                let criu = criu::program()?.display().to_string();
                bench("resume", &["--rounds", &rounds, "--values", &values, "--criu", &criu])?;
            }
            Self::Fault { rounds, mib } => bench("fault", &["--rounds", &rounds, "--mib", &mib])?,
            Self::Report => {}
        }
        report::write()
    }
}

fn bench(name: &str, args: &[&str]) -> Result<()> {
    packages::install()?;
    cargo(&["build", "--release", "--workspace", "--bins"])?;
    std::fs::create_dir_all(RECORDS)?;
    let out = std::env::current_dir()?.join(RECORDS).join(name).with_extension("json").display().to_string();
    cargo(&[&["bench", "--quiet", "--package", "defrost-tests", "--bench", name, "--"], args, &["--out", &out]].concat())
}
