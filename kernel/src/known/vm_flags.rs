//! VmFlags of /proc/PID/smaps, from `show_smap_vma_flags` in fs/proc/task_mmu.c up to what is proposed for Linux 7.
//!
//! The kernel prints two letters for each bit of `vm_flags`. Flags of the protection key have none: the key has a line
//! of its own (`ProtectionKey:`). The describer refuses a mapping with a flag that is refused here, or that is not here.

/// What a checkpoint does about a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// The image has it and a restore sets it: how.
    Carried(&'static str),
    /// It follows from what the image has, or means nothing for a restored process: why.
    Derived(&'static str),
    /// The mapping is refused: what the memory is, and what the user can do.
    Refused(&'static str, &'static str),
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct VmFlag {
    /// The letters.
    pub letters: &'static str,
    /// The kernel's name of the bit, without `VM_`.
    pub name: &'static str,
    /// What is done about it.
    pub handling: Handling,
}

use Handling::{Carried, Derived, Refused};

const fn flag(letters: &'static str, name: &'static str, handling: Handling) -> VmFlag {
    VmFlag { letters, name, handling }
}

const ITS_OWN_FAULTS: &str = "if it is being restored, run `defrost wait` first; otherwise it manages its own faults";
const A_DEVICE: &str = "let it unmap this memory and close the device first";
const ANOTHER_CPU: &str = "defrost restores x86-64 processes only: run it on x86-64";

/// Every flag, in the order of the kernel's list.
pub const VM_FLAGS: [VmFlag; 39] = [
    flag("rd", "READ", Carried("mmap: PROT_READ")),
    flag("wr", "WRITE", Carried("mmap: PROT_WRITE")),
    flag("ex", "EXEC", Carried("mmap: PROT_EXEC")),
    flag("sh", "SHARED", Carried("mmap: MAP_SHARED of a file that is open for writing")),
    flag("mr", "MAYREAD", Derived("every mapping of a file that is open for reading has it")),
    flag("mw", "MAYWRITE", Carried("a shared file is opened for writing if the mapping has it")),
    flag("me", "MAYEXEC", Derived("the mount says so (noexec); a mapping with PROT_EXEC fails where it does not")),
    flag("ms", "MAYSHARE", Carried("mmap: MAP_SHARED")),
    flag("gd", "GROWSDOWN", Carried("mmap: MAP_GROWSDOWN")),
    flag("pf", "PFNMAP", Refused("a device's", A_DEVICE)),
    flag("lo", "LOCKED", Carried("mmap: MAP_LOCKED, or mlock2")),
    flag("io", "IO", Refused("a device's", A_DEVICE)),
    flag("sr", "SEQ_READ", Carried("madvise: MADV_SEQUENTIAL")),
    flag("rr", "RAND_READ", Carried("madvise: MADV_RANDOM")),
    flag("dc", "DONTCOPY", Carried("madvise: MADV_DONTFORK")),
    flag("de", "DONTEXPAND", Derived("the kernel sets it for memory of the kinds that have it")),
    flag("lf", "LOCKONFAULT", Carried("mlock2: MLOCK_ONFAULT")),
    flag("ac", "ACCOUNT", Derived("memory counts against the commit limit from when it is writable")),
    flag("nr", "NORESERVE", Carried("mmap: MAP_NORESERVE")),
    flag("ht", "HUGETLB", Carried("mmap: MAP_HUGETLB with the page size")),
    flag("sf", "SYNC", Refused("persistent memory mapped with MAP_SYNC", "let it map the file without MAP_SYNC")),
    flag("ar", "ARCH_1", Refused("memory of a cache type of its own", A_DEVICE)),
    flag("wf", "WIPEONFORK", Carried("madvise: MADV_WIPEONFORK")),
    flag("dd", "DONTDUMP", Carried("madvise: MADV_DONTDUMP")),
    flag("bt", "ARM64_BTI", Refused("code with branch targets of ARM64", ANOTHER_CPU)),
    flag("sd", "SOFTDIRTY", Derived("it is the state of whoever clears /proc/PID/clear_refs")),
    flag("mm", "MIXEDMAP", Derived("the file system sets it where the file is mapped")),
    flag("hg", "HUGEPAGE", Carried("madvise: MADV_HUGEPAGE")),
    flag("nh", "NOHUGEPAGE", Carried("madvise: MADV_NOHUGEPAGE")),
    flag("mg", "MERGEABLE", Carried("madvise: MADV_MERGEABLE")),
    flag("um", "UFFD_MISSING", Refused("under a userfaultfd", ITS_OWN_FAULTS)),
    flag("uw", "UFFD_WP", Refused("under a userfaultfd", ITS_OWN_FAULTS)),
    flag("mt", "MTE", Refused("memory with tags of ARM64", ANOTHER_CPU)),
    flag("ui", "UFFD_MINOR", Refused("under a userfaultfd", ITS_OWN_FAULTS)),
    flag("ss", "SHADOW_STACK", Refused("a shadow stack", "start it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK")),
    flag("dp", "DROPPABLE", Carried("mmap: MAP_DROPPABLE; its contents are never stored")),
    flag("sl", "SEALED", Carried("mseal, last of all")),
    flag("gu", "MAYBE_GUARD", Derived("PAGEMAP_SCAN tells which pages are guards; MADV_GUARD_INSTALL sets them")),
    flag("ur", "UFFD_RWP", Refused("under a userfaultfd", ITS_OWN_FAULTS)),
];

/// The flags of one mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmFlags {
    /// Bit *n*: entry *n* of [`VM_FLAGS`].
    known: u64,
    /// Letters that the table lacks.
    unknown: Vec<String>,
}

const _: () = assert!(VM_FLAGS.len() <= u64::BITS as usize);

fn position(letters: &str) -> Option<usize> {
    VM_FLAGS.iter().position(|flag| flag.letters == letters)
}

impl VmFlags {
    /// From what follows `VmFlags:`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut flags = Self::default();
        for letters in text.split_ascii_whitespace() {
            match position(letters) {
                Some(at) => flags.known |= 1 << at,
                None => flags.unknown.push(letters.to_owned()),
            }
        }
        flags
    }

    /// Whether `letters` is among them.
    #[must_use]
    pub fn has(&self, letters: &str) -> bool {
        position(letters).map_or_else(|| self.unknown.iter().any(|own| own == letters), |at| self.known & (1 << at) != 0)
    }

    /// Those of the table, in its order.
    pub fn known(&self) -> impl Iterator<Item = &'static VmFlag> + '_ {
        VM_FLAGS.iter().enumerate().filter(|(at, _)| self.known & (1 << at) != 0).map(|(_, flag)| flag)
    }

    /// Letters that the table lacks.
    #[must_use]
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_shows_no_flag_that_the_table_lacks() {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
        for line in smaps.lines().filter_map(|line| line.strip_prefix("VmFlags:")) {
            assert!(VmFlags::parse(line).unknown().is_empty(), "{line}");
        }
    }

    #[test]
    fn flags_are_found_by_their_letters() {
        let flags = VmFlags::parse(" rd wr mr xy ");
        assert!(flags.has("rd") && flags.has("mr") && flags.has("xy") && !flags.has("ex"));
        assert_eq!(flags.unknown(), ["xy"]);
        assert_eq!(flags.known().map(|flag| flag.letters).collect::<Vec<_>>(), ["rd", "wr", "mr"]);
        for (at, flag) in VM_FLAGS.iter().enumerate() {
            assert_eq!(position(flag.letters), Some(at), "{} is there twice", flag.letters);
        }
    }
}
