//! `defrost`: the command line. Exit codes: 0 done, 1 failed, 2 usage; a foreground restore ends as its process did.
#![forbid(unsafe_code)]

mod cli;
mod foreground;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use cli::{Cli, Verb};
use defrost_restorer::checkpoint::{self, Compression};
use defrost_restorer::restore::{self, Stdio};
use images::codec::{Decoder, Verified};
use images::{Image, PageMap};
use indicatif::{ProgressBar, ProgressStyle};
use pager::{State, Status, control};
use pages::SnapshotName;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use store::Access;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("defrost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Checkpoint { pid, name, store, leave_running, level, chunk_size, json } => {
            let compression = Compression { level, chunk_size_bytes: chunk_size };
            do_checkpoint(checkpoint::Request { pid, name, leave_running, compression }, store, json)?;
        }
        Verb::Restore { name, store, detach, pid_file, eager, no_background } => {
            let stdio = if detach { Stdio::Null } else { Stdio::Ours };
            let address = address_of(store)?;
            let request = restore::Request { name, store_text: address.clone(), stdio, eager, background: !no_background };
            return do_restore(&request, &address, detach, pid_file.as_deref());
        }
        Verb::Status { pid, json } => show_status(pid, json)?,
        Verb::Wait { pid } => {
            if let State::Failed(why) = ask(pid, control::wait)?.state {
                bail!("process {pid} was ended: {why}");
            }
        }
        Verb::List { store, json } => list(store, json)?,
        Verb::Verify { name, store } => verify(&name, store)?,
        Verb::Remove { name, store } => store::open(&address_of(store)?, Access::Write)?.remove(&name)?,
        Verb::Gc { store } => {
            let report = store::open(&address_of(store)?, Access::Write)?.gc()?;
            println!("freed {} bytes in {} packs", report.bytes, report.packs);
        }
        Verb::Pager => {
            let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
            pager::daemon::run(socket, |address| store::open(address, Access::Read))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The store's address; a directory is made absolute, as a daemon lives elsewhere.
fn address_of(store: Option<String>) -> Result<String> {
    let address = store.unwrap_or_else(|| store::default_dir().display().to_string());
    if address.contains("://") {
        return Ok(address);
    }
    let dir = std::path::absolute(&address).with_context(|| format!("store {address}"))?;
    Ok(dir.display().to_string())
}

fn do_checkpoint(request: checkpoint::Request, store: Option<String>, json: bool) -> Result<()> {
    let store = store::open(&address_of(store)?, Access::Write)?;
    let style =
        ProgressStyle::with_template("{spinner} {bytes} read, {bytes_per_sec}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style);
    let report = checkpoint::checkpoint(&request, store.as_ref(), &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let report = report?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!(
            "{} is {}: {} bytes of memory in {} chunks, {} new ({} bytes), frozen for {} ms",
            report.name,
            report.snapshot,
            report.memory_bytes,
            report.chunks,
            report.new_chunks,
            report.sent_bytes,
            report.frozen_us / 1000
        );
    }
    Ok(())
}

fn do_restore(request: &restore::Request, address: &str, detach: bool, pid_file: Option<&Path>) -> Result<ExitCode> {
    let store = store::open(address, Access::Read)?;
    let restored = restore::restore(request, store.as_ref())?;
    if let Some(path) = pid_file {
        std::fs::write(path, format!("{}\n", restored.pid)).with_context(|| format!("write {}", path.display()))?;
    }
    if restored.nulled {
        eprintln!("defrost: its standard streams led elsewhere: they lead to /dev/null now");
    }
    if detach {
        println!("{}", restored.pid);
        return Ok(ExitCode::SUCCESS);
    }
    foreground::follow(restored.pid)
}

fn ask(pid: u32, how: impl Fn(u32) -> std::io::Result<Status>) -> Result<Status> {
    how(pid).with_context(|| format!("process {pid} is not a live restore: `defrost status` shows those that are"))
}

fn show_status(pid: Option<u32>, json: bool) -> Result<()> {
    let found = match pid {
        Some(pid) => vec![ask(pid, control::status)?],
        None => control::list(),
    };
    for status in found {
        if json {
            println!("{}", serde_json::to_string(&status)?);
        } else {
            println!(
                "{} {} {:?}: {} of {} bytes to come, {} faults (p50 {} µs, p99 {} µs), {} zero faults, from {}",
                status.pid,
                status.snapshot,
                status.state,
                status.missing_bytes,
                status.total_bytes,
                status.demand_faults,
                status.stall_p50_us,
                status.stall_p99_us,
                status.zero_faults,
                status.store
            );
        }
    }
    Ok(())
}

fn list(store: Option<String>, json: bool) -> Result<()> {
    for snapshot in store::open(&address_of(store)?, Access::Read)?.list()? {
        if json {
            let line = serde_json::json!({
                "name": snapshot.name.to_string(), "id": snapshot.id.to_string(),
                "chunks": snapshot.chunks, "created_unix_s": snapshot.created_unix_s,
            });
            println!("{line}");
        } else {
            println!("{}  {}  {} chunks", snapshot.name, snapshot.id, snapshot.chunks);
        }
    }
    Ok(())
}

fn verify(name: &SnapshotName, store: Option<String>) -> Result<()> {
    let store = store::open(&address_of(store)?, Access::Read)?;
    let image = Image::parse(&store.image(&store.resolve(name)?)?).with_context(|| format!("snapshot {name}"))?;
    let map = PageMap::new(&image);
    let (mut decoder, mut chunk) = (Decoder::new(), Verified::default());
    for (index, id) in image.table.iter().enumerate() {
        let pages = map.pages_of(index as u32).with_context(|| format!("snapshot {name}: chunk {id} has no pages"))?;
        let frame = store.frame(id)?;
        decoder
            .decode(id, &frame, pages.bytes() as usize, &mut chunk)
            .with_context(|| format!("snapshot {name}: chunk {id} at {pages}"))?;
    }
    println!("{name}: {} chunks are whole", image.table.len());
    Ok(())
}
