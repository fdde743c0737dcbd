//! Starting benches: what they need is built and fetched first, the report is made afterwards.

use crate::report;
use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use defrost_tests::criu;
use std::time::Instant;
use xtask::cargo::cargo;
use xtask::packages::{self, TESTS};

/// Where records are kept.
pub const RECORDS: &str = "docs/benchmarks";

#[derive(Subcommand)]
pub enum Bench {
    /// A redis-server's restore beside CRIU
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
    /// CRIU's lazy restore of a redis-server with CRIU's daemon and with ours, and our own restore
    CriuFrontend {
        #[arg(long, default_value = "5")]
        rounds: String,
        /// Values of about 1 KB that it holds
        #[arg(long, default_value = "700000")]
        values: String,
        /// Values asked for one by one
        #[arg(long, default_value = "3000")]
        gets: String,
    },
    /// How soon all memory of a redis-server is there that nobody touches, beside CRIU and what decoding alone takes
    Drain {
        #[arg(long, default_value = "5")]
        rounds: String,
        /// Values of about 1 KB that it holds
        #[arg(long, default_value = "700000")]
        values: String,
    },
    /// How soon all memory of a redis-server is there over slow links, beside CRIU and the link alone
    Link {
        #[arg(long, default_value = "5")]
        rounds: String,
        /// Values of about 1 KB that it holds, for 1 Gbit/s and for 100 Mbit/s
        #[arg(long, default_value = "700000,150000")]
        values: String,
    },
    /// How soon a process of any size runs again, and what its pager takes; many mappings, threads and descriptors beside CRIU
    Scale {
        #[arg(long, default_value = "3")]
        rounds: String,
        /// MiB of the processes, separated by commas; the machine must have as much memory and 2 GiB more
        #[arg(long, default_value = "256,1024,4096,16384")]
        mib: String,
        /// Mappings of the processes beside CRIU, separated by commas; vm.max_map_count limits them
        #[arg(long, default_value = "1000,60000")]
        mappings: String,
        /// Threads, likewise
        #[arg(long, default_value = "100,5000")]
        threads: String,
        /// Descriptors, likewise; the hard limit of open files is raised to twice as many, and some
        #[arg(long, default_value = "1000,50000")]
        descriptors: String,
    },
    /// Many restores of one snapshot at once from one page server
    Many {
        #[arg(long, default_value = "3")]
        rounds: String,
        /// MiB of the process
        #[arg(long, default_value = "64")]
        mib: String,
        /// Restores at once, separated by commas
        #[arg(long, default_value = "1,8,32")]
        restores: String,
    },
    /// What a pager, its supervisor and a page server take of the host's memory
    Memory {
        #[arg(long, default_value = "3")]
        rounds: String,
        /// MiB of the processes, separated by commas
        #[arg(long, default_value = "64,512,2048")]
        mib: String,
    },
    /// Kill our processes and the server at random times under a program that checks every byte; a wrong one fails it
    Torture {
        #[arg(long, default_value = "500")]
        kills: String,
        /// MiB that the program checks and changes
        #[arg(long, default_value = "1024")]
        mib: String,
        /// Makes the same times again; otherwise the clock does
        #[arg(long)]
        seed: Option<String>,
    },
    /// What a program reads once its pager was killed: CRIU's and ours
    CriuKill {
        #[arg(long, default_value = "12")]
        kills: String,
        /// MiB of checkable data
        #[arg(long, default_value = "1024")]
        mib: String,
        /// Makes the same times again
        #[arg(long, default_value = "1")]
        seed: String,
    },
    /// A redis-server's restore with and without what an earlier restore was recorded to touch
    Replay {
        #[arg(long, default_value = "5")]
        rounds: String,
        /// Values of about 1 KB that it holds
        #[arg(long, default_value = "700000")]
        values: String,
        /// Values asked for one by one
        #[arg(long, default_value = "3000")]
        gets: String,
    },
    /// A redis-server's checkpoint beside CRIU, and a second one after few values changed
    Checkpoint {
        #[arg(long, default_value = "5")]
        rounds: String,
        /// Values of about 1 KB that it holds
        #[arg(long, default_value = "700000")]
        values: String,
        /// Values that change before the second checkpoint
        #[arg(long, default_value = "100")]
        changed: String,
    },
    /// All that hold a figure against an aim, one after the other: some 20 minutes
    All {
        /// In place of what each does unless told
        #[arg(long)]
        rounds: Option<String>,
    },
    /// docs/benchmarks.md from the records
    Report,
}

