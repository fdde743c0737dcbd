//! What threads of a process share, and what a thread has for itself: directories may differ, other
//! things are refused by name.
//!
//! Constant work for each thread: kcmp with the leader, its namespaces, its filters.

use super::super::files::regular::inode_of;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use crate::process::stat::Stat;
use crate::process::status::Status;
use images::manifest::ThreadFs;
use kernel::sys::{Kcmp, order_of};
use nix::unistd::Pid;
use std::cmp::Ordering;

/// Kinds of namespace (namespaces(7)) that a process may only share with defrost, as /proc/PID/ns names them.
const SHARED: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
/// Those that its children would be born in, with their own; a time namespace of its own comes back with its clocks.
const OF_CHILDREN: [(&str, &str); 2] = [("pid_for_children", "pid"), ("time_for_children", "time")];

/// Refuse namespaces that are not ours, and kinds of namespace that nothing here knows.
pub fn refuse_namespaces(proc: Proc) -> Result<(), CheckpointError> {
    let us = Proc::of(std::process::id());
    for name in proc.names("ns")? {
        // That of children cannot be read before there is one.
        let theirs = proc.link(&format!("ns/{name}")).ok();
        if SHARED.contains(&name.as_str()) {
            if theirs != us.link(&format!("ns/{name}")).ok() {
                return Err(proc.refuse(format!("it lives in another {name} namespace"), "run defrost inside that namespace"));
            }
        } else if let Some((_, of)) = OF_CHILDREN.iter().find(|(of_children, _)| *of_children == name) {
            if theirs != proc.link(&format!("ns/{of}")).ok() {
                let object = format!("its children would be born in another {of} namespace ({name})");
                return Err(proc.refuse(object, "let it unshare in a child, or not at all"));
            }
        } else if name != "time" {
            let object = format!("it has a {name} namespace, of a kind that this version does not know");
            return Err(proc.refuse(object, "use a newer defrost"));
        }
    }
    Ok(())
}

/// A thread as /proc shows it.
#[derive(Debug)]
pub struct ThreadText {
    /// Its `status`.
    pub status: String,
    /// Its `stat`.
    pub stat: Stat,
}

impl ThreadText {
    /// Read what /proc says of thread `tid`.
    pub fn read(proc: Proc, tid: u32) -> Result<Self, CheckpointError> {
        let status = proc.text(&format!("task/{tid}/status"))?;
        let stat = Stat::parse(&proc.text(&format!("task/{tid}/stat"))?).ok_or_else(|| proc.malformed("stat"))?;
        Ok(Self { status, stat })
    }

    /// A signal that is ignored by default, and that it neither catches, blocks nor has pending.
    #[must_use]
    pub fn quiet_signal(&self) -> Option<i32> {
        let status = Status::new(&self.status);
        let taken = ["SigCgt", "SigBlk", "SigPnd", "ShdPnd"].map(|key| status.mask(key).unwrap_or(u64::MAX));
        let taken = taken.into_iter().fold(0, std::ops::BitOr::bitor);
        [libc::SIGURG, libc::SIGCHLD, libc::SIGWINCH].into_iter().find(|signal| taken & (1 << (signal - 1)) == 0)
    }
}

/// What the first thread has, that the others are compared with.
#[derive(Debug)]
pub struct Leader {
    namespaces: Vec<(String, Option<String>)>,
    label: String,
    loginuid: Option<String>,
}

impl Leader {
    /// Look at the leader of `proc`.
    pub fn look(proc: Proc) -> Result<Self, CheckpointError> {
        let names = proc.names("ns")?.into_iter();
        let namespaces = names.map(|name| (name.clone(), proc.link(&format!("ns/{name}")).ok())).collect();
        Ok(Self { namespaces, label: label(proc, "attr/current"), loginuid: proc.text("loginuid").ok() })
    }

    /// Refuse what thread `tid` has and a restored one would not.
    pub fn refuse(&self, proc: Proc, tid: u32, text: &ThreadText) -> Result<(), CheckpointError> {
        let status = Status::new(&text.status);
        if status.number("Seccomp").unwrap_or(0) != 0 {
            let whose = if tid == proc.via { "it runs".to_owned() } else { format!("its thread {tid} runs") };
            return Err(proc.refuse(format!("{whose} under a seccomp filter"), "start it without seccomp"));
        }
        if tid == proc.via {
            return Ok(());
        }
        if !shares(proc, proc.via, tid, Kcmp::Descriptors)? {
            let object = format!("its thread {tid} has a table of descriptors of its own");
            return Err(proc.refuse(object, "let its threads share one (no unshare(CLONE_FILES))"));
        }
        for (name, of_leader) in &self.namespaces {
            if proc.link(&format!("task/{tid}/ns/{name}")).ok() != *of_leader {
                let object = format!("its thread {tid} lives in another {name} namespace than its first thread");
                return Err(proc.refuse(object, "let its threads share their namespaces"));
            }
        }
        if label(proc, &format!("task/{tid}/attr/current")) != self.label {
            return Err(proc.refuse(format!("its thread {tid} has a security label of its own"), "let its threads share one"));
        }
        if proc.text(&format!("task/{tid}/loginuid")).ok() != self.loginuid {
            return Err(proc.refuse(format!("its thread {tid} has an audit login id of its own"), "let its threads share one"));
        }
        Ok(())
    }
}

/// The security label; empty where there is none.
pub fn label(proc: Proc, file: &str) -> String {
    let bytes = std::fs::read(proc.path(file)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\0']).to_owned()
}

fn shares(proc: Proc, a: u32, b: u32, what: Kcmp) -> Result<bool, CheckpointError> {
    order_of(Pid::from_raw(a as i32), Pid::from_raw(b as i32), what)
        .map(Ordering::is_eq)
        .map_err(|errno| proc.refuse(format!("its threads {a} and {b} cannot be compared ({errno})"), "run defrost as root"))
}

/// Directories that threads have apart from the leader's.
#[derive(Debug, Default)]
pub struct Directories {
    found: Vec<ThreadFs>,
}

impl Directories {
    /// Those of thread `tid`; `None` where it shares its leader's.
    pub fn of(&mut self, proc: Proc, tid: u32, text: &ThreadText) -> Result<Option<ThreadFs>, CheckpointError> {
        if tid == proc.via || shares(proc, proc.via, tid, Kcmp::Directories)? {
            return Ok(None);
        }
        for known in &self.found {
            if shares(proc, known.owner_tid, tid, Kcmp::Directories)? {
                return Ok(Some(known.clone()));
            }
        }
        if proc.link(&format!("task/{tid}/root"))? != "/" {
            return Err(proc.refuse(format!("the root directory of its thread {tid} is not /"), "run defrost inside that chroot"));
        }
        let cwd = proc.link(&format!("task/{tid}/cwd"))?;
        if cwd.ends_with(" (deleted)") {
            let object = format!("the working directory of its thread {tid} was removed: {cwd}");
            return Err(proc.refuse(object, "let it change to another directory"));
        }
        let umask = Status::new(&text.status).umask().ok_or_else(|| proc.malformed("status"))?;
        let cwd_inode = std::fs::metadata(proc.path(&format!("task/{tid}/cwd"))).ok().map(|meta| inode_of(&meta));
        let own = ThreadFs { owner_tid: tid, cwd, umask, cwd_inode };
        self.found.push(own.clone());
        Ok(Some(own))
    }
}
