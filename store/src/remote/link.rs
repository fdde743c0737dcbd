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
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A runtime for the connections of one store.
pub(crate) fn runtime(class: Class) -> Result<Arc<Runtime>, StoreError> {
    let runtime = match class {
        Class::Demand => Builder::new_current_thread().enable_all().build(),
        Class::Replay | Class::Bulk => Builder::new_multi_thread().worker_threads(1).enable_all().build(),
    };
    runtime.map(Arc::new).map_err(StoreError::io("a connection's runtime"))
}

/// A server and how to reach it.
pub(super) struct Link {
    address: Address,
    options: Options,
    runtime: Arc<Runtime>,
    open: Mutex<Option<Connection>>,
}

struct Connection {
    channel: Channel,
    fetching: Option<Arc<Fetching>>,
}

impl Link {
    /// A server that is connected to when first asked, on a runtime that other links may share.
    pub(super) fn lazily(address: &Address, options: &Options, runtime: Arc<Runtime>) -> Self {
        Self { address: address.clone(), options: options.clone(), runtime, open: Mutex::default() }
    }

    /// Connect now.
    pub(super) fn connect(&self) -> Result<(), StoreError> {
        self.channel().map(drop)
    }

    /// Another connection to the same server, on a runtime of its own.
    pub(super) fn another(&self) -> Result<Self, StoreError> {
        let another = Self::lazily(&self.address, &self.options, runtime(self.options.class)?);
        another.connect()?;
        Ok(another)
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

    /// The open connection; made first where there is none.
    async fn connected(&self) -> Result<MappedMutexGuard<'_, Connection>, StoreError> {
        let mut open = self.open.lock().await;
        if open.is_none() {
            let channel = connect(&self.address, &self.options).await;
            let channel = channel.map_err(|error| StoreError::Unreachable(error.to_string()))?;
            *open = Some(Connection { channel, fetching: None });
        }
        MutexGuard::try_map(open, Option::as_mut).map_err(|_| self.silent("connecting"))
    }

    fn channel(&self) -> Result<Channel, StoreError> {
        self.runtime.block_on(async { Ok(self.connected().await?.channel.clone()) })
    }

    /// The client for all calls but the stream of page requests.
    pub(super) fn snapshots(&self) -> Result<SnapshotsClient<Channel>, StoreError> {
        Ok(SnapshotsClient::new(self.channel()?).max_decoding_message_size(proto::MAX_MESSAGE_BYTES))
    }

    /// The open stream of page requests, and whether it was opened just now.
    pub(super) async fn fetching(&self) -> Result<(Arc<Fetching>, bool), StoreError> {
        let mut connection = self.connected().await?;
        if let Some(fetching) = &connection.fetching {
            return Ok((fetching.clone(), false));
        }
        let opened = self.within(DEADLINE, "opening a stream", Fetching::open(connection.channel.clone())).await?;
        let fetching = Arc::new(opened.map_err(|status| self.failed(&status))?);
        connection.fetching = Some(fetching.clone());
        Ok((fetching, true))
    }

    /// Throw the connection away, if it still is the one with this stream.
    pub(super) async fn abandon(&self, failed: &Arc<Fetching>) {
        let mut open = self.open.lock().await;
        if open.as_ref().and_then(|connection| connection.fetching.as_ref()).is_some_and(|fetching| Arc::ptr_eq(fetching, failed)) {
            *open = None;
        }
    }

    /// Let something take no longer than `deadline`.
    pub(super) async fn within<T>(&self, deadline: Duration, what: &str, work: impl Future<Output = T>) -> Result<T, StoreError> {
        tokio::time::timeout(deadline, work).await.map_err(|_| self.silent(what))
    }

    /// Wait for something no longer than `deadline`.
    pub(super) fn wait<T>(&self, deadline: Duration, what: &str, work: impl Future<Output = T>) -> Result<T, StoreError> {
        self.runtime.block_on(self.within(deadline, what, work))
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
            Code::ResourceExhausted if why.contains("the disk is full") => StoreError::Full { path: PathBuf::from(address) },
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => unreachable(why),
            _ => StoreError::Refused { address, why },
        }
    }
}
