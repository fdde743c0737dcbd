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
mod number;
mod outside;
mod pipe;
pub mod regular;
mod signal_owner;
mod terminal;
mod timer;
mod watched;

use super::objects::Objects;
use super::sockets::in_flight::{self, Queues};
use super::sockets::{Lender, SocketTables, inode_of, mailbox, socket};
use super::twins::Twins;
use crate::checkpoint::ask::Asker;
use crate::checkpoint::freeze::Frozen;
use crate::checkpoint::proc::Proc;
use crate::checkpoint::{CheckpointError, Connections};
use crate::process::fdinfo::FdInfo;
use images::manifest::description::Kind;
use images::manifest::{Description, Descriptor};
use kernel::known::fdinfo::{Fate, kind_of, unknown_key};
pub(super) use number::Number;
use outside::Holder;
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;

/// One open descriptor as /proc shows it.
pub(super) struct Open {
    pub(super) number: Number,
    pub(super) link: String,
    pub(super) info: String,
}

impl Open {
    /// Whether it was opened with O_PATH.
    pub(super) fn is_path_only(&self) -> bool {
        FdInfo::new(&self.info).flags() & libc::O_PATH as u32 != 0
    }
}

/// What all classifiers need.
pub(super) struct Context<'p> {
    pub(super) proc: Proc,
    pidfd: OwnedFd,
    open: &'p [Open],
    /// What leads to descriptions that are only in flight.
    duplicates: &'p [OwnedFd],
    /// What waits in unix sockets.
    pub(super) queues: &'p Queues,
    /// Which description each socket is, by its inode.
    sockets_by_inode: HashMap<u32, u32>,
    /// Unix datagram sockets by their names.
    pub(super) names: OnceCell<HashMap<Vec<u8>, u32>>,
    /// A datagram socket that has sent more than is shown.
    pub(super) hidden: OnceCell<nix::Result<Option<Number>>>,
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

    /// The description that the socket with this inode is.
    pub(super) fn socket_file(&self, inode: u32) -> Option<u32> {
        self.sockets_by_inode.get(&inode).copied()
    }

    /// The socket with this inode, lent to us, if it is the process's own.
    pub(super) fn lend_socket(&self, inode: u32) -> Result<Option<OwnedFd>, CheckpointError> {
        let link = format!("socket:[{inode}]");
        self.sharing(&link).iter().find(|open| !open.is_path_only()).map(|open| self.lend(open.number)).transpose()
    }

    /// All of its sockets: the number of the description, and what leads to it.
    pub(super) fn all_sockets(&self) -> impl Iterator<Item = (u32, Number)> {
        let sockets = self.open.iter().filter(|open| !open.is_path_only());
        sockets.filter_map(|open| Some((self.socket_file(inode_of(&open.link)?)?, open.number)))
    }

    /// All of its sockets, each by one number, with their inodes.
    pub(super) fn distinct_sockets(&self) -> impl Iterator<Item = (Number, u32)> {
        let mut seen = HashSet::new();
        let sockets = self.open.iter().filter(|open| !open.is_path_only());
        sockets.filter_map(move |open| inode_of(&open.link).filter(|inode| seen.insert(*inode)).map(|inode| (open.number, inode)))
    }

    /// Its sockets, the highest descriptor first, with their inodes.
    pub(super) fn sockets_from_the_top(&self) -> impl Iterator<Item = (Number, u32)> {
        self.open.iter().rev().filter_map(|open| Some((open.number, inode_of(&open.link)?)))
    }

    /// Another process that has the socket with this inode open.
    pub(super) fn socket_holder(&self, inode: u32) -> Option<String> {
        outside::socket(self.proc.pid, inode).map(|holder| format!("process {holder}"))
    }

    /// Its standard streams.
    fn standard_streams(&self) -> impl Iterator<Item = &Open> {
        self.open.iter().take_while(|open| open.number.is_standard())
    }

    /// The description behind `number`, lent to us.
    pub(super) fn lend(&self, number: Number) -> Result<OwnedFd, CheckpointError> {
        let cannot = |error: std::io::Error| self.proc.refuse(format!("fd {number} cannot be looked at ({error})"), "run defrost as root");
        match number {
            Number::Own(fd) => kernel::handoff::pidfd_getfd(&self.pidfd, fd as i32).map_err(|errno| cannot(errno.into())),
            Number::InFlight { at, .. } => self.duplicates[at].try_clone().map_err(cannot),
        }
    }
}

