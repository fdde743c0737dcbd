//! The program on disk that takes over from this one: tried before it is relied upon, run in this process's place.
//!
//! Trying is asking it, in a process of its own, whether it can read what the restore left in the runtime directory
//! (`pager --can-take-over PID`). A program that is missing, broken, of another kind or too old does not answer as it should. A call of
//! execve that fails leaves everything as it was: nothing is changed before but the flags of descriptors, which are put back.

use crate::journal;
use crate::keep::Place;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::execv;
use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The hidden option that makes our program take over: what the supervisor's successor is started with.
pub const TAKE_OVER: &str = "--take-over";
/// The hidden option that asks whether it could.
pub const CAN_TAKE_OVER: &str = "--can-take-over";
/// What is answered then.
pub const ABLE: &str = "able";
/// How long that may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// What /proc/self/exe leads to once another file has our program's name.
const GONE: &str = " (deleted)";
/// The program that this process runs, whatever its name leads to now.
pub(crate) const ITSELF: &str = "/proc/self/exe";

/// Where our program is, or a later version of it.
pub(crate) fn on_disk() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let kept = path.to_str().and_then(|path| path.strip_suffix(GONE)).map(PathBuf::from);
    Ok(kept.unwrap_or(path))
}

/// Answer [`CAN_TAKE_OVER`]: whether we can read what the restore of `pid` left in `place`.
pub fn can_take_over(place: &Place) -> std::io::Result<()> {
    place.read()?;
    place.journals()?.into_iter().try_for_each(|id| journal::is_ours(&place.journal_path(id)))
}

/// Ask the program at `path` whether it can take over the restore of `pid`: why not.
pub(crate) fn tried(path: &Path, pid: u32) -> Result<(), String> {
    let mut command = Command::new(path);
    command.args(["pager", CAN_TAKE_OVER, &pid.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let begun = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if begun.elapsed() > ANSWERS_WITHIN {
            let _ = child.kill(); // it may have ended by itself
        }
        std::thread::sleep(LOOK);
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && answer.trim_end() == ABLE {
        return Ok(());
    }
    Err(format!("it ends with {} and does not say that it can", output.status))
}

/// Run `program` in our place, to take over the restore of `pid`, with descriptors `needed`. Comes back only where it cannot.
pub(crate) fn run(program: &Path, pid: u32, needed: &[RawFd]) -> std::io::Error {
    // One that cannot be kept is found in the process.
    let close = |flags: FdFlag| {
        for fd in needed {
            let kept = std::mem::ManuallyDrop::new(kernel::handoff::own(*fd)); // it is whose it was
            let _ = fcntl(&*kept, FcntlArg::F_SETFD(flags));
        }
    };
    close(FdFlag::empty());
    let words = [program.as_os_str().as_bytes(), b"pager", TAKE_OVER.as_bytes(), pid.to_string().as_bytes()].map(CString::new);
    let error = match words.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(words) => execv(&words[0], &words).err().map_or_else(|| std::io::Error::other("execve came back"), Into::into),
        Err(error) => error.into(),
    };
    close(FdFlag::FD_CLOEXEC);
    error
}
