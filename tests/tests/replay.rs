//! What earlier restores touched comes first: faults go, contents stay what they were, and a record that is no use harms nobody.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::redis::Redis;
use defrost_tests::{Server, defrost_ok, eventually, need_root};
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

const NAME: &str = "redis";
const VALUES: usize = 60_000;

/// A redis that was frozen, behind a page server.
struct Frozen {
    redis: Redis,
    folder: TempDir,
    server: Server,
    asked: Vec<usize>,
}

impl Frozen {
    fn new() -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        let (mut redis, server) = (Redis::start(VALUES)?, Server::start(folder.path())?);
        defrost_ok(&["checkpoint", &redis.victim.pid().to_string(), NAME, "--store", &server.store()])?;
        redis.victim.reap()?;
        let mut random = fastrand::Rng::with_seed(5);
        Ok(Self { redis, folder, server, asked: (0..2000).map(|_| random.usize(..VALUES)).collect() })
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&defrost_ok(&["status", &self.redis.victim.pid().to_string(), "--json"])?)?)
    }

    fn inspect(&self) -> Result<Value> {
        Ok(serde_json::from_str(&defrost_ok(&["inspect", NAME, "--json", "--store", &self.server.store()])?)?)
    }

    /// Restore only what is touched, wait for what is replayed, touch, and end it; yields the pager's last status. In the end `restores`
    /// have left a record, where that can be waited for.
    fn restore(&mut self, how: &[&str], restores: Option<u64>) -> Result<Value> {
        let (store, replay) = (self.server.store(), if how.contains(&"--no-replay") { &[][..] } else { &["--replay"] });
        defrost_ok(&[&["restore", NAME, "--detach", "--no-background", "--store", &store], replay, how].concat())?;
        eventually("what is known is replayed", || {
            // Whatever a fault was faster with was not replayed.
            self.status().is_ok_and(|status| {
                let (known, missing) = (status["working_set_bytes"].as_u64(), status["replayed_bytes"].as_u64());
                known == Some(0) || known.zip(missing).is_some_and(|(known, came)| came * 10 >= known * 9)
            })
        })?;
        self.redis.compare_these(&self.asked)?;
        let status = self.status()?;
        if how.contains(&"off") {
            self.redis.compare(VALUES)?; // which would all be in the record
        }
        self.redis.victim.end()?;
        if let Some(restores) = restores {
            eventually("the record is kept", || {
                self.inspect().is_ok_and(|told| told["working_set"]["restores"].as_u64() == Some(restores))
            })?;
        }
        Ok(status)
    }

    fn record(&self) -> Result<PathBuf> {
        let mut entries = std::fs::read_dir(self.folder.path().join("snapshots"))?.flatten().map(|entry| entry.path());
        entries.find(|path| path.to_string_lossy().ends_with(".working-set")).context("no working set is kept")
    }
}

fn faults(status: &Value) -> Result<u64> {
    status["demand_faults"].as_u64().context("faults")
}

#[test]
fn the_second_restore_has_what_the_first_one_touched() -> Result<()> {
    let mut frozen = Frozen::new()?;
    ensure!(frozen.inspect()?["working_set"].is_null());
    let cold = faults(&frozen.restore(&["--record", "off"], None)?)?;
    ensure!(cold > 300, "{cold} faults");
    ensure!(frozen.inspect()?["working_set"].is_null(), "something was recorded");
    frozen.restore(&[], Some(1))?;
    let told = defrost_ok(&["inspect", NAME, "--store", &frozen.server.store()])?;
    ensure!(told.contains("what 1 restores touched first"), "{told}");
    let status = frozen.restore(&[], None)?;
    let warm = faults(&status)?;
    ensure!(warm * 20 <= cold, "{warm} faults instead of {cold}: {status}");
    ensure!(status["replayed_bytes"].as_u64() > Some(0), "{status}");
    let again = frozen.restore(&["--record", "off"], None)?;
    ensure!(
        again["replayed_bytes"].as_u64() < again["total_bytes"].as_u64().map(|total| total * 3 / 4),
        "everything was replayed: {again}"
    );
    let again = faults(&frozen.restore(&["--no-replay", "--record", "off"], None)?)?;
    ensure!(again * 2 > cold, "{again} faults without replay, {cold} before");
    frozen.restore(&["--no-replay", "--record", "new"], Some(1))?;
    Ok(())
}

#[test]
fn a_record_that_is_none_is_replaced() -> Result<()> {
    let mut frozen = Frozen::new()?;
    frozen.restore(&[], Some(1))?;
    let path = frozen.record()?;
    for bytes in [vec![0xff; 1000], Vec::new(), vec![8, 1, 18, 3, 0xff, 0xff, 0x7f]] {
        std::fs::write(&path, &bytes)?;
        let status = frozen.restore(&[], None)?;
        ensure!(faults(&status)? > 0, "{status}");
        eventually("there is a record again", || std::fs::read(&path).is_ok_and(|kept| kept != bytes && !kept.is_empty()))?;
    }
    Ok(())
}
