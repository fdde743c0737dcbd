//! How long CRIU's dump kept a process from running, as its file stats-dump says.

use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::time::Duration;

/// Two magic numbers and a length, before the message.
const HEAD_BYTES: usize = 12;
/// StatsEntry.dump; in it DumpStatsEntry.freezing_time and .frozen_time, in microseconds.
const DUMP: u64 = 1;
const TIMES: [u64; 2] = [1, 2];

/// The time from the first thread's stop until the process ran again, or was ended.
pub fn frozen(images: &Path) -> Result<Duration> {
    let path = images.join("stats-dump");
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let mut message = bytes.get(HEAD_BYTES..).context("stats-dump ends within its head")?;
    let (key, length) = (number(&mut message)?, number(&mut message)?);
    ensure!(key == DUMP << 3 | 2 && length as usize <= message.len(), "stats-dump has another form");
    let mut us = 0;
    // All fields of it are numbers.
    while let Ok(key) = number(&mut message) {
        let value = number(&mut message)?;
        us += if TIMES.contains(&(key >> 3)) { value } else { 0 };
    }
    Ok(Duration::from_micros(us))
}

/// A number of protobuf's, which is taken off the front.
fn number(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().context("stats-dump ends within a number")?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    anyhow::bail!("stats-dump has another form")
}
