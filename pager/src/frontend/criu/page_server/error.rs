//! What can go wrong with a page server.

use std::sync::Arc;

/// Why pages do not come from it, or do not go out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PageServerError {
    /// Nobody there.
    #[error("page server {address}: {source}: start `criu dump --lazy-pages` or `page-server --lazy-pages` there, or name another")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// It is gone, in the middle of things.
    #[error("page server {address} ended the connection ({why}): its log tells why; it may not know pages {pages} of task {pid}")]
    Lost {
        /// Where.
        address: String,
        /// The task.
        pid: u32,
        /// What was asked for.
        pages: pages::PageRange,
        /// How.
        why: Arc<std::io::Error>,
    },
    /// It answered what nobody asked.
    #[error("page server {address} sent {what}: it is another program, or serves another dump")]
    Lied {
        /// Where.
        address: String,
        /// What.
        what: String,
    },
    /// It would not let us go in peace.
    #[error("page server {address} did not take the end of the session ({what}): its log tells why")]
    NotClosed {
        /// Where.
        address: String,
        /// What it did.
        what: String,
    },
    /// The session is over.
    #[error("page server {0} was told that all pages are here, and cannot be asked for more")]
    Over(String),
    /// The address cannot be listened at.
    #[error("listen on {address}: {source}: name an address of this machine and a port that is free")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// A client asked for what there is not.
    #[error("client {client}: {what}: it restores another dump, or is another program than CRIU 4.x")]
    Client {
        /// Who.
        client: String,
        /// What is wrong.
        what: String,
    },
    /// A client cannot be served.
    #[error("client {client}: {source}: its own log tells more")]
    Gone {
        /// Who.
        client: String,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// A source failed.
    #[error("{0}")]
    Source(String),
}
