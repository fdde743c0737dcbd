//! What an inotify watches: files, which fdinfo names by number and handle, and which a restore finds by path.
//!
//! The path is found by [`super::watched`]. Events that wait cannot be read without being taken away: they are refused.
//!
//! Known holes: changes to the files while the process is not there are not reported; the number that the next watch will
//! get follows the highest in use.

use super::watched::Mounts;
use super::{Context, Open};
use crate::checkpoint::CheckpointError;
use crate::process::fdinfo::Watch as Watched;
use images::manifest::description::Kind;
use images::manifest::{Inotify, Watch};
use kernel::sockopt::unread_bytes;

/// The inotify at `entry`, which watches `watches`.
pub(super) fn inotify(context: &Context<'_>, entry: &Open, watches: &[Watched]) -> Result<Kind, CheckpointError> {
    let refuse = |what: String, advice| context.proc.refuse(format!("fd {}: {} {what}", entry.number, entry.link), advice);
    let lent = context.lend(entry.number)?;
    let unread = unread_bytes(&lent).unwrap_or(0);
    if unread > 0 {
        return Err(refuse(format!("has {unread} bytes of events that it has not read"), "let it read them: try again"));
    }
    let mounts = Mounts::read();
    let mut described = Vec::new();
    for watched in watches {
        let path = mounts
            .path_of(context, &watched.file)
            .ok_or_else(|| refuse(format!("watches {}, which has no path that can be found", watched.file), "let it end this watch"))?;
        described.push(Watch { wd: watched.wd, mask: watched.mask, path });
    }
    Ok(Kind::Inotify(Inotify { watches: described }))
}
