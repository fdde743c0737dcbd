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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_kinds_of_notification() {
        let text = "ID: 0\nsignal: 60/00007fff5ab1e7f0\nnotify: signal/pid.2634\nClockID: 0\nID: 3\nsignal: 32/0000000000000007\nnotify: signal/tid.9\nClockID: 1\n";
        let timers = parse_timers(text).expect("is timers");
        assert_eq!((timers[0].signal, timers[0].sigev_value, timers[0].notify), (60, 0x7fff_5ab1_e7f0, 0));
        assert_eq!((timers[1].id, timers[1].notify, timers[1].notify_tid, timers[1].clock), (3, 4, 9, 1));
    }
}
