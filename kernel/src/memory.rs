//! Another process's memory: read by process_vm_readv, written through /proc/PID/mem.
//!
//! The two differ on purpose: reading wants speed (7 GB/s), writing must also reach pages that the process itself may only read
//! (the kernel lets a tracer write them, which process_vm_writev would not).

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use pages::{PageRange, VirtAddr};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, IoSliceMut, Result};
use std::os::unix::fs::FileExt;

/// Ranges that one call reads, at most: the kernel takes 1024 (UIO_MAXIOV).
const RANGES_AT_ONCE: usize = 512;

/// One process's memory.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: Pid,
    file: File,
}

impl ProcessMemory {
    /// Memory of `pid`, which must be traced by us or ours to trace.
    pub fn open(pid: Pid) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        Ok(Self { pid, file })
    }

    /// Fill `out` from `at`; an address that is not mapped is an error, whatever came before it.
    pub fn read(&self, at: VirtAddr, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let remote = RemoteIoVec { base: at.0 as usize + done, len: out.len() - done };
            let count = match process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut out[done..])], &[remote]) {
                Ok(0) => return Err(Error::from(ErrorKind::UnexpectedEof)),
                Ok(count) => count,
                // A page the process itself may not read: a tracer may, through the file.
                Err(nix::errno::Errno::EFAULT) => return self.file.read_exact_at(&mut out[done..], at.0 + done as u64),
                Err(errno) => return Err(errno.into()),
            };
            done += count;
        }
        Ok(())
    }

    /// Fill `out` from some ranges, one after the other, in as few calls as the kernel takes.
    pub fn read_ranges(&self, ranges: &[PageRange], mut out: &mut [u8]) -> Result<()> {
        for ranges in ranges.chunks(RANGES_AT_ONCE) {
            let parts: Vec<RemoteIoVec> =
                ranges.iter().map(|range| RemoteIoVec { base: range.start().addr() as usize, len: range.bytes() as usize }).collect();
            let (now, rest) = std::mem::take(&mut out).split_at_mut(parts.iter().map(|part| part.len).sum());
            let wanted = now.len();
            if process_vm_readv(self.pid, &mut [IoSliceMut::new(now)], &parts) != Ok(wanted) {
                // One of them cannot be read so: each for itself.
                let mut left = now;
                for range in ranges {
                    let (part, behind) = std::mem::take(&mut left).split_at_mut(range.bytes() as usize);
                    self.read(VirtAddr(range.start().addr()), part)?;
                    left = behind;
                }
            }
            out = rest;
        }
        Ok(())
    }

    /// Put `bytes` at `at`, also where the process may only read.
    pub fn write(&self, at: VirtAddr, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, at.0)
    }
}
