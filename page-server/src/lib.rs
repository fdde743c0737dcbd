//! The page server: a store behind gRPC. It answers frames as they lie in the mapped packs, knows no pid and no address, and never
//! decompresses. [`service`] implements the calls; `main` listens, says that it is ready, and drains on SIGTERM.
#![forbid(unsafe_code)]

pub mod service;
