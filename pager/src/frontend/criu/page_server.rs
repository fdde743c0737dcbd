//! CRIU's page server, spoken from both ends: pages over TCP, from where a process was dumped to where it is restored.
//!
//! ```text
//! asks     GET      pages, address, pid           32 bytes, numbers as the host has them (`wire`)
//! answers  ADD_F    pages, address, pid           the same, perhaps fewer pages, and their contents behind it
//! asks     CLOSE
//! answers  0                                      4 bytes
//! ```
//!
//! Answers come in the order of the questions, and there is no other way to say no than to hang up. As the client we are one more
//! [`super::Source`]: [`FromPageServer`] asks over a [`Link`], of which faults and bulk share one, since CRIU's server serves a single
//! connection in its life. What passes may also be [`Kept`], so that a snapshot can be made of it. As the server ([`PageServer`]) we
//! bring pages from any other source to those who restore with `criu lazy-pages --page-server`.
//!
//! A CRIU that serves the process it dumped takes a connection that ends for a transfer that is done, and ends the process: so where
//! nobody runs yet who was restored, [`Link::abandon`] makes it fail, and the process goes on where it was.
//!
//! Known holes: no TLS; nobody proves who he is, as with CRIU's own; one request is on its way at a time, so that a fault waits for at
//! most one piece of bulk, and a line with a long way pays it for each.

mod error;
mod kept;
mod link;
mod pull;
mod server;
mod source;
mod wire;

pub use error::PageServerError;
pub use kept::{Kept, KeptError};
pub use link::{Link, Urgency};
pub use pull::Pull;
pub use server::{MakeSource, PageServer, Until};
pub use source::FromPageServer;
