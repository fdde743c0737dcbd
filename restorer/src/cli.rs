//! The command line: what scripts depend on.

use clap::{Parser, Subcommand};
use pages::SnapshotName;
use std::path::PathBuf;

/// Brings a frozen process back before its memory arrives.
#[derive(Debug, Parser)]
#[command(name = "defrost", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Freeze a process and store it under a name
    Checkpoint {
        /// The process
        pid: u32,
        /// NAME or NAME:TAG
        name: SnapshotName,
        /// A directory, or grpc://HOST:PORT
        #[arg(long, env = "DEFROST_STORE")]
        store: Option<String>,
        /// Let the process go on afterwards
        #[arg(long)]
        leave_running: bool,
        /// zstd level; negative ones are faster
        #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
        level: i32,
        /// Bytes of a chunk: a power of two, 4096 to 1048576
        #[arg(long, default_value_t = 16384, value_parser = chunk_size)]
        chunk_size: u32,
        /// Print a report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring a process back; its memory follows
    Restore {
        /// NAME or NAME:TAG
        name: SnapshotName,
        /// A directory, or grpc://HOST:PORT
        #[arg(long, env = "DEFROST_STORE")]
        store: Option<String>,
        /// Return once it runs
        #[arg(long)]
        detach: bool,
        /// Write its pid there
        #[arg(long)]
        pid_file: Option<PathBuf>,
        /// All memory before it runs
        #[arg(long)]
        eager: bool,
        /// Only what it touches
        #[arg(long, conflicts_with = "eager")]
        no_background: bool,
    },
    /// Live restores and where they stand
    Status {
        /// One of them
        pid: Option<u32>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Wait until a restored process has all its memory
    Wait {
        /// The process
        pid: u32,
    },
    /// Snapshots of a store
    List {
        /// A directory, or grpc://HOST:PORT
        #[arg(long, env = "DEFROST_STORE")]
        store: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every byte of a snapshot
    Verify {
        /// NAME or NAME:TAG
        name: SnapshotName,
        /// A directory, or grpc://HOST:PORT
        #[arg(long, env = "DEFROST_STORE")]
        store: Option<String>,
    },
    /// Forget a name; gc frees its space
    Remove {
        /// NAME or NAME:TAG
        name: SnapshotName,
        /// A directory, or grpc://HOST:PORT
        #[arg(long, env = "DEFROST_STORE")]
        store: Option<String>,
    },
    /// Free packs that no snapshot needs
    Gc {
        /// A directory, or grpc://HOST:PORT
        #[arg(long, env = "DEFROST_STORE")]
        store: Option<String>,
    },
    /// The daemon that restore starts
    #[command(hide = true)]
    Pager,
}

fn chunk_size(text: &str) -> Result<u32, String> {
    let ok = |size: &u32| size.is_power_of_two() && (4096..=1 << 20).contains(size);
    text.parse().ok().filter(ok).ok_or_else(|| "a chunk is a power of two from 4096 to 1048576 bytes".to_owned())
}
