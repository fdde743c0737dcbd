//! The pager: fetches a frozen process's pages and answers its faults.
//!
//! [`residency`] (pure) knows which pages an address space still owes; its [`ledger`] changes that by what happens to the memory; [`space`]
//! ties it to the space's userfaultfd, asking its [`markers`]; [`chunks`] fetches, decodes and verifies, by [`digests`] that may still be on their way; a
//! [`fault_loop`] on each of a few processors
//! ([`handlers`]) answers threads that wait, none twice for the same ([`demanded`]), and brings [`neighbours`] of what they wait for, as
//! many as a [`window`] (pure) says; [`nudges`] make them look again; [`replay`] brings what earlier restores touched,
//! [`bulk`] the rest behind it at its own [`pace`], by [`marks`], each with a thread and a store of its own, so that a demand fault never
//! queues behind bulk; [`outage`] watches over a store that does not answer, by the operator's [`policy`]; [`latency`] says who spins. [`Pager`] is the sum of these,
//! [`daemon`] the process that hosts one, [`control`] how others ask it. How memory came is kept in a [`history`] and a [`timeline`], of
//! which a [`picture`] is made.
//!
//! What a pager's death must not take along is in its [`keep`]: a [`journal`] for each space, and a [`mailbox`] in the process itself;
//! what neither has yet when everybody dies is stopped by the [`brake`].
//! A [`supervisor`] starts another pager, also where a [`watchdog`] finds one silent by what it has [`told`]; that pager takes over what it finds there ([`adopt`]); at the end [`farewell`] takes it all away.
//! A [`frontend`] brings userfaultfds of others: of `criu restore --lazy-pages`.
//! Both ask the kernel to be ended last when memory runs out ([`oom`]).
#![forbid(unsafe_code)]

mod adopt;
pub mod answers;
pub mod brake;
mod bulk;
mod chunks;
mod collapse;
mod completion;
pub mod control;
pub mod core_dumps;
pub mod crash;
pub mod daemon;
mod demanded;
mod digests;
mod farewell;
mod fault_loop;
pub mod frontend;
mod handlers;
pub mod history;
pub mod journal;
pub mod keep;
mod latency;
mod lease;
mod ledger;
pub mod mailbox;
mod markers;
mod marks;
pub mod named;
mod neighbours;
mod nudges;
pub mod oom;
pub mod origins;
mod outage;
mod pace;
mod pager;
pub mod phases;
pub mod picture;
mod policy;
pub mod readers;
mod replay;
pub mod residency;
mod run_size;
pub mod runtime_folder;
mod space;
mod status;
pub mod successor;
pub mod supervisor;
pub mod table;
mod task_stat;
pub mod timeline;
pub mod told;
mod unwatched;
mod watchdog;
mod watched;
mod window;

pub use latency::{Latency, SPIN};
pub use pace::workers;
pub use pager::{Config, Pager, lazy_origins, lazy_regions};
pub use policy::{LOST_AFTER_S, OnLost, Policy};
pub use replay::Recording;
pub use status::{State, Status};
