//! Timer descriptors: clock, ticks that nobody has read, what is left, and when absolute ones expire.

use super::{Context, Number};
use crate::checkpoint::CheckpointError;
use crate::process::fdinfo::FdInfo;
use images::manifest::TimerFd;
use nix::time::{ClockId, clock_gettime};

/// Clocks of real time, which may be set: an absolute timer on one keeps its time of day.
const REAL_TIME: [i32; 2] = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_ALARM];

/// The timer at descriptor `fd`.
pub(super) fn timer(context: &Context<'_>, fd: Number) -> Result<TimerFd, CheckpointError> {
    let proc = context.proc;
    let failed = |errno| proc.refuse(format!("fd {fd}: timer: {errno}"), "run defrost as root");
    // Asked first: then the ticks of an interval timer that expired long ago are all in its fdinfo.
    let left = kernel::timer::left(&context.lend(fd)?).map_err(failed)?;
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_err(failed)?;
    let name = fd.fdinfo();
    let mut timer = FdInfo::new(&proc.text(&name)?).timerfd().ok_or_else(|| proc.malformed(&name))?;
    timer.value_ns = left.value_ns;
    let absolute = timer.settime_flags & libc::TFD_TIMER_ABSTIME as u32 != 0;
    if absolute && REAL_TIME.contains(&timer.clock) && left.value_ns > 0 {
        let now_ns = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        timer.expires_unix_ns = now_ns.saturating_add(left.value_ns);
    }
    Ok(timer)
}
