//! Open files: descriptors, and the descriptions behind them, each once however many descriptors share it.
//!
//! /proc/PID/fd and fdinfo tell kind and position; pidfd_getfd lends the description itself for what only a call on it tells
//! (a pipe's contents, a socket's address). Nothing here changes a description: contents are copied with tee and peek.

use super::sockets::socket;
use super::twins::Twins;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use crate::process::fdinfo::FdInfo;
use images::manifest::description::Kind;
use images::manifest::{
    CharacterDevice, Description, Descriptor, Directory, Epoll, FileIdentity, OutsidePipe, PipeEnd, RegularFile, SocketOption, Terminal,
};
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, tee};
use nix::unistd::Pid;
use pager::mailbox::MARK;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// Devices that hold no state of the process.
const PLAIN_DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

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

/// Identity of the file at `path`, as the process's namespace shows it.
pub fn identity(proc: Proc, path: &str) -> Result<FileIdentity, CheckpointError> {
    let meta = std::fs::metadata(path)
        .map_err(|_| proc.refuse(format!("its file {path} is no longer there"), "restart it on files that exist"))?;
    Ok(FileIdentity {
        path: path.to_owned(),
        size_bytes: meta.size(),
        mtime_s: meta.mtime(),
        mtime_ns: meta.mtime_nsec() as u32,
        build_id: Vec::new(),
    })
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
        "anon_inode:[timerfd]" => Kind::Timerfd(info.timerfd().ok_or_else(malformed)?),
        "anon_inode:[signalfd]" => Kind::Signalfd(info.signalfd().ok_or_else(malformed)?),
        "anon_inode:[io_uring]" => return Err(refuse("start it without io_uring")),
        link if link.starts_with("anon_inode:") => return Err(refuse("let it close this descriptor first")),
        link if link.starts_with("pipe:") => pipe(context, entry)?,
        link if link.starts_with("socket:") => Kind::Socket(socket(context, entry.fd, link)?),
        link if link.starts_with("/memfd:") => return Err(refuse("start it without shared memory")),
        link if link.ends_with(" (deleted)") => return Err(refuse("the file was deleted: let it close or reopen it")),
        link => path_kind(context, entry.fd, link)?,
    };
    let flags = info.flags() & !(libc::O_CLOEXEC as u32);
    Ok(Description { flags, offset: info.offset(), owner: None, kind: Some(kind) })
}

fn path_kind(context: &Context<'_>, fd: u32, link: &str) -> Result<Kind, CheckpointError> {
    let proc = context.proc;
    let refuse = |advice| Err(proc.refuse(format!("fd {fd}: {link}"), advice));
    let Ok(meta) = std::fs::metadata(proc.path(&format!("fd/{fd}"))) else {
        return refuse("let it close this descriptor first");
    };
    let kind = meta.file_type();
    if kind.is_file() {
        return Ok(Kind::Regular(RegularFile { identity: Some(identity(proc, link)?) }));
    }
    if kind.is_dir() {
        return Ok(Kind::Directory(Directory { path: link.to_owned() }));
    }
    if kind.is_char_device() && PLAIN_DEVICES.contains(&link) {
        let (major, minor) = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
        return Ok(Kind::Device(CharacterDevice { path: link.to_owned(), major, minor }));
    }
    if link.starts_with("/dev/pts/") || link.starts_with("/dev/tty") || link == "/dev/console" {
        return match context.open.iter().find(|other| other.fd <= 2 && other.link == link) {
            Some(stdio) => Ok(Kind::Terminal(Terminal { fd: stdio.fd })),
            None => refuse("a terminal is reattached only as standard input, output or error: close this one"),
        };
    }
    refuse("devices and named pipes cannot be captured: let it close this one")
}

fn pipe(context: &Context<'_>, entry: &Open) -> Result<Kind, CheckpointError> {
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
