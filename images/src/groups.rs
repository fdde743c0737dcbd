//! An image file in groups of 64 KiB, each of which can be checked by itself against the snapshot's id.
//!
//! That id is the file's BLAKE3 digest, and BLAKE3 is a tree: its root is made of the values of its subtrees, among which are those of
//! all aligned groups of the file. Whoever has the list of these values (32 bytes a group) merges them, and if that yields the id they
//! are the right ones, wherever they come from; any group is then known to be right once its own value is. A file of one group at most
//! is the root itself: its list is empty and its only group is checked against the id.
//!
//! A wrong length may go unnoticed by merging (a parent can pass for a group), and then no group fits: whoever has checked one that says
//! how long the file is, as an image's header does, knows it.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use pages::SnapshotId;
use std::ops::Range;

/// Bytes of a group: 2048 digests of a table, checked in some 20 µs; the values of all groups are then 1/2048 of the file.
pub const GROUP_BYTES: usize = 64 << 10;
/// Bytes of a group's value.
pub const VALUE_BYTES: usize = 32;

/// The groups of a file, known to be those of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    id: SnapshotId,
    file_bytes: u64,
    values: Vec<ChainingValue>,
}

impl Groups {
    /// Those of a whole file.
    #[must_use]
    pub fn of(file: &[u8]) -> Self {
        let count = file.chunks(GROUP_BYTES).len();
        let values: Vec<ChainingValue> = match count {
            0 | 1 => Vec::new(),
            _ => file.chunks(GROUP_BYTES).enumerate().map(|(group, piece)| value(group as u64, piece)).collect(),
        };
        let id = root(&values, file.len() as u64).unwrap_or_else(|| crate::digest(file));
        Self { id, file_bytes: file.len() as u64, values }
    }

    /// Those of a file of so many bytes, each group of which `read` brings from an offset on.
    pub fn read<E>(file_bytes: u64, mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>) -> Result<Self, E> {
        let mut piece = vec![0; GROUP_BYTES.min(usize::try_from(file_bytes).unwrap_or(usize::MAX))];
        let (mut values, mut at, one) = (Vec::new(), 0, values_of(file_bytes) == 0);
        while at < file_bytes {
            let len = (GROUP_BYTES as u64).min(file_bytes - at) as usize;
            read(&mut piece[..len], at)?;
            if !one {
                values.push(value(at / GROUP_BYTES as u64, &piece[..len]));
            }
            at += len as u64;
        }
        let id = root(&values, file_bytes).unwrap_or_else(|| crate::digest(&piece));
        Ok(Self { id, file_bytes, values })
    }

    /// Those that somebody says the file of `id` has, one value after the other; `None` where they are not.
    #[must_use]
    pub fn checked(id: SnapshotId, file_bytes: u64, values: &[u8]) -> Option<Self> {
        let (values, rest) = values.as_chunks::<VALUE_BYTES>();
        let complete = rest.is_empty() && values.len() as u64 == values_of(file_bytes);
        let fits = complete && root(values, file_bytes).is_none_or(|root| root == id);
        fits.then(|| Self { id, file_bytes, values: values.to_vec() })
    }

    /// The file's digest.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// How long the file is said to be.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// How many groups.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.values.len().max(1) as u32 // the longest image, 128 GiB of digests, has two million
    }

    /// Where some groups lie in the file.
    #[must_use]
    pub fn place(&self, groups: &Range<u32>) -> Range<u64> {
        let at = |group: u32| (u64::from(group) * GROUP_BYTES as u64).min(self.file_bytes);
        at(groups.start)..at(groups.end)
    }

    /// Which groups hold some bytes of the file.
    #[must_use]
    pub fn holding(&self, bytes: &Range<u64>) -> Range<u32> {
        let group = GROUP_BYTES as u64;
        (bytes.start / group) as u32..bytes.end.min(self.file_bytes).div_ceil(group) as u32
    }

    /// Whether these are the bytes of a group.
    #[must_use]
    pub fn fits(&self, group: u32, piece: &[u8]) -> bool {
        let place = self.place(&(group..group.saturating_add(1)));
        if group >= self.count() || piece.len() as u64 != place.end - place.start {
            return false;
        }
        match self.values.get(group as usize) {
            Some(known) => *known == value(u64::from(group), piece),
            None => crate::digest(piece) == self.id,
        }
    }

    /// The values, one after the other.
    #[must_use]
    pub fn values(&self) -> &[u8] {
        self.values.as_flattened()
    }
}

/// How many values the list of a file of so many bytes has.
pub(crate) fn values_of(file_bytes: u64) -> u64 {
    if file_bytes <= GROUP_BYTES as u64 { 0 } else { file_bytes.div_ceil(GROUP_BYTES as u64) }
}

/// A group's value; there are others, so that it is not the root, and it is not empty.
fn value(group: u64, piece: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset(group * GROUP_BYTES as u64).update(piece).finalize_non_root()
}

