//! Clocks that go on: CLOCK_MONOTONIC and CLOCK_BOOTTIME show the restored process what they last
//! showed before it was frozen, whatever this host's show.
//!
//! The child gets a time namespace of its own (time_namespaces(7)): it unshares one, its offsets are
//! written from outside, then it enters the namespace. That happens once its memory and descriptors
//! are there, so that little time passes before it runs, and before it has a second thread, as setns
//! demands. Its vDSO shows the namespace's clocks from then on, and timers are set by them.
//!
//! Where no namespace can be had, the clocks may jump ahead, but never go back: that is refused
//! before anything is made. Known hole: CPU-time clocks begin at zero (they cannot be set).

use super::super::builder::{Builder, Step};
use super::super::error::{RestoreError, outside};
use images::manifest::Clocks;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// include/uapi/linux/sched.h; neither libc nor nix has it.
const CLONE_NEWTIME: i32 = 0x80;
/// Nanoseconds of a second.
const SECOND_NS: i128 = 1_000_000_000;

/// This host can let the clocks go on, or they only jump ahead.
pub fn check(frozen: Option<&Clocks>) -> Result<(), RestoreError> {
    frozen.map_or(Ok(()), |frozen| try_namespace().or_else(|why| ahead_only(frozen, &why)))
}

/// Give the child, which has one thread, a time namespace in which its clocks go on from `frozen`.
pub fn go_on(b: &mut Builder<'_>, pid: Pid, frozen: Option<&Clocks>) -> Step<()> {
    let Some(frozen) = frozen else { return Ok(()) };
    if let Err(why) = try_namespace() {
        return ahead_only(frozen, &why);
    }
    b.call("make its time namespace", libc::SYS_unshare, [CLONE_NEWTIME as u64, 0, 0, 0, 0, 0])?;
    let path = format!("/proc/{pid}/timens_offsets");
    let failed = |why: String| outside(format!("set the clocks ({path})"))(why);
    // The new namespace begins with the offsets of ours, by which our own clocks go.
    let offsets = Offsets::read(&path).map_err(failed)?.ahead_by(&Difference::until_now(frozen)?);
    std::fs::write(&path, offsets.text()).map_err(|error| failed(error.to_string()))?;
    let name = b.put_text("/proc/self/ns/time_for_children")?;
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let fd = b.call("look at its time namespace", libc::SYS_openat, [libc::AT_FDCWD as i64 as u64, name, flags, 0, 0, 0])?;
    b.later("enter its time namespace", libc::SYS_setns, [fd, CLONE_NEWTIME as u64, 0, 0, 0, 0])?;
    b.later("enter its time namespace", libc::SYS_close, [fd, 0, 0, 0, 0, 0])
}

/// Whether a time namespace can be had, or why not: tried in a thread of its own, as that one's children
/// alone would be born there.
fn try_namespace() -> Result<(), String> {
    let tried = std::thread::Builder::new().spawn(|| {
        unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME)).map_err(|errno| match errno {
            Errno::ENOSPC => "user.max_time_namespaces is reached".to_owned(),
            Errno::EINVAL => "the kernel has none".to_owned(),
            errno => errno.to_string(),
        })?;
        // Only a process's own folder has the file; a thread's number leads to one as well. Writing what
        // is there asks for the same rights as writing anything.
        let path = format!("/proc/{}/timens_offsets", nix::unistd::gettid());
        let same = Offsets::read(&path)?;
        std::fs::write(&path, same.text()).map_err(|error| format!("{path}: {error}"))
    });
    let tried = tried.map_err(|error| format!("no thread can be made: {error}"))?;
    tried.join().unwrap_or_else(|_| Err("it could not be tried".to_owned()))
}

/// Without a namespace: the clocks must not go back.
fn ahead_only(frozen: &Clocks, why: &str) -> Result<(), RestoreError> {
    let back = Difference::until_now(frozen)?;
    let (clock, ns) = [("CLOCK_MONOTONIC", back.monotonic_ns), ("CLOCK_BOOTTIME", back.boottime_ns)]
        .into_iter()
        .max_by_key(|(_, ns)| *ns)
        .unwrap_or_default();
    if ns <= 0 {
        return Ok(());
    }
    Err(RestoreError::Host(format!(
        "{clock} would go back by {}.{:03} s, and it cannot make a time namespace ({why}): restore as root where the kernel has \
         time namespaces (CONFIG_TIME_NS)",
        ns / SECOND_NS,
        ns % SECOND_NS / 1_000_000
    )))
}

/// How far the frozen clocks are ahead of ours: negative where ours are.
struct Difference {
    monotonic_ns: i128,
    boottime_ns: i128,
}

impl Difference {
    fn until_now(frozen: &Clocks) -> Result<Self, RestoreError> {
        let ahead = |frozen_ns: u64, clock: ClockId| {
            let now = clock_gettime(clock).map_err(outside("look at the clock"))?;
            Ok::<_, RestoreError>(i128::from(frozen_ns) - (i128::from(now.tv_sec()) * SECOND_NS + i128::from(now.tv_nsec())))
        };
        Ok(Self {
            monotonic_ns: ahead(frozen.monotonic_ns, ClockId::CLOCK_MONOTONIC)?,
            boottime_ns: ahead(frozen.boottime_ns, ClockId::CLOCK_BOOTTIME)?,
        })
    }
}

/// What a time namespace adds to the kernel's own clocks: /proc/PID/timens_offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offsets {
    monotonic_ns: i128,
    boottime_ns: i128,
}

impl Offsets {
    fn read(path: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        Self::parse(&text).ok_or_else(|| format!("{path} has another form"))
    }

    fn parse(text: &str) -> Option<Self> {
        let of = |clock: &str| {
            let mut words = text.lines().find_map(|line| line.strip_prefix(clock))?.split_whitespace();
            let mut next = || words.next()?.parse::<i64>().ok().map(i128::from);
            Some(next()? * SECOND_NS + next()?)
        };
        Some(Self { monotonic_ns: of("monotonic")?, boottime_ns: of("boottime")? })
    }

    fn ahead_by(self, difference: &Difference) -> Self {
        Self { monotonic_ns: self.monotonic_ns + difference.monotonic_ns, boottime_ns: self.boottime_ns + difference.boottime_ns }
    }

    /// As the kernel reads them: nanoseconds are never negative.
    fn text(self) -> String {
        let split = |ns: i128| format!("{} {}", ns.div_euclid(SECOND_NS), ns.rem_euclid(SECOND_NS));
        format!("monotonic {}\nboottime {}\n", split(self.monotonic_ns), split(self.boottime_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_and_written_as_the_kernel_has_them() {
        let text = "monotonic      950400         0\nboottime           -2 500000000\n";
        let offsets = Offsets::parse(text).expect("has the kernel's form");
        assert_eq!(offsets, Offsets { monotonic_ns: 950_400 * SECOND_NS, boottime_ns: -1_500_000_000 });
        assert_eq!(offsets.text(), "monotonic 950400 0\nboottime -2 500000000\n");
        let ahead = offsets.ahead_by(&Difference { monotonic_ns: -1, boottime_ns: 2_000_000_000 });
        assert_eq!(ahead.text(), "monotonic 950399 999999999\nboottime 0 500000000\n");
        assert_eq!(Offsets::parse("monotonic 1\n"), None);
    }
}
