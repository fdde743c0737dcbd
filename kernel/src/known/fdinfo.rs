//! Keys of /proc/PID/fdinfo/FD, by kind of file, and the kinds of anonymous inodes.
//!
//! The keys come from `seq_show` of fs/proc/fd.c and each `show_fdinfo` of the kernel, the names from
//! each `anon_inode_getfile`. A kind that is restored may show the keys listed here and no other; of
//! a kind that is refused every key is accepted, as nothing of it is kept.

/// What every descriptor shows.
pub const COMMON: [&str; 5] = ["pos", "flags", "mnt_id", "ino", "lock"];

/// What becomes of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is restored.
    Kept,
    /// A checkpoint refuses it, with this advice.
    Refused(&'static str),
}

/// One kind of descriptor.
#[derive(Clone, Copy, Debug)]
pub struct FdKind {
    /// What its link in /proc/PID/fd begins with.
    pub link: &'static str,
    /// Its keys besides [`COMMON`].
    pub keys: &'static [&'static str],
    /// What becomes of it.
    pub fate: Fate,
}

const fn kept(link: &'static str, keys: &'static [&'static str]) -> FdKind {
    FdKind { link, keys, fate: Fate::Kept }
}

const fn refused(link: &'static str, advice: &'static str) -> FdKind {
    FdKind { link, keys: &[], fate: Fate::Refused(advice) }
}

const NO_BPF: &str = "what is loaded into the kernel cannot be read back: let it close this one";
const NO_KVM: &str = "a virtual machine is captured by its own monitor: let it end the machine";
const NO_DEVICE: &str = "the state of a device cannot be read back: let it close this one";

/// Every kind that a link tells by its name; the rest are paths.
pub const KINDS: [FdKind; 36] = [
    kept("pipe:", &[]),
    kept("socket:", &["scm_fds"]),
    kept("anon_inode:[eventfd]", &["eventfd-count", "eventfd-id", "eventfd-semaphore"]),
    kept("anon_inode:[eventpoll]", &["tfd"]),
    kept("anon_inode:[timerfd]", &["clockid", "ticks", "settime flags", "it_value", "it_interval"]),
    kept("anon_inode:[signalfd]", &["sigmask"]),
    kept("anon_inode:inotify", &["inotify"]),
    kept("anon_inode:[fanotify]", &["fanotify"]),
    kept("anon_inode:[pidfd]", &["Pid", "NSpid"]),
    kept("anon_inode:[userfaultfd]", &["pending", "total", "API"]),
    kept("net:[", &[]),
    kept("mnt:[", &[]),
    kept("pid:[", &[]),
    kept("uts:[", &[]),
    kept("ipc:[", &[]),
    kept("user:[", &[]),
    kept("cgroup:[", &[]),
    kept("time:[", &[]),
    refused("anon_inode:[io_uring]", "start it without io_uring"),
    refused("anon_inode:[perf_event]", "counters cannot be set: let it end the measurement"),
    refused("anon_inode:[fscontext]", "let it finish mounting and close this one"),
    refused("anon_inode:seccomp notify", "it decides on the calls of others: let them end first"),
    refused("anon_inode:[landlock-ruleset]", "rules cannot be read back: let it enforce and close them"),
    refused("anon_inode:bpf", NO_BPF),
    refused("anon_inode:btf", NO_BPF),
    refused("anon_inode:kvm", NO_KVM),
    refused("anon_inode:[vfio", NO_DEVICE),
    refused("anon_inode:gpio", NO_DEVICE),
    refused("anon_inode:iio", NO_DEVICE),
    refused("anon_inode:counter", NO_DEVICE),
    refused("anon_inode:sync_file", NO_DEVICE),
    refused("anon_inode:syncobj", NO_DEVICE),
    refused("anon_inode:", "this version does not know it: let it close this one"),
    refused("/dmabuf:", NO_DEVICE),
    refused("/secretmem", "secret memory cannot be read: let it close this one"),
    refused("/[guest_memfd]", NO_KVM),
];

/// The kind of what `link` of /proc/PID/fd leads to; none for a path.
#[must_use]
pub fn kind_of(link: &str) -> Option<&'static FdKind> {
    KINDS.iter().find(|kind| link.starts_with(kind.link))
}

/// The key of one line.
#[must_use]
pub fn key_of(line: &str) -> &str {
    let key = line.split_once(':').map_or(line, |(key, _)| key).trim();
    // `inotify wd:1 ino:…` and `fanotify mnt_id:…` have their keys in the line.
    ["inotify", "fanotify"].into_iter().find(|word| key.split(' ').next() == Some(word)).unwrap_or(key)
}

/// The first key in `text`, the fdinfo of what `link` leads to, that is in no table.
#[must_use]
pub fn unknown_key<'t>(link: &str, text: &'t str) -> Option<&'t str> {
    let kind = kind_of(link);
    if kind.is_some_and(|kind| kind.fate != Fate::Kept) {
        return None;
    }
    let keys = kind.map_or(&[][..], |kind| kind.keys);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(key_of).find(|key| !COMMON.contains(key) && !keys.contains(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_the_table_lacks_is_named() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t26\neventfd-count:                3\n";
        assert_eq!(unknown_key("anon_inode:[eventfd]", text), None);
        assert_eq!(unknown_key("anon_inode:[timerfd]", text), Some("eventfd-count"));
        assert_eq!(unknown_key("anon_inode:[timerfd]", "clockid: 0\nsettime flags: 00\n"), None);
        assert_eq!(unknown_key("anon_inode:inotify", "inotify wd:3 ino:51 sdev:fe mask:fff\n"), None);
        assert_eq!(unknown_key("/dev/ptmx", "tty-index:\t0\n"), Some("tty-index"));
        assert_eq!(unknown_key("anon_inode:[io_uring]", "SqMask:\t0x3\n"), None);
    }

    #[test]
    fn no_kind_hides_behind_another() {
        for (at, kind) in KINDS.iter().enumerate() {
            let hidden = KINDS[..at].iter().find(|before| kind.link.starts_with(before.link));
            assert!(hidden.is_none(), "{} hides {}", hidden.map_or("", |before| before.link), kind.link);
        }
    }
}
