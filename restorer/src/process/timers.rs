//! /proc/PID/timers: the POSIX timers' ids, clocks and notifications. Times left are asked of the process itself.

use images::manifest::PosixTimer;

/// Parse the whole file; `None` where it has not the kernel's form.
#[must_use]
pub fn parse_timers(text: &str) -> Option<Vec<PosixTimer>> {
    let mut found: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        if key == "ID" {
            found.push(PosixTimer { id: value.parse().ok()?, ..PosixTimer::default() });
            continue;
        }
        let timer = found.last_mut()?;
        match key {
            "signal" => {
                let (signal, sigev_value) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.sigev_value = u64::from_str_radix(sigev_value.trim_start_matches("0x"), 16).ok()?;
            }
            "notify" => {
                let (how, who) = value.split_once('/')?;
                timer.notify = match how {
                    "signal" => libc::SIGEV_SIGNAL as u32,
                    "none" => libc::SIGEV_NONE as u32,
                    "thread" => libc::SIGEV_THREAD as u32,
                    _ => return None,
                };
                let (kind, id) = who.split_once('.')?;
                if kind == "tid" {
                    timer.notify |= libc::SIGEV_THREAD_ID as u32;
                    timer.notify_tid = id.parse().ok()?;
                }
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(found)
}

/// Why a timer on `clock` cannot be made again in the process that has these threads, its first one first.
#[must_use]
pub fn lost_clock(clock: i32, tids: &[u32]) -> Option<&'static str> {
    // Negative ones (include/linux/posix-timers_types.h): whose, inverted, before three bits of what.
    const OF_THREAD: i32 = 4;
    const KIND: i32 = 3;
    const DEVICE: i32 = 3;
    if clock >= 0 {
        return None;
    }
    let of = !(clock >> 3) as u32;
    match (of, clock & OF_THREAD != 0) {
        _ if clock & KIND == DEVICE => Some("the clock of a device"),
        (0, true) if tids.len() > 1 => Some("the CPU time of a thread that the kernel does not name"),
        (0, _) => None,
        (of, true) if !tids.contains(&of) => Some("the CPU time of a thread that has ended"),
        (of, false) if tids.first() != Some(&of) => Some("the CPU time of another process"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clocks_of_its_own_can_be_had_again() {
        let cpu = |of: i32, thread: i32| (!of << 3) | thread | 2;
        assert_eq!([0, 1, 7, 8, 9, 11, -6, -2].map(|clock| lost_clock(clock, &[70])), [None; 8]);
        assert_eq!([cpu(70, 0), cpu(70, 4), cpu(71, 4)].map(|clock| lost_clock(clock, &[70, 71])), [None; 3]);
        let lost = [cpu(71, 0), cpu(72, 4), -2, (!5 << 3) | 3].map(|clock| lost_clock(clock, &[70, 71]));
        assert!(lost.iter().all(Option::is_some), "{lost:?}");
    }

    #[test]
    fn reads_both_kinds_of_notification() {
        let text = "ID: 0\nsignal: 60/00007fff5ab1e7f0\nnotify: signal/pid.2634\nClockID: 0\nID: 3\nsignal: 32/0000000000000007\nnotify: signal/tid.9\nClockID: 1\n";
        let timers = parse_timers(text).expect("is timers");
        assert_eq!((timers[0].signal, timers[0].sigev_value, timers[0].notify), (60, 0x7fff_5ab1_e7f0, 0));
        assert_eq!((timers[1].id, timers[1].notify, timers[1].notify_tid, timers[1].clock), (3, 4, 9, 1));
    }
}
