//! `defrost restore` without `--detach`: the process takes the command's place, with its streams, signals, terminal and exit code.
//!
//! What becomes of the process when the command is killed by SIGKILL is tested last: before the process runs it goes with the command
//! (the kernel ends it, as it is traced with PTRACE_O_EXITKILL), from then on it lives on by itself, its pages still served.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::command::{MARK, new_mark};
use defrost_tests::screen::{Heard, Shell};
use defrost_tests::{Server, Victim, binary, checkpoint, defrost, defrost_ok, eventually, need_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A restore in the foreground, its streams pipes to us; ended with its value.
struct Foreground {
    child: Child,
    stdin: ChildStdin,
    out: Heard,
    err: Heard,
}

impl Foreground {
    fn start(store: &str, how: &[&str]) -> Result<Self> {
        let mut command = Command::new(binary("defrost")?);
        command.args(["restore", "x", "--store", store]).args(how).env(MARK, new_mark());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("it is piped")?;
        let out = Heard::listen(child.stdout.take().context("it is piped")?);
        let err = Heard::listen(child.stderr.take().context("it is piped")?);
        Ok(Self { child, stdin, out, err })
    }

    /// Tell the process something, and hear what it says to that.
    fn tell(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.stdin, "{line}")?)
    }

    fn says(&mut self, word: &str) -> Result<()> {
        self.tell(&format!("say {word}"))?;
        self.out.wait_for(&format!("said {word}")).with_context(|| self.err.text())
    }

    fn code(&mut self) -> Result<Option<i32>> {
        let mut status = None;
        eventually("the command ends", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        Ok(status.context("eventually() says so")?.code())
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already is as well
        let _ = self.child.wait();
    }
}

/// A victim that was talked to over pipes, in a store.
fn frozen() -> Result<(Victim, TempDir, String)> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::c_on(&[], [Stdio::piped(), Stdio::piped(), Stdio::piped()], "streams")?;
    checkpoint(&mut victim, "x", &store)?;
    Ok((victim, folder, store))
}

#[test]
fn pipes_are_reattached_and_the_exit_code_is_the_processs() -> Result<()> {
    let (mut victim, _folder, store) = frozen()?;
    for (order, code) in [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill 15", 143), ("kill 9", 137), ("kill 10", 138)] {
        let mut command = Foreground::start(&store, &[])?;
        command.says("hello")?;
        command.tell("complain loudly")?;
        command.err.wait_for("complained loudly")?;
        command.tell(order)?;
        assert_eq!(command.code()?, Some(code), "{order}: {}", command.err.text());
        assert_eq!(command.out.text(), "said hello\n");
        assert_eq!(command.err.text(), "complained loudly\n");
        victim.end()?;
        eventually("its socket is gone", || victim.no_socket().is_ok())?;
    }
    Ok(())
}

#[test]
fn the_end_of_input_reaches_the_process() -> Result<()> {
    let (_victim, _folder, store) = frozen()?;
    let Foreground { .. } = {
        let mut command = Foreground::start(&store, &[])?;
        command.says("hello")?;
        // Closed by replacing it with another command's, which nobody listens to.
        let mut other = Command::new("true").stdin(Stdio::piped()).spawn()?;
        command.stdin = other.stdin.take().context("it is piped")?;
        other.wait()?;
        command.out.wait_for("end of input")?;
        command
    };
    Ok(())
}

/// Each signal comes through once, also where the store keeps threads of its own in the command.
#[test]
fn signals_are_forwarded_once_each() -> Result<()> {
    let (mut victim, folder, store) = frozen()?;
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];
    for served in [false, true] {
        let server = if served { Some(Server::start(folder.path())?) } else { None };
        let address = server.as_ref().map_or_else(|| store.clone(), Server::store);
        for _ in 0..5 {
            let mut command = Foreground::start(&address, &[])?;
            command.says("hello")?;
            for signal in signals {
                kill(Pid::from_raw(command.child.id() as i32), signal)?;
                let line = format!("signal {}", signal as i32);
                command.out.wait_for(&line).with_context(|| format!("through {address}: {:?}", command.child.try_wait()))?;
            }
            command.says("still")?;
            for signal in signals {
                assert_eq!(command.out.count(&format!("signal {}", signal as i32)), 1, "{}", command.out.text());
            }
            command.tell("exit 7")?;
            assert_eq!(command.code()?, Some(7));
            victim.end()?;
        }
    }
    Ok(())
}

