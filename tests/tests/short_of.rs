//! Those who serve a restore are short of descriptors or of room: a forked child that cannot be kept is refused (SIGBUS), never zeros, and
//! its parent goes on.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::guarded::{Guarded, state_of};
use defrost_tests::unrest::limit_descriptors;
use defrost_tests::{Ended, Server, Victim, checkpoint, defrost_ok, defrost_through, eventually, need_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::process::{Command, Stdio};

const LAZY: [&str; 3] = ["--detach", "--no-background", "--no-replay"];

struct Brood {
    victim: Victim,
    server: Server,
    _folder: tempfile::TempDir,
}

impl Brood {
    fn new(through: &[&str], children: u32) -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        let server = Server::start(folder.path())?;
        let mut victim = Victim::c_as(through, "brood", &[&children.to_string()])?;
        checkpoint(&mut victim, "brood", &server.store())?;
        Ok(Self { victim, server, _folder: folder })
    }

    fn restore(&self, through: &[&str]) -> Result<()> {
        let store = self.server.store();
        let output = defrost_through(through, &[&["restore", "brood", "--store", &store], LAZY.as_slice()].concat())?;
        ensure!(output.status.success(), "restore: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// How many children were refused, once all have ended.
    fn refused(&self) -> Result<u32> {
        self.victim.publish("go", "")?;
        let (refused, verdict) = (self.victim.folder().join("refused"), self.victim.folder().join("verdict"));
        eventually("all children have ended", || refused.exists() || verdict.exists())?;
        ensure!(!verdict.exists(), "{}", fs::read_to_string(verdict)?);
        Ok(fs::read_to_string(refused)?.trim().parse()?)
    }

    fn ends_right(mut self) -> Result<()> {
        self.victim.publish("rest", "")?;
        self.victim.check("")?;
        self.victim.end()
    }
}

#[test]
fn a_soft_limit_on_descriptors_refuses_nobody() -> Result<()> {
    let brood = Brood::new(&["prlimit", "--nofile=100:4096"], 200)?;
    brood.restore(&["prlimit", "--nofile=100:4096"])?;
    ensure!(brood.refused()? == 0, "children were refused");
    brood.ends_right()
}

#[test]
fn a_hard_limit_on_descriptors_refuses_children_and_not_their_parent() -> Result<()> {
    let brood = Brood::new(&["prlimit", "--nofile=100:100"], 200)?;
    brood.restore(&["prlimit", "--nofile=100:100"])?;
    let status = || defrost_ok(&["status", &brood.victim.pid().to_string(), "--json"]);
    let refused = brood.refused()?;
    ensure!((50..200).contains(&refused), "{refused} of 200 children were refused");
    ensure!(status()?.contains("a forked child is refused"), "status does not say so: {}", status()?);
    brood.ends_right()
}

/// A soft limit that somebody lowered on those of ours that serve.
#[test]
fn a_lowered_limit_on_descriptors_keeps_no_pager_from_taking_over() -> Result<()> {
    let brood = Brood::new(&[], 5)?;
    let guarded = Guarded::restore(&brood.victim, "brood", &brood.server.store(), &["--no-background", "--no-replay"])?;
    let before = guarded.status()?;
    for pid in [before.supervisor_pid, before.pager_pid].into_iter().flatten() {
        limit_descriptors(pid, 0)?.context("it serves")?;
    }
    ensure!(guarded.kill_one(before.pager_pid.context("a pager serves it")?)?, "the pager was gone");
    eventually("another pager serves", || guarded.status().is_ok_and(|now| now.adopted == 1 && now.state == "lazy"))?;
    brood.refused()?;
    brood.ends_right()?;
    guarded.left_nothing()
}

/// Mounts of its own, with a small runtime directory; gone with the value.
struct SmallRun(Ended);

impl SmallRun {
    fn new() -> Result<Self> {
        fs::create_dir_all("/run/defrost")?;
        let script = "mount --make-rprivate / && mount -t tmpfs -o size=600k,mode=0700 small /run/defrost && echo ready && exec sleep 1000";
        let mut child = Command::new("unshare").args(["--mount", "sh", "-c", script]).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("its output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        let small = Self(Ended(child));
        ensure!(line == "ready\n", "no mount namespace could be made");
        Ok(small)
    }

    fn through(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--mount=/proc/{}/ns/mnt", self.0.id())]
    }

    /// A path of the runtime directory, as it is in there.
    fn file(&self, name: &str) -> String {
        format!("/proc/{}/root/run/defrost/{name}", self.0.id())
    }

    fn fill(&self) -> Result<()> {
        let filler = fs::write(self.file("filler"), vec![1; 1 << 20]);
        ensure!(filler.is_err_and(|error| error.raw_os_error() == Some(nix::libc::ENOSPC)), "it is not full");
        Ok(())
    }
}

#[test]
fn a_full_runtime_directory_refuses_children_and_can_be_taken_over() -> Result<()> {
    need_root()?;
    let small = SmallRun::new()?;
    let through = small.through();
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    let brood = Brood::new(&[], 20)?;
    brood.restore(&through)?;
    small.fill()?;
    let refused = brood.refused()?;
    ensure!(refused == 20, "{refused} of 20 children were refused");
    let pid = brood.victim.pid();
    let ask = |args: &[&str]| -> Result<String> {
        let output = defrost_through(&through, args)?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let status = ask(&["status", &pid.to_string(), "--json"])?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    for who in ["supervisor_pid", "pager_pid"] {
        let one = status.get(who).and_then(serde_json::Value::as_u64).context("a pid")? as i32;
        kill(Pid::from_raw(one), Signal::SIGKILL)?;
        eventually("it is dead", || matches!(state_of(one as u32), None | Some('Z')))?;
    }
    // Its supervisor died first: the pager may have become one, and been replaced, meanwhile.
    if !ask(&["status", &pid.to_string()])?.contains("lazy") {
        ask(&["pager", "--adopt", &pid.to_string()])?;
    }
    ensure!(ask(&["status", &pid.to_string()])?.contains("lazy"), "nobody serves it");
    brood.ends_right()
}

/// A journal is rewritten every few hundred moves; a full runtime directory stops neither that nor a pager that takes over.
#[test]
fn a_full_runtime_directory_stops_no_program_that_moves_memory() -> Result<()> {
    need_root()?;
    let small = SmallRun::new()?;
    let through = small.through();
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::c("moves", &[])?;
    checkpoint(&mut victim, "moves", &store)?;
    let output = defrost_through(&through, &[&["restore", "moves", "--store", &store], LAZY.as_slice()].concat())?;
    ensure!(output.status.success(), "restore: {}", String::from_utf8_lossy(&output.stderr));
    small.fill()?;
    victim.check("").with_context(|| fs::read_to_string(small.file("pager.log")).unwrap_or_default())
}
