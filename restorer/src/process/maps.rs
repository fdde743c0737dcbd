//! /proc/PID/smaps: one [`Mapping`] a region, with the VmFlags that /proc/PID/maps does not tell.
//!
//! The head line is `start-end perms offset dev inode path`; of the lines below those in [`parse_smaps`] matter. In a path the kernel
//! writes a newline as `\012` and nothing else, so that a backslash may be one of the name's own: the text alone does not tell
//! (`checkpoint::describe::regions::mapped_file` does).

use images::manifest::RegionFlag;
use kernel::known::vm_flags::VmFlags;

/// A region of the address space as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// PROT_* bits.
    pub prot: u32,
    /// MAP_SHARED rather than MAP_PRIVATE.
    pub shared: bool,
    /// Offset into the file, in bytes.
    pub offset: u64,
    /// Device of the file, as `st_dev` has it.
    pub device: u64,
    /// Inode of the file; 0 for anonymous memory.
    pub inode: u64,
    /// Path, `[heap]` and the like, or empty.
    pub path: String,
    /// Bytes of it in huge pages of its own.
    pub huge_bytes: u64,
    /// Bytes of its pages: more than 4 KiB for hugetlb memory.
    pub page_bytes: u64,
    /// Protection key; 0 is what every mapping has at first.
    pub protection_key: u32,
    /// VmFlags.
    pub flags: VmFlags,
}

/// VmFlags that travel, with the bit of the manifest.
const ADVICE: [(&str, RegionFlag); 13] = [
    ("gd", RegionFlag::GrowsDown),
    ("nr", RegionFlag::NoReserve),
    ("lo", RegionFlag::Locked),
    ("dc", RegionFlag::DontFork),
    ("dd", RegionFlag::DontDump),
    ("hg", RegionFlag::Hugepage),
    ("nh", RegionFlag::NoHugepage),
    ("wf", RegionFlag::WipeOnFork),
    ("mg", RegionFlag::Mergeable),
    ("rr", RegionFlag::Random),
    ("sr", RegionFlag::Sequential),
    ("lf", RegionFlag::LockOnFault),
    ("sl", RegionFlag::Sealed),
];

impl Mapping {
    /// Whether VmFlags has `flag`.
    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.flags.has(flag)
    }

    /// The flags that a restore sets again, as manifest bits.
    #[must_use]
    pub fn advice(&self) -> u32 {
        ADVICE.iter().filter(|(text, _)| self.has(text)).map(|(_, bit)| *bit as u32).sum()
    }

    /// Whether a file of the file system is behind it.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.inode != 0
    }
}

/// Parse all of smaps; `None` where a line is not in the kernel's form.
#[must_use]
pub fn parse_smaps(text: &str) -> Option<Vec<Mapping>> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let first = line.split(' ').next()?;
        if let Some((start, end)) = first.split_once('-').filter(|_| !first.contains(':')) {
            found.push(parse_head(line, start, end)?);
        } else if let Some(size) = line.strip_prefix("AnonHugePages:") {
            found.last_mut()?.huge_bytes = bytes(size)?;
        } else if let Some(size) = line.strip_prefix("KernelPageSize:") {
            found.last_mut()?.page_bytes = bytes(size)?;
        } else if let Some(key) = line.strip_prefix("ProtectionKey:") {
            found.last_mut()?.protection_key = key.trim().parse().ok()?;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            found.last_mut()?.flags = VmFlags::parse(flags);
        }
    }
    Some(found)
}

/// What stands for a number of bytes, as `  2048 kB`.
fn bytes(size: &str) -> Option<u64> {
    size.trim().trim_end_matches(" kB").parse::<u64>().ok()?.checked_mul(1024)
}

fn parse_head(line: &str, start: &str, end: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (_, perms, offset, device, inode) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let perms = perms.as_bytes();
    let bit = |index: usize, letter: u8, bit: i32| if perms.get(index) == Some(&letter) { bit as u32 } else { 0 };
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        prot: bit(0, b'r', libc::PROT_READ) | bit(1, b'w', libc::PROT_WRITE) | bit(2, b'x', libc::PROT_EXEC),
        shared: perms.get(3) == Some(&b's'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: device_of(device)?,
        inode: inode.parse().ok()?,
        path: fields.next().unwrap_or("").trim_start().to_owned(),
        huge_bytes: 0,
        page_bytes: pages::PAGE_SIZE_BYTES,
        protection_key: 0,
        flags: VmFlags::default(),
    })
}

/// `major:minor` in hexadecimal digits.
fn device_of(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(nix::sys::stat::makedev(u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_heads_and_flags() {
        let text = "55d0-55f0 r-xp 00001000 fe:00 1234                   /usr/bin/a b\nSize: 4 kB\nVmFlags: rd ex mr\n\
                    7ffe0000-7fff0000 rw-p 00000000 00:00 0                  [stack]\nAnonHugePages:      2048 kB\nVmFlags: rd wr gd ac nh\n";
        let maps = parse_smaps(text).expect("is smaps");
        assert_eq!(maps.len(), 2);
        assert_eq!((maps[0].prot, maps[0].offset, maps[0].path.as_str(), maps[0].is_file()), (5, 0x1000, "/usr/bin/a b", true));
        assert_eq!(maps[1].advice(), RegionFlag::GrowsDown as u32 | RegionFlag::NoHugepage as u32);
        assert_eq!((maps[0].device, maps[0].inode), (nix::sys::stat::makedev(0xfe, 0), 1234));
        assert!(!maps[1].is_file());
        assert_eq!((maps[0].huge_bytes, maps[1].huge_bytes), (0, 2 << 20));
        assert_eq!((maps[0].page_bytes, maps[1].protection_key), (4096, 0));
        assert!(parse_smaps("zz-yy rw-p 0 0 0\n").is_none());
    }
}
