//! Programs to be frozen: started in a session of their own, ended with their value, also when a test fails.
//!
//! Those of `tests/victims/` are compiled once a test run and speak through files in their folder: `ready` appears, the test makes
//! `go`, the victim checks itself and leaves a `verdict` (see `victims/victim.h`). A file outlives checkpoint and restore, a pipe
//! to us would not.

use crate::{PATIENCE, binaries, eventually};
use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;
use tempfile::TempDir;

/// Whoever runs the tests may leak descriptors to them: start the program without any but 0, 1 and 2, in a session of its own.
const ON_ITS_OWN: &str = "import os, signal, sys; os.setsid(); os.closerange(3, 65536); signal.signal(signal.SIGPIPE, signal.SIG_DFL); \
                          os.execvp(sys.argv[1], sys.argv[1:])";

/// A program under test, with its output in a file that it keeps across restores.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    pid: u32,
    folder: TempDir,
}

impl Victim {
    /// Start a program with no descriptor of ours.
    pub fn start(program: &str, args: &[&str]) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, &[], program, args)
    }

    /// Start a Python program given as text.
    pub fn python(text: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let script = folder.path().join("victim.py");
        std::fs::write(&script, text)?;
        let script = script.to_string_lossy().into_owned();
        Self::start_in(folder, &[], "/usr/bin/python3", &[&script])
    }

    /// Start a program in a folder that holds what it needs.
    pub fn in_folder(folder: TempDir, program: &str, args: &[&str]) -> Result<Self> {
        Self::start_in(folder, &[], program, args)
    }

    /// Start one of `tests/victims/` and wait until it is ready to be frozen.
    pub fn c(source: &str, args: &[&str]) -> Result<Self> {
        Self::c_as(&[], source, args)
    }

    /// The same through a program that prepares for it, as `setpriv` or `prlimit` do.
    pub fn c_as(through: &[&str], source: &str, args: &[&str]) -> Result<Self> {
        let program = compiled(source)?;
        let folder = tempfile::tempdir()?;
        // Another user's victim writes here too.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let victim = Self::start_in(folder, through, &program.to_string_lossy(), args)?;
        let (ready, verdict) = (victim.folder().join("ready"), victim.folder().join("verdict"));
        eventually("the victim is ready", || ready.exists() || verdict.exists()).with_context(|| victim.output())?;
        ensure!(!verdict.exists(), "{source} {args:?} before the checkpoint: {}", std::fs::read_to_string(verdict)?);
        Ok(victim)
    }

    /// One of `tests/victims/` whose standard streams lead to these pipes or terminals, so that a test can talk to it.
    pub fn c_on(through: &[&str], streams: [Stdio; 3], source: &str) -> Result<Self> {
        let program = compiled(source)?;
        let victim = Self::start_on(tempfile::tempdir()?, streams, through, &program.to_string_lossy(), &[])?;
        let ready = victim.folder().join("ready");
        eventually("the victim is ready", || ready.exists())?;
        Ok(victim)
    }

    /// Start a program whose standard streams lead to these.
    pub fn start_with_streams(streams: [Stdio; 3], program: &str, args: &[&str]) -> Result<Self> {
        Self::start_on(tempfile::tempdir()?, streams, &[], program, args)
    }

    /// Start a program in a folder that was prepared for it.
    pub fn start_prepared(folder: TempDir, program: &str, args: &[&str]) -> Result<Self> {
        Self::start_in(folder, &[], program, args)
    }

    /// The program of one of `tests/victims/`, compiled, for whoever starts it.
    pub fn program(source: &str) -> Result<String> {
        Ok(compiled(source)?.to_string_lossy().into_owned())
    }

    /// The process that `pid` of this victim's folder names is the victim, not the one that was started (a shell, say).
    pub fn is_the_one_that_says_so(&mut self) -> Result<()> {
        self.pid = std::fs::read_to_string(self.folder().join("pid"))?.trim().parse()?;
        Ok(())
    }

    /// The pipe to its standard input, where that is one.
    pub fn stdin(&mut self) -> Option<&mut std::process::ChildStdin> {
        self.child.stdin.as_mut()
    }

    fn start_in(folder: TempDir, through: &[&str], program: &str, args: &[&str]) -> Result<Self> {
        let output = File::create(folder.path().join("output"))?;
        let streams = [Stdio::null(), output.try_clone()?.into(), output.into()];
        Self::start_on(folder, streams, through, program, args)
    }

    fn start_on(folder: TempDir, streams: [Stdio; 3], through: &[&str], program: &str, args: &[&str]) -> Result<Self> {
        let [stdin, stdout, stderr] = streams;
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-I", "-S", "-c", ON_ITS_OWN]).args(through).arg(program).args(args).current_dir(folder.path());
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let child = command.spawn().with_context(|| format!("start {program}: is its package installed?"))?;
        Ok(Self { pid: child.id(), child, folder })
    }

    /// Its pid, which a restore keeps.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// It was restored into a pid namespace of its own: here it has another pid now.
    pub fn known_as(&mut self, pid: u32) {
        self.pid = pid;
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

    /// How many lines that begin with `start` it has written.
    #[must_use]
    pub fn count(&self, start: &str) -> usize {
        self.output().lines().filter(|line| line.starts_with(start)).count()
    }

    /// Wait until it has written `at_least` lines that begin with `start`.
    pub fn wait_for(&self, start: &str, at_least: usize) -> Result<()> {
        eventually(start, || self.count(start) >= at_least).with_context(|| self.output())
    }

    /// It runs on as if nobody had ever looked: no thread of it is stopped or traced, and no pager says that it serves it.
    pub fn runs_untouched(&self) -> Result<()> {
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid)).context("the process is gone")?.flatten() {
            // A thread that ended meanwhile has no state to look at.
            let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
            let field = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).unwrap_or_default().trim();
            ensure!(field("TracerPid:") == "0", "thread {:?} is still traced by {}", task.file_name(), field("TracerPid:"));
            let state = field("State:");
            ensure!(!state.starts_with(['T', 't']), "thread {:?} is stopped: {state}", task.file_name());
        }
        self.no_socket()
    }

    /// No pager's socket is left for its pid.
    pub fn no_socket(&self) -> Result<()> {
        let socket = format!("/run/defrost/{}.sock", self.pid);
        ensure!(!Path::new(&socket).exists(), "{socket} is left behind");
        Ok(())
    }

    /// A restore of it failed: nothing runs under its pid, and no socket says otherwise.
    pub fn left_nothing(&self) -> Result<()> {
        let proc = PathBuf::from(format!("/proc/{}", self.pid));
        ensure!(!proc.exists(), "process {} is left behind: {}", self.pid, self.state().unwrap_or_default());
        self.no_socket()
    }

    /// Reap the original after a checkpoint ended it, so that its pid is free.
    pub fn reap(&mut self) -> Result<()> {
        self.child.wait()?;
        Ok(())
    }

    /// Leave it a file, which it finds whole or not at all.
    pub fn publish(&self, name: &str, text: &str) -> Result<()> {
        let partial = self.folder().join(format!("{name}.partial"));
        std::fs::write(&partial, text)?;
        Ok(std::fs::rename(partial, self.folder().join(name))?)
    }

    /// Let it check itself; `go` is what it finds in the file of that name.
    pub fn check(&self, go: &str) -> Result<()> {
        self.publish("go", go)?;
        let verdict = self.folder().join("verdict");
        let begun = Instant::now();
        while !verdict.exists() {
            let state = self.state();
            let over = begun.elapsed() > PATIENCE;
            // A child that outlives it checks itself in its stead.
            let gone = state.is_none() && self.group_is_gone();
            if over || (gone && !verdict.exists()) {
                let how = if over { "has not come to a verdict" } else { "ended without a verdict" };
                bail!("process {} {how} ({}): {}", self.pid, state.unwrap_or_default(), self.output());
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let verdict = std::fs::read_to_string(verdict)?;
        ensure!(verdict == "OK\n", "process {}: {}", self.pid, verdict.trim_end());
        Ok(())
    }

    /// It ends, as it must where it cannot be right, and says nothing.
    pub fn is_ended(&self) -> Result<()> {
        let dead = || self.state().is_none_or(|state| state.split("; ").filter(|task| !task.is_empty()).all(|task| task.contains(" Z ")));
        eventually("it is ended", dead)?;
        let verdict = std::fs::read_to_string(self.folder().join("verdict"));
        ensure!(verdict.is_err(), "it came to a verdict: {verdict:?}");
        Ok(())
    }

    /// Let it check itself, and do not wait for what it finds.
    pub fn go(&self) -> Result<()> {
        Ok(std::fs::write(self.folder().join("go"), "")?)
    }

    /// What the kernel says of its threads, for a failure's message; `None` if it is gone. An orphan's child may carry its name on.
    fn state(&self) -> Option<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let mut told = String::new();
        for task in tasks.flatten() {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let state = crate::guarded::state_in(&read("stat")).unwrap_or('?');
            told.push_str(&format!("{} {state} {} {}; ", task.file_name().to_string_lossy(), read("wchan"), read("syscall").trim_end()));
        }
        Some(told)
    }

    /// End it wherever it runs, forget what it said, and wait until its pid is free: ready for another restore.
    pub fn end(&mut self) -> Result<()> {
        self.kill();
        // Where orphans come to us, a restored one is ours to reap; others may take seconds over it.
        if nix::sys::prctl::get_child_subreaper()? {
            let _ = waitpid(Pid::from_raw(self.pid as i32), None); // none of ours is as well
        }
        for name in ["go", "verdict"] {
            match std::fs::remove_file(self.folder().join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let proc = PathBuf::from(format!("/proc/{}", self.pid));
        // The dead that wait to be reaped are of their group still.
        eventually("its pid is free", || !proc.exists() && self.group_is_gone())
    }

    fn group_is_gone(&self) -> bool {
        kill(self.group(), None) == Err(Errno::ESRCH)
    }

    /// Its process group, which has its number: each leads one of its own.
    fn group(&self) -> Pid {
        Pid::from_raw(-(self.pid as i32))
    }

    fn kill(&mut self) {
        // Its children go with it, also those that it left behind.
        for whom in [self.group(), Pid::from_raw(self.pid as i32)] {
            match kill(whom, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => eprintln!("end process {whom}: {error}"),
            }
        }
        // The original; a restored one is not our child, and whoever adopted it reaps it.
        let _ = self.child.wait();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A victim's program, compiled if its text is newer. It is never compiled twice in one run: a restore wants the file unchanged.
pub fn compiled(source: &str) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims");
    let text = texts.join(source).with_extension("c");
    let folder = binaries()?.join("victims");
    std::fs::create_dir_all(&folder)?;
    let program = folder.join(source);
    let age = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let newest = age(&text).max(age(&texts.join("victim.h")));
    if age(&program) > newest {
        return Ok(program);
    }
    let partial = folder.join(format!("{source}.{}", std::process::id()));
    let output = Command::new("cc")
        .args(["-O2", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&partial, &text])
        .output()
        .context("run cc: install gcc and libc6-dev")?;
    ensure!(output.status.success(), "compile {}: {}", text.display(), String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&partial, &program)?;
    Ok(program)
}

/// Tests named for what they prove, each one victim with its arguments, by the `proves` of whoever names them.
#[macro_export]
macro_rules! victims {
    ($($name:ident: $source:literal $(, $arg:literal)*;)*) => {
        $(#[test]
        fn $name() -> anyhow::Result<()> {
            proves($source, &[$($arg),*])
        })*
    };
}
