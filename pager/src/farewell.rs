//! The end of a lazy phase: nothing is owed any more, and the mailbox is emptied, which lets forked children go (their memory is their
//! own once the last descriptor of their userfaultfd is closed).
//!
//! The process keeps its copies of the userfaultfd and of the mailbox: they watch nothing any more, and a checkpoint leaves them out.
//! Closing them would take calls run in one of its threads, and whoever runs such calls must not die meanwhile: the process would have
//! to die with it. A pager may be killed at any moment; that must never cost more than time.

use crate::core_dumps;
use crate::keep::Keep;
use crate::table;
use images::manifest::Process;

/// Let go of everything; `own` is the process as it was, where nothing of its memory was lost: core dumps of it may be written again.
pub(crate) fn take_leave(pid: u32, keep: &Keep, own: Option<&Process>) {
    if let Some(own) = own {
        core_dumps::give_back(pid, own, keep.mailbox().ends().map(table::inode));
    }
    match keep.let_children_go() {
        Ok(children) => tracing::debug!(pid, children, "the mailbox is empty"),
        Err(errno) => tracing::warn!(pid, %errno, "the mailbox cannot be emptied: children that live on wait for what is not theirs"),
    }
}
