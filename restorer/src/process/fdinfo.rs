//! /proc/PID/fdinfo/FD: position, flags and the insides of eventfd, epoll, timerfd and signalfd.

use images::manifest::{EventFd, Interest, SignalFd, TimerFd};

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
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_kind() {
        let epoll = FdInfo::new("pos:\t0\nflags:\t02\ntfd:        5 events:       19 data:                5  pos:0 ino:1 sdev:8\n");
        assert_eq!(epoll.interests(), Some(vec![Interest { fd: 5, events: 0x19, data: 5 }]));
        let timer = FdInfo::new("clockid: 1\nticks: 0\nsettime flags: 01\nit_value: (0, 49406829)\nit_interval: (1, 0)\n");
        let timer = timer.timerfd().expect("is a timerfd");
        assert_eq!((timer.value_ns, timer.interval_ns, timer.settime_flags), (49_406_829, 1_000_000_000, 1));
        assert_eq!(FdInfo::new("eventfd-count:               5a\n").eventfd().map(|e| e.count), Some(0x5a));
        assert_eq!(FdInfo::new("pos:\t12\nflags:\t0102001\n").flags(), 0o102_001);
    }
}
