//! `defrost`: the command line. Exit codes: 0 done, 1 failed, 2 usage; a foreground restore ends as its process did.
#![forbid(unsafe_code)]

mod cli;
mod foreground;
mod log;
mod verbs;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use cli::{Cli, Export, Frontend, Import, Verb};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    log::begin();
    match run(Cli::parse().verb) {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => ExitCode::FAILURE,
        Err(error) => {
            log::failed(&sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, and what to do where there is one thing.
fn sentence(error: &anyhow::Error) -> String {
    let told = pages::line::sentence(error.as_ref());
    // EMFILE may come out of any call that opens something; there is one thing to do about it.
    if told.contains("Too many open files") && !told.contains("ulimit") { told + ": raise ulimit -n" } else { told }
}

fn run(verb: Verb) -> Result<ExitCode> {
    // What our starter leaked to us must not live on in a daemon, nor lead from the demo's program to the outside.
    kernel::sys::keep_descriptors().context("keep descriptors to ourselves")?;
    match verb {
        Verb::Checkpoint(args) => verbs::process::checkpoint(args)?,
        Verb::Restore(args) => return verbs::process::restore(args),
        Verb::Status { pid: Some(pid), json, report: Some(file) } => verbs::live::report(pid, json, &file)?,
        Verb::Status { pid, json, .. } => verbs::live::status(pid, json)?,
        Verb::Wait { pid, json } => verbs::live::wait(pid, json)?,
        Verb::List { store, json } => verbs::snapshots::list(store, json)?,
        Verb::Inspect(one) => verbs::inspect::inspect(one)?,
        Verb::Verify(one) => verbs::snapshots::verify(one)?,
        Verb::Remove(one) => verbs::snapshots::remove(one)?,
        Verb::Copy { name, from, to, json } => verbs::snapshots::copy(&name, from, to, json)?,
        Verb::Import { kind: Import::Criu { dir, name, store, compression, json } } => {
            verbs::foreign::import_criu(&dir, &name, store, compression, json)?;
        }
        Verb::Import { kind: Import::Firecracker(args) } => verbs::foreign::import_firecracker(args)?,
        Verb::Export { kind: Export::Firecracker(args) } => verbs::foreign::export_firecracker(args)?,
        Verb::Export { kind: Export::Criu { name, dir, store, lazy, json } } => {
            verbs::foreign::export_criu(&name, &dir, lazy, store, json)?
        }
        Verb::Gc { store, json } => verbs::snapshots::gc(store, json)?,
        Verb::Demo { values } => defrost_restorer::demo::run(values)?,
        Verb::Pager { frontend: Some(Frontend::Criu(args)), .. } => verbs::frontend::criu(args)?,
        Verb::Pager { frontend: Some(Frontend::Firecracker(args)), .. } => verbs::frontend::firecracker(args)?,
        Verb::Pager { frontend: Some(Frontend::CriuPageServer(args)), .. } => verbs::frontend::page_server::serve(args)?,
        Verb::Pager { adopt: Some(pid), .. } => verbs::live::adopt(pid)?,
        Verb::Pager { can_take_over: Some(pid), .. } => verbs::live::can_take_over(pid)?,
        Verb::Pager { take_over, .. } => return verbs::live::pager(take_over, standard_input().ok()),
        Verb::NamespaceInit => defrost_restorer::restore::namespace::init(&standard_input()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The socket that a hidden verb was started with.
fn standard_input() -> Result<UnixStream> {
    Ok(UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?))
}
