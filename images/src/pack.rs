//! A pack: frames one behind the other, then an index sorted by chunk, then a footer.
//!
//! ```text
//!      0      8  magic "DFROSTPK"
//!      8      …  frames
//!    end-32-48n  index: n entries of 48 bytes: digest (32), offset (8), length (4), CRC32C of the stored frame (4)
//!    end-32   8  entries n
//!    end-24   8  offset of the index
//!    end-16   4  CRC32C of the index
//!    end-12   4  format version (1)
//!    end-8    8  magic "DFROSTPX"
//! ```
//!
//! Finding a chunk is a search in the index, begun where its digest says: two or three reads of 1.5 KiB ([`Layout::find_by`]). The index
//! has a checksum over all of it, which takes 3 ms with 700 000 chunks. A reader of frames need not wait for that: each entry that is used
//! tells the checksum of its frame, and a chunk that is not found is missing only where the index is whole.

use crate::error::ImageError;
use crate::image::{long, word};
use pages::ChunkId;
use std::ops::Range;

/// First bytes of a pack.
pub const MAGIC: &[u8; 8] = b"DFROSTPK";
const END_MAGIC: &[u8; 8] = b"DFROSTPX";
const VERSION: u32 = 1;
const ENTRY_BYTES: usize = 48;
const FOOTER_BYTES: usize = 32;

/// Keeps the books of a pack that is being written; the writing itself is the caller's.
#[derive(Debug, Default)]
pub struct PackWriter {
    entries: Vec<(ChunkId, u64, u32, u32)>,
    frames_bytes: u64,
}

impl PackWriter {
    /// An empty pack; the caller writes [`MAGIC`] first.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Note that `frame` is written next; its offset in the pack.
    pub fn append(&mut self, id: ChunkId, frame: &[u8]) -> u64 {
        let offset = MAGIC.len() as u64 + self.frames_bytes;
        // A chunk is 1 MiB at most, so its frame is far from 4 GiB; one that is not will be refused by its checksum.
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.entries.push((id, offset, len, crc32c::crc32c(frame)));
        self.frames_bytes += frame.len() as u64;
        offset
    }

    /// Bytes of frames so far.
    #[must_use]
    pub fn frames_bytes(&self) -> u64 {
        self.frames_bytes
    }

    /// Chunks so far.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Index and footer, to be written behind the last frame.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entries.sort_unstable();
        let mut out = Vec::with_capacity(self.entries.len() * ENTRY_BYTES + FOOTER_BYTES);
        for (id, offset, len, crc) in &self.entries {
            out.extend(id.0);
            out.extend(offset.to_le_bytes());
            out.extend(len.to_le_bytes());
            out.extend(crc.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&out);
        out.extend((self.entries.len() as u64).to_le_bytes());
        out.extend((MAGIC.len() as u64 + self.frames_bytes).to_le_bytes());
        out.extend(checksum.to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend(END_MAGIC);
        out
    }
}

/// Where index and frames of a pack lie, as its footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    index: Range<u64>,
    checksum: u32,
}

/// Bytes at the beginning and at the end of a pack that [`Layout::parse`] takes.
pub const ENDS_BYTES: (usize, usize) = (MAGIC.len(), FOOTER_BYTES);

impl Layout {
    /// Check the first and the last bytes ([`ENDS_BYTES`]) of a pack of `file_bytes`.
    pub fn parse(first: &[u8], last: &[u8], file_bytes: u64) -> Result<Self, ImageError> {
        let need = (MAGIC.len() + FOOTER_BYTES) as u64;
        let truncated = || ImageError::Truncated { what: "pack", have: file_bytes, need };
        let footer_at = file_bytes.checked_sub(FOOTER_BYTES as u64).filter(|_| file_bytes >= need).ok_or_else(truncated)?;
        let footer = last.get(..FOOTER_BYTES).ok_or_else(truncated)?;
        if first.get(..MAGIC.len()) != Some(&MAGIC[..]) {
            return Err(ImageError::Magic("pack"));
        }
        if &footer[24..] != END_MAGIC {
            return Err(ImageError::Pack("it ends in the middle (no footer)"));
        }
        if word(footer, 20) != VERSION {
            return Err(ImageError::Version { what: "pack", found: word(footer, 20), known: VERSION });
        }
        let (entries, at) = (long(footer, 0), long(footer, 8));
        let index_bytes = entries.checked_mul(ENTRY_BYTES as u64).ok_or(ImageError::Pack("its footer is impossible"))?;
        if at < MAGIC.len() as u64 || at.checked_add(index_bytes) != Some(footer_at) {
            return Err(ImageError::Pack("its footer is impossible"));
        }
        Ok(Self { index: at..footer_at, checksum: word(footer, 16) })
    }

