//! A running server: it listens from [`Server::start`] on and drains with [`Server::drain`].
//!
//! One thread accepts for all listeners and hands each connection to a thread of its own. Draining closes the listeners, lets calls
//! under way finish, ends streams of page requests once what was asked is answered, and gives up on what is left at the deadline.

use crate::admin;
use crate::config::Config;
use crate::connection::{Serving, spawn};
use crate::guard::guard;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::peer::Budget;
use crate::places::Places;
use crate::service::Service;
use proto::Address;
use proto::wire::pages_server::PagesServer;
use proto::wire::snapshots_server::SnapshotsServer;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use store::Store;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::server::ServerTlsConfig;
use tonic::transport::{Identity, Server as Transport};

/// Pause after a connection could not be accepted (no descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client may send before it must wait for the server to read: half a message of an upload, so that on a network of 1 ms it sends
/// 500 MB/s. Also what a connection may make HTTP/2 hold.
const WINDOW_BYTES: u32 = 512 << 10;
/// Calls at once on one connection.
const STREAMS: u32 = 32;
/// Bytes of a call's headers.
const HEADERS_BYTES: u32 = 16 << 10;
/// Largest HTTP/2 frame taken: one message of an upload then is a few frames and not sixty-four.
const FRAME_BYTES: u32 = 1 << 18;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be had.
    #[error("listen on {address}: {source}: choose another --listen, or stop what listens there")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("the certificate or its key cannot be used ({0}): give both as PEM files that belong together")]
    Certificate(String),
    /// No thread or runtime.
    #[error("start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<Address>,
    admin: Option<String>,
    draining: watch::Sender<bool>,
    places: Arc<Places>,
    accepting: JoinHandle<()>,
    patience: Duration,
}

impl Server {
    /// Serve `store` from now on.
    pub fn start(config: &Config, store: Arc<dyn Store>) -> Result<Self, ServeError> {
        let metrics = Arc::new(Metrics::default());
        let places = Places::new(config.max_connections, config.max_connections_per_peer, metrics.clone());
        let budget = Budget::new(config.max_held_bytes, config.max_held_bytes_per_connection);
        let (draining, drained) = watch::channel(false);
        metrics.watch(&store, &budget);
        let service = Service::new(store, metrics.clone(), drained.clone(), config.max_image_bytes, budget.clone());
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let idle = config.deadlines.idle_upload;
        let guarded = axum::middleware::from_fn(move |request, next| guard(idle, request, next));
        let routes = Routes::from(runtime.block_on(routes(service)).into_axum_router().layer(guarded));
        let plain = Transport::builder()
            .max_concurrent_streams(Some(STREAMS))
            .http2_max_header_list_size(HEADERS_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES);
        let tls = config.tls.as_ref().map(|tls| {
            let identity = Identity::from_pem(&tls.cert_pem, &tls.key_pem);
            let server = plain.clone().tls_config(ServerTlsConfig::new().identity(identity));
            server.map_err(|error| ServeError::Certificate(proto::client::root_cause(&error)))
        });
        let serving = Serving {
            routes,
            plain,
            tls: tls.transpose()?,
            draining: drained.clone(),
            metrics: metrics.clone(),
            budget,
            deadlines: config.deadlines,
            allow_users: config.allow_users.clone().map(Arc::from),
        };
        let mut listeners = Vec::new();
        for address in &config.listen {
            let failed = |source| ServeError::Listen { address: address.to_string(), source };
            listeners.push(runtime.block_on(Listener::bind(address)).map_err(failed)?);
        }
        let addresses = listeners.iter().map(Listener::address).collect::<Result<_, _>>()?;
        let admin = match &config.admin {
            Some(at) => {
                let failed = |source| ServeError::Listen { address: at.clone(), source };
                Some(runtime.block_on(tokio::net::TcpListener::bind(at)).map_err(failed)?)
            }
            None => None,
        };
        let admin_address = admin.as_ref().map(|listener| listener.local_addr().map(|at| at.to_string())).transpose()?;
        let (accepting_places, mut over) = (places.clone(), drained.clone());
        let accepting = std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
            runtime.block_on(async {
                if let Some(listener) = admin {
                    tokio::spawn(admin::serve(listener, metrics, drained));
                }
                for listener in listeners {
                    tokio::spawn(accept(listener, serving.clone(), accepting_places.clone()));
                }
                // The sender lives as long as the server; without it there is nothing left to accept for.
                let _ = over.wait_for(|draining| *draining).await;
            });
        })?;
        Ok(Self { addresses, admin: admin_address, draining, places, accepting, patience: config.drain })
    }

    /// Where it listens, in the order of the settings.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Where its metrics are.
    #[must_use]
    pub fn admin(&self) -> Option<&str> {
        self.admin.as_deref()
    }

    /// Accept nothing more, let what is under way finish; how many connections did not within the deadline.
    pub fn drain(self) -> usize {
        self.draining.send_replace(true);
        let _ = self.accepting.join(); // a panic there has been logged, and it accepts no more either
        self.places.wait_free(self.patience)
    }
}

async fn routes(service: Service) -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PagesServer<Service>>().await;
    health.set_serving::<SnapshotsServer<Service>>().await;
    let mut routes = Routes::builder();
    routes.add_service(health_service).add_service(PagesServer::new(service.clone()));
    routes.add_service(SnapshotsServer::new(service).max_decoding_message_size(proto::MAX_MESSAGE_BYTES));
    let reflection = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(proto::DESCRIPTOR).build_v1();
    match reflection {
        Ok(reflection) => drop(routes.add_service(reflection)),
        // Its descriptor is compiled in, so a test would have told; all else works without.
        Err(error) => tracing::error!(%error, "no reflection"),
    }
    routes.routes().prepare()
}

async fn accept(listener: Listener, serving: Serving, places: Arc<Places>) {
    loop {
        match listener.accept().await {
            Ok(accepted) => match places.take(&accepted.peer) {
                Ok(place) => spawn(accepted, serving.clone(), place),
                Err(why) => tracing::warn!(peer = accepted.name, why, "a connection was refused"),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
