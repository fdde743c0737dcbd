//! Which descriptors lead to one open file description.
//!
//! kcmp(2) does not only tell whether two descriptors are one description, it orders descriptions.
//! So those that are known are kept sorted and each further descriptor is looked up among them:
//! n log n comparisons for n descriptors. Only descriptors with the same link are compared.

use kernel::sys::{Kcmp, order_of};
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Descriptions known so far, by the first descriptor that led to each.
#[derive(Debug, Default)]
pub(super) struct Twins {
    known: BTreeMap<Known, usize>,
}

#[derive(Debug)]
struct Known {
    link: String,
    pid: Pid,
    fd: u32,
}

impl Ord for Known {
    fn cmp(&self, other: &Self) -> Ordering {
        // Where the kernel does not compare, each descriptor has a description of its own.
        let by_number = |_| (self.pid, self.fd).cmp(&(other.pid, other.fd));
        let by_description = || order_of(self.pid, other.pid, Kcmp::File(self.fd, other.fd)).unwrap_or_else(by_number);
        self.link.cmp(&other.link).then_with(by_description)
    }
}

impl PartialOrd for Known {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Known {}

impl Twins {
    /// The number of the description that `fd` of process `pid` (which any thread may name), whose
    /// link is `link`, leads to; `None` where it is a new one, which is known as `number` from now on.
    pub(super) fn find_or_add(&mut self, link: &str, (pid, fd): (Pid, u32), number: usize) -> Option<usize> {
        match self.known.entry(Known { link: link.to_owned(), pid, fd }) {
            std::collections::btree_map::Entry::Occupied(known) => Some(*known.get()),
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(number);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn duplicates_are_found_among_many() {
        let files: Vec<_> = (0..40).map(|_| std::fs::File::open("/dev/null").expect("is there")).collect();
        let copies: Vec<_> = files.iter().map(|file| file.try_clone().expect("a descriptor")).collect();
        let mut twins = Twins::default();
        for (number, file) in files.iter().enumerate() {
            assert_eq!(twins.find_or_add("/dev/null", (Pid::this(), file.as_raw_fd() as u32), number), None);
        }
        for (number, copy) in copies.iter().enumerate() {
            assert_eq!(twins.find_or_add("/dev/null", (Pid::this(), copy.as_raw_fd() as u32), 99), Some(number));
        }
        assert_eq!(twins.find_or_add("elsewhere", (Pid::this(), copies[0].as_raw_fd() as u32), 40), None);
    }
}
