//! Descriptions and mapped files that could not be opened here: tried without making or changing anything.
//!
//! While the process is frozen its files are not opened: that would break its own leases, and its own watches would tell of it. Then
//! our rights to them are looked at.

use super::super::error::RestoreError;
use super::super::found::Found;
use super::super::memory::may_write;
use super::super::memory::objects::of_file;
use super::super::obstacles::Outlook;
use super::super::reach::{Reach, Which};
use super::in_flight::in_queue_of;
use super::own::needs_threads;
use super::{Failure, descriptor_limit, device, failed, lowest, regular, room, sockets};
use images::manifest::description::Kind;
use images::manifest::{Description, FileIdentity, Manifest};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::collections::BTreeSet;

/// All that could not be opened, and too few numbers for what [`super::make`] makes.
pub fn obstacles(manifest: &Manifest, found_at: &Found, outlook: Outlook) -> Vec<RestoreError> {
    let mut found = Vec::from_iter(too_few_numbers(manifest, found_at));
    for (file, fd) in manifest.files.iter().zip(lowest(manifest)) {
        found.extend(try_one(file, found_at, outlook).err().map(|(what, why)| RestoreError::Descriptor { fd, what, why }));
    }
    let sent = manifest.files.iter().zip(lowest(manifest)).flat_map(|(file, fd)| in_queue_of(file).map(move |file| (file, fd)));
    let late = sent.filter(|(file, _)| manifest.files.get(*file as usize).is_some_and(|file| needs_threads(manifest, file)));
    found.extend(late.map(|(_, fd)| {
        let (what, why) = ("socket".to_owned(), "a descriptor of a thread's own is in flight in it: let it receive that first".to_owned());
        RestoreError::Descriptor { fd, what, why }
    }));
    for (path, write) in mapped(manifest, found_at) {
        let status = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        let tried = match outlook {
            Outlook::Frozen => found_at.may_open(path, status),
            Outlook::Gone => found_at.open(path, status).map(drop),
        };
        found.extend(tried.err().map(|refusal| refusal.of(path)));
    }
    found
}

/// Mapped files and the executable, each once, and whether it is opened for writing.
fn mapped<'m>(manifest: &'m Manifest, found_at: &Found) -> BTreeSet<(&'m str, bool)> {
    let process = manifest.process.as_ref().filter(|process| process.exe_object == 0);
    let exe = process.and_then(|process| process.exe_identity.as_ref());
    let mapped = manifest.regions.iter().filter_map(|r| r.file.as_ref().map(|file| (file, may_write(r))));
    let there = mapped.chain(exe.map(|file| (file, false))).filter(|(file, _)| !is_made(file, found_at));
    there.map(|(file, write)| (file.path.as_str(), write)).collect()
}

/// A file that is missing and whose contents the image has.
fn is_made(file: &FileIdentity, found_at: &Found) -> bool {
    of_file(file).is_some_and(|object| found_at.is_gone(object))
}

fn too_few_numbers(manifest: &Manifest, found_at: &Found) -> Option<RestoreError> {
    const MAILBOX: usize = 2;
    let limit = match kernel::descriptions::raise_descriptor_limit() {
        Ok(limit) => limit,
        Err(errno) => return Some(descriptor_limit(0, errno)),
    };
    // What the child opens itself takes none of our numbers.
    let its_own = |file: &&Description| matches!(file.kind, Some(Kind::KernelFile(_) | Kind::Pidfd(_) | Kind::Namespace(_)));
    let made = MAILBOX
        + mapped(manifest, found_at).len()
        + 2 * manifest.objects.len()
        + manifest.files.iter().filter(|file| !its_own(file)).count();
    let base = room(manifest, u32::try_from(limit).unwrap_or(u32::MAX));
    (base as u64 + made as u64 > limit).then(|| descriptor_limit(0, Errno::EMFILE))
}

/// What [`super::open_one`] would find out, for each kind. [`super::here`] looks whether what is named is there at all.
fn try_one(file: &Description, found_at: &Found, outlook: Outlook) -> Result<(), Failure> {
    let status = OFlag::from_bits_truncate(file.flags as i32);
    let (gone, reach) = (outlook == Outlook::Gone, found_at.reach());
    match &file.kind {
        None => Err(("unknown".to_owned(), "a kind of a later version".to_owned())),
        Some(Kind::Regular(regular)) if regular.identity.as_ref().is_some_and(|file| is_made(file, found_at)) => Ok(()),
        Some(Kind::Regular(regular)) if gone => try_regular(regular.identity.as_ref(), found_at, status),
        Some(Kind::Regular(regular)) => {
            let path = regular.identity.as_ref().map_or("", |identity| identity.path.as_str());
            found_at.may_open(path, status).map_err(failed(path))
        }
        Some(Kind::Directory(directory)) if gone => regular::open_directory(directory, reach, status, file.offset).map(drop),
        Some(Kind::Directory(directory)) => may_open(reach, &directory.path, Which::of(directory.inode.as_ref()), status),
        Some(Kind::Device(wanted)) if gone => device::open_device(wanted, reach, status).map(drop),
        Some(Kind::Device(wanted)) => may_open(reach, &wanted.path, None, status),
        Some(Kind::PathOnly(only)) => device::open_path_only(only, reach, status).map(drop),
        Some(Kind::Socket(socket)) => {
            let tried = sockets::trial::try_options(socket);
            let tried = if socket.pair == 0 { tried.and_then(|()| sockets::trial::try_address(socket, reach, outlook)) } else { tried };
            tried.map_err(failed("socket"))
        }
        // Opening them would be noticed by others; whether they are there is known.
        Some(Kind::NamedPipe(pipe)) => match reach.find(&pipe.path, Which::of(pipe.inode.as_ref())) {
            Ok(place) => reach.may_open(&place, status).map_err(failed(&pipe.path)),
            Err(_) => Ok(()),
        },
        Some(Kind::Inotify(_) | Kind::Fanotify(_)) => Ok(()),
        // Opened by the child itself.
        Some(Kind::KernelFile(_) | Kind::Pidfd(_) | Kind::Namespace(_)) => Ok(()),
        // Made from nothing but the image, or our own.
        Some(Kind::Kept(_)) => Ok(()),
        Some(Kind::Terminal(_) | Kind::OutsidePipe(_) | Kind::Pipe(_) | Kind::OutsideSocket(_)) => Ok(()),
        Some(Kind::Eventfd(_) | Kind::Epoll(_) | Kind::Timerfd(_) | Kind::Signalfd(_)) => Ok(()),
    }
}

fn try_regular(identity: Option<&FileIdentity>, found_at: &Found, status: OFlag) -> Result<(), Failure> {
    let path = identity.map_or("", |identity| identity.path.as_str());
    found_at.open(path, status).map(drop).map_err(failed(path))
}

/// The process's rights to a file, as an open with these flags needs them.
fn may_open(reach: &Reach, path: &str, which: Option<Which>, status: OFlag) -> Result<(), Failure> {
    reach.find(path, which).and_then(|place| reach.may_open(&place, status)).map_err(failed(path))
}
