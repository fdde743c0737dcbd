//! Who gets a description's signals (F_SETOWN, F_SETSIG, O_ASYNC): the process itself, or the checkpoint refuses.

use super::outside::holder;
use super::{Context, Open};
use crate::checkpoint::CheckpointError;
use images::manifest::Owner;
use kernel::descriptions::signal_owner;
use std::os::fd::OwnedFd;

/// F_OWNER_* of include/uapi/asm-generic/fcntl.h.
const TID: i32 = 0;
const PID: i32 = 1;

/// The owner of `lent`, which is open at `entry`.
pub(super) fn owner(context: &Context<'_>, entry: &Open, lent: &OwnedFd) -> Result<Option<Owner>, CheckpointError> {
    let proc = context.proc;
    let refuse = |what: String, advice| proc.refuse(format!("fd {}: {} {what}", entry.number, entry.link), advice);
    let (owner, signal) =
        signal_owner(lent).map_err(|errno| refuse(format!("does not tell who gets its signals ({errno})"), "let it close this one"))?;
    if owner.id == 0 && signal == 0 {
        return Ok(None);
    }
    let id = owner.id.unsigned_abs();
    let own = match owner.kind {
        _ if id == 0 => true,
        TID => proc.path(&format!("task/{id}")).exists(),
        PID => id == proc.pid,
        // A process group that it leads.
        _ => id == proc.pid,
    };
    if !own {
        let whom = if owner.kind <= PID { format!("process {}", holder(id)) } else { format!("process group {id}") };
        return Err(refuse(format!("sends its signals to {whom}"), "let it take them itself (F_SETOWN)"));
    }
    if id != 0 && std::fs::metadata(proc.path(&entry.number.handle())).is_ok_and(|meta| meta.is_dir()) {
        return Err(refuse("is watched with F_NOTIFY, which cannot be read back".to_owned(), "let it use inotify instead"));
    }
    Ok(Some(Owner { kind: owner.kind, id: owner.id, signal: signal.unsigned_abs() }))
}
