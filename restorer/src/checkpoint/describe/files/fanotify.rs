//! What a fanotify watches: files, mounts and file systems. One that decides on the calls of others is refused.
//!
//! Known hole: as with inotify, what happens while the process is not there is not reported.

use super::watched::Mounts;
use super::{Context, Open};
use crate::checkpoint::CheckpointError;
use crate::process::fdinfo::{FdInfo, Marked};
use images::manifest::description::Kind;
use images::manifest::{Fanotify, FanotifyMark};
use kernel::sockopt::unread_bytes;

/// FAN_MARK_MOUNT and FAN_MARK_FILESYSTEM of include/uapi/linux/fanotify.h.
const MOUNT: u32 = 0x10;
const FILE_SYSTEM: u32 = 0x100;
/// FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM and FAN_PRE_ACCESS.
const DECIDES: u32 = 0x17_0000;

/// The fanotify at `entry`.
pub(super) fn fanotify(context: &Context<'_>, entry: &Open, info: &FdInfo<'_>) -> Result<Kind, CheckpointError> {
    let refuse = |what: String, advice| context.proc.refuse(format!("fd {}: {} {what}", entry.number, entry.link), advice);
    let (flags, event_flags, marks) =
        info.fanotify().ok_or_else(|| refuse("has marks of an unknown kind".to_owned(), "let it end them"))?;
    if marks.iter().any(|mark| mark.mask & DECIDES != 0) {
        return Err(refuse("decides on the calls of others, which would wait for it".to_owned(), "let it close this one"));
    }
    let unread = context.lend(entry.number).map(|lent| unread_bytes(&lent).unwrap_or(0))?;
    if unread > 0 {
        return Err(refuse(format!("has {unread} bytes of events that it has not read"), "let it read them: try again"));
    }
    let mounts = Mounts::read();
    let mut described = Vec::new();
    for mark in marks {
        let (kind, path, what) = match &mark.on {
            Marked::File(file) => (0, mounts.path_of(context, file), file.to_string()),
            Marked::Mount(id) => (MOUNT, mounts.point(*id).cloned(), format!("mount {id}")),
            Marked::FileSystem(device) => {
                (FILE_SYSTEM, mounts.point_of(*device).cloned(), format!("file system {}:{}", device.0, device.1))
            }
        };
        let path = path.ok_or_else(|| refuse(format!("watches {what}, which has no path that can be found"), "let it end this mark"))?;
        let (flags, mask, ignored_mask) = (mark.flags, mark.mask, mark.ignored_mask);
        described.push(FanotifyMark { kind, flags, mask, ignored_mask, path });
    }
    Ok(Kind::Fanotify(Fanotify { flags, event_flags, marks: described }))
}
