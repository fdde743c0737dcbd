//! What a child would keep of the restorer's own that no call takes away again: an obstacle where the process did not have it.

use super::super::error::RestoreError;
use super::super::threads::{BY_THREAD, Inherited};
use crate::process::status::Status;
use images::manifest::{Manifest, Process, Thread};
use kernel::task;
use nix::unistd::Pid;

/// PR_SPEC_FORCE_DISABLE.
const FORCED: u32 = 8;
/// SCHED_DEADLINE.
const DEADLINE: u32 = 6;
/// PR_SPEC_ENABLE.
const ENABLED: u32 = 2;
/// PR_SPEC_L1D_FLUSH.
const L1D_FLUSH: usize = 2;
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
        let ours = inherited.speculation.get(feature).copied();
        let (name, fresh) = FEATURES.get(feature).copied().unwrap_or(("a speculation feature", 0));
        if ours.is_some_and(|ours| ours & FORCED != 0 && ours & BY_THREAD != 0) && wanted & FORCED == 0 {
            return Some(format!("defrost has given up {name} for good, which the process had not: restore from a fresh shell"));
        }
        let (chose, tid) = (wanted & BY_THREAD != 0 && *wanted != fresh, thread.tid);
        match ours {
            Some(ours) if !chose || ours & BY_THREAD != 0 => {}
            None if !chose => {}
            // Flushing protects where it is on, which no host has for every thread.
            _ if feature == L1D_FLUSH => {
                return Some(format!("thread {tid} chose {name}, which this host does not offer: boot with l1d_flush=on"));
            }
            // Where a thread has no choice, the host is safe (not affected: 0; off: 4) or does not care (on: 2).
            Some(ours) if ours & !FORCED != ENABLED => {}
            Some(_) => {
                return Some(format!("thread {tid} chose about {name}, and this host leaves it no choice: boot without mitigations=off"));
            }
            None => {
                return Some(format!("thread {tid} chose about {name}, which this kernel does not know: use the kernel of the checkpoint"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stops a thread that has `wanted` of a feature, on a host that has `ours`.
    fn said(feature: usize, wanted: u32, ours: Option<u32>) -> String {
        let mut all = vec![0; feature];
        let mut inherited = Inherited::of_us();
        inherited.speculation = all.iter().copied().chain(ours).collect();
        all.push(wanted);
        speculation(&Thread { tid: 7, speculation: all, ..Thread::default() }, &inherited).unwrap_or_default()
    }

    #[test]
    fn what_a_thread_forbade_itself_is_never_allowed() {
        // Off for good, off, off until an exec; where threads may choose, where none needs to, and where all are safe.
        for wanted in [9, 5, 17] {
            for feature in [0, 1] {
                for ours in [3, 5, 0, 4] {
                    assert_eq!(said(feature, wanted, Some(ours)), "", "{wanted} of {feature} where there is {ours}");
                }
                assert!(said(feature, wanted, Some(2)).contains("no choice"), "{wanted} of {feature} where it is on for all");
                assert!(said(feature, wanted, None).contains("does not know"), "{wanted} of {feature} on an old kernel");
            }
        }
        for ours in [Some(8), Some(0), None] {
            assert!(said(2, 3, ours).contains("l1d_flush=on"), "{ours:?}");
            assert_eq!(said(2, 5, ours), "", "{ours:?}");
        }
        assert_eq!(said(2, 3, Some(5)), "");
        // What was left as it was is no obstacle, but what the restorer gave up is.
        assert_eq!(said(0, 3, Some(2)), "");
        assert!(said(0, 3, Some(9)).contains("fresh shell"));
        assert_eq!(said(0, 9, Some(9)), "");
    }
}
