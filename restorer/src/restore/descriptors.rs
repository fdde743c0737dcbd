//! Descriptors of the child: each gets its number, the userfaultfd is made and kept out of the program's way, the rest goes.

use super::builder::{Builder, Step};
use super::error::outside;
use super::files::Made;
use images::manifest::{Manifest, Region, description};
use kernel::uffd::Uffd;
use pages::PageRange;
use std::collections::HashSet;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Descriptors get their numbers.
pub fn number(b: &mut Builder<'_>, manifest: &Manifest, made: &Made) -> Step<()> {
    for descriptor in &manifest.descriptors {
        let Some(source) = made.files.get(descriptor.file as usize) else { continue };
        let flags = if descriptor.close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
        b.later(&format!("fd {}", descriptor.fd), libc::SYS_dup3, [source.as_raw_fd() as u64, u64::from(descriptor.fd), flags, 0, 0, 0])?;
    }
    let mut filled = HashSet::new();
    for descriptor in &manifest.descriptors {
        let file = manifest.files.get(descriptor.file as usize);
        let Some(description::Kind::Epoll(epoll)) = file.and_then(|file| file.kind.as_ref()) else { continue };
        if !filled.insert(descriptor.file) {
            continue; // another number of the same epoll
        }
        for interest in &epoll.interests {
            // struct epoll_event is packed: 32 bits of events, 64 of data.
            let at = b.put(&[&interest.events.to_ne_bytes()[..], &interest.data.to_ne_bytes()].concat())?;
            let args = [u64::from(descriptor.fd), libc::EPOLL_CTL_ADD as u64, u64::from(interest.fd), at, 0, 0];
            b.later(&format!("epoll {} watching fd {}", descriptor.fd, interest.fd), libc::SYS_epoll_ctl, args)?;
        }
    }
    Ok(())
}

/// Make the userfaultfd inside the child and watch all lazy regions. It and the mailbox, which is inherited, come to numbers out of the
/// program's way; yields those numbers.
pub fn watch(b: &mut Builder<'_>, manifest: &Manifest, made: &Made, pidfd: &OwnedFd) -> Step<(Uffd, Vec<u64>)> {
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    let fd = b.call("userfaultfd", libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0])?;
    let ends = made.mailbox.ends().map(|end| end.as_raw_fd() as u64);
    let out_of_the_way = nofile(manifest).saturating_sub(1 + ends.len() as u64).clamp(made.base as u64, 65_535);
    let mut kept = Vec::new();
    for fd in [fd].into_iter().chain(ends) {
        let high = b.try_call("keep it", libc::SYS_fcntl, [fd, libc::F_DUPFD_CLOEXEC as u64, out_of_the_way, 0, 0, 0])?;
        kept.push(high.unwrap_or(fd)); // no higher number may be used: then it stays where it is
    }
    let child_fd = kept[0];
    let fd = kernel::handoff::pidfd_getfd(pidfd, child_fd as i32).map_err(outside("fetch its userfaultfd"))?;
    let uffd = Uffd::api(fd).map_err(outside("settle userfaultfd features (CAP_SYS_PTRACE is needed)"))?;
    for range in watched(&manifest.regions) {
        uffd.register(range).map_err(outside(format!("watch {range}")))?;
    }
    Ok((uffd, kept))
}

/// What to watch: lazy regions, those that touch each other as one range, since one call may cover
/// many mappings. No range covers a gap: the workplace lies in one.
fn watched(regions: &[Region]) -> impl Iterator<Item = PageRange> + '_ {
    let touch = |a: &Region, b: &Region| a.lazy == b.lazy && a.end == b.start;
    let runs = regions.chunk_by(touch).filter(|run| run[0].lazy);
    runs.filter_map(|run| PageRange::from_addrs(run[0].start, run.last()?.end))
}

fn nofile(manifest: &Manifest) -> u64 {
    let limits = manifest.process.iter().flat_map(|process| &process.rlimits);
    limits.filter(|limit| limit.resource == libc::RLIMIT_NOFILE).map(|limit| limit.soft).next().unwrap_or(1024)
}

/// Close all that the child inherited from us, but what it keeps.
pub fn close_the_rest(b: &mut Builder<'_>, manifest: &Manifest, kept: &[u64]) -> Step<()> {
    let mut keep: Vec<u64> = manifest.descriptors.iter().map(|d| u64::from(d.fd)).chain(kept.iter().copied()).collect();
    keep.sort_unstable();
    let mut from = 0;
    for fd in keep.into_iter().chain([u64::from(u32::MAX)]) {
        if from < fd {
            b.later("close what it inherited", libc::SYS_close_range, [from, fd - 1, 0, 0, 0, 0])?;
        }
        from = fd + 1;
    }
    Ok(())
}
