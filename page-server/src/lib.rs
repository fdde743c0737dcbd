//! The page server: a store behind gRPC. It answers frames as they lie in the mapped packs, knows no pid and no address, and never
//! decompresses.
//!
//! [`config`] says what to serve, [`listener`] accepts, and each connection gets a thread and a runtime of its own ([`connection`]):
//! demand and bulk come over different connections, and sharing a runtime would cost demand 24 to 280 times its latency
//! (docs/decisions/0004). [`service`] implements the calls, [`metrics`] counts them, [`server`] is the sum: it starts and drains.
#![forbid(unsafe_code)]

pub mod config;
pub mod connection;
pub mod listener;
pub mod metrics;
pub mod server;
pub mod service;

pub use config::Config;
pub use server::Server;
