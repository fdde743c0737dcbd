//! Sets options of a socket back if this process dies: a helper process outlives it for that.
//!
//! It leads a session of its own, so that a signal to this process's group or from its terminal does not end it as well.
//!
//! Known hole: the helper acts a moment after the death of its maker, and one that is killed with its maker (a control group) does not.

use crate::attendant::Attendant;
use nix::errno::Errno;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Ended with its value, which changes nothing: the maker has set the options back.
#[derive(Debug)]
pub struct OptionKeeper {
    _attendant: Attendant,
}

impl OptionKeeper {
    /// Keep these options of `socket`, each by level, name and value.
    pub fn start(socket: &OwnedFd, options: &[(i32, i32, i32)]) -> Result<Self, Errno> {
        let fd = socket.as_raw_fd();
        // SAFETY: no argument.
        let prepare = || unsafe { libc::syscall(libc::SYS_setsid) } > 0;
        let at_last = || {
            for (level, name, value) in options {
                let len = size_of::<i32>() as u64;
                // SAFETY: the kernel reads one int, of the child's copy of this process's memory.
                unsafe { libc::syscall(libc::SYS_setsockopt, fd, *level, *name, std::ptr::from_ref(value), len) };
            }
        };
        Attendant::start(prepare, at_last).map(|attendant| Self { _attendant: attendant })
    }
}
