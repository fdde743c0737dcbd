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
#[derive(Debug)]
pub(super) struct Twins<'a> {
    pid: Pid,
    known: BTreeMap<Known<'a>, usize>,
}

#[derive(Debug)]
struct Known<'a> {
    pid: Pid,
    link: &'a str,
    fd: u32,
}

impl Ord for Known<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Where the kernel does not compare, each descriptor has a description of its own.
        let by_number = |_| self.fd.cmp(&other.fd);
        let by_description = || order_of(self.pid, other.pid, Kcmp::File(self.fd, other.fd)).unwrap_or_else(by_number);
        self.link.cmp(other.link).then_with(by_description)
    }
}

impl PartialOrd for Known<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Known<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Known<'_> {}

impl<'a> Twins<'a> {
    /// None of process `pid` yet, which may be named by any thread.
    pub(super) fn new(pid: Pid) -> Self {
        Self { pid, known: BTreeMap::new() }
    }

    /// The number of the description that `fd`, whose link is `link`, leads to; `None` where it is
    /// a new one, which is known as `number` from now on.
    pub(super) fn find_or_add(&mut self, link: &'a str, fd: u32, number: usize) -> Option<usize> {
        match self.known.entry(Known { pid: self.pid, link, fd }) {
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
        let mut twins = Twins::new(Pid::this());
        for (number, file) in files.iter().enumerate() {
            assert_eq!(twins.find_or_add("/dev/null", file.as_raw_fd() as u32, number), None);
        }
        for (number, copy) in copies.iter().enumerate() {
            assert_eq!(twins.find_or_add("/dev/null", copy.as_raw_fd() as u32, 99), Some(number));
        }
        assert_eq!(twins.find_or_add("elsewhere", copies[0].as_raw_fd() as u32, 40), None);
    }
}
