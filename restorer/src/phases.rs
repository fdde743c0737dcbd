//! Where the time goes: with `RUST_LOG=info` each phase of a checkpoint or restore says how many microseconds it took.

use std::time::Instant;

/// A stopwatch; [`Phases::done`] tells of the phase that ended and begins the next.
#[derive(Debug)]
pub struct Phases(Instant);

impl Phases {
    /// The first phase begins.
    #[must_use]
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// It ends.
    pub fn done(&mut self, phase: &'static str) {
        let now = Instant::now();
        tracing::info!(phase, us = now.duration_since(self.0).as_micros() as u64);
        self.0 = now;
    }
}