/// A signal that comes while the process is rebuilt is not lost: it ends the restore, or reaches the process.
#[test]
fn a_termination_while_it_is_rebuilt_leaves_nothing_or_arrives() -> Result<()> {
    let (mut victim, _folder, store) = frozen()?;
    for round in 0..30_u64 {
        let mut command = Foreground::start(&store, &[])?;
        std::thread::sleep(Duration::from_micros(round * 1500));
        kill(Pid::from_raw(command.child.id() as i32), Signal::SIGTERM)?;
        let mut status = None;
        eventually("it ends, or the process tells of the signal", || {
            status = command.child.try_wait().ok().flatten();
            status.is_some() || command.out.count("signal 15") == 1
        })
        .with_context(|| format!("round {round}"))?;
        match status {
            // Killed by the signal before anything ran.
            Some(_) => eventually("nothing is left", || victim.left_nothing().is_ok()).with_context(|| format!("round {round}"))?,
            None => command.says("hello")?,
        }
        drop(command);
        victim.end()?;
    }
    Ok(())
}

#[test]
fn detached_streams_lead_to_dev_null_and_that_is_said() -> Result<()> {
    let (victim, _folder, store) = frozen()?;
    let output = defrost(&["restore", "x", "--store", &store, "--detach"])?;
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{err}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\n", victim.pid()));
    assert!(err.lines().count() == 1 && err.contains("/dev/null"), "{err}");
    for fd in 0..3 {
        assert_eq!(std::fs::read_link(format!("/proc/{}/fd/{fd}", victim.pid()))?, Path::new("/dev/null"));
    }
    Ok(())
}

fn status(victim: &Victim) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(&defrost_ok(&["status", &victim.pid().to_string(), "--json"])?)?)
}

#[test]
fn a_pid_file_is_written_and_memory_comes_as_asked() -> Result<()> {
    let (mut victim, folder, store) = frozen()?;
    let pid_file = folder.path().join("pid-file");
    let pid_file_text = pid_file.to_string_lossy().into_owned();
    let missing = |victim: &Victim| Ok::<_, anyhow::Error>(status(victim)?["missing_bytes"].as_u64().unwrap_or_default());

    let mut eager = Foreground::start(&store, &["--eager", "--pid-file", &pid_file_text])?;
    eventually("the pid file is there", || std::fs::read_to_string(&pid_file).is_ok_and(|text| text.ends_with('\n')))?;
    assert_eq!(std::fs::read_to_string(&pid_file)?, format!("{}\n", victim.pid()));
    assert_eq!((missing(&victim)?, status(&victim)?["state"].as_str()), (0, Some("resident")));
    eager.says("hello")?;
    assert_eq!(status(&victim)?["demand_faults"].as_u64(), Some(0), "an eager restore left a page out");
    victim.end()?;
    assert_eq!(eager.code()?, Some(137), "it ends as the process did");

    let mut lazy = Foreground::start(&store, &["--no-background"])?;
    lazy.tell("complain first")?;
    lazy.err.wait_for("complained first")?;
    std::thread::sleep(Duration::from_millis(300));
    let before = missing(&victim)?;
    assert!(before > 4 << 20, "{before} bytes are missing: something came that nobody asked for");
    lazy.says("hello")?; // looks at 8 MiB
    assert!(missing(&victim)? < 1 << 20, "what was touched is there");
    drop(lazy);
    victim.end()?;

    let mut both = Foreground::start(&store, &[])?;
    both.tell("complain first")?;
    both.err.wait_for("complained first")?;
    defrost_ok(&["wait", &victim.pid().to_string()])?;
    assert_eq!(missing(&victim)?, 0);
    both.says("hello")
}

