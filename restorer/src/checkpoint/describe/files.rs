//! Open files: descriptors, and the descriptions behind them, each once however many descriptors share it.
//!
//! /proc/PID/fd and fdinfo tell kind and position; pidfd_getfd lends the description itself for what only a call on it tells
//! (a pipe's contents, a socket's address). Nothing here changes a description: contents are copied with tee and peek. Each sort of
//! file has a module of its own: [`regular`] files and directories, [`pipe`]s, [`device`]s, [`terminal`]s and [`timer`]s, [`epoll`]s,
//! [`inotify`]s, [`fanotify`]s and [`kernel_files`]; sockets are beside it.

mod device;
mod epoll;
mod fanotify;
mod inotify;
mod kernel_files;
mod outside;
mod pipe;
pub mod regular;
mod signal_owner;
mod terminal;
mod timer;
mod watched;

use super::objects::Objects;
use super::sockets::{SocketTables, inode_of, mailbox, socket};
use super::twins::Twins;
use crate::checkpoint::proc::Proc;
use crate::checkpoint::{CheckpointError, Connections};
use crate::process::fdinfo::FdInfo;
use images::manifest::description::Kind;
use images::manifest::{Description, Descriptor};
use kernel::known::fdinfo::{Fate, kind_of, unknown_key};
use outside::Holder;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
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
    /// Descriptors by their links.
    by_link: OnceCell<HashMap<&'p str, Vec<&'p Open>>>,
    /// Who else has a pipe.
    pipes: OnceCell<HashMap<String, Holder>>,
    /// Kinds of file systems, by mount.
    magics: RefCell<HashMap<u32, i64>>,
    /// What the kernel tells of sockets.
    pub(super) sockets: SocketTables,
    /// What may become of connections to other processes.
    pub(super) connections: Connections,
}

impl<'p> Context<'p> {
    /// Descriptors whose link is `link`, in ascending order.
    fn sharing(&self, link: &str) -> &[&'p Open] {
        let by_link = self.by_link.get_or_init(|| {
            let mut by_link: HashMap<&str, Vec<&Open>> = HashMap::new();
            self.open.iter().for_each(|open| by_link.entry(&open.link).or_default().push(open));
            by_link
        });
        by_link.get(link).map_or(&[], Vec::as_slice)
    }

    /// Another process that has the pipe `link` open.
    fn pipe_holder(&self, link: &str) -> Option<&Holder> {
        self.pipes.get_or_init(|| outside::pipes(self.proc.pid)).get(link)
    }

    /// Whether the socket with this inode is one of the process's own.
    pub(super) fn has_socket(&self, inode: u32) -> bool {
        !self.sharing(&format!("socket:[{inode}]")).is_empty()
    }

    /// Its sockets, the highest descriptor first, with their inodes.
    pub(super) fn sockets_from_the_top(&self) -> impl Iterator<Item = (u32, u32)> {
        self.open.iter().rev().filter_map(|open| Some((open.fd, inode_of(&open.link)?)))
    }

    /// Another process that has the socket with this inode open.
    pub(super) fn socket_holder(&self, inode: u32) -> Option<String> {
        outside::socket(self.proc.pid, inode).map(|holder| format!("process {holder}"))
    }

    /// Its standard streams.
    fn standard_streams(&self) -> impl Iterator<Item = &Open> {
        self.open.iter().take_while(|open| open.fd <= 2)
    }

    /// The description behind `fd`, lent to us.
    pub(super) fn lend(&self, fd: u32) -> Result<OwnedFd, CheckpointError> {
        kernel::handoff::pidfd_getfd(&self.pidfd, fd as i32)
            .map_err(|error| self.proc.refuse(format!("fd {fd} cannot be looked at ({error})"), "run defrost as root"))
    }
}

/// All of a process's descriptions and descriptors.
pub fn files(proc: Proc, connections: Connections, objects: &mut Objects) -> Result<(Vec<Description>, Vec<Descriptor>), CheckpointError> {
    let (mut open, mut userfaultfds) = (Vec::new(), Vec::new());
    for fd in proc.numbers("fd")? {
        let link = proc.link(&format!("fd/{fd}"))?;
        // A restored process keeps its userfaultfd and its mailbox; regions() refuses one that still watches memory.
        if link == "anon_inode:[userfaultfd]" {
            userfaultfds.push(fd);
        } else {
            open.push(Open { fd, link, info: proc.text(&format!("fdinfo/{fd}"))? });
        }
    }
    let pidfd = proc.pidfd()?;
    let context = Context {
        proc,
        pidfd,
        open: &open,
        by_link: OnceCell::new(),
        pipes: OnceCell::new(),
        magics: RefCell::default(),
        sockets: SocketTables::default(),
        connections,
    };
    let (mut files, mut descriptors): (Vec<Description>, Vec<Descriptor>) = (Vec::new(), Vec::new());
    let mut twins = Twins::new(proc.task());
    let mailbox = if userfaultfds.is_empty() { None } else { mailbox(&context)? };
    let of_the_pager = |open: &Open| mailbox.is_some_and(|ends| inode_of(&open.link).is_some_and(|inode| ends.contains(&inode)));
    for entry in open.iter().filter(|open| !of_the_pager(open)) {
        let info = FdInfo::new(&entry.info);
        let file = match twins.find_or_add(&entry.link, entry.fd, files.len()) {
            Some(index) => index,
            None => {
                files.push(description(&context, objects, entry, &info)?);
                files.len() - 1
            }
        };
        let close_on_exec = info.flags() & libc::O_CLOEXEC as u32 != 0;
        descriptors.push(Descriptor { fd: entry.fd, file: file as u32, close_on_exec });
    }
    epoll::resolve(&context, &mut files, &descriptors)?;
    match userfaultfds.as_slice() {
        [] => Ok((files, descriptors)),
        [_] if mailbox.is_some() => Ok((files, descriptors)),
        [fd, ..] => Err(proc.refuse(format!("fd {fd}: a userfaultfd of its own"), "let it close this one first")),
    }
}

