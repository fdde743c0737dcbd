//! What a pager tells its supervisor, in memory that both have: the process that it serves, and that it is at work.

use kernel::shared_words::SharedWords;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;

const PID: usize = 0;
const BEATS: usize = 1;
const WORDS: usize = 2;
/// In place of a number of beats: nothing is missing any more, and no beat follows.
const AT_REST: u64 = u64::MAX;

/// Signs of life of a pager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// It does not serve yet.
    None,
    /// So many so far.
    Nth(u64),
    /// It has nothing left to do.
    AtRest,
}

/// The memory.
#[derive(Debug)]
pub struct Told(SharedWords);

impl Told {
    pub(crate) fn new() -> std::io::Result<Self> {
        let file = File::from(memfd_create(c"defrost-told", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(8 * WORDS as u64)?;
        Ok(Self(SharedWords::map(&file, WORDS)?))
    }

    /// The process is served from now on.
    pub fn serves(&self, pid: u32) {
        self.0.set(PID, u64::from(pid));
    }

    /// The process that is served; 0 before that.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.get(PID) as u32
    }

    /// A sign of life.
    pub(crate) fn beat(&self) {
        self.0.set(BEATS, self.0.get(BEATS).wrapping_add(1) % AT_REST);
    }

    /// There is nothing left to do.
    pub(crate) fn rest(&self) {
        self.0.set(BEATS, AT_REST);
    }

    /// Another pager begins.
    pub(crate) fn begin(&self) {
        self.0.set(BEATS, 0);
    }

    /// The last sign of life.
    pub(crate) fn last_beat(&self) -> Beat {
        match self.0.get(BEATS) {
            0 => Beat::None,
            AT_REST => Beat::AtRest,
            beats => Beat::Nth(beats),
        }
    }
}
