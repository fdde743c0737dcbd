//! Open files: descriptors, and the descriptions behind them, each once however many descriptors share it.
//!
//! /proc/PID/fd and fdinfo tell kind and position; pidfd_getfd lends the description itself for what only a call on it tells
//! (a pipe's contents, a socket's address). Nothing here changes a description: contents are copied with tee and peek. Each sort of
//! file has a module of its own: [`regular`] files and directories, [`pipe`]s, [`device`]s, [`terminal`]s and [`timer`]s; sockets are beside it.

mod device;
mod pipe;
mod regular;
mod terminal;
mod timer;

pub use regular::identity;

use super::sockets::socket;
use super::twins::Twins;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use crate::process::fdinfo::FdInfo;
use images::manifest::description::Kind;
use images::manifest::{Description, Descriptor, Epoll, SocketOption};
use nix::unistd::Pid;
use pager::mailbox::MARK;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;

/// One open descriptor as /proc shows it.
struct Open {
    fd: u32,
    link: String,
    info: String,
}

/// What all classifiers need.
pub(super) struct Context<'p> {
    pub(super) proc: Proc,
    pidfd: OwnedFd,
    open: &'p [Open],
}

impl Context<'_> {
    /// Where each of its descriptors leads, as /proc tells.
    pub(super) fn links(&self) -> impl Iterator<Item = &str> {
        self.open.iter().map(|open| open.link.as_str())
    }

    /// The description behind `fd`, lent to us.
    pub(super) fn lend(&self, fd: u32) -> Result<OwnedFd, CheckpointError> {
        kernel::handoff::pidfd_getfd(&self.pidfd, fd as i32)
            .map_err(|error| self.proc.refuse(format!("fd {fd} cannot be looked at ({error})"), "run defrost as root"))
    }
}

/// All of a process's descriptions and descriptors.
pub fn files(proc: Proc) -> Result<(Vec<Description>, Vec<Descriptor>), CheckpointError> {
    let mut open = Vec::new();
    for fd in proc.numbers("fd")? {
        let link = proc.link(&format!("fd/{fd}"))?;
        // A restored process keeps its userfaultfd; regions() refuses one that still watches memory.
        if link != "anon_inode:[userfaultfd]" {
            open.push(Open { fd, link, info: proc.text(&format!("fdinfo/{fd}"))? });
        }
    }
    let pidfd = kernel::handoff::pidfd_open(Pid::from_raw(proc.pid as i32)).map_err(|_| CheckpointError::Vanished(proc.pid))?;
    let context = Context { proc, pidfd, open: &open };
    let (mut files, mut descriptors): (Vec<Description>, Vec<Descriptor>) = (Vec::new(), Vec::new());
    let mut twins = Twins::new(proc.pid);
    for entry in &open {
        let info = FdInfo::new(&entry.info);
        let file = match twins.find_or_add(&entry.link, entry.fd, files.len()) {
            Some(index) => index,
            None => {
                files.push(description(&context, entry, &info)?);
                files.len() - 1
            }
        };
        let close_on_exec = info.flags() & libc::O_CLOEXEC as u32 != 0;
        descriptors.push(Descriptor { fd: entry.fd, file: file as u32, close_on_exec });
    }
    Ok(without_mailbox(files, descriptors))
}

/// A restored process keeps its mailbox, which is none of its own.
fn without_mailbox(files: Vec<Description>, mut descriptors: Vec<Descriptor>) -> (Vec<Description>, Vec<Descriptor>) {
    let is_mark = |option: &SocketOption| option.name == libc::SO_PEEK_OFF as u32 && option.value == MARK.to_ne_bytes();
    let pair = |file: &Description| match &file.kind {
        Some(Kind::Socket(socket)) if socket.pair != 0 => Some((socket.pair, socket.options.iter().any(is_mark))),
        _ => None,
    };
    let marked: Vec<u64> = files.iter().filter_map(pair).filter(|(_, marked)| *marked).map(|(pair, _)| pair).collect();
    let stays = |file: &Description| pair(file).is_none_or(|(pair, _)| !marked.contains(&pair));
    let mut places = Vec::new(); // of each file: its place among those that stay
    let mut kept = 0;
    for file in &files {
        places.push(stays(file).then_some(kept));
        kept += u32::from(stays(file));
    }
    descriptors.retain_mut(|descriptor| match places[descriptor.file as usize] {
        Some(place) => {
            descriptor.file = place;
            true
        }
        None => false,
    });
    (files.into_iter().filter(stays).collect(), descriptors)
}

fn description(context: &Context<'_>, entry: &Open, info: &FdInfo<'_>) -> Result<Description, CheckpointError> {
    let proc = context.proc;
    let refuse = |advice| proc.refuse(format!("fd {}: {}", entry.fd, entry.link), advice);
    let malformed = || proc.malformed(&format!("fdinfo/{}", entry.fd));
    if info.field("lock").is_some() {
        let object = format!("fd {}: {} holds a file lock", entry.fd, entry.link);
        return Err(proc.refuse(object, "a lock would be lost: let it unlock the file first"));
    }
    let kind = match entry.link.as_str() {
        "anon_inode:[eventfd]" => Kind::Eventfd(info.eventfd().ok_or_else(malformed)?),
        "anon_inode:[eventpoll]" => Kind::Epoll(Epoll { interests: info.interests().ok_or_else(malformed)? }),
        "anon_inode:[timerfd]" => Kind::Timerfd(timer::timer(context, entry.fd)?),
        "anon_inode:[signalfd]" => Kind::Signalfd(info.signalfd().ok_or_else(malformed)?),
        "anon_inode:[io_uring]" => return Err(refuse("start it without io_uring")),
        link if link.starts_with("anon_inode:") => return Err(refuse("let it close this descriptor first")),
        link if link.starts_with("pipe:") => pipe::end(context, entry)?,
        link if link.starts_with("socket:") => Kind::Socket(socket(context, entry.fd, link)?),
        link if link.starts_with("/memfd:") => return Err(refuse("start it without shared memory")),
        link if terminal::is_gone_by_name(link) => path_kind(context, entry.fd, link)?,
        link if link.ends_with(" (deleted)") => return Err(refuse("the file was deleted: let it close or reopen it")),
        link => path_kind(context, entry.fd, link)?,
    };
    let flags = info.flags() & !(libc::O_CLOEXEC as u32);
    Ok(Description { flags, offset: info.offset(), owner: None, kind: Some(kind) })
}

/// What lies behind a descriptor that /proc names with a path.
fn path_kind(context: &Context<'_>, fd: u32, link: &str) -> Result<Kind, CheckpointError> {
    let proc = context.proc;
    let Ok(meta) = std::fs::metadata(proc.path(&format!("fd/{fd}"))) else {
        return Err(proc.refuse(format!("fd {fd}: {link}"), "let it close this descriptor first"));
    };
    let kind = meta.file_type();
    if kind.is_file() {
        return regular::file(context, link);
    }
    if kind.is_dir() {
        return regular::directory(link);
    }
    if kind.is_char_device() {
        return device::character(context, fd, link, &meta);
    }
    Err(proc.refuse(format!("fd {fd}: {link}"), "devices and named pipes cannot be captured: let it close this one"))
}
