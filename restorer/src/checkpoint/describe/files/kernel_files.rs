//! Files that the kernel makes up: proc, sysfs, cgroups, namespaces; and descriptors that only name a place (O_PATH).
//!
//! The process opens them again itself, by the same path: what /proc/PID shows is its own then. Others' are refused.
//!
//! Known hole: a file that poll(2) watches for changes (mountinfo, cgroup.events) does not tell of a change in between.

use super::outside::holder;
use super::regular::inode_of;
use super::{Context, Open};
use crate::checkpoint::CheckpointError;
use crate::process::fdinfo::FdInfo;
use images::manifest::description::Kind;
use images::manifest::{KernelFile, NamespaceFd, PathOnly, PidFd};
use nix::sys::stat::{fstat, lstat};
use nix::sys::statfs::statfs;

/// File systems of include/uapi/linux/magic.h whose files are opened again by path.
const OPENED_AGAIN: [i64; 4] = [PROC, 0x6265_6572, 0x6367_7270, 0x0027_e0eb];
const PROC: i64 = 0x9fa0;
/// Others without files of their own, by name.
const REFUSED: [(i64, &str); 15] = [
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x6265_6570, "configfs"),
    (0xcafe_4a11, "bpffs"),
    (0x6e73_6673, "nsfs"),
    (0x1980_0202, "a POSIX message queue"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x6573_5543, "fusectl"),
    (0x6759_6969, "rpc_pipefs"),
    (0x0bad_1dea, "futexfs"),
    (0x6e66_7364, "nfsd"),
];

const CLOSE: &str = "let it close this one";

/// What the path at `entry` leads to, if it is the kernel's own.
pub(super) fn made_up(context: &Context<'_>, entry: &Open, flags: u32) -> Result<Option<Kind>, CheckpointError> {
    let proc = context.proc;
    let refuse = |what: &str, advice| proc.refuse(format!("fd {}: {} {what}", entry.number, entry.link), advice);
    let Some(magic) = magic(context, entry) else { return Ok(None) };
    if let Some((_, name)) = REFUSED.iter().find(|(refused, _)| *refused == magic) {
        return Err(refuse(&format!("({name}) cannot be captured"), CLOSE));
    }
    if !OPENED_AGAIN.contains(&magic) {
        return Ok(None);
    }
    if entry.link.ends_with(" (deleted)") || entry.link.ends_with("//deleted") {
        return Err(refuse("tells of something that is gone", CLOSE));
    }
    if let Some(other) = entry.link.strip_prefix("/proc/").filter(|_| magic == PROC).and_then(first_number)
        && other != proc.pid
    {
        return Err(refuse(&format!("is of another process: {}", holder(other)), CLOSE));
    }
    let writes = flags as i32 & libc::O_ACCMODE != libc::O_RDONLY && flags as i32 & libc::O_PATH == 0;
    if writes && (entry.link.ends_with(".pressure") || entry.link.starts_with("/proc/pressure/")) {
        return Err(refuse("may have a pressure trigger, which cannot be read back", CLOSE));
    }
    Ok(Some(Kind::KernelFile(KernelFile { path: entry.link.clone() })))
}

/// The kind of file system that it is on; asked once for each mount.
fn magic(context: &Context<'_>, entry: &Open) -> Option<i64> {
    let mount = FdInfo::new(&entry.info).field("mnt_id").and_then(|id| id.parse::<u32>().ok());
    if let Some(known) = mount.and_then(|mount| context.magics.borrow().get(&mount).copied()) {
        return Some(known);
    }
    let magic = statfs(&context.proc.path(&entry.number.handle())).ok()?.filesystem_type().0;
    if let Some(mount) = mount {
        context.magics.borrow_mut().insert(mount, magic);
    }
    Some(magic)
}

fn first_number(path: &str) -> Option<u32> {
    path.split('/').next()?.parse().ok()
}

/// What was opened with O_PATH.
pub(super) fn path_only(context: &Context<'_>, entry: &Open, flags: u32) -> Result<Kind, CheckpointError> {
    let proc = context.proc;
    let refuse = |what: &str| Err(proc.refuse(format!("fd {}: {} {what}", entry.number, entry.link), CLOSE));
    if !entry.link.starts_with('/') {
        return refuse("is open as a mere path (O_PATH), which cannot be opened again");
    }
    if let Some(kind) = made_up(context, entry, flags)? {
        return Ok(kind);
    }
    let lent = context.lend(entry.number)?;
    let identity = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino, stat.st_mode & libc::S_IFMT);
    let Ok(held) = fstat(&lent).map(identity) else { return refuse("cannot be looked at") };
    if lstat(entry.link.as_str()).map(identity) != Ok(held) {
        return refuse("is no longer at its path, or is a mount of its own");
    }
    let inode = std::fs::File::from(lent).metadata().ok().map(|meta| inode_of(&meta));
    Ok(Kind::PathOnly(PathOnly { path: entry.link.clone(), mode: held.2, inode }))
}

/// The namespace that `link` names, if the process lives in it.
pub(super) fn namespace(context: &Context<'_>, entry: &Open) -> Result<Kind, CheckpointError> {
    let proc = context.proc;
    let kind = entry.link.split(':').next().unwrap_or_default();
    for name in [kind.to_owned(), format!("{kind}_for_children")] {
        if proc.link(&format!("ns/{name}")).is_ok_and(|own| own == entry.link) {
            return Ok(Kind::Namespace(NamespaceFd { name }));
        }
    }
    let what = format!("fd {}: {} is a namespace that it does not live in", entry.number, entry.link);
    Err(proc.refuse(what, CLOSE))
}

/// The pidfd of process `pid`, or of its thread.
pub(super) fn pidfd(context: &Context<'_>, entry: &Open, pid: Option<&str>, flags: u32) -> Result<Kind, CheckpointError> {
    let proc = context.proc;
    let refuse = |what: String| Err(proc.refuse(format!("fd {}: {} is of {what}", entry.number, entry.link), CLOSE));
    let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()).filter(|pid| *pid != 0) else {
        return refuse("a process that has ended".to_owned());
    };
    let of_thread = flags as i32 & libc::O_EXCL != 0; // PIDFD_THREAD
    if pid != proc.pid && !(of_thread && proc.path(&format!("task/{pid}")).exists()) {
        return refuse(format!("another process: {}", holder(pid)));
    }
    Ok(Kind::Pidfd(PidFd { pid }))
}
