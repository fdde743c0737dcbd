//! `defrost-page-server`: serves a store over gRPC until SIGTERM or SIGINT, then lets calls under way finish.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result};
use clap::Parser;
use page_server::service::Service;
use proto::wire::pages_server::PagesServer;
use proto::wire::snapshots_server::SnapshotsServer;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use store::{Access, LocalStore};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// Serves snapshots of frozen processes.
#[derive(Debug, Parser)]
#[command(name = "defrost-page-server", version, about)]
struct Cli {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:7440")]
    listen: String,
    /// The store's directory
    #[arg(long)]
    store: Option<PathBuf>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    match serve(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("defrost-page-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(cli: Cli) -> Result<()> {
    let dir = cli.store.unwrap_or_else(store::default_dir);
    let service = Service::new(Arc::new(LocalStore::open(&dir, Access::Write)?));
    let listener = TcpListener::bind(&cli.listen).await.with_context(|| format!("listen on {}: choose another --listen", cli.listen))?;
    let address = listener.local_addr()?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PagesServer<Service>>().await;
    health.set_serving::<SnapshotsServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(proto::DESCRIPTOR).build_v1()?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    println!("defrost-page-server ready on {address}");
    Server::builder()
        .tcp_nodelay(true)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(PagesServer::new(service.clone()))
        .add_service(SnapshotsServer::new(service).max_decoding_message_size(proto::MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            tracing::info!("draining");
        })
        .await
        .context("serve")
}
