//! What an epoll watches: open file descriptions, which fdinfo names by the numbers they were added with.
//!
//! Such a number may be closed since, or stand for something else: kcmp(2) compares descriptions with the one that is
//! watched, and in an order, so that one whose number is gone is found by a binary search.
//!
//! Known holes: whether an edge was reported already is not told, so that a restored epoll reports one that is still ready
//! once more; the order in which ready ones are reported may differ.

use super::{Context, Number};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use images::manifest::description::Kind;
use images::manifest::{Description, Descriptor, Epoll};
use kernel::descriptions::{EpollSlot, compare_with_target, epoll_params};
use kernel::sys::{Kcmp, order_of};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::collections::HashMap;

/// The epoll at `fd`; which descriptions it watches is found once all are known ([`resolve`]).
pub(super) fn epoll(context: &Context<'_>, fd: Number, interests: Vec<images::manifest::Interest>) -> Result<Kind, CheckpointError> {
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
pub(super) fn resolve(
    context: &Context<'_>,
    files: &mut [Description],
    numbers: &[Number],
    descriptors: &[Descriptor],
) -> Result<(), CheckpointError> {
    let proc = context.proc;
    let mut sorted: Option<Vec<u32>> = None;
    for (file, own) in files.iter_mut().zip(numbers) {
        let Some(Kind::Epoll(epoll)) = &mut file.kind else { continue };
        let (epoll_task, epoll_fd) = own.for_kcmp(proc);
        let mut before: HashMap<u32, u32> = HashMap::new();
        for interest in &mut epoll.interests {
            let count = before.entry(interest.fd).or_default();
            let slot = EpollSlot { epoll: epoll_fd, fd: interest.fd, before: *count };
            *count += 1;
            let unknown = |errno: Errno| {
                let what = format!("fd {own}: epoll: what it watches as fd {} is not told ({errno})", interest.fd);
                context.proc.refuse(what, "run defrost as root on a kernel with kcmp(2)")
            };
            let same = descriptors.binary_search_by_key(&interest.fd, |d| d.fd).ok().map(|at| descriptors[at]);
            if let Some(same) = same
                && compare_with_target((proc.task(), same.fd), (epoll_task, slot)).map_err(unknown)? == Ordering::Equal
            {
                interest.file = Some(same.file);
                continue;
            }
            if sorted.is_none() {
                sorted = Some(in_order(proc, numbers).map_err(unknown)?);
            }
            let target = |file: u32| numbers[file as usize].for_kcmp(proc);
            let file = search(sorted.as_deref().unwrap_or_default(), target, (epoll_task, slot)).map_err(unknown)?;
            interest.file = Some(file.ok_or_else(|| {
                let what = format!("fd {own}: epoll watches what was fd {} and is open in no descriptor any more", interest.fd);
                context.proc.refuse(what, "another process has it: let that one close it")
            })?);
        }
    }
    Ok(())
}

/// The descriptions that `numbers` lead to, in the kernel's order.
fn in_order(proc: Proc, numbers: &[Number]) -> Result<Vec<u32>, Errno> {
    let (mut files, mut failed): (Vec<u32>, _) = ((0..numbers.len() as u32).collect(), Ok(()));
    files.sort_by(|a, b| {
        let [(a_task, a), (b_task, b)] = [a, b].map(|file| numbers[*file as usize].for_kcmp(proc));
        order_of(a_task, b_task, Kcmp::File(a, b)).unwrap_or_else(|errno| {
            failed = Err(errno);
            Ordering::Equal
        })
    });
    failed.map(|()| files)
}

/// That of `sorted` which the epoll watches in `slot`.
fn search(sorted: &[u32], target: impl Fn(u32) -> (Pid, u32), slot: (Pid, EpollSlot)) -> Result<Option<u32>, Errno> {
    let mut failed = Ok(());
    let found = sorted.binary_search_by(|file| {
        compare_with_target(target(*file), slot).unwrap_or_else(|errno| {
            failed = Err(errno);
            Ordering::Equal
        })
    });
    failed.map(|()| found.ok().map(|at| sorted[at]))
}