fn description(context: &Context<'_>, objects: &mut Objects, entry: &Open, info: &FdInfo<'_>) -> Result<Description, CheckpointError> {
    let proc = context.proc;
    let refuse = |advice| proc.refuse(format!("fd {}: {}", entry.fd, entry.link), advice);
    let malformed = || proc.malformed(&format!("fdinfo/{}", entry.fd));
    let flags = info.flags() & !(libc::O_CLOEXEC as u32);
    if flags & libc::O_PATH as u32 != 0 {
        let kind = Some(kernel_files::path_only(context, entry, flags)?);
        return Ok(Description { flags, kind, ..Description::default() });
    }
    let known = kind_of(&entry.link);
    if let Some(Fate::Refused(advice)) = known.map(|kind| kind.fate) {
        return Err(refuse(advice));
    }
    let kind = match entry.link.as_str() {
        "anon_inode:[eventfd]" => Kind::Eventfd(info.eventfd().ok_or_else(malformed)?),
        "anon_inode:[eventpoll]" => epoll::epoll(context, entry.fd, info.interests().ok_or_else(malformed)?)?,
        "anon_inode:[timerfd]" => Kind::Timerfd(timer::timer(context, entry.fd)?),
        "anon_inode:[signalfd]" => Kind::Signalfd(info.signalfd().ok_or_else(malformed)?),
        "anon_inode:inotify" => inotify::inotify(context, entry, &info.watches().ok_or_else(malformed)?)?,
        "anon_inode:[fanotify]" => fanotify::fanotify(context, entry, info)?,
        "anon_inode:[pidfd]" => kernel_files::pidfd(context, entry, info.field("Pid"), flags)?,
        link if link.starts_with("pipe:") => pipe::end(context, entry)?,
        link if link.starts_with("socket:") => socket(context, entry.fd, link)?,
        // Namespaces have names of their own, whatever their kind; all else has a path.
        link if !link.starts_with('/') && known.is_some() => kernel_files::namespace(context, entry)?,
        _ => match kernel_files::made_up(context, entry, flags)? {
            Some(kind) => kind,
            None => path_kind(context, objects, entry)?,
        },
    };
    let outside = matches!(kind, Kind::Terminal(_) | Kind::OutsidePipe(_) | Kind::OutsideSocket(_));
    if let Some(key) = unknown_key(&entry.link, &entry.info).filter(|_| !outside) {
        let what = format!("fd {}: {} has {key:?} in its fdinfo", entry.fd, entry.link);
        return Err(proc.refuse(what, "this version does not know what that means: let it close this one"));
    }
    let locks = info.locks().map_err(|lock| {
        proc.refuse(format!("fd {}: {} has a lock of an unknown kind ({lock})", entry.fd, entry.link), "let it end the lock first")
    })?;
    // Who takes the signals of a stream outside is settled there.
    let lent = if outside { None } else { Some(context.lend(entry.fd)?) };
    let owner = lent.as_ref().map_or(Ok(None), |lent| signal_owner::owner(context, entry, lent))?;
    let write_hint = match (&kind, &lent) {
        (Kind::Regular(_), Some(lent)) => kernel::descriptions::write_hint(lent),
        _ => 0,
    };
    Ok(Description { flags, offset: info.offset(), owner, locks, write_hint, kind: Some(kind) })
}

/// What lies behind a descriptor that /proc names with a path.
fn path_kind(context: &Context<'_>, objects: &mut Objects, entry: &Open) -> Result<Kind, CheckpointError> {
    let (proc, fd, link) = (context.proc, entry.fd, entry.link.as_str());
    let refuse = |advice| proc.refuse(format!("fd {fd}: {link}"), advice);
    let Ok(meta) = std::fs::metadata(proc.path(&format!("fd/{fd}"))) else {
        return Err(refuse("let it close this descriptor first"));
    };
    let kind = meta.file_type();
    if kind.is_file() || kind.is_dir() {
        return regular::file(objects, entry, &meta);
    }
    if kind.is_char_device() {
        return device::character(context, fd, link, &meta);
    }
    if kind.is_fifo() {
        return pipe::named(context, entry, &meta);
    }
    Err(refuse("a block device changes without the process: let it close this one"))
}
