//! Pipes: both ends inside with what waits between them, or a standard stream that leads outside.

use super::{Context, Open};
use crate::checkpoint::CheckpointError;
use crate::process::fdinfo::FdInfo;
use images::manifest::description::Kind;
use images::manifest::{OutsidePipe, PipeEnd};
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, tee};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// The end of a pipe at `entry`.
pub(super) fn end(context: &Context<'_>, entry: &Open) -> Result<Kind, CheckpointError> {
    let mut ends: HashMap<bool, u32> = HashMap::new();
    for other in context.open.iter().filter(|other| other.link == entry.link) {
        ends.entry(is_write_end(other)).or_insert(other.fd);
    }
    let write = is_write_end(entry);
    if ends.len() < 2 {
        return match context.open.iter().find(|other| other.fd <= 2 && other.link == entry.link) {
            Some(stdio) => Ok(Kind::OutsidePipe(OutsidePipe { fd: stdio.fd, write })),
            None => Err(context
                .proc
                .refuse(format!("fd {}: {} leads to another process", entry.fd, entry.link), "let it close this pipe first")),
        };
    }
    let lent = context.lend(entry.fd)?;
    let failed = |errno| context.proc.refuse(format!("fd {}: {}: {errno}", entry.fd, entry.link), "run defrost as root");
    let capacity_bytes = fcntl(&lent, FcntlArg::F_GETPIPE_SZ).map_err(failed)? as u32;
    let contents = if write { Vec::new() } else { peek_pipe(&lent, capacity_bytes).map_err(failed)? };
    let number = entry.link.trim_start_matches("pipe:[").trim_end_matches(']').parse();
    let pipe = number.map_err(|_| context.proc.malformed(&format!("fd/{}", entry.fd)))?;
    Ok(Kind::Pipe(PipeEnd { pipe, write, contents, capacity_bytes }))
}

fn is_write_end(open: &Open) -> bool {
    FdInfo::new(&open.info).flags() & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

/// What waits in a pipe, by tee: it stays there.
fn peek_pipe(pipe: &OwnedFd, capacity_bytes: u32) -> nix::Result<Vec<u8>> {
    let (read, write) = nix::unistd::pipe()?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(capacity_bytes as i32))?;
    let bytes = match tee(pipe, &write, capacity_bytes as usize, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Err(nix::errno::Errno::EAGAIN) => 0,
        other => other?,
    };
    let mut contents = vec![0; bytes];
    let mut done = 0;
    while done < bytes {
        done += nix::unistd::read(&read, &mut contents[done..])?;
    }
    Ok(contents)
}
