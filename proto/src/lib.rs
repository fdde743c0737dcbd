//! The wire: types and services generated from proto/defrost.proto, which documents them; what may be said with them ([`domain`]);
//! where a server is ([`address`]) and how to reach it ([`client`]).
#![forbid(unsafe_code)]

pub mod address;
pub mod client;
pub mod domain;

#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from defrost.proto, which documents every call"
)]
pub mod wire {
    //! Generated types, clients and servers.
    tonic::include_proto!("defrost.v1");
}

pub use address::Address;

/// Version of the wire; a server that speaks another is refused at the first call.
pub const VERSION: u32 = 1;

/// Descriptor of the services, for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Largest message either side takes: a batch of chunks is at most a quarter of it.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
