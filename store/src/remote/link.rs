//! The connection of a remote store: made when needed, thrown away when it failed, with a deadline on every wait.
//!
//! Demand calls are driven by the thread that waits for them (a current-thread runtime: an answer wakes that thread and no other);
//! all others by a thread of the connection's own, so that it moves while callers compute.

use super::fetching::Fetching;
use crate::StoreError;
use proto::Address;
use proto::client::{DEADLINE, Options, connect, root_cause};
use proto::domain::{Class, ProtocolError};
use proto::wire::snapshots_client::SnapshotsClient;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A server and how to reach it.
pub(super) struct Link {
    address: Address,
    options: Options,
    runtime: Runtime,
    open: Mutex<Option<Connection>>,
}

struct Connection {
    channel: Channel,
    fetching: Option<Arc<Fetching>>,
}

impl Link {
    /// Connect.
    pub(super) fn open(address: &Address, options: &Options) -> Result<Self, StoreError> {
        let runtime = match options.class {
            Class::Demand => Builder::new_current_thread().enable_all().build(),
            Class::Replay | Class::Bulk => Builder::new_multi_thread().worker_threads(1).enable_all().build(),
        };
        let runtime = runtime.map_err(StoreError::io(address.to_string()))?;
        let link = Self { address: address.clone(), options: options.clone(), runtime, open: Mutex::default() };
        link.channel()?;
        Ok(link)
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn class(&self) -> Class {
        self.options.class
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Ask the open connection for something; connect first where there is none.
    fn with_connection<T>(&self, ask: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // Whoever panicked while holding it left a connection or none.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            let channel = self.runtime.block_on(connect(&self.address, &self.options));
            let channel = channel.map_err(|error| StoreError::Unreachable(error.to_string()))?;
            *open = Some(Connection { channel, fetching: None });
        }
        open.as_mut().map_or_else(|| Err(self.silent("connecting")), ask)
    }

    fn channel(&self) -> Result<Channel, StoreError> {
        self.with_connection(|connection| Ok(connection.channel.clone()))
    }

    /// The client for all calls but the stream of page requests.
    pub(super) fn snapshots(&self) -> Result<SnapshotsClient<Channel>, StoreError> {
        Ok(SnapshotsClient::new(self.channel()?).max_decoding_message_size(proto::MAX_MESSAGE_BYTES))
    }

    /// The open stream of page requests, and whether it was opened just now.
    pub(super) fn fetching(&self) -> Result<(Arc<Fetching>, bool), StoreError> {
        self.with_connection(|connection| {
            if let Some(fetching) = &connection.fetching {
                return Ok((fetching.clone(), false));
            }
            let opened = self.wait(DEADLINE, "opening a stream", Fetching::open(connection.channel.clone()))?;
            let fetching = Arc::new(opened.map_err(|status| self.failed(&status))?);
            connection.fetching = Some(fetching.clone());
            Ok((fetching, true))
        })
    }

    /// Throw the connection away, if it still is the one with this stream.
    pub(super) fn abandon(&self, failed: &Arc<Fetching>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.as_ref().and_then(|connection| connection.fetching.as_ref()).is_some_and(|fetching| Arc::ptr_eq(fetching, failed)) {
            *open = None;
        }
    }

    /// Wait for something no longer than `deadline`.
    pub(super) fn wait<T>(&self, deadline: Duration, what: &str, work: impl Future<Output = T>) -> Result<T, StoreError> {
        self.runtime.block_on(async { tokio::time::timeout(deadline, work).await }).map_err(|_| self.silent(what))
    }

    /// Make a call with the usual deadline.
    pub(super) fn call<T>(&self, what: &str, work: impl Future<Output = Result<T, Status>>) -> Result<T, StoreError> {
        self.wait(DEADLINE, what, work)?.map_err(|status| self.failed(&status))
    }

    pub(super) fn silent(&self, what: &str) -> StoreError {
        StoreError::Unreachable(format!("the page server at {} did not answer in time ({what}): check that it runs", self.address))
    }

    pub(super) fn protocol(&self, source: ProtocolError) -> StoreError {
        StoreError::Protocol { address: self.address(), source }
    }

    /// A call's status as a store's error.
    pub(super) fn failed(&self, status: &Status) -> StoreError {
        let address = self.address();
        let unreachable =
            |why: String| StoreError::Unreachable(format!("the page server at {address} does not answer ({why}): check that it runs"));
        // A status that came over the wire has no source; one with a source was made here, of a connection's failure.
        if let Some(error) = std::error::Error::source(status) {
            return unreachable(root_cause(error));
        }
        let why = status.message().to_owned();
        match status.code() {
            Code::DataLoss => StoreError::DamagedThere { address, why },
            Code::ResourceExhausted => StoreError::Full { path: PathBuf::from(address) },
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => unreachable(why),
            _ => StoreError::Refused { address, why },
        }
    }
}
