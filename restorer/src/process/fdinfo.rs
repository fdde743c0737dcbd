//! /proc/PID/fdinfo/FD: position, flags and the insides of eventfd, epoll, timerfd and signalfd.

use super::locks::LockLine;
use images::manifest::{EventFd, FileLock, Interest, SignalFd, TimerFd};

/// A file that something watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedFile {
    /// Its number.
    pub inode: u64,
    /// The file system.
    pub device: (u32, u32),
    /// Its handle and the handle's type; empty where the file system has none.
    pub handle: (i32, Vec<u8>),
}

impl std::fmt::Display for WatchedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inode {} of device {}:{}", self.inode, self.device.0, self.device.1)
    }
}

/// A watch of an inotify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Its number.
    pub wd: u32,
    /// Which events.
    pub mask: u32,
    /// What is watched.
    pub file: WatchedFile,
}

/// A mark of a fanotify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// What is watched.
    pub on: Marked,
    /// FAN_MARK_*.
    pub flags: u32,
    /// Which events.
    pub mask: u32,
    /// Which of them are left out.
    pub ignored_mask: u32,
}

/// What a fanotify watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marked {
    /// A file.
    File(WatchedFile),
    /// A mount, by its id.
    Mount(u32),
    /// A file system.
    FileSystem((u32, u32)),
}

/// The lines of one file.
#[derive(Clone, Debug)]
pub struct FdInfo<'t> {
    text: &'t str,
}

impl<'t> FdInfo<'t> {
    /// Look into `text`.
    #[must_use]
    pub fn new(text: &'t str) -> Self {
        Self { text }
    }

    /// The value behind `name:`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'t str> {
        self.text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// File position in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.field("pos").and_then(|v| v.parse().ok()).unwrap_or(0)
    }

    /// O_* flags, close-on-exec included.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.field("flags").and_then(|v| u32::from_str_radix(v, 8).ok()).unwrap_or(0)
    }

    /// O_RDONLY, O_WRONLY or O_RDWR.
    #[must_use]
    pub fn access(&self) -> i32 {
        self.flags() as i32 & libc::O_ACCMODE
    }

    /// Whether it may be read from.
    #[must_use]
    pub fn reads(&self) -> bool {
        self.access() != libc::O_WRONLY
    }

    /// Whether it may be written to.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.access() != libc::O_RDONLY
    }

    /// Locks taken through it; an error names a line that cannot be taken again.
    pub fn locks(&self) -> Result<Vec<FileLock>, &'t str> {
        self.lock_lines().map(|line| LockLine::parse(line).and_then(|lock| lock.held()).ok_or(line)).collect()
    }

    /// The lines of locks taken through it.
    pub fn lock_lines(&self) -> impl Iterator<Item = &'t str> {
        self.text.lines().filter_map(|line| line.strip_prefix("lock:")).map(str::trim)
    }

    /// What an inotify watches, in ascending order.
    #[must_use]
    pub fn watches(&self) -> Option<Vec<Watch>> {
        let watch = |line| {
            let words = Words(line);
            Some(Watch { wd: words.hex("wd")? as u32, mask: words.hex("mask")? as u32, file: words.file()? })
        };
        let lines = self.text.lines().filter(|line| line.starts_with("inotify "));
        let mut watches: Vec<Watch> = lines.map(watch).collect::<Option<_>>()?;
        watches.sort_unstable_by_key(|watched| watched.wd);
        Some(watches)
    }

    /// What a fanotify was made with, how it opens files, and its marks.
    #[must_use]
    pub fn fanotify(&self) -> Option<(u32, u32, Vec<Mark>)> {
        let mut lines = self.text.lines().filter(|line| line.starts_with("fanotify ")).map(Words);
        let made = lines.next()?;
        let mark = |words: Words<'_>| {
            let on = match (words.hex("ino"), words.hex("mnt_id")) {
                (Some(_), _) => Marked::File(words.file()?),
                (None, Some(mount)) => Marked::Mount(mount as u32),
                (None, None) => Marked::FileSystem(words.device()?),
            };
            let [flags, mask, ignored_mask] = ["mflags", "mask", "ignored_mask"].map(|name| words.hex(name));
            Some(Mark { on, flags: flags? as u32, mask: mask? as u32, ignored_mask: ignored_mask? as u32 })
        };
        let marks = lines.map(mark).collect::<Option<_>>()?;
        Some((made.hex("flags")? as u32, made.hex("event-flags")? as u32, marks))
    }

    /// Counter and kind of an eventfd.
    #[must_use]
    pub fn eventfd(&self) -> Option<EventFd> {
        let count = u64::from_str_radix(self.field("eventfd-count")?, 16).ok()?;
        Some(EventFd { count, semaphore: self.field("eventfd-semaphore") == Some("1") })
    }

    /// Signals a signalfd takes, bit n - 1 for signal n.
    #[must_use]
    pub fn signalfd(&self) -> Option<SignalFd> {
        Some(SignalFd { mask: u64::from_str_radix(self.field("sigmask")?, 16).ok()? })
    }

    /// State of a timerfd.
    #[must_use]
    pub fn timerfd(&self) -> Option<TimerFd> {
        let pair = |name| {
            let (seconds, nanos) = self.field(name)?.trim_matches(['(', ')']).split_once(", ")?;
            seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos.parse().ok()?)
        };
        Some(TimerFd {
            clock: self.field("clockid")?.parse().ok()?,
            ticks: self.field("ticks")?.parse().ok()?,
            settime_flags: u32::from_str_radix(self.field("settime flags")?, 8).ok()?,
            value_ns: pair("it_value")?,
            interval_ns: pair("it_interval")?,
            expires_unix_ns: 0,
        })
    }

    /// What an epoll watches: `tfd: 5 events: 19 data: 5 pos:0 …`.
    #[must_use]
    pub fn interests(&self) -> Option<Vec<Interest>> {
        let lines = self.text.lines().filter(|line| line.trim_start().starts_with("tfd:"));
        lines
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let after = |name: &str| words.iter().position(|w| *w == name).and_then(|at| words.get(at + 1)).copied();
                Some(Interest {
                    fd: after("tfd:")?.parse().ok()?,
                    events: u32::from_str_radix(after("events:")?, 16).ok()?,
                    data: u64::from_str_radix(after("data:")?, 16).ok()?,
                    file: None,
                })
            })
            .collect()
    }
}

