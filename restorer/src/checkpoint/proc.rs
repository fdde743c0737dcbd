//! Reading /proc/PID: every file through one door, so that each error names process and file.

use super::CheckpointError;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The /proc directory of one process.
#[derive(Clone, Copy, Debug)]
pub struct Proc {
    /// The process.
    pub pid: u32,
    /// The thread whose directory is read: the first one, or the first that has not ended. A thread
    /// that has ended has no memory, descriptors and directories any more.
    pub via: u32,
}

impl Proc {
    /// That of `pid`, read through its first thread.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        Self { pid, via: pid }
    }

    /// The thread that is read, as system calls name it.
    #[must_use]
    pub fn task(self) -> Pid {
        Pid::from_raw(self.via as i32)
    }

    /// A descriptor for it, through which its descriptors can be had.
    pub fn pidfd(self) -> Result<OwnedFd, CheckpointError> {
        let opened = match self.via == self.pid {
            true => kernel::handoff::pidfd_open(self.task()),
            false => kernel::handoff::pidfd_open_thread(self.task()),
        };
        opened.map_err(|errno| match errno {
            Errno::EINVAL => CheckpointError::Outlived(self.pid),
            _ => CheckpointError::Vanished(self.pid),
        })
    }

    /// An error of reading a file of it, for `map_err`.
    pub fn failed(self, name: &str) -> impl FnOnce(std::io::Error) -> CheckpointError {
        let (pid, path) = (self.pid, self.path(name).display().to_string());
        move |source| match source.raw_os_error() {
            Some(libc::ESRCH) => CheckpointError::Vanished(pid),
            Some(libc::EACCES | libc::EPERM) => CheckpointError::NotPermitted(pid),
            _ => CheckpointError::Proc { pid, path, source },
        }
    }

    /// Path of a file of it; an absolute `name` stays as it is.
    #[must_use]
    pub fn path(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.via)).join(name)
    }

    /// A file as text; bytes that are not UTF-8 are replaced.
    pub fn text(self, name: &str) -> Result<String, CheckpointError> {
        self.bytes(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A file's bytes.
    pub fn bytes(self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        std::fs::read(self.path(name)).map_err(self.failed(name))
    }

    /// Where a symbolic link points.
    pub fn link(self, name: &str) -> Result<String, CheckpointError> {
        let target = std::fs::read_link(self.path(name)).map_err(self.failed(name))?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// Names in a directory that are numbers, ascending.
    pub fn numbers(self, name: &str) -> Result<Vec<u32>, CheckpointError> {
        let entries = std::fs::read_dir(self.path(name)).map_err(self.failed(name))?;
        let mut numbers: Vec<u32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Names in a directory, ascending.
    pub fn names(self, name: &str) -> Result<Vec<String>, CheckpointError> {
        let entries = std::fs::read_dir(self.path(name)).map_err(self.failed(name))?;
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The form of a file is not what the kernel writes.
    pub fn malformed(self, name: &str) -> CheckpointError {
        self.failed(name)(std::io::Error::new(ErrorKind::InvalidData, "not in the kernel's form: this kernel is too new or too old"))
    }

    /// A refusal.
    pub fn refuse(self, object: impl Into<String>, advice: &'static str) -> CheckpointError {
        CheckpointError::Refused { pid: self.pid, object: object.into(), advice }
    }
}
