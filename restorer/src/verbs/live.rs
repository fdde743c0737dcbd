//! Live restores, asked over their pagers' sockets.

use super::show;
use anyhow::{Context as _, Result, bail};
use defrost_restorer::report;
use defrost_restorer::restore::AUTHORITY;
use pager::answers::Answers;
use pager::keep::Place;
use pager::successor;
use pager::supervisor::{self, Work};
use pager::{State, Status, control, daemon, readers};
use pages::line::sentence;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use store::Access;

fn ask(pid: u32, how: impl Fn(u32) -> std::io::Result<Status>) -> Result<Status> {
    how(pid).map_err(|error| unanswered(pid, error))
}

/// Why nothing answers for the restore of `pid`: where none is known, the kernel's words for that add nothing.
fn unanswered(pid: u32, error: std::io::Error) -> anyhow::Error {
    let words = format!("process {pid} is not a live restore: `defrost status` shows those that are");
    match error.kind() {
        ErrorKind::TimedOut => anyhow::anyhow!(
            "the pager of process {pid} does not answer: `defrost status {pid} --json` tells its pid, `kill -CONT` lets one that was stopped go on"
        ),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow::anyhow!(words),
        _ => anyhow::Error::new(error).context(words),
    }
}

/// Be a pager's supervisor, and the pager: over the socket that a restore gave us, or to take over.
pub fn pager(take_over: Option<u32>, socket: Option<UnixStream>) -> Result<ExitCode> {
    pager::oom::spare_us();
    if let Some(place) = std::env::var_os("DEFROST_CRASH_AT") {
        pager::crash::arm(&place.to_string_lossy());
    }
    let work = match (take_over, socket) {
        (Some(pid), socket) => Work::TakeOver(pid, socket),
        (None, Some(socket)) => Work::Start(socket),
        (None, None) => bail!("a pager is started by `defrost restore`, or with --adopt PID"),
    };
    let open = |address: &str, class| super::open(address, Access::Read, class);
    let report = |path: &Path, picture: &_| report::write(path, picture).map_err(|error| error.to_string());
    let status = supervisor::run(work, &|work, told| match daemon::serve(work, told, &open, &report) {
        Ok(()) => 0,
        Err(error) => {
            crate::log::failed(&format!("pager: {}", sentence(&error))); // the disk may be full
            if error.may_pass() { supervisor::AGAIN } else { 1 }
        }
    })?;
    Ok(ExitCode::from(status as u8))
}

/// Say whether this program could take over the restore of `pid`.
pub fn can_take_over(pid: u32) -> Result<()> {
    successor::can_take_over(&Place::new(&control::runtime_dir(), pid))?;
    println!("{}", successor::ABLE);
    Ok(())
}

/// Take over a restore whose daemons all died; returns once it is served.
pub fn adopt(pid: u32) -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let authority = super::authority()?;
    let authority = authority.as_ref().map(|file| (AUTHORITY, file.as_os_str()));
    let daemon = daemon::spawn(theirs, &[successor::TAKE_OVER, &pid.to_string()], authority).context("start a pager")?;
    let mut answers = Answers::of(daemon, ours)?;
    let failed = match answers.next_line() {
        Ok(line) if line == "serving" => return Ok(()),
        Ok(line) => line.strip_prefix("failed ").unwrap_or(&line).to_owned(),
        Err(why) => format!("pager: {why}"),
    };
    answers.end();
    bail!("{failed}")
}

/// One restore, or all.
pub fn status(pid: Option<u32>, json: bool) -> Result<()> {
    let found = match pid {
        Some(pid) => vec![ask(pid, control::status)?],
        None => control::list(),
    };
    for mut status in found {
        status.readers = readers::of(status.pid, &[status.pager_pid, status.supervisor_pid]);
        show(json, &status, &status)?;
    }
    Ok(())
}

/// How the memory of one came so far, as a page; and where it stands at that moment.
pub fn report(pid: u32, json: bool, file: &Path) -> Result<()> {
    let file = report::place(file)?;
    let unanswered = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => {
            let none = unanswered(pid, error);
            anyhow::anyhow!("{none}; there are no reports of what `defrost pager criu`, `firecracker` and other front ends serve")
        }
        _ => unanswered(pid, error),
    };
    let Some(picture) = control::picture(pid).map_err(unanswered)? else {
        bail!("nobody serves process {pid} now, and so nobody knows how its memory came: `defrost pager --adopt {pid}`, then once more");
    };
    report::write(&file, &picture)?;
    show(json, &picture.status, &picture.status)
}

/// Until everything is there, or never will be.
pub fn wait(pid: u32, json: bool) -> Result<()> {
    let status = ask(pid, control::wait)?;
    if json {
        show(json, &status, &status)?;
    }
    match status.state {
        State::Failed(why) => bail!("process {pid} was ended: {why}"),
        State::Poisoned(why) => bail!("process {pid} has lost what was missing of its memory: {why}"),
        State::Gone => bail!(
            "process {pid} ended before all of its memory was there, and so without a core dump: restore it with --eager to debug a crash"
        ),
        _ => Ok(()),
    }
}
