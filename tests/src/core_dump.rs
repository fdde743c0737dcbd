//! Core dumps: where the kernel puts them, and what of a process's memory they hold.

use anyhow::{Context as _, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// The machine's pattern for core dumps, another one for as long as this lives.
#[derive(Debug)]
pub struct CorePattern(String);

impl CorePattern {
    /// Have the kernel write dumps as `pattern` says.
    pub fn lend(pattern: &str) -> Result<Self> {
        let before = fs::read_to_string(PATTERN)?;
        fs::write(PATTERN, pattern).with_context(|| format!("set {PATTERN}"))?;
        Ok(Self(before))
    }
}

impl Drop for CorePattern {
    fn drop(&mut self) {
        if let Err(error) = fs::write(PATTERN, &self.0) {
            eprintln!("{PATTERN} was {:?} and could not be set back: {error}", self.0);
        }
    }
}

/// A core dump: an ELF file whose segments are memory.
#[derive(Debug)]
pub struct CoreDump {
    file: File,
    /// Address, bytes in the file, offset.
    segments: Vec<(u64, u64, u64)>,
}

impl CoreDump {
    /// Dumps of the kernel in a folder.
    pub fn all_in(folder: &Path) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
        Ok(entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("core"))).collect())
    }

    /// Open one.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut head = [0; 64];
        file.read_exact_at(&mut head, 0)?;
        ensure!(head.starts_with(b"\x7fELF"), "{} is no ELF file", path.display());
        let word = |bytes: &[u8], at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let (first, count) = (word(&head, 32), u64::from(head[56]) | u64::from(head[57]) << 8);
        let mut segments = Vec::new();
        for nth in 0..count {
            let mut segment = [0; 56];
            file.read_exact_at(&mut segment, first + nth * 56)?;
            if segment[0] == 1 {
                segments.push((word(&segment, 16), word(&segment, 32), word(&segment, 8)));
            }
        }
        Ok(Self { file, segments })
    }

    /// So many bytes at an address of the process's memory, if all of them are in the dump.
    pub fn at(&self, address: u64, bytes: u64) -> Result<Option<Vec<u8>>> {
        let holds = |&&(start, held, _): &&(u64, u64, u64)| start <= address && address + bytes <= start + held;
        let Some((start, _, offset)) = self.segments.iter().find(holds) else { return Ok(None) };
        let mut found = vec![0; bytes as usize];
        self.file.read_exact_at(&mut found, offset + address - start)?;
        Ok(Some(found))
    }
}
