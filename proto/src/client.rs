//! Reaching a server: a deadline on everything, and one clear reason when it cannot be.
//!
//! A connection is for one class of requests. Demand: large HTTP/2 frames (an answer is one of them), and no HTTP/2 keepalive, as
//! nobody drives the connection while nobody waits; a half-open one is noticed by the deadline of the next request. All others:
//! keepalive, so that a half-open connection ends within [`KEEPALIVE`] also while much is under way.

use crate::address::{Address, InvalidAddress};
use crate::domain::Class;
use crate::wire::snapshots_client::SnapshotsClient;
use crate::wire::{FetchClass, HelloRequest};
use crate::{VERSION, domain};
use bytes::Bytes;
use std::time::Duration;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};

/// A server that does not answer a call within this is as good as gone.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How often a connection that is used is probed, and how long the answer may take.
pub const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));
/// A frame of a demand answer fits one HTTP/2 frame: 64 KiB answers arrive in 18 instead of 26 µs. It costs bulk 40 %.
const DEMAND_FRAME_BYTES: u32 = 1 << 20;
/// Of an answer of half a megabyte, with a system call of the server for each. With the usual 16 KiB all of a redis-server's 800 MB are
/// there after 808 ms instead of 750; with twice as many as these it is 765 (decision 0017).
const RUN_FRAME_BYTES: u32 = 64 << 10;
/// What may be on its way before the server waits for us to read: several answers of a run each. On a demand connection an image, which
/// else would take a round trip for every 64 KiB, and neighbours that nobody waits for and nobody reads yet.
const WINDOW_BYTES: u32 = 8 << 20;

/// How to reach a server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What the connection is for.
    pub class: Class,
    /// The authority, in PEM, that grpcs:// servers must be known to; the system's where there is none.
    pub ca_pem: Option<Bytes>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// The authority's certificate cannot be used.
    #[error("the certificate of the authority for {address} cannot be used ({why}): give a PEM file")]
    Authority {
        /// Where.
        address: Address,
        /// What is wrong.
        why: String,
    },
    /// Nobody listens, or what does is no page server.
    #[error("no page server answers at {address} ({why}): check the address and that it runs")]
    Unreachable {
        /// Where.
        address: Address,
        /// What happened.
        why: String,
    },
    /// It does nothing for this user.
    #[error("the page server at {address} refuses: {why}")]
    Refused {
        /// Where.
        address: Address,
        /// Its words.
        why: String,
    },
    /// It speaks another version.
    #[error("the page server at {address} speaks version {theirs} of the protocol, this defrost {VERSION}: use the same release")]
    Version {
        /// Where.
        address: Address,
        /// Its version.
        theirs: u32,
    },
}

/// Connect and agree on the version, within [`DEADLINE`].
pub async fn connect(address: &Address, options: &Options) -> Result<Channel, ConnectError> {
    let unreachable = |why: String| ConnectError::Unreachable { address: address.clone(), why };
    let connecting = async {
        let channel = endpoint(address, options)?.connect().await.map_err(|error| unreachable(root_cause(&error)))?;
        let answer = SnapshotsClient::new(channel.clone())
            .hello(HelloRequest { version: VERSION, class: FetchClass::from(options.class) as i32 })
            .await;
        let failed = |status: Status| match status.code() {
            Code::PermissionDenied => ConnectError::Refused { address: address.clone(), why: status.message().to_owned() },
            _ => unreachable(not_a_server(&status)),
        };
        let theirs = answer.map_err(failed)?.into_inner().version;
        match theirs {
            VERSION => Ok(channel),
            0 => Err(unreachable(domain::ProtocolError::Missing { field: "version" }.to_string())),
            _ => Err(ConnectError::Version { address: address.clone(), theirs }),
        }
    };
    let silent = || unreachable(format!("something listens there but has said nothing for {} s", DEADLINE.as_secs()));
    tokio::time::timeout(DEADLINE, connecting).await.map_err(|_| silent())?
}

fn endpoint(address: &Address, options: &Options) -> Result<Endpoint, ConnectError> {
    let uri = match address {
        Address::Plain(at) => format!("http://{at}"),
        Address::Tls(at) => format!("https://{at}"),
        Address::Unix(path) => format!("unix:{}", path.display()),
    };
    let mut endpoint = Endpoint::from_shared(uri).map_err(|_| InvalidAddress(address.to_string()))?;
    if let Address::Tls(_) = address {
        let authority = |why: String| ConnectError::Authority { address: address.clone(), why };
        let tls = match &options.ca_pem {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        endpoint = endpoint.tls_config(tls).map_err(|error| authority(root_cause(&error)))?;
    }
    endpoint = endpoint
        .connect_timeout(DEADLINE)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEPALIVE.0))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    Ok(match options.class {
        Class::Demand => endpoint.max_frame_size(DEMAND_FRAME_BYTES),
        Class::Replay | Class::Bulk => {
            endpoint.max_frame_size(RUN_FRAME_BYTES).http2_keep_alive_interval(KEEPALIVE.0).keep_alive_timeout(KEEPALIVE.1)
        }
    })
}

/// What it means when somebody who took our connection did not answer the first call as a page server does.
fn not_a_server(status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => "what listens there speaks gRPC but is no page server".to_owned(),
        _ => match std::error::Error::source(status) {
            Some(error) => format!("what listens there does not speak gRPC, or hung up: {}", root_cause(error)),
            None => status.message().to_owned(),
        },
    }
}

/// The innermost reason of an error: the outer ones only say in which layer it happened.
#[must_use]
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