#[test]
fn a_pid_file_that_cannot_be_written_is_told() -> Result<()> {
    let (victim, folder, store) = frozen()?;
    let place = folder.path().join("missing/pid").to_string_lossy().into_owned();
    let text = defrost_tests::defrost_fails(&["restore", "x", "--store", &store, "--detach", "--pid-file", &place])?;
    assert!(text.contains(&place), "{text}");
    victim.left_nothing()
}

/// Frozen on one terminal, restored in the foreground of an interactive shell on another: it reads what is typed, Ctrl-C and a new
/// window size reach it once each, its exit code is the shell's, and the shell has its terminal back.
fn moves_to_another_terminal(start: impl FnOnce(&Path, &str) -> Result<Shell>) -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store").to_string_lossy().into_owned();
    let program = Victim::program("streams")?;
    let mut first = start(folder.path(), &program)?;
    let pid_file = folder.path().join("pid");
    eventually("it is ready", || folder.path().join("ready").exists()).with_context(|| first.screen.text())?;
    let pid: i32 = std::fs::read_to_string(&pid_file)?.trim().parse()?;
    first.types("say here\n")?;
    first.screen.wait_for("said here")?;
    defrost_ok(&["checkpoint", &pid.to_string(), "x", "--store", &store])?;
    drop(first);

    let mut second = Shell::start(folder.path())?;
    let defrost = binary("defrost")?;
    second.types(&format!("{} restore x --store {store}; echo code=$?\n", defrost.display()))?;
    let moved = (|| {
        second.types("say there\n")?;
        second.screen.wait_for("said there")?;
        second.types("\x03")?;
        second.screen.wait_for("signal 2")?;
        // One number: stty sets each by a call of its own, and each is a signal.
        let resized = Command::new("stty").args(["-F", &second.name, "rows", "51"]).status()?;
        ensure!(resized.success(), "stty: {resized}");
        second.screen.wait_for("signal 28")?;
        second.types("say more\n")?;
        second.screen.wait_for("said more")?;
        for once in ["signal 2", "signal 28"] {
            ensure!(second.screen.count(once) == 1, "{once} came more than once: {}", second.screen.text());
        }
        second.types("exit 5\n")?;
        second.screen.wait_for("code=5")?;
        second.types("echo back $((20 + 3))\n")?;
        second.screen.wait_for("back 23")
    })();
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // it has ended, unless the test failed
    moved.with_context(|| second.screen.text())
}

#[test]
fn a_shells_job_moves_to_another_terminal() -> Result<()> {
    moves_to_another_terminal(|folder, program| {
        let mut shell = Shell::start(folder)?;
        shell.types(&format!("{program}\n"))?;
        Ok(shell)
    })
}

#[test]
fn a_session_leader_moves_to_another_terminal() -> Result<()> {
    moves_to_another_terminal(|folder, program| Shell::start_with(folder, &[program]))
}

#[test]
fn a_process_in_somebody_elses_group_moves_to_another_terminal() -> Result<()> {
    moves_to_another_terminal(|folder, program| Shell::start_with(folder, &["sh", "-c", &format!("{program}; true")]))
}

/// Killed at any moment, the command leaves nothing or a process that is whole.
#[test]
fn a_killed_command_leaves_nothing_or_a_whole_process() -> Result<()> {
    let (mut victim, _folder, store) = frozen()?;
    let (mut nothing, mut whole) = (0, 0);
    for round in 0..25_u64 {
        let mut command = Foreground::start(&store, &["--no-background"])?;
        std::thread::sleep(Duration::from_micros(round * 2000));
        command.child.kill()?;
        command.child.wait()?;
        // What was being built is ended by the kernel, which may take a moment; then nobody reads this any more.
        let _ = command.tell("say alone");
        let proc = format!("/proc/{}", victim.pid());
        eventually("it is gone or answers", || !Path::new(&proc).exists() || command.out.count("said alone") == 1)
            .with_context(|| format!("round {round}"))?;
        if Path::new(&proc).exists() {
            whole += 1;
        } else {
            nothing += 1;
            eventually("its pager is gone", || victim.no_socket().is_ok()).with_context(|| format!("round {round}"))?;
        }
        victim.end()?;
    }
    println!("{nothing} left nothing, {whole} a whole process");
    Ok(())
}
