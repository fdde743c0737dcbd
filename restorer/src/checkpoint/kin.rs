//! Other processes that a checkpoint would tear away from this one: children, and those that share its memory, descriptors,
//! working directory or signal handlers. Looked for before the process is stopped, as some would keep it from stopping, and again after.

use super::CheckpointError;
use super::proc::Proc;
use crate::process::others;
use crate::process::stat::Stat;
use nix::unistd::Pid;

/// Refuse a process that has such relatives.
pub fn refuse(proc: Proc) -> Result<(), CheckpointError> {
    for tid in proc.numbers("task")? {
        // A thread that ended meanwhile has no children.
        let children = std::fs::read_to_string(proc.path(&format!("task/{tid}/children"))).unwrap_or_default();
        let children: Vec<Stat> = children.split_whitespace().filter_map(|pid| Stat::of_process(pid.parse().ok()?)).collect();
        if let Some(child) = children.iter().find(|child| !child.is_dead()).or(children.first()) {
            return Err(refusal(proc, child));
        }
    }
    for other in others::pids().filter(|other| *other != proc.pid) {
        if let Some(what) = kernel::kinship::shared(proc.task(), Pid::from_raw(other as i32)) {
            let name = Stat::of_process(other).map_or_else(String::new, |stat| format!(" {}", stat.comm()));
            return Err(proc.refuse(format!("it shares its {what} with process {other}{name}"), "end that process first"));
        }
    }
    Ok(())
}

fn refusal(proc: Proc, child: &Stat) -> CheckpointError {
    let (pid, name) = (child.pid(), child.comm());
    match child.is_dead() {
        true => proc.refuse(format!("a dead child ({pid} {name}) waits to be reaped"), "let it wait for its children first"),
        false => proc.refuse(format!("it has a child process ({pid} {name})"), "checkpoint a process without children"),
    }
}
