//! Checkpoint and restore.

use super::{address_of, authority, bar, open, open_named, show};
use crate::cli::{CheckpointArgs, RestoreArgs};
use crate::foreground::Following;
use anyhow::Result;
use defrost_restorer::checkpoint;
use defrost_restorer::restore::terminals::Terminals;
use defrost_restorer::restore::{self, Changes, RestoreError, Stdio};
use defrost_restorer::{output_file, report};
use pager::Policy;
use pager::phases::Phase;
use pages::SnapshotRef;
use serde_json::json;
use std::process::ExitCode;
use store::{Access, Class};

/// Freeze a process and store it.
pub fn checkpoint(args: CheckpointArgs) -> Result<()> {
    let _awake = checkpoint::Awake::begin();
    let request = checkpoint::Request {
        pid: args.pid,
        name: args.name,
        leave_running: args.leave_running,
        restore_check: !args.no_restore_check,
        connections: args.connections.into(),
        max_deleted_bytes: args.max_deleted_bytes,
        compression: args.compression.into(),
    };
    let store = open_named(args.store, Access::Write)?;
    let bar = bar(0, "{spinner} {bytes} read, {bytes_per_sec}");
    let report = checkpoint::checkpoint(&request, store.as_ref(), &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let report = report?;
    show(args.json, &report, &report)
}

/// Bring a process back, and follow it unless told not to.
pub fn restore(args: RestoreArgs) -> Result<ExitCode> {
    let address = address_of(args.store.store)?;
    if args.dry_run {
        let how = restore::Plan {
            outlook: restore::Outlook::Gone,
            new_pid_namespace: args.new_pid_namespace,
            inherit_cgroups: args.inherit_cgroups,
            changes: Changes { accept: args.accept_changed, replace: args.replace, grant: args.grant },
            made_here: false,
        };
        return rehearse(&args.name, &address, &how, args.json);
    }
    let request = restore::Request {
        name: args.name.name,
        digest: args.name.digest,
        store_text: address.clone(),
        stdio: if args.detach { Stdio::Null } else { Stdio::Ours },
        eager: args.eager,
        background: !args.no_background,
        outlives_us: args.detach,
        inherit_cgroups: args.inherit_cgroups,
        new_pid_namespace: args.new_pid_namespace,
        latency: args.latency,
        policy: Policy { on_lost: args.on_lost, lost_after_s: args.lost_after },
        replay: !args.recall.no_replay && (!args.no_background || args.replay),
        recording: args.recall.record,
        changes: Changes { accept: args.accept_changed, replace: args.replace, grant: args.grant },
        report: args.report.as_deref().map(report::place).transpose()?,
        authority: authority()?,
    };
    let store = open(&address, Access::Read, Class::Demand)?; // somebody waits for all that it reads
    let mut following = None;
    let restored = restore::restore(&request, store.as_ref(), &mut |pid, manifest| {
        let failed = |what: String| move |why: String| RestoreError::Outside { what, why };
        if let Some(path) = &args.pid_file {
            output_file::write(path, &format!("{pid}\n")).map_err(|why| failed(format!("write {}", path.display()))(why.to_string()))?;
        }
        if !args.detach {
            following = Some(Following::begin(pid, Terminals::of(manifest))?);
        }
        Ok(())
    })?;
    drop(store); // its threads would take signals that are the process's
    if restored.nulled {
        eprintln!("defrost: its standard streams led elsewhere: they lead to /dev/null now");
    }
    if restored.terminal_lost {
        eprintln!("defrost: it had a controlling terminal and has none now: `exec defrost restore`, in a terminal, gives it that one");
    }
    if args.timings && !args.json {
        tell(&restored.timings);
    }
    if let Some(following) = following {
        return following.follow();
    }
    let streams = if restored.nulled { "null" } else { "own" };
    let mut report = json!({ "pid": restored.pid.as_raw(), "own_pid": restored.own_pid, "streams": streams });
    if args.timings {
        report["timings"] = json!(restored.timings);
    }
    show(args.json, &report, &restored.pid)?;
    Ok(ExitCode::SUCCESS)
}

/// Say what would stop a restore, one line for each obstacle.
fn rehearse(snapshot: &SnapshotRef, address: &str, plan: &restore::Plan, json: bool) -> Result<ExitCode> {
    let store = open(address, Access::Read, Class::Bulk)?;
    let name = &snapshot.name;
    let found: Vec<String> = restore::rehearse(snapshot, store.as_ref(), plan)?.iter().map(ToString::to_string).collect();
    match found.as_slice() {
        _ if json => show(true, &json!({ "name": name.to_string(), "obstacles": found }), &"")?,
        [] => show(false, &(), &format!("{name} would be restored here"))?,
        found => found.iter().for_each(|sentence| crate::log::failed(sentence)),
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What took how long, in milliseconds from the beginning on.
fn tell(timings: &[Phase]) {
    eprintln!("  from ms     ms");
    for Phase { who, phase, at_us, us } in timings {
        let [at_ms, ms] = [at_us, us].map(|us| *us as f64 / 1e3);
        eprintln!("{at_ms:9.2} {ms:6.2}  {who}: {phase}");
    }
}
