//! The end of a lazy phase: nothing is owed any more, and the mailbox is emptied, which lets forked children go (their memory is their
//! own once the last descriptor of their userfaultfd is closed).
//!
//! The process keeps its copies of the userfaultfd and of the mailbox: they watch nothing any more, and a checkpoint leaves them out.
//! Closing them would take calls run in one of its threads, and whoever runs such calls must not die meanwhile: the process would have
//! to die with it. A pager may be killed at any moment; that must never cost more than time.

use crate::keep::Keep;

/// Let go of everything.
pub(crate) fn take_leave(pid: u32, keep: &Keep) {
    match keep.let_children_go() {
        Ok(children) => tracing::debug!(pid, children, "the mailbox is empty"),
        Err(errno) => tracing::warn!(pid, %errno, "the mailbox cannot be emptied: children that live on wait for what is not theirs"),
    }
}
