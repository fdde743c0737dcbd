//! Pipes: all ends inside with what waits between them, or a standard stream that leads outside.
//!
//! A pipe without writers (or readers) anywhere says so to poll(2), and is one all of whose ends are inside. What waits is
//! copied with tee(2) and stays there; packets (O_DIRECT) are found by how much a read takes away.
//!
//! Known hole: an end outside of what /proc shows us, in another pid namespace, is seen only where none is inside.

use super::regular::inode_of;
use super::{Context, Number, Open};
use crate::checkpoint::CheckpointError;
use crate::process::fdinfo::FdInfo;
use images::manifest::description::Kind;
use images::manifest::{FileOwner, NamedPipe, OutsidePipe, PipeEnd};
use kernel::sockopt::unread_bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, fstat};
use std::fs::Metadata;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

/// More than a pipe can hold.
const ALL: usize = 1 << 30;

const CLOSE_PIPE: &str = "let it close this pipe first";

/// What of a pipe is inside.
struct Ends<'p> {
    reads: bool,
    writes: bool,
    /// The first descriptor that reads.
    reader: Option<Number>,
    /// The first that is a standard stream.
    stdio: Option<&'p Open>,
}

impl<'p> Ends<'p> {
    fn of(context: &Context<'p>, entry: &Open) -> Self {
        let mut ends = Self { reads: false, writes: false, reader: None, stdio: None };
        for open in context.sharing(&entry.link) {
            let info = FdInfo::new(&open.info);
            if info.flags() & libc::O_PATH as u32 != 0 {
                continue;
            }
            ends.writes |= info.writes();
            if info.reads() && !ends.reads {
                (ends.reads, ends.reader) = (true, Some(open.number));
            }
            if open.number.is_standard() && ends.stdio.is_none() {
                ends.stdio = Some(open);
            }
        }
        ends
    }
}

/// The end of a pipe at `entry`.
pub(super) fn end(context: &Context<'_>, entry: &Open) -> Result<Kind, CheckpointError> {
    let (info, ends) = (FdInfo::new(&entry.info), Ends::of(context, entry));
    let refuse = |what: String| context.proc.refuse(format!("fd {}: {} {what}", entry.number, entry.link), CLOSE_PIPE);
    let failed = |errno: Errno| context.proc.refuse(format!("fd {}: {}: {errno}", entry.number, entry.link), "run defrost as root");
    let holder = context.pipe_holder(&entry.link);
    let lent = context.lend(entry.number)?;
    if !(ends.reads && ends.writes) {
        let alone = holder.is_none() && is_alone(&lent).map_err(failed)?;
        if let Some(stdio) = ends.stdio.filter(|_| !alone || ends.writes) {
            let (contents, _) = match ends.reader {
                Some(reader) if reader == entry.number => {
                    let waiting = waiting(&lent).map_err(failed)?;
                    waiting.filter(|(_, packets)| packets.is_empty()).ok_or_else(|| packets_outside(context, entry))?
                }
                _ => Default::default(),
            };
            return Ok(Kind::OutsidePipe(OutsidePipe { fd: stdio.number.outermost(), write: info.writes(), contents }));
        }
        if holder.is_none() && !alone {
            return Err(refuse("leads to another process, which cannot be seen from here".to_owned()));
        }
    }
    if let Some(holder) = holder {
        return Err(refuse(format!("leads to another process: {holder}")));
    }
    let number = entry.link.trim_start_matches("pipe:[").trim_end_matches(']').parse();
    let (contents, packets) = match ends.reader {
        Some(reader) if reader == entry.number => waiting(&lent).map_err(failed)?.ok_or_else(|| mixed(context, entry))?,
        _ => Default::default(),
    };
    Ok(Kind::Pipe(PipeEnd {
        pipe: number.map_err(|_| context.proc.malformed(&entry.number.handle()))?,
        write: info.writes(),
        both: info.reads() && info.writes(),
        contents,
        packets,
        capacity_bytes: capacity(&lent).map_err(failed)?,
        owner: Some(owner(&fstat(&lent).map_err(failed)?)),
    }))
}

