//! Terminals: settings and window size move with the process and are put back; full-screen programs take keys; one that is gone stays gone.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::screen::Shell;
use defrost_tests::{Victim, binary, checkpoint, defrost_ok, eventually, need_root, restore};
use kernel::terminal::WindowSize;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const SMALL: WindowSize = WindowSize { rows: 24, columns: 80, x_pixels: 0, y_pixels: 0 };
const LARGE: WindowSize = WindowSize { rows: 50, columns: 132, x_pixels: 0, y_pixels: 0 };

/// A process that is ended with its value, wherever it runs by then.
struct Ended(i32);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL); // ended already is as well
    }
}

/// A folder, and the words that restore `x` from the store in it.
fn place() -> Result<(TempDir, String, String)> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store").to_string_lossy().into_owned();
    let restore = format!("{} restore x --store {store}", binary("defrost")?.display());
    Ok((folder, store, restore))
}

/// `victims/modes.c`, ready on a terminal of its own.
fn modes(folder: &TempDir, through: &[&str]) -> Result<(Shell, Ended)> {
    let program = Victim::program("modes")?;
    let shell = Shell::start_sized(folder.path(), SMALL, &[through, &[&program]].concat())?;
    shell.screen.wait_for("set")?;
    eventually("it is ready", || folder.path().join("ready").exists())?;
    let pid = std::fs::read_to_string(folder.path().join("pid"))?.trim().parse()?;
    Ok((shell, Ended(pid)))
}

fn freeze(pid: i32, store: &str) -> Result<()> {
    defrost_ok(&["checkpoint", &pid.to_string(), "x", "--store", store]).map(drop)
}

/// A terminal of another size and other settings, in which a script waits for a line, restores, and says how that ended.
fn second(folder: &TempDir, restore: &str) -> Result<Shell> {
    let script = format!("stty erase ^D intr ^X -ixon; echo here; read line; {restore}; echo code=$?; read line");
    let shell = Shell::start_sized(folder.path(), LARGE, &["sh", "-c", &script])?;
    shell.screen.wait_for("here")?;
    Ok(shell)
}

/// However it ends: of itself, killed, or as the command is ended.
#[test]
fn settings_and_size_are_as_they_were_and_put_back_in_the_end() -> Result<()> {
    let (folder, store, restore) = place()?;
    let (mut first, process) = modes(&folder, &[])?;
    first.types("=")?;
    first.screen.wait_for("size 33 101")?;
    let (settings, window) = (first.settings()?, first.window()?);
    freeze(process.0, &store)?;
    drop(first);
    for (end, code) in [("key", 7), ("process", 137), ("command", 143)] {
        let mut second = second(&folder, &restore)?;
        let (own_settings, own_window) = (second.settings()?, second.window()?);
        ensure!(own_settings != settings && own_window == LARGE, "nothing would be seen");
        second.types("\n")?;
        // What is typed too early is a line's.
        eventually("the settings are its own", || second.settings().is_ok_and(|now| now == settings))?;
        second.types("a=")?;
        second.screen.wait_for("key a").with_context(|| second.screen.text())?;
        second.screen.wait_for("size 33 101")?;
        ensure!(second.settings()? == settings && second.window()? == window, "{:?} of {window:?}", second.window());
        match end {
            "key" => second.types("q")?,
            "process" => kill(Pid::from_raw(process.0), Signal::SIGKILL)?,
            _ => {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.0))?;
                let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).context("its parent")?;
                kill(Pid::from_raw(parent.parse()?), Signal::SIGTERM)?;
            }
        }
        second.screen.wait_for(&format!("code={code}"))?;
        ensure!(second.settings()? == own_settings, "after the {end}: the settings are not as they were");
        ensure!(second.window()? == own_window, "after the {end}: the window is {:?}", second.window());
    }
    Ok(())
}

/// A size that the window's user chose meanwhile is the user's, and stays.
#[test]
fn a_window_that_is_resized_stays_so() -> Result<()> {
    let (folder, store, restore) = place()?;
    let (first, process) = modes(&folder, &[])?;
    let settings = first.settings()?;
    freeze(process.0, &store)?;
    drop(first);
    let mut second = second(&folder, &restore)?;
    second.types("\n")?;
    eventually("the settings are its own", || second.settings().is_ok_and(|now| now == settings))?;
    let chosen = WindowSize { rows: 40, columns: 90, ..LARGE };
    second.resize(chosen)?;
    second.types("=")?;
    second.screen.wait_for("size 40 90")?;
    second.types("q")?;
    second.screen.wait_for("code=7")?;
    ensure!(second.window()? == chosen, "{:?}", second.window());
    Ok(())
}

