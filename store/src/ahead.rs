//! Frames that nobody waits for yet, on their way behind those that somebody waits for.

use bytes::Bytes;
use std::time::Duration;

/// What became of a request for frames that nobody waits for yet.
pub enum Ahead {
    /// Nothing is on its way: this store answers at once, and is asked when they are wanted.
    AtOnce,
    /// They are on their way.
    Coming(Box<dyn Coming>),
    /// They will not come by this request.
    Lost,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AtOnce => "AtOnce",
            Self::Coming(_) => "Coming",
            Self::Lost => "Lost",
        })
    }
}

/// A request under way; dropped, its answer is dropped as well.
pub trait Coming: Send {
    /// Look whether the frames are there; waits for nothing.
    fn look(&mut self) -> Arrived;
    /// Wait for them, for so long at most.
    fn wait(&mut self, limit: Duration) -> Arrived;
}

/// What a look at a request found.
#[derive(Debug)]
pub enum Arrived {
    /// They are still on their way.
    NotYet,
    /// All frames, in the order asked.
    Frames(Vec<Bytes>),
    /// They will not come by this request.
    Lost,
}
