//! What restore-and-run tests share: victims and servers that are cleaned up, the two binaries, and a client for redis.
//!
//! Everything is real: Debian's programs, our binaries as a user runs them, a server over a loopback socket. Each [`Victim`] and
//! [`Server`] ends with its value, also when a test fails. Root is needed, and asked for by name.
#![forbid(unsafe_code)]

pub mod browser;
pub mod command;
pub mod container;
pub mod core_dump;
pub mod criu;
mod ended;
pub mod frozen;
pub mod guarded;
pub mod live_pager;
pub mod machines;
pub mod many;
pub mod netns;
pub mod peers;
pub mod placement;
pub mod record;
pub mod redis;
pub mod screen;
mod server;
pub mod sized;
pub mod small_disk;
pub mod stored;
pub mod storm;
pub mod unrest;
mod victim;
pub mod watched;

pub use command::{defrost, defrost_fails, defrost_fails_through, defrost_ok, defrost_through, defrost_tries_through};
pub use ended::Ended;
pub use server::Server;
pub use victim::{Victim, compiled};

use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up: generous, as machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the workspace's binaries are: beside the running test's own folder.
pub fn binaries() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe.ancestors().nth(2).context("a test runs in target/PROFILE/deps")?.to_owned())
}

/// A binary of the workspace.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = binaries()?.join(name);
    ensure!(path.exists(), "{} is not built: run `cargo xtask test`, which builds it first", path.display());
    Ok(path)
}

/// Fails, saying why, where the tests cannot run.
pub fn need_root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this test freezes and rebuilds processes: run it as root");
    Ok(())
}

/// Ask `probe` until it holds.
pub fn eventually(what: &str, mut probe: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !probe() {
        ensure!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Checkpoint a victim and bring it back lazily.
pub fn round_trip(victim: &mut Victim, name: &str, store: &str) -> Result<()> {
    checkpoint(victim, name, store)?;
    restore(victim, name, store)
}

/// Checkpoint a victim, which ends it.
pub fn checkpoint(victim: &mut Victim, name: &str, store: &str) -> Result<()> {
    defrost_ok(&["checkpoint", &victim.pid().to_string(), name, "--store", store])?;
    victim.reap()
}

/// Checkpoint a victim, which ends it, although a restore would fail now.
pub fn checkpoint_for_elsewhere(victim: &mut Victim, name: &str, store: &str) -> Result<()> {
    defrost_ok(&["checkpoint", &victim.pid().to_string(), name, "--store", store, "--no-restore-check"])?;
    victim.reap()
}

/// Bring a victim back lazily.
pub fn restore(victim: &Victim, name: &str, store: &str) -> Result<()> {
    restore_with(victim, name, store, &[])
}

/// Bring a victim back, with more to say about how.
pub fn restore_with(victim: &Victim, name: &str, store: &str, how: &[&str]) -> Result<()> {
    let pid = defrost_ok(&[&["restore", name, "--store", store, "--detach"], how].concat())?;
    ensure!(pid.trim() == victim.pid().to_string(), "restored under pid {pid}");
    Ok(())
}

/// The whole path for one victim of `tests/victims/`: frozen and pushed to a page server, brought back so that each page comes only
/// when it is touched, and once more from the same snapshot with the rest coming behind. It must find itself right both times.
pub fn proves(source: &str, args: &[&str]) -> Result<()> {
    need_root()?;
    frozen_and_back(Victim::c(source, args)?)
}

/// The same for a victim that runs already.
pub fn frozen_and_back(mut victim: Victim) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    checkpoint(&mut victim, "victim:v", &server.store())?;
    restore_with(&victim, "victim:v", &server.store(), &["--no-background"])?;
    victim.check("").context("each page when touched")?;
    victim.end()?;
    restore(&victim, "victim:v", &server.store())?;
    victim.check("").context("second restore, with background fill")
}
