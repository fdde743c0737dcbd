//! What a child would keep of the restorer's own that no call takes away again: an obstacle where the process did not have it.

use super::error::RestoreError;
use super::threads::{BY_THREAD, Inherited};
use crate::process::status::Status;
use images::manifest::{Manifest, Process, Thread};
use kernel::task;
use nix::unistd::Pid;

/// PR_SPEC_FORCE_DISABLE.
const FORCED: u32 = 8;
/// SCHED_DEADLINE.
const DEADLINE: u32 = 6;
/// Speculation features by number: their names, and what a fresh thread has.
const FEATURES: [(&str, u32); 3] = [("speculative store bypass", 3), ("indirect branch speculation", 3), ("flushing of the L1D cache", 5)];

/// All of it.
pub fn obstacles(manifest: &Manifest) -> Vec<RestoreError> {
    let Some(process) = &manifest.process else { return Vec::new() };
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let status = Status::new(&text);
    let inherited = Inherited::of_us();
    let mut found: Vec<String> = Vec::new();
    if status.number("Seccomp").unwrap_or(0) != 0 {
        found.push(
            "defrost runs under a seccomp filter, which the process would keep: restore outside of that container or sandbox".to_owned(),
        );
    }
    if status.number("NoNewPrivs") == Some(1) && manifest.threads.iter().any(|thread| !thread.no_new_privs) {
        found.push("defrost runs with no_new_privs, which the process had not and would keep: restore without it".to_owned());
    }
    if task::sched_attr(Pid::from_raw(0)).is_ok_and(|attr| attr.policy == DEADLINE) {
        found.push("defrost is scheduled by deadline and so can start no process: restore under another policy".to_owned());
    }
    if task::has_core_cookie(Pid::from_raw(0)) {
        found.push("defrost has a core scheduling cookie, which the process had not and would keep: restore without it".to_owned());
    }
    found.extend(write_xor_execute(process));
    found.extend(label(process));
    for thread in &manifest.threads {
        found.extend(speculation(thread, &inherited));
    }
    found.dedup();
    found.into_iter().map(RestoreError::Host).collect()
}

fn write_xor_execute(process: &Process) -> Option<String> {
    let ours = task::denied_memory();
    let differs = ours != 0 && ours != process.mdwe;
    differs.then(|| {
        "defrost has denied itself memory that is written and executed (PR_SET_MDWE), which the process would keep: restore without it"
            .to_owned()
    })
}

fn label(process: &Process) -> Option<String> {
    let bytes = std::fs::read("/proc/self/attr/current").unwrap_or_default();
    let ours = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\0']).to_owned();
    let theirs = &process.security_label;
    (!theirs.is_empty() && *theirs != ours).then(|| {
        format!(
            "the process ran under the security label {theirs}, defrost runs under {ours}: restore under the same one (runcon, aa-exec)"
        )
    })
}

/// Controls that this host or our own thread does not leave to the process.
fn speculation(thread: &Thread, inherited: &Inherited) -> Option<String> {
    for (feature, wanted) in thread.speculation.iter().enumerate() {
        let ours = inherited.speculation.get(feature).copied().unwrap_or(0);
        let (name, fresh) = FEATURES.get(feature).copied().unwrap_or(("a speculation feature", 0));
        if ours & FORCED != 0 && ours & BY_THREAD != 0 && wanted & FORCED == 0 {
            return Some(format!("defrost has given up {name} for good, which the process had not: restore from a fresh shell"));
        }
        // Where a thread has no choice, the host is safe (not affected: 0; off: 4) or does not care (on: 2).
        if ours & BY_THREAD == 0 && wanted & BY_THREAD != 0 && *wanted != fresh && ours & !FORCED == 2 {
            return Some(format!(
                "thread {} chose about {name}, and this host leaves it no choice: boot without mitigations=off",
                thread.tid
            ));
        }
    }
    None
}
