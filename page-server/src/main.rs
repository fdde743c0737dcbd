//! `defrost-page-server`: serves a store over gRPC until SIGTERM or SIGINT, then lets calls under way finish.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result};
use clap::Parser as _;
use page_server::config::Cli;
use page_server::{Config, Server};
use pages::line::{Lines, on_one_line, sentence};
use proto::Address;
use std::process::ExitCode;
use std::sync::Arc;
use store::{Access, LocalStore, Store as _};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        // Without colours: in an event's text no escape is ours.
        .with_ansi(false)
        .with_writer(|| Lines(std::io::stderr()))
        // What cannot be written (the disk is full) is lost: saying so on the same stream would be a panic, and the server's end.
        .log_internal_errors(false)
        .init();
    match serve(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("defrost-page-server: {}", on_one_line(&sentence(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

fn serve(cli: Cli) -> Result<()> {
    let config = Config::load(cli)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before anybody is told that we are ready: from then on a signal means draining.
    let _entered = runtime.enter();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // Each connection and each pack has a descriptor.
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    if let Ok((_, hard)) = nix::sys::resource::getrlimit(limit) {
        let _ = nix::sys::resource::setrlimit(limit, hard, hard); // with fewer, packs are opened for each read
    }
    let store = LocalStore::open(&config.store, Access::Write).with_context(|| format!("open the store {}", config.store.display()))?;
    for snapshot in store.list()? {
        if let Some(damage) = snapshot.damage {
            tracing::error!(name = %snapshot.name, damage, "a snapshot cannot be restored: all others are served");
        }
    }
    let server = Server::start(&config, Arc::new(store))?;
    for address in server.addresses() {
        match address {
            Address::Plain(at) => println!("defrost-page-server ready on {at}"),
            other => println!("defrost-page-server ready on {other}"),
        }
    }
    if let Some(at) = server.admin() {
        tracing::info!("metrics are at http://{at}/metrics");
    }
    runtime.block_on(async {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    });
    tracing::info!("draining");
    match server.drain() {
        0 => {}
        left => tracing::warn!("{left} connections were not done after {} s: they are cut off", config.drain.as_secs()),
    }
    Ok(())
}
