//! The head of an image: all that is needed of it before a process runs. Its groups, and the first of them, which hold header and
//! manifest; the table behind these comes later, group by group ([`crate::Table`]).
//!
//! One that exists was checked against the snapshot's id. It is handed from process to process as bytes ([`Head::encode`]), which
//! whoever gets them checks again.

use crate::error::ImageError;
use crate::groups::{GROUP_BYTES, Groups, VALUE_BYTES, values_of};
use crate::image::{HEADER_BYTES, long, sizes};
use bytes::Bytes;
use pages::SnapshotId;

/// A file up to so many bytes is its own head: it comes in one answer, and its groups are told in the time that it takes to ask for them
/// (0.3 ms).
pub const SMALL_BYTES: u64 = 1 << 20;

/// A checked head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    groups: Groups,
    first: Bytes,
}

impl Head {
    /// Check what somebody says the file of `groups` begins with: whole groups, at least those with the header.
    pub fn checked(groups: Groups, first: Bytes) -> Result<Self, ImageError> {
        let damaged = || ImageError::Checksum("image");
        let count = groups.holding(&(0..first.len() as u64)).end;
        if count > groups.count() || groups.place(&(0..count)).end != first.len() as u64 {
            return Err(damaged());
        }
        let mut pieces = (0..).zip(first.chunks(GROUP_BYTES));
        if !pieces.all(|(group, piece)| groups.fits(group, piece)) {
            return Err(damaged());
        }
        sizes(&first)?.must_be(groups.file_bytes())?;
        Ok(Self { groups, first })
    }

    /// The head of a whole file that has these groups.
    pub fn of_file(groups: Groups, file: &Bytes) -> Result<Self, ImageError> {
        let bytes = first_bytes(file).min(groups.file_bytes()).min(file.len() as u64);
        Self::checked(groups, file.slice(..bytes as usize))
    }

    /// The file's digest.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.groups.id()
    }

    /// Its groups.
    #[must_use]
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Its first bytes: whole groups.
    #[must_use]
    pub fn first(&self) -> &Bytes {
        &self.first
    }

    /// Whether header and manifest are here; else more groups are to be asked for.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        sizes(&self.first).is_ok_and(|sizes| sizes.table().start <= self.first.len() as u64)
    }

    /// Groups of which the first are to be here.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.groups.holding(&(0..first_bytes(&self.first))).end
    }

    pub(crate) fn too_short(&self) -> ImageError {
        let need = sizes(&self.first).map_or(HEADER_BYTES as u64, |sizes| sizes.table().start);
        ImageError::Truncated { what: "image", have: self.first.len() as u64, need }
    }

    /// For another process: the length of the file, the values of its groups, its first bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.groups.file_bytes().to_le_bytes()[..], self.groups.values(), &self.first].concat()
    }

    /// Read and check what another process says that the head of `id` is.
    pub fn parse(id: SnapshotId, bytes: &Bytes) -> Result<Self, ImageError> {
        let truncated = |need: u64| ImageError::Truncated { what: "head of an image", have: bytes.len() as u64, need };
        let behind = bytes.get(8..).ok_or_else(|| truncated(8))?;
        let file_bytes = long(bytes, 0);
        let values_bytes = values_of(file_bytes) * VALUE_BYTES as u64; // at most 2^53
        let (values, first) = behind.split_at_checked(values_bytes as usize).ok_or_else(|| truncated(8 + values_bytes))?;
        let groups = Groups::checked(id, file_bytes, values).ok_or(ImageError::Checksum("image"))?;
        Self::checked(groups, bytes.slice_ref(first))
    }
}

/// How many bytes of a file, rounded up to whole groups, are its head, by its beginning; of one that is none the first group, which tells.
#[must_use]
pub fn first_bytes(beginning: &[u8]) -> u64 {
    let bytes = match sizes(beginning) {
        Ok(sizes) if sizes.file <= SMALL_BYTES => sizes.file,
        Ok(sizes) => sizes.table().start.min(sizes.file),
        Err(_) => 1,
    };
    bytes.div_ceil(GROUP_BYTES as u64).saturating_mul(GROUP_BYTES as u64)
}