/// A description of the named pipe at `entry`, whose file is as `meta` says.
pub(super) fn named(context: &Context<'_>, entry: &Open, meta: &Metadata) -> Result<Kind, CheckpointError> {
    let (info, ends) = (FdInfo::new(&entry.info), Ends::of(context, entry));
    let refuse = |what: String| context.proc.refuse(format!("fd {}: named pipe {} {what}", entry.number, entry.link), CLOSE_PIPE);
    let failed = |errno: Errno| context.proc.refuse(format!("fd {}: {}: {errno}", entry.number, entry.link), "run defrost as root");
    let identity = (meta.dev(), meta.ino());
    let there = std::fs::symlink_metadata(&entry.link).ok();
    if there.as_ref().is_none_or(|there| (there.dev(), there.ino()) != identity) {
        return Err(refuse("is no longer at its path".to_owned()));
    }
    if let Some(holder) = super::outside::named_pipe(context.proc.pid, &entry.link, identity) {
        return Err(refuse(format!("leads to another process: {holder}")));
    }
    let lent = context.lend(entry.number)?;
    let (contents, packets) = match ends.reader {
        Some(reader) if reader == entry.number => waiting(&lent).map_err(failed)?.ok_or_else(|| mixed(context, entry))?,
        _ => Default::default(),
    };
    let awaits_writer = info.reads() && !ends.writes && !is_alone(&lent).map_err(failed)?;
    Ok(Kind::NamedPipe(NamedPipe {
        path: entry.link.clone(),
        owner: Some(owner(&fstat(&lent).map_err(failed)?)),
        capacity_bytes: capacity(&lent).map_err(failed)?,
        contents,
        packets,
        awaits_writer,
        inode: there.as_ref().map(inode_of),
    }))
}

fn packets_outside(context: &Context<'_>, entry: &Open) -> CheckpointError {
    let what = format!("fd {}: {} has packets (O_DIRECT) of another process in it", entry.number, entry.link);
    context.proc.refuse(what, "let it read what waits there first")
}

fn mixed(context: &Context<'_>, entry: &Open) -> CheckpointError {
    let what = format!("fd {}: {} has packets (O_DIRECT) and other bytes in it", entry.number, entry.link);
    context.proc.refuse(what, "let it read what waits there first")
}

fn owner(stat: &FileStat) -> FileOwner {
    FileOwner { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777, attributes: Vec::new() }
}

fn capacity(pipe: &OwnedFd) -> nix::Result<u32> {
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ).map(|bytes| bytes as u32)
}

/// Whether nobody has the other end.
fn is_alone(end: &OwnedFd) -> nix::Result<bool> {
    let mut looked = [PollFd::new(end.as_fd(), PollFlags::empty())];
    poll(&mut looked, PollTimeout::ZERO)?;
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    Ok(looked[0].revents().is_some_and(|events| events.intersects(gone)))
}

/// What waits in a pipe: as bytes, or as packets.
type Waiting = (Vec<u8>, Vec<Vec<u8>>);

/// What waits in `pipe`; `None` where there are bytes and packets.
fn waiting(pipe: &OwnedFd) -> nix::Result<Option<Waiting>> {
    if unread_bytes(pipe)? == 0 {
        return Ok(Some(Default::default()));
    }
    let mut chunks = Vec::new();
    let (copy, mut left) = copied(pipe)?;
    let total = left;
    while left > 0 {
        let mut chunk = vec![0; left];
        let count = nix::unistd::read(&copy, &mut chunk)?;
        chunk.truncate(count);
        left = left.saturating_sub(count);
        chunks.push(chunk);
    }
    let bytes_left = |read: &dyn Fn(usize) -> usize| -> nix::Result<usize> {
        let (copy, _) = copied(pipe)?;
        for chunk in &chunks {
            nix::unistd::read(&copy, &mut vec![0; read(chunk.len())])?;
        }
        unread_bytes(&copy)
    };
    match chunks.len() {
        // All of it in one read, of which the last byte may be read by itself: no packet.
        1 if total == 1 || bytes_left(&|len| len - 1)? == 1 => return Ok(chunks.pop().map(|bytes| (bytes, Vec::new()))),
        _ => {}
    }
    // A read that takes less than a packet takes the rest away; from its first byte on it must be one.
    let packets = bytes_left(&|len| (len - 1).max(1))? == 0 && bytes_left(&|_| 1)? == 0;
    Ok(packets.then_some((Vec::new(), chunks)))
}

/// The read end of a copy of what waits in `pipe`, and how many bytes that are.
fn copied(pipe: &OwnedFd) -> nix::Result<(OwnedFd, usize)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(capacity(pipe)? as i32))?;
    match tee(pipe, &write, ALL, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Err(Errno::EAGAIN) => Ok((read, 0)),
        other => Ok((read, other?)),
    }
}
