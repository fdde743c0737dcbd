//! Reaching a server: a deadline on everything, and one clear reason when it cannot be.

use crate::VERSION;
use crate::wire::HelloRequest;
use crate::wire::snapshots_client::SnapshotsClient;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// A server that does not answer a call within this is as good as gone.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// A frame of a demand answer fits one HTTP/2 frame: 64 KiB answers arrive in 18 instead of 26 µs.
const MAX_FRAME_BYTES: u32 = 1 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none.
    #[error("{0} is no server address: use grpc://HOST:PORT")]
    Address(String),
    /// Nobody listens, or what does is no page server.
    #[error("no page server answers at {address} ({why}): check the address and that it runs")]
    Unreachable {
        /// Where.
        address: String,
        /// What happened.
        why: String,
    },
    /// It speaks another version.
    #[error("the page server at {address} speaks version {theirs} of the protocol, this defrost {VERSION}: use the same release")]
    Version {
        /// Where.
        address: String,
        /// Its version.
        theirs: u32,
    },
}

/// Connect and agree on the version.
pub async fn connect(address: &str) -> Result<Channel, ConnectError> {
    let invalid = || ConnectError::Address(address.to_owned());
    let host = address.strip_prefix("grpc://").ok_or_else(invalid)?;
    let endpoint = Endpoint::from_shared(format!("http://{host}")).map_err(|_| invalid())?;
    let endpoint = endpoint.connect_timeout(DEADLINE).timeout(DEADLINE).tcp_nodelay(true).max_frame_size(MAX_FRAME_BYTES);
    let unreachable = |why: String| ConnectError::Unreachable { address: address.to_owned(), why };
    let channel = endpoint.connect().await.map_err(|error| unreachable(root_cause(&error)))?;
    let mut client = SnapshotsClient::new(channel.clone());
    let hello = client.hello(HelloRequest { version: VERSION });
    let answer = tokio::time::timeout(DEADLINE, hello).await.map_err(|_| unreachable("it is silent".to_owned()))?;
    let theirs = answer.map_err(|status| unreachable(status.message().to_owned()))?.into_inner().version;
    if theirs == VERSION { Ok(channel) } else { Err(ConnectError::Version { address: address.to_owned(), theirs }) }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