    /// Where the index lies.
    #[must_use]
    pub fn index(&self) -> Range<u64> {
        self.index.clone()
    }

    /// CRC32C of the index.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// How many chunks.
    #[must_use]
    pub fn len(&self) -> usize {
        ((self.index.end - self.index.start) / ENTRY_BYTES as u64) as usize
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Offset, length and CRC32C of a chunk's frame, of an index that is read by `read` from an offset in the pack on.
    pub fn find_by<E>(&self, id: &ChunkId, mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>) -> Result<Option<(u64, u32, u32)>, E> {
        search(self.len(), id, |run| {
            let mut block = vec![0; run.len() * ENTRY_BYTES];
            read(self.index.start + (run.start * ENTRY_BYTES) as u64, &mut block)?;
            Ok(block)
        })
    }

    /// Where a frame lies of which the index says offset and length.
    pub fn place(&self, offset: u64, len: u32) -> Result<Range<u64>, ImageError> {
        let end = offset.checked_add(u64::from(len)).filter(|end| *end <= self.index.start && offset >= MAGIC.len() as u64);
        end.map(|end| offset..end).ok_or(ImageError::Pack("its index points outside"))
    }
}

/// Offset, length and CRC32C of a chunk's frame in a whole index.
#[must_use]
pub fn find_in(index: &[u8], id: &ChunkId) -> Option<(u64, u32, u32)> {
    let block = |run: Range<usize>| index.get(run.start * ENTRY_BYTES..run.end * ENTRY_BYTES).ok_or(());
    search(index.len() / ENTRY_BYTES, id, block).ok().flatten()
}

/// All chunks of a part of an index, whole entries, with the lengths of their frames.
pub fn entries_in(index: &[u8]) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
    let (entries, _) = index.as_chunks::<ENTRY_BYTES>();
    entries.iter().filter_map(|entry| Some((ChunkId::from_slice(&entry[..32])?, word(entry, 40))))
}

/// A whole pack in memory.
#[derive(Debug)]
pub struct PackReader<B> {
    bytes: B,
    layout: Layout,
}

impl<B: AsRef<[u8]>> PackReader<B> {
    /// Check footer and index.
    pub fn open(bytes: B) -> Result<Self, ImageError> {
        let all = bytes.as_ref();
        let layout = Layout::parse(all, &all[all.len().saturating_sub(FOOTER_BYTES)..], all.len() as u64)?;
        let reader = Self { bytes, layout };
        if crc32c::crc32c(reader.index()) == reader.layout.checksum { Ok(reader) } else { Err(ImageError::Checksum("pack's index")) }
    }

    fn index(&self) -> &[u8] {
        &self.bytes.as_ref()[self.layout.index.start as usize..self.layout.index.end as usize]
    }

    /// How many chunks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layout.is_empty()
    }

    /// All chunks with the lengths of their frames, by digest.
    pub fn entries(&self) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
        entries_in(self.index())
    }

    /// Offset, length and CRC32C of a chunk's frame, as the index has them; `None` where it is not here.
    #[must_use]
    pub fn find(&self, id: &ChunkId) -> Option<(u64, u32, u32)> {
        find_in(self.index(), id)
    }

    /// Whether the chunk is here.
    #[must_use]
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.find(id).is_some()
    }

    /// Where a chunk's frame lies, its stored bytes checked; `None` where it is not here, or the index is damaged.
    pub fn frame(&self, id: &ChunkId) -> Result<Option<Range<usize>>, ImageError> {
        let Some((offset, len, crc)) = self.find(id) else { return Ok(None) };
        let place = self.layout.place(offset, len)?;
        let range = place.start as usize..place.end as usize;
        check_frame(&self.bytes.as_ref()[range.clone()], crc)?;
        Ok(Some(range))
    }

    /// The layout of the pack.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bytes themselves.
    #[must_use]
    pub fn bytes(&self) -> &B {
        &self.bytes
    }
}

