//! One line of /proc/locks, or of a `lock:` in /proc/PID/fdinfo/FD: a lock or lease on a file.

use images::manifest::{FileLock, LockKind};

/// A lock or lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockLine {
    /// It waits for another one.
    pub waits: bool,
    /// POSIX, FLOCK, OFDLCK, LEASE or DELEG.
    pub kind: String,
    /// ADVISORY; ACTIVE, BREAKING or BREAKER of a lease.
    pub state: String,
    /// READ, WRITE or UNLCK.
    pub access: String,
    /// The process that took it; none for one of an open file description.
    pub pid: Option<u32>,
    /// The file system.
    pub device: (u32, u32),
    /// The file.
    pub inode: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; `i64::MAX` for the end of the file, wherever that is.
    pub end: u64,
}

impl LockLine {
    /// `1: POSIX  ADVISORY  WRITE 1234 fe:00:10012487 5 14`.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().skip(1).peekable();
        let waits = words.next_if_eq(&"->").is_some();
        let [kind, state, access] = [(); 3].map(|()| words.next().unwrap_or_default().to_owned());
        let pid = words.next()?.parse::<i64>().ok()?;
        let mut file = words.next()?.split(':');
        let [major, minor] = [file.next()?, file.next()?].map(|part| u32::from_str_radix(part, 16));
        let inode = file.next()?.parse().ok()?;
        let start = words.next()?.parse().ok()?;
        let end = match words.next()? {
            "EOF" => i64::MAX as u64,
            number => number.parse().ok()?,
        };
        let (device, pid) = ((major.ok()?, minor.ok()?), u32::try_from(pid).ok().filter(|pid| *pid != 0));
        Some(Self { waits, kind, state, access, pid, device, inode, start, end })
    }

    /// What a restore takes again; none for a lease that is being broken and what this version does not know.
    #[must_use]
    pub fn held(&self) -> Option<FileLock> {
        let kind = match (self.kind.as_str(), self.state.as_str()) {
            ("POSIX", "ADVISORY") => LockKind::Posix,
            ("FLOCK", "ADVISORY") => LockKind::Flock,
            ("OFDLCK", "ADVISORY") => LockKind::Ofd,
            ("LEASE", "ACTIVE") => LockKind::Lease,
            _ => return None,
        };
        let write = match self.access.as_str() {
            "READ" => false,
            "WRITE" => true,
            _ => return None,
        };
        Some(FileLock { kind: kind as i32, write, start: self.start, end: self.end })
    }

    /// Whether `wanted` cannot be taken while this one is held.
    #[must_use]
    pub fn excludes(&self, wanted: &FileLock) -> bool {
        let family = |kind: i32| match LockKind::try_from(kind) {
            Ok(LockKind::Posix | LockKind::Ofd) => 1,
            Ok(LockKind::Flock) => 2,
            _ => 3,
        };
        let Some(held) = self.held().filter(|_| !self.waits) else { return false };
        let overlap = held.start <= wanted.end && wanted.start <= held.end;
        overlap && family(held.kind) == family(wanted.kind) && (held.write || wanted.write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_kind() {
        let posix = LockLine::parse("2: POSIX  ADVISORY  WRITE 28427 fe:00:10012487 5 14").expect("is a lock");
        assert_eq!((posix.pid, posix.device, posix.inode), (Some(28427), (0xfe, 0), 10_012_487));
        let want = |write, start, end| FileLock { kind: LockKind::Ofd as i32, write, start, end };
        assert!(posix.excludes(&want(false, 14, 20)) && !posix.excludes(&want(true, 15, 20)));
        let ofd = LockLine::parse("1: OFDLCK ADVISORY  READ -1 fe:00:7 0 EOF").expect("is a lock");
        assert_eq!((ofd.pid, ofd.end), (None, i64::MAX as u64));
        assert!(!ofd.excludes(&want(false, 0, 1)) && ofd.excludes(&want(true, 0, 1)));
        let waits = LockLine::parse("13: -> FLOCK  ADVISORY  WRITE 27888 fe:00:5333003 0 EOF").expect("is a lock");
        assert!(waits.waits && !waits.excludes(&FileLock { kind: LockKind::Flock as i32, write: true, start: 0, end: 1 }));
        let breaking = LockLine::parse("1: LEASE  BREAKING  READ 12 fe:00:7 0 EOF").expect("is a lease");
        assert_eq!(breaking.held(), None);
    }
}