/// `inotify wd:3 ino:510001 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:010051006aef9646`.
struct Words<'t>(&'t str);

impl Words<'_> {
    fn after(&self, name: &str) -> Option<&str> {
        self.0.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'))
    }

    fn hex(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.after(name)?, 16).ok()
    }

    fn device(&self) -> Option<(u32, u32)> {
        self.hex("sdev").map(|device| ((device >> 20) as u32, (device & 0xf_ffff) as u32))
    }

    fn file(&self) -> Option<WatchedFile> {
        let kind = self.hex("fhandle-type").unwrap_or(0) as i32;
        let handle = self.after("f_handle").unwrap_or_default();
        let bytes = (0..handle.len() / 2).map(|at| u8::from_str_radix(handle.get(2 * at..2 * at + 2)?, 16).ok());
        let handle = (kind, bytes.collect::<Option<_>>()?);
        Some(WatchedFile { inode: self.hex("ino")?, device: self.device()?, handle })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_kind() {
        let epoll = FdInfo::new("pos:\t0\nflags:\t02\ntfd:        5 events:       19 data:                5  pos:0 ino:1 sdev:8\n");
        assert_eq!(epoll.interests(), Some(vec![Interest { fd: 5, events: 0x19, data: 5, file: None }]));
        let timer = FdInfo::new("clockid: 1\nticks: 0\nsettime flags: 01\nit_value: (0, 49406829)\nit_interval: (1, 0)\n");
        let timer = timer.timerfd().expect("is a timerfd");
        assert_eq!((timer.value_ns, timer.interval_ns, timer.settime_flags), (49_406_829, 1_000_000_000, 1));
        let line = "inotify wd:3 ino:510001 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:01005100\n";
        let file = WatchedFile { inode: 0x51_0001, device: (254, 0), handle: (1, vec![1, 0, 0x51, 0]) };
        assert_eq!(FdInfo::new(line).watches(), Some(vec![Watch { wd: 3, mask: 0xfff, file: file.clone() }]));
        let text = "fanotify flags:200 event-flags:8000\nfanotify sdev:fe00000 mflags:0 mask:2 ignored_mask:0\n\
                    fanotify mnt_id:1b mflags:40 mask:2 ignored_mask:8\n\
                    fanotify ino:510001 sdev:fe00000 mflags:0 mask:2 ignored_mask:0 fhandle-bytes:4 fhandle-type:1 f_handle:01005100\n";
        let (flags, event_flags, marks) = FdInfo::new(text).fanotify().expect("is a fanotify");
        assert_eq!((flags, event_flags, marks.len()), (0x200, 0x8000, 3));
        let on: Vec<Marked> = marks.iter().map(|mark| mark.on.clone()).collect();
        assert_eq!(on, [Marked::FileSystem((254, 0)), Marked::Mount(0x1b), Marked::File(file)]);
        assert_eq!((marks[1].flags, marks[1].ignored_mask), (0x40, 8));
        assert_eq!(FdInfo::new("eventfd-count:               5a\n").eventfd().map(|e| e.count), Some(0x5a));
        assert_eq!(FdInfo::new("pos:\t12\nflags:\t0102001\n").flags(), 0o102_001);
    }
}