/// As a shell's job: stopped, the terminal is the shell's; continued, it is the process's, with its settings.
#[test]
fn a_job_that_stops_gives_the_terminal_back() -> Result<()> {
    let (folder, store, restore) = place()?;
    let (mut first, process) = modes(&folder, &["bash", "--noprofile", "--norc", "--noediting", "-ic", "\"$0\"; true"])?;
    first.types("a")?;
    first.screen.wait_for("key a")?;
    let settings = first.settings()?;
    freeze(process.0, &store)?;
    drop(first);
    let mut second = Shell::start_sized(folder.path(), LARGE, &["bash", "--noprofile", "--norc", "--noediting", "-i"])?;
    second.types("echo here $((1 + 1))\n")?;
    second.screen.wait_for("here 2")?;
    let own = second.settings()?;
    second.types(&format!("{restore}; echo code=$?\n"))?;
    for round in 0..2 {
        let on = |shell: &Shell| shell.settings().is_ok_and(|now| now == settings);
        eventually("the settings are its own", || on(&second)).with_context(|| second.screen.text())?;
        second.types("b")?;
        eventually("it answers", || second.screen.count("key b") == round + 1).with_context(|| second.screen.text())?;
        second.types("z")?;
        eventually("the settings are the shell's", || second.settings().is_ok_and(|now| now == own))
            .with_context(|| second.screen.text())?;
        second.types(&format!("echo back $((20 + {round}))\n"))?;
        second.screen.wait_for(&format!("back {}", 20 + round))?;
        ensure!(second.window()? == LARGE, "{:?}", second.window());
        second.types("fg\n")?;
    }
    eventually("it goes on", || second.screen.count("went on") == 2).with_context(|| second.screen.text())?;
    eventually("the settings are its own", || second.settings().is_ok_and(|now| now == settings))?;
    second.types("q")?;
    eventually("the settings are the shell's", || second.settings().is_ok_and(|now| now == own)).with_context(|| second.screen.text())?;
    second.types("echo end $((30 + 3))\n")?;
    second.screen.wait_for("end 33")
}

/// Programs of a whole screen, each with keys and what is shown then, and once more after they came back on another terminal.
#[test]
fn full_screen_programs_take_keys() -> Result<()> {
    for (words, keys, shown, end) in [
        (&["less", "numbers"][..], ["50g", "4000g"], ["72\r\n", "4022\r\n"], "q"),
        (&["vi", "-u", "NONE", "-n", "numbers"], [":50\rione\x1b", ":60\ritwo\x1b:w\r"], ["one", "written"], ":q!\r"),
        (&["top", "-d", "600"], ["", "h"], ["load average", "Help for Interactive Commands"], "q"),
        (&["htop", "-d", "100"], ["", "h"], ["Load average", "Released under the GNU"], "q"),
    ] {
        let (folder, store, restore) = place()?;
        let numbers: String = (1..=5000).map(|number| format!("{number}\n")).collect();
        std::fs::write(folder.path().join("numbers"), numbers)?;
        let program = words[0];
        (|| {
            let mut first = Shell::start_sized(folder.path(), SMALL, words)?;
            let process = Ended(first.child.id() as i32);
            eventually("it shows something", || first.screen.text().len() > 100)?;
            first.types(keys[0])?;
            first.screen.wait_for_text(shown[0])?;
            let settings = first.settings()?;
            freeze(process.0, &store)?;
            drop(first);
            let mut second = second(&folder, &restore)?;
            second.types("\n")?;
            eventually("the settings are its own", || second.settings().is_ok_and(|now| now == settings))?;
            second.types(keys[1])?;
            second.screen.wait_for_text(shown[1])?;
            // Some have more than one screen to leave, and take one key at a time.
            eventually("it ends", || {
                let _ = second.types(end);
                std::thread::sleep(std::time::Duration::from_millis(200));
                second.screen.count("code=0") > 0
            })
            .with_context(|| second.screen.text())
        })()
        .with_context(|| program.to_owned())?;
    }
    Ok(())
}

/// Says, once a line comes, whether /dev/tty leads to its terminal, in whose foreground it is.
const LEADER: &str = "
import os, sys
print('ready', flush=True)
sys.stdin.readline()
try:
    own = os.open('/dev/tty', os.O_RDWR)
    print('controlled', os.tcgetpgrp(own) == os.getpgrp() == os.tcgetpgrp(0), os.getsid(0) == os.getpid(), flush=True)
except OSError as error:
    print('not controlled:', error, flush=True)
sys.stdin.readline()
";

