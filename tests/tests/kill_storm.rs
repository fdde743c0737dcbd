//! Never a wrong byte, whatever is killed at whatever moment (`defrost_tests::storm`).
//!
//! `DEFROST_STORM_KILLS` and `DEFROST_STORM_SEED` make it longer, or the same again; `cargo xtask bench torture` is the long one.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::storm::{KINDS, Kind, Plan, run};

/// A number that the environment may give.
fn given(name: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(otherwise),
    }
}

fn storm(kills: u64, kinds: Vec<Kind>) -> Result<()> {
    let seed = given("DEFROST_STORM_SEED", fastrand::u64(..1 << 32))?;
    println!("DEFROST_STORM_SEED={seed}");
    let kills = usize::try_from(given("DEFROST_STORM_KILLS", kills)?)?;
    let report = run(&Plan { mib: 96, pace_us: 4000, kills, kills_per_restore: 8, seed, kinds, events: false })?;
    println!("{report}");
    ensure!(report.counts.checked > 1000 && report.counts.forks > 0, "the victims hardly did anything");
    // Each may be ended rather than served wrongly, but only where something of ours died.
    ensure!(report.counts.children_killed <= report.kills.len() as u64, "{} children were killed", report.counts.children_killed);
    Ok(())
}

#[test]
fn whatever_is_killed_no_byte_is_wrong() -> Result<()> {
    storm(40, KINDS.map(|(kind, _)| kind).to_vec())
}

#[test]
fn a_page_server_that_dies_over_and_over_makes_no_byte_wrong() -> Result<()> {
    storm(12, vec![Kind::Server])
}