/// All of a process's descriptions and descriptors.
pub fn files(
    (frozen, asker): (&Frozen, &Asker<'_>),
    connections: Connections,
    objects: &mut Objects,
) -> Result<(Vec<Description>, Vec<Descriptor>), CheckpointError> {
    let proc = frozen.proc();
    let (mut open, mut userfaultfds) = (Vec::new(), Vec::new());
    for fd in proc.numbers("fd")? {
        let number = Number::Own(fd);
        let link = proc.link(&number.handle())?;
        // A restored process keeps its userfaultfd and its mailbox; regions() refuses one that still watches memory.
        if link == "anon_inode:[userfaultfd]" {
            userfaultfds.push(fd);
        } else {
            open.push(Open { number, link, info: proc.text(&number.fdinfo())? });
        }
    }
    let queues = Queues::default();
    let context = context(proc, connections, &open, (&[], &queues))?;
    let mailbox = if userfaultfds.is_empty() { None } else { mailbox(&context)? };
    match userfaultfds.as_slice() {
        [] => {}
        [_] if mailbox.is_some() => {}
        [fd, ..] => return Err(proc.refuse(format!("fd {fd}: a userfaultfd of its own"), "let it close this one first")),
    }
    let of_the_pager = |open: &Open| mailbox.is_some_and(|ends| inode_of(&open.link).is_some_and(|inode| ends.contains(&inode)));
    let mut twins = Twins::default();
    // Where in `open` the first of each description is.
    let (mut firsts, mut descriptors): (Vec<usize>, Vec<Descriptor>) = (Vec::new(), Vec::new());
    for (at, entry) in open.iter().enumerate().filter(|(_, open)| !of_the_pager(open)) {
        let file = twins.find_or_add(&entry.link, entry.number.for_kcmp(proc), firsts.len()).unwrap_or_else(|| {
            firsts.push(at);
            firsts.len() - 1
        });
        let close_on_exec = FdInfo::new(&entry.info).flags() & libc::O_CLOEXEC as u32 != 0;
        descriptors.push(Descriptor { fd: entry.number.outermost(), file: file as u32, close_on_exec });
    }
    let known: Vec<&Open> = firsts.iter().map(|at| &open[*at]).collect();
    let in_flight::Found { queues, open: sent, duplicates } = in_flight::find(&context, &known, &mut twins, Lender::new(asker, frozen))?;
    let sockets = context.sockets;
    firsts.extend((0..sent.len()).map(|at| open.len() + at));
    open.extend(sent);
    let by_inode = (0..).zip(&firsts).filter(|(_, at)| !open[**at].is_path_only());
    let sockets_by_inode = by_inode.filter_map(|(file, at)| Some((inode_of(&open[*at].link)?, file))).collect();
    let context = Context { sockets, sockets_by_inode, ..self::context(proc, connections, &open, (&duplicates, &queues))? };
    let mut files = Vec::with_capacity(firsts.len());
    for at in &firsts {
        files.push(description(&context, objects, &open[*at], &FdInfo::new(&open[*at].info))?);
    }
    let numbers: Vec<Number> = firsts.iter().map(|at| open[*at].number).collect();
    epoll::resolve(&context, &mut files, &numbers, &descriptors)?;
    Ok((files, descriptors))
}

/// A look at the descriptors `open`; of those that are only in flight, `duplicates` are at hand.
fn context<'p>(
    proc: Proc,
    connections: Connections,
    open: &'p [Open],
    (duplicates, queues): (&'p [OwnedFd], &'p Queues),
) -> Result<Context<'p>, CheckpointError> {
    Ok(Context {
        proc,
        pidfd: proc.pidfd()?,
        open,
        duplicates,
        queues,
        sockets_by_inode: HashMap::new(),
        names: OnceCell::new(),
        hidden: OnceCell::new(),
        by_link: OnceCell::new(),
        pipes: OnceCell::new(),
        magics: RefCell::default(),
        sockets: SocketTables::default(),
        connections,
    })
}

