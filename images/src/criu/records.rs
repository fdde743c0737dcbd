//! A file's magic numbers, and its records: each a length and a protobuf message.
//!
//! ```text
//!   0  4  0x54564319, in every file but inventory.img
//!   4  4  the kind's own magic number (inventory.img has it at 0)
//!   8  …  records: length (4), message
//! ```

use super::error::DumpError;
use crate::image::word;
use prost::Message;

/// Every file but the inventory begins with it.
const COMMON_MAGIC: u32 = 0x5456_4319;

/// Files that we take apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Inventory,
    Tree,
    AddressSpace,
    Pagemap,
}

impl Kind {
    /// Its magic number, and whether the common one stands before.
    fn magic(self) -> (u32, bool) {
        match self {
            Self::Inventory => (0x5831_3116, false),
            Self::Tree => (0x5027_3030, true),
            Self::AddressSpace => (0x5749_2820, true),
            Self::Pagemap => (0x5608_4025, true),
        }
    }
}

/// The records of a file, one after the other.
#[derive(Debug)]
pub(super) struct Records<'a> {
    file: &'a str,
    rest: &'a [u8],
    next: u64,
}

impl<'a> Records<'a> {
    /// Check the head of `file`.
    pub fn open(file: &'a str, kind: Kind, bytes: &'a [u8]) -> Result<Self, DumpError> {
        let (magic, common) = kind.magic();
        let head: &[u32] = if common { &[COMMON_MAGIC, magic] } else { &[magic] };
        if bytes.len() < head.len() * 4 {
            return Err(DumpError::file(file, format!("it ends after {} bytes, within its magic number", bytes.len())));
        }
        if head.iter().enumerate().any(|(at, magic)| word(bytes, at * 4) != *magic) {
            return Err(DumpError::file(file, "it does not begin with the magic number of its kind in CRIU 4"));
        }
        Ok(Self { file, rest: &bytes[head.len() * 4..], next: 0 })
    }

    /// The next record; `None` at the end.
    pub fn message<T: Message + Default>(&mut self) -> Result<Option<T>, DumpError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let wrong = |what: String| DumpError::record(self.file, self.next, what);
        let truncated = || wrong("the file ends within it".to_owned());
        let (length, rest) = self.rest.split_at_checked(4).ok_or_else(truncated)?;
        let (record, rest) = rest.split_at_checked(word(length, 0) as usize).ok_or_else(truncated)?;
        let message = T::decode(record).map_err(|error| wrong(format!("it cannot be read ({error})")))?;
        (self.rest, self.next) = (rest, self.next + 1);
        Ok(Some(message))
    }

    /// The only record.
    pub fn only<T: Message + Default>(mut self) -> Result<T, DumpError> {
        let message = self.message()?.ok_or_else(|| DumpError::file(self.file, "it has no record"))?;
        if self.rest.is_empty() { Ok(message) } else { Err(DumpError::record(self.file, 1, "nothing may follow the first record")) }
    }

    /// The number of the record that was read last.
    pub fn last(&self) -> u64 {
        self.next.saturating_sub(1)
    }
}

/// The bytes that a file of this kind begins with.
pub(super) fn head(kind: Kind) -> Vec<u8> {
    let (magic, common) = kind.magic();
    let head = if common { vec![COMMON_MAGIC, magic] } else { vec![magic] };
    head.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// One more record.
pub(super) fn append(out: &mut Vec<u8>, message: &impl Message) {
    out.extend((message.encoded_len() as u32).to_le_bytes());
    out.extend(message.encode_to_vec());
}