/// What `all` runs, as it is called. (Torture and CRIU killed look for wrong bytes, by the hour.)
const ALL: &[&str] = &["criu-frontend", "drain", "fault", "replay", "checkpoint", "link", "scale", "many", "resume", "memory"];

#[derive(Parser)]
#[command(no_binary_name = true)]
struct One {
    #[command(subcommand)]
    what: Bench,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Resume { rounds, values } => {
                let criu = criu::program()?.display().to_string();
                bench("resume", &["--rounds", &rounds, "--values", &values, "--criu", &criu])?;
            }
            Self::CriuFrontend { rounds, values, gets } => {
                let criu = criu::program()?.display().to_string();
                bench("criu-frontend", &["--rounds", &rounds, "--values", &values, "--gets", &gets, "--criu", &criu])?;
            }
            Self::Drain { rounds, values } => {
                let criu = criu::program()?.display().to_string();
                bench("drain", &["--rounds", &rounds, "--values", &values, "--criu", &criu])?;
            }
            Self::Link { rounds, values } => {
                let criu = criu::program()?.display().to_string();
                bench("link", &["--rounds", &rounds, "--values", &values, "--criu", &criu])?;
            }
            Self::Fault { rounds, mib } => bench("fault", &["--rounds", &rounds, "--mib", &mib])?,
            Self::Scale { rounds, mib, mappings, threads, descriptors } => {
                let criu = criu::program()?.display().to_string();
                let axes = ["--mappings", &mappings, "--threads", &threads, "--descriptors", &descriptors];
                bench("scale", &[&["--rounds", &rounds, "--mib", &mib, "--criu", &criu][..], &axes].concat())?;
            }
            Self::Many { rounds, mib, restores } => {
                bench("many", &["--rounds", &rounds, "--mib", &mib, "--restores", &restores])?;
            }
            Self::Memory { rounds, mib } => bench("memory", &["--rounds", &rounds, "--mib", &mib])?,
            Self::Torture { kills, mib, seed } => {
                let seed = seed.iter().flat_map(|seed| ["--seed", seed.as_str()]);
                let args: Vec<&str> = ["--kills", &kills, "--mib", &mib].into_iter().chain(seed).collect();
                bench("torture", &args)?;
            }
            Self::CriuKill { kills, mib, seed } => {
                let criu = criu::program()?.display().to_string();
                bench("criu-kill", &["--kills", &kills, "--mib", &mib, "--seed", &seed, "--criu", &criu])?;
            }
            Self::Replay { rounds, values, gets } => bench("replay", &["--rounds", &rounds, "--values", &values, "--gets", &gets])?,
            Self::Checkpoint { rounds, values, changed } => {
                let criu = criu::program()?.display().to_string();
                bench("checkpoint", &["--rounds", &rounds, "--values", &values, "--changed", &changed, "--criu", &criu])?;
            }
            Self::All { rounds } => all(rounds.as_deref())?,
            Self::Report => {}
        }
        report::write()
    }
}

/// Run all; what fails does not keep the others from running.
fn all(rounds: Option<&str>) -> Result<()> {
    let mut failed = Vec::new();
    for name in ALL {
        let rounds = rounds.iter().flat_map(|rounds| ["--rounds", rounds]);
        let begun = Instant::now();
        let ended = One::try_parse_from([*name].into_iter().chain(rounds)).map_err(Into::into).and_then(|one| one.what.run());
        println!("{name} took {:.0?}", begun.elapsed());
        if let Err(error) = ended {
            eprintln!("{name}: {error:#}");
            failed.push(*name);
        }
    }
    ensure!(failed.is_empty(), "these benches failed, their records are those of earlier runs: {}", failed.join(", "));
    Ok(())
}

fn bench(name: &str, args: &[&str]) -> Result<()> {
    packages::install(TESTS)?;
    cargo(&["build", "--release", "--workspace", "--bins"])?;
    std::fs::create_dir_all(RECORDS)?;
    let out = std::env::current_dir()?.join(RECORDS).join(name).with_extension("json").display().to_string();
    cargo(&[&["bench", "--quiet", "--package", "defrost-tests", "--bench", name, "--"], args, &["--out", &out]].concat())
}
