//! How many bytes a thread of background fill asks for at once: as many as the line brings in good time.
//!
//! A fault does not wait for a chunk that is on its way to such a thread: its handler asks for the
//! chunk again. On a slow line most of a large request would so come twice, and all faults would
//! wait longer. Pure: no I/O.

use pages::{PAGE_SIZE_BYTES, PageAddr};
use std::time::Duration;

/// The first request.
const FIRST_BYTES: u64 = 128 << 10;
/// The smallest: some threads with one each take a quarter of a second of a line of 1 Mbit/s.
const LEAST_BYTES: u64 = 16 << 10;
/// The largest, of raw pages: a round trip costs little against decoding it (0.7 ms), and the pages behind a fault come soon.
pub(crate) const MOST_BYTES: u64 = 1 << 20;
/// So far behind a fault background fill goes on where the line is slow: what both ask for comes twice.
const LEAD_BYTES: u64 = 1 << 20;
/// An answer within this doubles the next request. It is longer than the round trip of any line on Earth by cable (300 ms), which says
/// nothing of what the line carries.
const SOON: Duration = Duration::from_millis(400);
/// One that took longer than this halves it.
const LATE: Duration = Duration::from_secs(1);

/// What the last answers say about the next request.
#[derive(Debug)]
pub(crate) struct RunSize {
    bytes: u64,
}

impl Default for RunSize {
    fn default() -> Self {
        Self { bytes: FIRST_BYTES }
    }
}

impl RunSize {
    /// Bytes of raw pages; the last chunk may exceed it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where to go on behind the last fault: on a slow line not right there, where the next faults are.
    pub(crate) fn behind(&self, fault_page: u64) -> PageAddr {
        let lead_bytes = if self.bytes < FIRST_BYTES { LEAD_BYTES } else { 0 };
        PageAddr::from_number(fault_page.saturating_add(lead_bytes / PAGE_SIZE_BYTES))
    }

    /// A request for so many took so long.
    pub(crate) fn took(&mut self, time: Duration) {
        self.bytes = match time {
            time if time <= SOON => self.bytes * 2,
            time if time > LATE => self.bytes / 2,
            _ => self.bytes,
        }
        .clamp(LEAST_BYTES, MOST_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of the first requests over a line of this speed and round trip.
    fn sizes(bytes_per_s: f64, round_trip: Duration) -> Vec<u64> {
        let mut size = RunSize::default();
        let ask = |_| {
            let bytes = size.bytes();
            size.took(round_trip + Duration::from_secs_f64(bytes as f64 / bytes_per_s));
            bytes >> 10
        };
        (0..6).map(ask).collect()
    }

    #[test]
    fn a_line_gets_what_it_carries() {
        let (near, far) = (Duration::from_micros(200), Duration::from_millis(280));
        assert_eq!(sizes(1e9, near), [128, 256, 512, 1024, 1024, 1024]);
        assert_eq!(sizes(125e6, far), [128, 256, 512, 1024, 1024, 1024], "a long way is no slow line");
        assert_eq!(sizes(125e3, near), [128, 64, 64, 64, 64, 64], "1 Mbit/s");
    }

    #[test]
    fn a_line_that_becomes_slow_gets_less() {
        let mut size = RunSize { bytes: MOST_BYTES };
        (0..3).for_each(|_| size.took(LATE * 2));
        assert_eq!(size.bytes(), MOST_BYTES / 8);
        (0..9).for_each(|_| size.took(LATE * 2));
        assert_eq!(size.bytes(), LEAST_BYTES);
    }
}
