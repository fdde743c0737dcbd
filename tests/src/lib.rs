//! What restore-and-run tests share: programs that are cleaned up, the two binaries, and a client for redis.
//!
//! Everything is real: Debian's programs, our binaries as a user runs them, a server over a loopback socket. Each [`Victim`] and
//! [`Server`] ends with its value, also when a test fails. Root is needed, and asked for by name.
#![forbid(unsafe_code)]

pub mod redis;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test gives up: generous, as machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A binary of the workspace, beside the running test's own folder.
pub fn binary(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let path = exe.ancestors().nth(2).context("a test runs in target/PROFILE/deps")?.join(name);
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
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whoever runs the tests may leak descriptors to them: start the program without any but 0, 1 and 2.
const WITHOUT_OUR_DESCRIPTORS: &str = "import os, sys; os.closerange(3, 65536); os.execv(sys.argv[1], sys.argv[1:])";

/// A program under test, with its output in a file that it keeps across restores.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    pid: u32,
    folder: TempDir,
}

impl Victim {
    /// Start a program in a session of its own, with no descriptor of ours.
    pub fn start(program: &str, args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Self::start_in(folder, program, args)
    }

    /// Start a Python program given as text.
    pub fn python(text: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let script = folder.path().join("victim.py");
        std::fs::write(&script, text)?;
        let script = script.to_string_lossy().into_owned();
        Self::start_in(folder, "/usr/bin/python3", &[&script])
    }

    fn start_in(folder: TempDir, program: &str, args: &[&str]) -> Result<Self> {
        let output = File::create(folder.path().join("output"))?;
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", WITHOUT_OUR_DESCRIPTORS, program]).args(args).current_dir(folder.path()).process_group(0);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("start {program}: is its package installed?"))?;
        Ok(Self { pid: child.id(), child, folder })
    }

    /// Its pid, which a restore keeps.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where it runs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All it has written.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("output")).unwrap_or_default()
    }

    /// Wait for a line that begins with `start`; yields how many there are.
    pub fn wait_for(&self, start: &str, at_least: usize) -> Result<()> {
        let count = || self.output().lines().filter(|line| line.starts_with(start)).count();
        eventually(start, || count() >= at_least).with_context(|| self.output())
    }

    /// End a restored instance, so that the snapshot can be restored again.
    pub fn end_restored(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL)?;
        eventually("the restored process ends", || !Path::new(&format!("/proc/{}", self.pid)).exists())
    }

    /// Reap the original after a checkpoint ended it, so that its pid is free.
    pub fn reap(&mut self) -> Result<()> {
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL); // gone is as well
        let _ = self.child.wait();
    }
}

/// Run `defrost` to its end.
pub fn defrost(args: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("defrost")?).args(args).stdin(Stdio::null()).output()?)
}

/// Run `defrost` and expect success; yields its standard output.
pub fn defrost_ok(args: &[&str]) -> Result<String> {
    let output = defrost(args)?;
    ensure!(output.status.success(), "defrost {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Run `defrost`, expect failure with one line, and yield it.
pub fn defrost_fails(args: &[&str]) -> Result<String> {
    let output = defrost(args)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "defrost {} ended with {}: {text}", args.join(" "), output.status);
    ensure!(text.lines().count() == 1, "not one sentence: {text}");
    Ok(text)
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

/// Bring a victim back lazily.
pub fn restore(victim: &Victim, name: &str, store: &str) -> Result<()> {
    let pid = defrost_ok(&["restore", name, "--store", store, "--detach"])?;
    ensure!(pid.trim() == victim.pid().to_string(), "restored under pid {pid}");
    Ok(())
}

/// A page server on a port of its own, with a store in a temporary folder.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Start one over `store`.
    pub fn start(store: &Path) -> Result<Self> {
        let mut command = Command::new(binary("defrost-page-server")?);
        command.args(["--listen", "127.0.0.1:0", "--store"]).arg(store).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output is piped")?).read_line(&mut line)?;
        let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        let server = Self { child, address };
        ensure!(line.contains(" ready on "), "the server said {line:?} instead of being ready");
        Ok(server)
    }

    /// Its address, as `--store` takes it.
    #[must_use]
    pub fn store(&self) -> String {
        format!("grpc://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already is as well
        let _ = self.child.wait();
    }
}
