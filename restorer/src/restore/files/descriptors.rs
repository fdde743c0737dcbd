//! Descriptors of the child: each gets its number, the userfaultfd is made and kept out of the program's way, the rest goes.

use super::super::builder::{Builder, Step};
use super::super::error::outside;
use super::super::reach::Reach;
use super::{Made, SETTABLE, lowest};
use super::{interests, own};
use images::manifest::description::Kind;
use images::manifest::{Description, Descriptor, Manifest, Region};
use kernel::descriptions::{F_SETOWN_EX, F_SETSIG};
use kernel::uffd::Uffd;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use pages::PageRange;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Descriptors get their numbers, epolls what they watch; descriptions are at `sources` in the child.
pub fn number(b: &mut Builder<'_>, manifest: &Manifest, made: &Made, sources: &[Option<u64>]) -> Step<()> {
    interests::early(b, manifest, sources)?;
    // Something else keeps the numbers of those that come later.
    let keeper = made.mailbox.ends()[0].as_raw_fd() as u64;
    for descriptor in &manifest.descriptors {
        let Some(source) = sources.get(descriptor.file as usize) else { continue };
        let args = [source.unwrap_or(keeper), descriptor.fd.into(), flags(descriptor), 0, 0, 0];
        b.later(&format!("fd {}", descriptor.fd), libc::SYS_dup3, args)?;
    }
    interests::late(b, manifest, sources)
}

fn flags(descriptor: &Descriptor) -> u64 {
    if descriptor.close_on_exec { libc::O_CLOEXEC as u64 } else { 0 }
}

/// What needs the threads: their own files, and who gets the signals of descriptions.
pub fn of_threads(b: &mut Builder<'_>, manifest: &Manifest, reach: &Reach) -> Step<()> {
    for (at, file) in (0..).zip(&manifest.files).filter(|(_, file)| own::needs_threads(manifest, file)) {
        let opened = own::open_one(b, file, reach)?;
        for descriptor in manifest.descriptors.iter().filter(|descriptor| descriptor.file == at) {
            b.later("a thread's file", libc::SYS_dup3, [opened, descriptor.fd.into(), flags(descriptor), 0, 0, 0])?;
        }
        interests::of_late(b, manifest, at, opened)?;
        b.later("a thread's file", libc::SYS_close, [opened, 0, 0, 0, 0, 0])?;
    }
    for (file, fd) in manifest.files.iter().zip(lowest(manifest)) {
        signals(b, file, fd.into())?;
    }
    Ok(())
}

/// Who gets a description's signals, and which; they name the descriptor that they were asked for with.
fn signals(b: &mut Builder<'_>, file: &Description, fd: u64) -> Step<()> {
    let what = "who gets a descriptor's signals";
    if let Some(owner) = &file.owner {
        let at = b.put(&[owner.kind.to_ne_bytes(), owner.id.to_ne_bytes()].concat())?;
        if owner.id != 0 {
            b.later(what, libc::SYS_fcntl, [fd, F_SETOWN_EX, at, 0, 0, 0])?;
        }
        b.later(what, libc::SYS_fcntl, [fd, F_SETSIG, owner.signal.into(), 0, 0, 0])?;
    }
    let outside = matches!(file.kind, Some(Kind::Terminal(_) | Kind::OutsidePipe(_) | Kind::OutsideSocket(_)));
    let status = OFlag::from_bits_truncate(file.flags as i32);
    if status.contains(OFlag::O_ASYNC) && !status.contains(OFlag::O_PATH) && !outside {
        let flags = (status & (SETTABLE | OFlag::O_ASYNC)).bits() as u64;
        b.later(what, libc::SYS_fcntl, [fd, libc::F_SETFL as u64, flags, 0, 0, 0])?;
    }
    Ok(())
}

/// Make the userfaultfd inside the child and watch all lazy regions. It and the mailbox, which is inherited, come to numbers out of the
/// program's way; yields those numbers. With `marks` the pager may mark what is missing, if the kernel has PTE markers.
pub fn watch(b: &mut Builder<'_>, manifest: &Manifest, made: &Made, pidfd: &OwnedFd, marks: bool) -> Step<(Uffd, Vec<u64>)> {
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    let fd = b.call("userfaultfd", libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0])?;
    let ends = made.mailbox.ends().map(|end| end.as_raw_fd() as u64);
    let above = nofile(manifest).saturating_sub(1 + ends.len() as u64).min(65_535);
    let out_of_the_way = above.max(made.base as u64);
    let mut kept = Vec::new();
    for fd in [fd].into_iter().chain(ends) {
        let high = b.try_call("keep it", libc::SYS_fcntl, [fd, libc::F_DUPFD_CLOEXEC as u64, out_of_the_way, 0, 0, 0])?;
        kept.push(high.unwrap_or(fd)); // no higher number may be used: then it stays where it is
    }
    let child_fd = kept[0];
    let fd = kernel::handoff::pidfd_getfd(pidfd, child_fd as i32).map_err(outside("fetch its userfaultfd"))?;
    let uffd = Uffd::api(fd).map_err(outside("settle userfaultfd features (CAP_SYS_PTRACE is needed)"))?;
    for range in watched(&manifest.regions) {
        let marked = if marks { uffd.register_marked(range) } else { Err(Errno::EINVAL) };
        let registered = marked.or_else(|errno| if errno == Errno::EINVAL { uffd.register(range) } else { Err(errno) });
        registered.map_err(outside(format!("watch {range}")))?;
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
