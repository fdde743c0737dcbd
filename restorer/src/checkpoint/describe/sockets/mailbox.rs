//! The mailbox of an earlier restore: a socket pair that the restored process keeps for its pager.
//!
//! The sending end has a mark ([`MARK`]). Neither end is state of the program, and neither is what
//! waits in them, so a checkpoint looks at nothing else of them: the pager may still be taking out
//! what it put there.

use super::super::files::Context;
use super::CLOSE_SOCKET;
use crate::checkpoint::CheckpointError;
use kernel::sockopt;
use pager::mailbox::MARK;

/// The inodes of both ends, if the process has a mailbox. It lies above the program's descriptors.
pub(in super::super) fn mailbox(context: &Context<'_>) -> Result<Option<[u32; 2]>, CheckpointError> {
    for (fd, inode) in context.sockets_from_the_top() {
        let lent = context.lend(fd)?;
        let no_answer = |error: &dyn std::fmt::Display| context.proc.refuse(format!("fd {fd}: socket: {error}"), CLOSE_SOCKET);
        let mark = sockopt::get(&lent, libc::SOL_SOCKET, libc::SO_PEEK_OFF);
        if mark.map_err(|errno| no_answer(&errno))? != Some(MARK.to_ne_bytes().to_vec()) {
            continue;
        }
        let facts = context.sockets.unix(inode).map_err(|error| no_answer(&error))?;
        return Ok(facts.peer.map(|peer| [inode, peer]));
    }
    Ok(None)
}
