//! What an epoll watches: open file descriptions, which fdinfo names by the numbers they were added with.
//!
//! Such a number may be closed since, or stand for something else: kcmp(2) compares descriptions with the one that is
//! watched, and in an order, so that one whose number is gone is found by a binary search.
//!
//! Known holes: whether an edge was reported already is not told, so that a restored epoll reports one that is still ready
//! once more; the order in which ready ones are reported may differ.

use super::Context;
use crate::checkpoint::CheckpointError;
use images::manifest::description::Kind;
use images::manifest::{Description, Descriptor, Epoll};
use kernel::descriptions::{EpollSlot, compare_with_target, epoll_params};
use kernel::sys::{Kcmp, order_of};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::collections::HashMap;

/// The epoll at `fd`; which descriptions it watches is found once all are known ([`resolve`]).
pub(super) fn epoll(context: &Context<'_>, fd: u32, interests: Vec<images::manifest::Interest>) -> Result<Kind, CheckpointError> {
    let params = epoll_params(&context.lend(fd)?)
        .map_err(|errno| context.proc.refuse(format!("fd {fd}: epoll: {errno}"), "let it close this one"))?;
    Ok(Kind::Epoll(Epoll {
        interests,
        busy_poll_usecs: params.busy_poll_usecs,
        busy_poll_budget: params.busy_poll_budget.into(),
        prefer_busy_poll: params.prefer_busy_poll != 0,
    }))
}

/// Find the description behind each interest of each epoll.
pub(super) fn resolve(context: &Context<'_>, files: &mut [Description], descriptors: &[Descriptor]) -> Result<(), CheckpointError> {
    let pid = context.proc.task();
    let mut lowest = vec![None; files.len()];
    for descriptor in descriptors.iter().rev() {
        lowest[descriptor.file as usize] = Some(descriptor.fd);
    }
    let mut sorted: Option<Vec<u32>> = None;
    for at in 0..files.len() {
        let Some(Kind::Epoll(epoll)) = &mut files[at].kind else { continue };
        let Some(own) = lowest[at] else { continue };
        let mut before: HashMap<u32, u32> = HashMap::new();
        for interest in &mut epoll.interests {
            let count = before.entry(interest.fd).or_default();
            let slot = EpollSlot { epoll: own, fd: interest.fd, before: *count };
            *count += 1;
            let unknown = |errno: Errno| {
                let what = format!("fd {own}: epoll: what it watches as fd {} is not told ({errno})", interest.fd);
                context.proc.refuse(what, "run defrost as root on a kernel with kcmp(2)")
            };
            let same = descriptors.binary_search_by_key(&interest.fd, |d| d.fd).ok().map(|at| descriptors[at]);
            if let Some(same) = same
                && compare_with_target(pid, same.fd, slot).map_err(unknown)? == Ordering::Equal
            {
                interest.file = Some(same.file);
                continue;
            }
            if sorted.is_none() {
                sorted = Some(in_order(pid, lowest.iter().flatten().copied()).map_err(unknown)?);
            }
            let file = match search(pid, sorted.as_deref().unwrap_or_default(), slot).map_err(unknown)? {
                Some(fd) => descriptors.binary_search_by_key(&fd, |d| d.fd).ok().map(|at| descriptors[at].file),
                None => None,
            };
            interest.file = Some(file.ok_or_else(|| {
                let what = format!("fd {own}: epoll watches what was fd {} and is open in no descriptor any more", interest.fd);
                context.proc.refuse(what, "another process or a socket's queue has it: let that one close it")
            })?);
        }
    }
    Ok(())
}

/// Descriptors of different descriptions, in the kernel's order of these.
fn in_order(pid: Pid, fds: impl Iterator<Item = u32>) -> Result<Vec<u32>, Errno> {
    let (mut fds, mut failed): (Vec<u32>, _) = (fds.collect(), Ok(()));
    fds.sort_by(|a, b| {
        order_of(pid, pid, Kcmp::File(*a, *b)).unwrap_or_else(|errno| {
            failed = Err(errno);
            Ordering::Equal
        })
    });
    failed.map(|()| fds)
}

/// That of `sorted` whose description `slot` watches.
fn search(pid: Pid, sorted: &[u32], slot: EpollSlot) -> Result<Option<u32>, Errno> {
    let mut failed = Ok(());
    let found = sorted.binary_search_by(|fd| {
        compare_with_target(pid, *fd, slot).unwrap_or_else(|errno| {
            failed = Err(errno);
            Ordering::Equal
        })
    });
    failed.map(|()| found.ok().map(|at| sorted[at]))
}
