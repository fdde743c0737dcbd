//! Whether a thread is in a Landlock domain, which /proc does not show and which no call undoes or tells.
//!
//! A thread in a domain may look at no process outside of it. So the thread itself is asked to compare (kcmp) a process that any
//! other of its user may look at: a [`Bystander`] of ours. Where another security module labels the thread, its answer says nothing.
//!
//! Known hole: a thread with another user than the first one is not asked.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::ask::Session;
use crate::checkpoint::proc::Proc;
use images::manifest::Credentials;
use kernel::bystander::Bystander;
use nix::errno::Errno;

/// KCMP_VM of include/uapi/linux/kcmp.h.
const KCMP_VM: u64 = 1;
/// What AppArmor calls a task that it leaves alone.
const UNCONFINED: &str = "unconfined";

/// The process that threads are asked to look at.
#[derive(Debug)]
pub struct Probe {
    bystander: Bystander,
    user: (u32, u32),
}

impl Probe {
    /// For a thread with these credentials and this security label; `None` where its answer would say nothing.
    pub fn new(credentials: &Credentials, label: &str) -> Option<Self> {
        let user = (credentials.ruid, credentials.rgid);
        let silent = label.is_empty() || label == UNCONFINED;
        let bystander = silent.then(|| Bystander::start(user.0, user.1).ok())??;
        Some(Self { bystander, user })
    }

    /// Refuse thread `tid` if it is in a domain.
    pub fn refuse(&self, proc: Proc, tid: u32, credentials: &Credentials, session: &mut Session<'_>) -> Result<(), CheckpointError> {
        if (credentials.ruid, credentials.rgid) != self.user {
            return Ok(());
        }
        let other = self.bystander.pid().as_raw() as u64;
        match session.may_call("right to look at a process", libc::SYS_kcmp, [other, other, KCMP_VM, 0, 0, 0])? {
            Err(Errno::EPERM | Errno::EACCES) => {
                Err(proc.refuse(format!("thread {tid} is in a Landlock domain, which cannot be read"), "start it without Landlock"))
            }
            _ => Ok(()),
        }
    }
}
