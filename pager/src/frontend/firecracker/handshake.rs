//! What a VM sends: one message with a JSON array of its regions, and with it (SCM_RIGHTS) its userfaultfd.
//!
//! ```text
//! [{"base_host_virt_addr": 140737488347136, "size": 134217728, "offset": 0, "page_size": 4096, "page_size_kib": 4096}, …]
//! ```
//!
//! All are bytes, `page_size_kib` too, whatever its name says; older ones send it alone. There is no length in front, so we read until the
//! array is whole: a VM with many regions may come in parts. Source: Firecracker 1.15,
//! docs/snapshotting/handling-page-faults-on-snapshot-resume.md.

use crate::frontend::Mapped;
use crate::table;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use serde::Deserialize;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// More than any VM says: 10 000 regions.
const MAX_BYTES: usize = 1 << 20;
/// A VM sends everything at once; its example handler waits for half a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pages of huge memory.
const HUGE_BYTES: u64 = 2 << 20;

/// Why a VM cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// It did not say all.
    #[error("{0} before it had said what its memory is: start the VM with a mem_backend of type Uffd")]
    Incomplete(&'static str),
    /// It is something else.
    #[error("it sent something else than a list of memory regions ({0}): only a VM may connect here")]
    NoRegions(String),
    /// No descriptor, or another one.
    #[error("it sent no userfaultfd with its regions: only a VM with a mem_backend of type Uffd may connect here")]
    NoUffd,
    /// Regions that cannot be.
    #[error("region {0} of its memory {1}: the VM's state and this snapshot do not belong together")]
    Region(usize, String),
}

/// A region of guest memory, as a VM says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct GuestRegion {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

impl GuestRegion {
    fn page_bytes(&self) -> u64 {
        self.page_size.or(self.page_size_kib).unwrap_or(PAGE_SIZE_BYTES)
    }

    fn range(&self) -> Option<PageRange> {
        PageRange::from_addrs(self.base_host_virt_addr, self.base_host_virt_addr.checked_add(self.size)?).filter(|range| !range.is_empty())
    }

    /// Where it is, and where its contents are; of one that was checked.
    #[must_use]
    pub fn mapped(&self) -> Mapped {
        let nowhere = PageAddr::from_number(0);
        let at = self.range().or_else(|| PageRange::new(nowhere, nowhere));
        Mapped { at: at.unwrap_or_else(|| unreachable!("an empty range is one")), from: PageAddr::new(self.offset).unwrap_or(nowhere) }
    }
}

/// All that a VM says.
#[derive(Debug)]
pub(super) struct Handshake {
    pub regions: Vec<GuestRegion>,
    pub uffd: OwnedFd,
    pub granule_pages: u64,
}

/// The process at the other end; none where we cannot see it.
pub(super) fn peer(stream: &UnixStream) -> Option<u32> {
    let credentials = getsockopt(stream, PeerCredentials).ok()?;
    u32::try_from(credentials.pid()).ok().filter(|pid| *pid > 0)
}

impl Handshake {
    /// Hear what a VM says whose memory file had so many bytes.
    pub fn receive(stream: &UnixStream, memory_bytes: u64) -> Result<Self, HandshakeError> {
        let (deadline, mut text, mut fds) = (Instant::now() + PATIENCE, Vec::new(), Vec::new());
        let regions = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HandshakeError::Incomplete("it said nothing more for 5 s"));
            }
            stream.set_read_timeout(Some(left))?;
            match kernel::handoff::recv_some(stream, &mut text, &mut fds) {
                Ok(0) => return Err(HandshakeError::Incomplete("it hung up")),
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(errno) => return Err(HandshakeError::Io(errno.into())),
            }
            match serde_json::from_slice::<Vec<GuestRegion>>(&text) {
                Err(error) if error.is_eof() && text.len() < MAX_BYTES => {}
                Err(error) => return Err(HandshakeError::NoRegions(error.to_string())),
                // Its descriptor comes with the first byte, if at all; a second message might still bring it.
                Ok(_) if fds.is_empty() => {}
                Ok(regions) => break regions,
            }
        };
        let uffd = fds.into_iter().find(table::is_userfaultfd).ok_or(HandshakeError::NoUffd)?;
        // Firecracker makes it so; a read that waits would keep its faults waiting.
        fcntl(&uffd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(std::io::Error::from)?;
        let granule_pages = check(&regions, memory_bytes)?;
        Ok(Self { regions, uffd, granule_pages })
    }
}