/// The leader of a session has the restorer's terminal where the restorer leads a session; else the command says that it has none.
#[test]
fn the_leader_of_a_session_keeps_a_controlling_terminal() -> Result<()> {
    for (through, said) in [(&["exec"][..], "controlled True True"), (&[], "not controlled")] {
        let (folder, store, restore) = place()?;
        let first = Shell::start_with(folder.path(), &["python3", "-c", LEADER])?;
        let process = Ended(first.child.id() as i32);
        first.screen.wait_for("ready")?;
        freeze(process.0, &store)?;
        drop(first);
        let script = format!("echo here; read line; {} {restore}; echo over", through.join(" "));
        let mut second = Shell::start_with(folder.path(), &["sh", "-c", &script])?;
        second.screen.wait_for("here")?;
        second.types("\n")?;
        eventually("it runs", || {
            std::fs::read_to_string(format!("/proc/{}/comm", process.0)).is_ok_and(|comm| comm.starts_with("python"))
        })?;
        if through.is_empty() {
            second.screen.wait_for_text("it had a controlling terminal and has none now")?;
        }
        second.types("\n")?;
        second.screen.wait_for_text(said).with_context(|| second.screen.text())?;
        second.types("\n")?;
    }
    Ok(())
}

/// Opened by other names: the controlling terminal alone, and beside the streams one that is only read and does not block.
#[test]
fn a_terminal_is_known_by_any_name() -> Result<()> {
    const TALK: &str = r#"
import os, sys
fds = [int(word) for word in sys.argv[1:]]
os.write(fds[-1], b"ready\n")
os.set_blocking(fds[0], True)
while True:
    line = os.read(fds[0], 100)
    flags = [os.get_blocking(fd) for fd in fds]
    os.write(fds[-1], b"said %s %s\n" % (line.strip(), str(flags).encode()))
"#;
    for (script, said) in [
        ("exec python3 talk.py 5 </dev/null >out 2>&1 5<>/dev/tty", "said hello [True]"),
        ("exec python3 talk.py 4 7 1 4</dev/tty 7<$(tty)", "said hello [True, True, True]"),
    ] {
        let (folder, store, restore) = place()?;
        std::fs::write(folder.path().join("talk.py"), TALK)?;
        let mut first = Shell::start_sized(folder.path(), SMALL, &["sh", "-c", script])?;
        let process = Ended(first.child.id() as i32);
        first.screen.wait_for("ready")?;
        first.types("hello\n")?;
        first.screen.wait_for(said)?;
        freeze(process.0, &store)?;
        drop(first);
        let mut second = second(&folder, &restore)?;
        second.types("\n")?;
        second.types("hello\n")?;
        second.screen.wait_for(said).with_context(|| script.to_owned())?;
    }
    Ok(())
}

/// Its terminal was closed, as that of a job whose ssh session has ended: it reads as at its end and takes nothing, before and after.
#[test]
fn a_terminal_that_is_gone_stays_gone() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::python(
        r#"
import fcntl, os, pty, select, struct, termios, time
master, side = pty.openpty()
os.dup2(side, 0)
os.dup2(os.open(os.ttyname(side), os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK), 9)
os.close(side)
os.close(master)
def failing(call):
    try: return call()
    except OSError as error: return error.errno
while True:
    for fd in 0, 9:
        poll = select.poll()
        poll.register(fd)
        print("found", fd, os.read(fd, 1), failing(lambda: os.write(fd, b"x")), failing(lambda: fcntl.ioctl(fd, termios.TIOCGWINSZ, b"        ")),
              poll.poll(0), hex(fcntl.fcntl(fd, fcntl.F_GETFL)), os.isatty(fd), os.readlink("/proc/self/fd/%d" % fd)[:9], flush=True)
    time.sleep(0.05)
"#,
    )?;
    victim.wait_for("found 9", 2)?;
    let found = |victim: &Victim| {
        let output = victim.output();
        let mut lines: Vec<String> = output.lines().rev().take(2).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = found(&victim);
    ensure!(before[0].contains("b'' 5"), "{before:?}");
    for generation in 0..2 {
        checkpoint(&mut victim, "x", &store)?;
        let lines = victim.count("found");
        restore(&victim, "x", &store)?;
        victim.wait_for("found 9", lines / 2 + 3)?;
        ensure!(found(&victim) == before, "generation {generation}: {:?} instead of {before:?}", found(&victim));
        defrost_ok(&["wait", &victim.pid().to_string()])?;
        if generation == 0 {
            defrost_ok(&["remove", "x", "--store", &store])?;
        }
    }
    Ok(())
}