fn description(context: &Context<'_>, objects: &mut Objects, entry: &Open, info: &FdInfo<'_>) -> Result<Description, CheckpointError> {
    let proc = context.proc;
    let refuse = |advice| proc.refuse(format!("fd {}: {}", entry.number, entry.link), advice);
    let malformed = || proc.malformed(&entry.number.fdinfo());
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
        "anon_inode:[eventpoll]" => epoll::epoll(context, entry.number, info.interests().ok_or_else(malformed)?)?,
        // One that is a descriptor was looked at before.
        "anon_inode:[userfaultfd]" => return Err(refuse("let it receive and close this one first")),
        "anon_inode:[timerfd]" => Kind::Timerfd(timer::timer(context, entry.number)?),
        "anon_inode:[signalfd]" => Kind::Signalfd(info.signalfd().ok_or_else(malformed)?),
        "anon_inode:inotify" => inotify::inotify(context, entry, &info.watches().ok_or_else(malformed)?)?,
        "anon_inode:[fanotify]" => fanotify::fanotify(context, entry, info)?,
        "anon_inode:[pidfd]" => kernel_files::pidfd(context, entry, info.field("Pid"), flags)?,
        link if link.starts_with("pipe:") => pipe::end(context, entry)?,
        link if link.starts_with("socket:") => socket(context, entry.number, link)?,
        // Namespaces have names of their own, whatever their kind; all else has a path.
        link if !link.starts_with('/') && known.is_some() => kernel_files::namespace(context, entry)?,
        _ => match kernel_files::made_up(context, entry, flags)? {
            Some(kind) => kind,
            None => path_kind(context, objects, entry)?,
        },
    };
    let outside = matches!(kind, Kind::Terminal(_) | Kind::OutsidePipe(_) | Kind::OutsideSocket(_));
    if let Some(key) = unknown_key(&entry.link, &entry.info).filter(|_| !outside) {
        let what = format!("fd {}: {} has {key:?} in its fdinfo", entry.number, entry.link);
        return Err(proc.refuse(what, "this version does not know what that means: let it close this one"));
    }
    let locks = info.locks().map_err(|lock| {
        proc.refuse(format!("fd {}: {} has a lock of an unknown kind ({lock})", entry.number, entry.link), "let it end the lock first")
    })?;
    // Who takes the signals of a stream outside is settled there.
    let lent = if outside { None } else { Some(context.lend(entry.number)?) };
    let owner = lent.as_ref().map_or(Ok(None), |lent| signal_owner::owner(context, entry, lent))?;
    let write_hint = match (&kind, &lent) {
        (Kind::Regular(_), Some(lent)) => kernel::descriptions::write_hint(lent),
        _ => 0,
    };
    Ok(Description { flags, offset: info.offset(), owner, locks, write_hint, kind: Some(kind) })
}

/// What lies behind a descriptor that /proc names with a path.
fn path_kind(context: &Context<'_>, objects: &mut Objects, entry: &Open) -> Result<Kind, CheckpointError> {
    let (proc, fd, link) = (context.proc, entry.number, entry.link.as_str());
    let refuse = |advice| proc.refuse(format!("fd {fd}: {link}"), advice);
    let Ok(meta) = std::fs::metadata(proc.path(&fd.handle())) else {
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
