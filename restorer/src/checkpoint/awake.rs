//! No terminal stops a checkpoint: its process would stay frozen for as long.

use nix::sys::signal::{SigSet, Signal};

/// While this lives, Ctrl-Z and output to a terminal from the background stop none of the threads that are started meanwhile.
#[derive(Debug)]
pub struct Awake(SigSet);

impl Awake {
    /// Begin before there is another thread: a signal goes to any that does not hold it back.
    #[must_use]
    pub fn begin() -> Self {
        let held: SigSet = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].into_iter().collect();
        let before = SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty());
        // Without it, Ctrl-Z merely stops the process as well.
        let _ = held.thread_block();
        Self(before)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask(); // as it was
    }
}
