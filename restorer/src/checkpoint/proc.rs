//! Reading /proc/PID: every file through one door, so that each error names process and file.

use super::CheckpointError;
use std::io::ErrorKind;
use std::path::PathBuf;

/// The /proc directory of one process.
#[derive(Clone, Copy, Debug)]
pub struct Proc {
    /// The process.
    pub pid: u32,
}

impl Proc {
    /// An error of reading a file of it, for `map_err`.
    pub fn failed(self, name: &str) -> impl FnOnce(std::io::Error) -> CheckpointError {
        let (pid, path) = (self.pid, format!("/proc/{}/{name}", self.pid));
        move |source| match source.raw_os_error() {
            Some(libc::ESRCH) => CheckpointError::Vanished(pid),
            Some(libc::EACCES | libc::EPERM) => CheckpointError::NotPermitted(pid),
            _ => CheckpointError::Proc { pid, path, source },
        }
    }

    /// Path of a file of it.
    #[must_use]
    pub fn path(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
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