/// Regions that can be, of memory that is this long. Yields how many pages of ours one of theirs has.
fn check(regions: &[GuestRegion], memory_bytes: u64) -> Result<u64, HandshakeError> {
    let page_bytes = regions.first().ok_or_else(|| HandshakeError::NoRegions("an empty list".to_owned()))?.page_bytes();
    for (index, region) in regions.iter().enumerate() {
        let wrong = |why: String| Err(HandshakeError::Region(index, why));
        if region.page_bytes() != page_bytes || !matches!(page_bytes, PAGE_SIZE_BYTES | HUGE_BYTES) {
            return wrong(format!("has pages of {} bytes, where 4096 or 2097152, alike for all, is possible", region.page_bytes()));
        }
        let of_page = |value: u64| value.is_multiple_of(page_bytes);
        let Some(range) = region.range().filter(|_| of_page(region.base_host_virt_addr) && of_page(region.size)) else {
            return wrong(format!("is {:#x} bytes at {:#x}, which are no pages", region.size, region.base_host_virt_addr));
        };
        let end =
            region.offset.checked_add(region.size).filter(|end| *end <= memory_bytes && region.offset.is_multiple_of(PAGE_SIZE_BYTES));
        let Some(end) = end else {
            return wrong(format!("is {:#x} bytes from {:#x} of a memory file of {memory_bytes:#x}", region.size, region.offset));
        };
        for (other, earlier) in regions.iter().enumerate().take(index) {
            let apart = earlier.range().is_none_or(|earlier| earlier.intersect(&range).is_none_or(|both| both.is_empty()));
            if !apart || (earlier.offset < end && region.offset < earlier.offset + earlier.size) {
                return wrong(format!("overlaps region {other}"));
            }
        }
    }
    Ok(page_bytes / PAGE_SIZE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<u64, String> {
        let regions: Vec<GuestRegion> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        check(&regions, 64 << 20).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_vm_says_is_understood() {
        let two = r#"[{"base_host_virt_addr":4194304,"size":2097152,"offset":0,"page_size":4096,"page_size_kib":4096},
            {"base_host_virt_addr":6291456,"size":2097152,"offset":2097152,"page_size":4096,"page_size_kib":4096}]"#;
        assert_eq!(said(two), Ok(1));
        assert_eq!(said(&two.replace(":4096", ":2097152")), Ok(512));
        assert_eq!(said(r#"[{"base_host_virt_addr":4194304,"size":2097152,"offset":0,"page_size_kib":2097152}]"#), Ok(512));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let region = |base: u64, size: u64, offset: u64, page: u64| {
            format!(r#"{{"base_host_virt_addr":{base},"size":{size},"offset":{offset},"page_size":{page}}}"#)
        };
        let cases = [
            (vec![], "an empty list"),
            (vec![region(4096, 4096, 0, 8192)], "8192"),
            (vec![region(4096, 4096, 0, 4096), region(2 << 20, 2 << 20, 4096, 2 << 20)], "alike"),
            (vec![region(4097, 4096, 0, 4096)], "no pages"),
            (vec![region(4096, 4096, 0, 2 << 20)], "no pages"),
            (vec![region(4096, 0, 0, 4096)], "no pages"),
            (vec![region(u64::MAX - 4095, 4096, 0, 4096)], "no pages"),
            (vec![region(4096, 4096, 64 << 20, 4096)], "memory file"),
            (vec![region(4096, 4096, u64::MAX, 4096)], "memory file"),
            (vec![region(4096, 4096, 100, 4096)], "memory file"),
            (vec![region(4096, 8192, 0, 4096), region(8192, 4096, 16384, 4096)], "overlaps region 0"),
            (vec![region(4096, 8192, 0, 4096), region(65536, 4096, 4096, 4096)], "overlaps region 0"),
        ];
        for (regions, why) in cases {
            let text = format!("[{}]", regions.join(","));
            let told = said(&text).expect_err(&text);
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