/// The digest of a file with these groups; `None` where the list is empty.
fn root(values: &[ChainingValue], file_bytes: u64) -> Option<SnapshotId> {
    let (left, right) = halves(values, file_bytes)?;
    Some(SnapshotId(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()))
}

/// The value of a subtree of at least one group.
fn subtree(values: &[ChainingValue], bytes: u64) -> Option<ChainingValue> {
    match values {
        [one] => Some(*one),
        several => halves(several, bytes).map(|(left, right)| merge_subtrees_non_root(&left, &right, Mode::Hash)),
    }
}

/// The values of both halves of a subtree of at least two groups; the left one is as large as a full tree can be, so at least a group.
fn halves(values: &[ChainingValue], bytes: u64) -> Option<(ChainingValue, ChainingValue)> {
    if values.len() < 2 {
        return None;
    }
    let left_bytes = left_subtree_len(bytes);
    let (left, right) = values.split_at_checked((left_bytes / GROUP_BYTES as u64) as usize)?;
    Some((subtree(left, left_bytes)?, subtree(right, bytes - left_bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * 31 / 7 + at / 65_536) as u8).collect()
    }

    fn must_be_whole(file: &[u8]) {
        let (id, groups) = (crate::digest(file), Groups::of(file));
        assert_eq!(groups.id(), id, "{} bytes", file.len());
        let read = Groups::read(file.len() as u64, |into, at| {
            into.copy_from_slice(&file[at as usize..][..into.len()]);
            Ok::<_, ()>(())
        });
        assert_eq!(read.as_ref(), Ok(&groups));
        assert_eq!(Groups::checked(id, file.len() as u64, groups.values()).as_ref(), Some(&groups));
        for group in 0..groups.count() {
            let place = groups.place(&(group..group + 1));
            let piece = &file[place.start as usize..place.end as usize];
            assert!(groups.fits(group, piece), "group {group} of {} bytes", file.len());
            assert!(!groups.fits(group + 1, piece) && !groups.fits(group, &[piece, &[0]].concat()));
            if !piece.is_empty() {
                let mut bad = piece.to_vec();
                bad[piece.len() / 2] ^= 1;
                assert!(!groups.fits(group, &bad) && !groups.fits(group, &piece[1..]) && !groups.fits(group, &piece[..piece.len() - 1]));
            }
        }
        assert!(!groups.fits(groups.count(), &[]) && !groups.fits(u32::MAX, &[]));
    }

    #[test]
    fn groups_of_any_length_make_the_digest() {
        must_be_whole(&[]);
        for groups in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17] {
            for off in [-1025, -1, 0, 1, 1024] {
                must_be_whole(&file((groups * GROUP_BYTES as isize + off) as usize));
            }
        }
        must_be_whole(&file(1));
    }

    #[test]
    fn others_are_refused() {
        let file = file(5 * GROUP_BYTES - 7);
        let (id, groups) = (crate::digest(&file), Groups::of(&file));
        let (bytes, values) = (file.len() as u64, groups.values());
        assert_eq!(Groups::checked(SnapshotId([1; 32]), bytes, values), None);
        assert_eq!(Groups::checked(id, bytes - GROUP_BYTES as u64, &values[32..]), None);
        assert_eq!(Groups::checked(id, bytes + GROUP_BYTES as u64, values), None);
        assert_eq!(Groups::checked(id, u64::MAX, values), None);
        assert_eq!(Groups::checked(id, 0, values), None);
        assert_eq!(Groups::checked(id, bytes, &values[..values.len() - 1]), None);
        for at in 0..values.len() {
            let mut bad = values.to_vec();
            bad[at] ^= 1;
            assert_eq!(Groups::checked(id, bytes, &bad), None, "byte {at}");
        }
        // The root's two halves as groups of a shorter file: they merge, and no group fits.
        let halves = root_halves(&groups);
        let shorter = Groups::checked(id, 2 * GROUP_BYTES as u64, &halves).expect("merges");
        assert!(!shorter.fits(0, &file[..GROUP_BYTES]) && !shorter.fits(1, &file[GROUP_BYTES..2 * GROUP_BYTES]));
    }

    fn root_halves(groups: &Groups) -> Vec<u8> {
        let (left, right) = halves(&groups.values, groups.file_bytes).expect("several groups");
        [left, right].concat()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn as_blake3_does(bytes in 0_usize..(12 * GROUP_BYTES), salt in any::<u8>()) {
            let file: Vec<u8> = file(bytes).iter().map(|byte| byte ^ salt).collect();
            must_be_whole(&file);
        }

        #[test]
        fn any_list_is_refused_or_right(bytes in any::<u64>(), values in prop::collection::vec(any::<u8>(), 0..200)) {
            let checked = Groups::checked(SnapshotId([7; 32]), bytes, &values);
            prop_assert!(checked.is_none() || bytes <= GROUP_BYTES as u64 && values.is_empty());
        }
    }
}
