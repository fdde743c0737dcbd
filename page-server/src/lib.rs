//! The page server: a store behind gRPC. It answers frames as they lie in the packs, knows no pid and no address, and decodes frames only
//! when they come in (decision 0025).
//!
//! [`config`] says what to serve, [`listener`] accepts, and each connection gets a thread and a runtime of its own ([`connection`]):
//! demand and bulk come over different connections, and sharing a runtime would cost demand 24 to 280 times its latency
//! (docs/decisions/0004). [`places`] and [`peer`] limit what a connection may take, [`guard`] holds each call to that. [`service`] implements the calls, [`metrics`] counts them, [`server`] is the sum: it starts and drains.
#![forbid(unsafe_code)]

mod admin;
pub mod config;
pub mod connection;
mod guard;
pub mod listener;
mod local_user;
pub mod metrics;
mod peer;
mod places;
pub mod server;
pub mod service;

pub use config::Config;
pub use server::Server;
