//! The pager: fetches a frozen process's pages and answers its faults.
//!
//! [`residency`] (pure) knows which pages an address space still owes; [`space`] ties it to the space's userfaultfd under one lock;
//! [`chunks`] fetches, decodes and verifies; [`fault_loop`] answers threads that wait, [`bulk`] brings the rest behind it, each with
//! a thread and a store of its own, so that a demand fault never queues behind bulk. [`Pager`] is the sum of these, [`daemon`] the
//! process that hosts one, [`control`] how others ask it.
#![forbid(unsafe_code)]

mod bulk;
mod chunks;
pub mod control;
pub mod daemon;
mod fault_loop;
mod pager;
pub mod residency;
mod space;
mod status;

pub use pager::{Config, Pager};
pub use status::{State, Status};