/// The checksum of bytes that come piece by piece, begun with 0.
#[must_use]
pub fn checksum(so_far: u32, piece: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, piece)
}

/// A frame has the checksum that the index says.
pub fn check_frame(frame: &[u8], crc: u32) -> Result<(), ImageError> {
    if crc32c::crc32c(frame) == crc { Ok(()) } else { Err(ImageError::Checksum("stored frame")) }
}

/// Entries of an index that are looked at together: 1.5 KiB, read in hardly more time than one.
const BLOCK: usize = 32;
/// Blocks that are looked at where the digest says that the entry lies; then it is looked for in the middle of what is left. Digests are
/// spread evenly, so that of a million it is found in the second or third.
const GUESSES: usize = 8;

/// Offset, length and CRC32C of a chunk's frame in an index of so many entries, runs of which are read; where one cannot be, why.
fn search<E, B: AsRef<[u8]>>(
    entries: usize,
    id: &ChunkId,
    mut read: impl FnMut(Range<usize>) -> Result<B, E>,
) -> Result<Option<(u64, u32, u32)>, E> {
    let prefix = |digest: &[u8]| digest.first_chunk().map_or(0, |first| u128::from(u64::from_be_bytes(*first)));
    let wanted = prefix(&id.0);
    let (mut low, mut high, mut keys) = (0, entries, (0, 1 << 64));
    for guess in 0.. {
        let left = high - low;
        if left == 0 {
            break;
        }
        let share = (wanted.saturating_sub(keys.0) * left as u128).checked_div(keys.1 - keys.0).unwrap_or(0);
        let at = low + if guess < GUESSES { (share as usize).min(left) } else { left / 2 };
        let start = at.saturating_sub(BLOCK / 2).max(low).min(high.saturating_sub(BLOCK).max(low));
        let block = read(start..high.min(start + BLOCK))?;
        let (block, _) = block.as_ref().as_chunks::<ENTRY_BYTES>();
        let (Some(first), Some(last)) = (block.first(), block.last()) else { break };
        if id.0[..] < first[..32] {
            (high, keys.1) = (start, prefix(first).max(keys.0));
        } else if id.0[..] > last[..32] {
            (low, keys.0) = (start + block.len(), prefix(last).min(keys.1));
        } else {
            let found = block.binary_search_by(|entry| entry[..32].cmp(&id.0[..])).ok().and_then(|at| block.get(at));
            return Ok(found.map(|entry| (long(entry, 32), word(entry, 40), word(entry, 44))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_in_few_reads() {
        let ids: Vec<ChunkId> = (0_u32..50_000).map(|n| crate::chunk_id(&n.to_le_bytes())).collect();
        let (mut writer, mut bytes) = (PackWriter::new(), MAGIC.to_vec());
        for (n, id) in ids.iter().enumerate() {
            writer.append(*id, &n.to_le_bytes());
            bytes.extend(n.to_le_bytes());
        }
        bytes.extend(writer.finish());
        let (pack, mut reads) = (PackReader::open(&bytes).expect("is whole"), 0);
        let mut read = |at: u64, into: &mut [u8]| {
            reads += 1;
            into.copy_from_slice(&bytes[at as usize..][..into.len()]);
            Ok::<_, ()>(())
        };
        for (n, id) in ids.iter().enumerate() {
            let (offset, len, crc) = pack.layout().find_by(id, &mut read).expect("readable").expect("it is there");
            let place = pack.layout().place(offset, len).expect("within");
            let frame = &bytes[place.start as usize..place.end as usize];
            assert_eq!((frame, check_frame(frame, crc)), (&n.to_le_bytes()[..], Ok(())));
            assert_eq!(pack.frame(id).expect("is whole").map(|range| &bytes[range]), Some(&n.to_le_bytes()[..]));
        }
        for other in [[0; 32], [0xff; 32], *blake3::hash(b"none").as_bytes()] {
            assert_eq!(pack.layout().find_by(&ChunkId(other), &mut read), Ok(None));
        }
        assert!(reads < 3 * ids.len(), "{reads} reads");
    }
}
