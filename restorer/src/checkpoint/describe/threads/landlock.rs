//! Whether a thread is in a Landlock domain, which /proc does not show and which no call undoes or tells.
//!
//! A thread in a domain may look at no process outside of it. So the thread itself is asked to compare (kcmp) a process that any
//! other of its user may look at: a [`Bystander`] of ours. Where another security module labels the thread, its answer says nothing.
//!
//! A thread that cannot be asked is refused, as a domain that it may be in would be lost.
//!
//! Known hole: a thread with a label of another security module is not asked.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::ask::Session;
use crate::checkpoint::proc::Proc;
use images::manifest::Credentials;
use kernel::bystander::Bystander;
use nix::errno::Errno;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// KCMP_VM of include/uapi/linux/kcmp.h.
const KCMP_VM: u64 = 1;
/// Names of the kernel's security modules, with commas.
const MODULES: &str = "/sys/kernel/security/lsm";
/// What AppArmor calls a task that it leaves alone.
const UNCONFINED: &str = "unconfined";

/// Processes that threads are asked to look at, by user and group.
#[derive(Debug)]
pub struct Probe {
    bystanders: HashMap<(u32, u32), Bystander>,
    asks: bool,
}

impl Probe {
    /// For threads with this security label.
    pub fn new(label: &str) -> Self {
        let silent = label.is_empty() || label == UNCONFINED;
        // Where the list cannot be read, the kernel may have Landlock.
        let modules = std::fs::read_to_string(MODULES);
        let has_landlock = modules.map_or(true, |modules| modules.trim().split(',').any(|module| module == "landlock"));
        Self { bystanders: HashMap::new(), asks: silent && has_landlock }
    }

    /// Refuse thread `tid` if it is in a domain, or cannot be asked.
    pub fn refuse(&mut self, proc: Proc, tid: u32, credentials: &Credentials, session: &mut Session<'_>) -> Result<(), CheckpointError> {
        if !self.asks {
            return Ok(());
        }
        let bystander = match self.bystanders.entry((credentials.ruid, credentials.rgid)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Bystander::start(credentials.ruid, credentials.rgid).map_err(|errno| {
                let what = format!("thread {tid} cannot be asked whether it is in a Landlock domain ({errno})");
                proc.refuse(what, "run defrost as root, with room for one more process of that user")
            })?),
        };
        let other = bystander.pid().as_raw() as u64;
        match session.may_call("right to look at a process", libc::SYS_kcmp, [other, other, KCMP_VM, 0, 0, 0])? {
            Err(Errno::EPERM | Errno::EACCES) => {
                Err(proc.refuse(format!("thread {tid} is in a Landlock domain, which cannot be read"), "start it without Landlock"))
            }
            _ => Ok(()),
        }
    }
}
