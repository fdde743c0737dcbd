//! Running `defrost` as a user does, and what a refused command must not leave behind.
//!
//! Each run carries a [`MARK`] of its own in its environment, which everything it starts inherits: after a failure no process may
//! carry it any more, whatever other tests do meanwhile.

use crate::{PATIENCE, binary, eventually};
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// The variable of the environment that tells one run's processes.
pub const MARK: &str = "DEFROST_TESTED_BY";

/// A mark nobody else has.
#[must_use]
pub fn new_mark() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Run any command to its end and expect success.
pub fn succeeds(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}

/// A program started by one that prepares for it and then becomes it, as `nsenter` does; the program's own words are yet to be added.
pub fn through_command(through: &[&str], program: &Path) -> Result<Command> {
    let mut words = through.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().context("a program to run")?);
    command.args(words);
    Ok(command)
}

/// Run `defrost` to its end.
pub fn defrost(args: &[&str]) -> Result<Output> {
    defrost_through(&[], args)
}

/// Run `defrost` to its end, started by a program that prepares for it, as `setpriv` or `prlimit` do.
pub fn defrost_through(through: &[&str], args: &[&str]) -> Result<Output> {
    run(&new_mark(), through, args)
}

/// Run a given copy of `defrost` to its end, started like above; everything it starts carries `mark`.
pub fn defrost_marked(mark: &str, through: &[&str], program: &Path, args: &[&str]) -> Result<Output> {
    run_program(program, mark, through, args)
}

fn run(mark: &str, through: &[&str], args: &[&str]) -> Result<Output> {
    run_program(&binary("defrost")?, mark, through, args)
}

fn run_program(program: &Path, mark: &str, through: &[&str], args: &[&str]) -> Result<Output> {
    let mut command = through_command(through, program)?;
    command.args(args).env(MARK, mark);
    to_its_end(command)
}

/// Run a program without input until it ends; not longer than anything may take.
pub fn to_its_end(mut command: Command) -> Result<Output> {
    // Not through pipes: a detached restore's daemon may keep its standard error.
    let (stdout, stderr) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
    command.stdin(Stdio::null()).stdout(stdout.reopen()?).stderr(stderr.reopen()?);
    let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("{command:?} did not end in {PATIENCE:?}: {}", std::fs::read_to_string(stderr.path())?);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    Ok(Output { status, stdout: std::fs::read(stdout.path())?, stderr: std::fs::read(stderr.path())? })
}

/// Run `defrost` and expect success; yields its standard output.
pub fn defrost_ok(args: &[&str]) -> Result<String> {
    let output = defrost(args)?;
    ensure!(output.status.success(), "defrost {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Run `defrost`, expect exit code 1, one sentence and nothing left behind; yields the sentence.
pub fn defrost_fails(args: &[&str]) -> Result<String> {
    defrost_fails_through(&[], args)
}

/// The same, started by a program that prepares for it.
pub fn defrost_fails_through(through: &[&str], args: &[&str]) -> Result<String> {
    match defrost_tries_through(through, args)? {
        Err(sentence) => Ok(sentence),
        Ok(stdout) => anyhow::bail!("defrost {} should have failed; it said {stdout}", args.join(" ")),
    }
}

/// Run `defrost` where either may come: its standard output, or one sentence after which nothing is left behind.
pub fn defrost_tries_through(through: &[&str], args: &[&str]) -> Result<std::result::Result<String, String>> {
    let mark = new_mark();
    let output = run(&mark, through, args)?;
    if output.status.success() {
        return Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "defrost {} ended with {}: {text}", args.join(" "), output.status);
    ensure!(text.lines().count() == 1 && text.starts_with("defrost: "), "not one sentence: {text}");
    ensure!(output.stdout.is_empty(), "it failed, yet printed {:?}", String::from_utf8_lossy(&output.stdout));
    nothing_left(&mark, args).with_context(|| format!("after {text}"))?;
    Ok(Err(text))
}

/// Words that run `defrost` as the user nobody, from a copy in `folder` that anybody can reach, wherever the workspace lies.
pub fn as_nobody(folder: &Path) -> Result<[String; 4]> {
    let copy = folder.join("defrost");
    std::fs::copy(binary("defrost")?, &copy)?;
    for path in [folder, &copy] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    }
    let script = r#"shift; exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0" "$@""#;
    Ok(["sh".to_owned(), "-c".to_owned(), script.to_owned(), copy.to_string_lossy().into_owned()])
}

/// No process of the run, and nothing half-written in its store.
fn nothing_left(mark: &str, args: &[&str]) -> Result<()> {
    // A daemon whose restore hung up needs a moment to notice.
    eventually("no process of a failed command is left", || marked(mark).is_empty())?;
    let store = args.iter().position(|arg| *arg == "--store").and_then(|at| args.get(at + 1));
    if let Some(entries) = store.and_then(|store| std::fs::read_dir(Path::new(store).join("tmp")).ok()) {
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        ensure!(names.is_empty(), "half-written files are left in the store: {names:?}");
    }
    Ok(())
}

/// Processes that carry a mark.
#[must_use]
pub fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}");
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that cannot be read is gone, or never was ours.
    let carries = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| all.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes()))
    };
    pids.filter(carries).collect()
}
