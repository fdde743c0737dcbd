//! A process of a given user that does nothing and may do nothing: one that another process of that user may look at unless something
//! beyond users and capabilities (a Landlock domain) keeps it from that.

use crate::attendant::Attendant;
use nix::errno::Errno;
use nix::unistd::Pid;

/// `struct __user_cap_header_struct` version 3.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Ended with its value, and by itself once its maker is gone.
#[derive(Debug)]
pub struct Bystander(Attendant);

impl Bystander {
    /// Start one with these real, effective and saved ids, without capabilities.
    pub fn start(uid: u32, gid: u32) -> Result<Self, Errno> {
        let header = [CAPABILITY_VERSION_3, 0];
        let none = [0_u32; 6];
        let become_user = || {
            // SAFETY: integers in, and two structures on this stack that the kernel reads.
            let answer = unsafe {
                libc::syscall(libc::SYS_setresgid, gid, gid, gid)
                    | libc::syscall(libc::SYS_setresuid, uid, uid, uid)
                    | libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr())
                    | libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1_u64, 0_u64, 0_u64, 0_u64)
            };
            answer == 0
        };
        Attendant::start(become_user, || {}).map(Self)
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.0.pid()
    }
}
