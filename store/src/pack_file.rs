//! One pack of a directory: its index and its frames are read, never mapped, so that a pack that was cut since is an error and no SIGBUS.
//!
//! A small index is read once, when it is first asked, and kept; a large one is searched by two or three reads of 1.5 KiB. The descriptor
//! stays open, so that a pack which a collection removes stays readable; where the process may open no more, the pack is opened for
//! each read.
//!
//! A pack whose name begins with [`VERIFIED`] holds only frames that were decoded and digested before they were written. Older packs
//! hold what a client sent.

use crate::buffers::Buffers;
use bytes::Bytes;
use images::ImageError;
use images::pack::{ENDS_BYTES, Layout, check_frame, checksum, entries_in, find_in};
use pages::ChunkId;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// First characters of the name of a pack whose frames were verified before they were written.
pub(crate) const VERIFIED: &str = "v1-";
/// What is wrong with a pack that was cut since it was opened.
const CUT: &str = "it ends in the middle";
/// Bytes of an index that are read at a time: whole entries of 48 bytes.
const PIECE_BYTES: usize = 48 * 4096;

/// What is wrong with a pack or one of its frames.
#[derive(Debug)]
pub(crate) enum Wrong {
    /// Its bytes.
    Contents(ImageError),
    /// It cannot be read.
    Unreadable(Error),
}

impl From<ImageError> for Wrong {
    fn from(error: ImageError) -> Self {
        Self::Contents(error)
    }
}

/// Where a frame lies in a pack, and its checksum.
pub(crate) type Placed = (Range<u64>, u32);

/// An opened pack.
#[derive(Debug)]
pub(crate) struct PackFile {
    pub(crate) name: String,
    path: PathBuf,
    file: Option<File>,
    layout: Layout,
    file_bytes: u64,
    index: OnceLock<Bytes>,
    /// Whether the index has its checksum, once that was computed.
    whole: OnceLock<bool>,
    buffers: Arc<Buffers>,
}

impl PackFile {
    /// Open `folder`/`name` and check its footer. The descriptor is kept if `keeps`.
    pub(crate) fn open(folder: &Path, name: &str, keeps: bool, buffers: Arc<Buffers>) -> Result<Self, Wrong> {
        let path = folder.join(name);
        let file = open(&path).map_err(Wrong::Unreadable)?;
        let file_bytes = file.metadata().map_err(Wrong::Unreadable)?.len();
        let (mut first, mut last) = (vec![0; ENDS_BYTES.0], vec![0; ENDS_BYTES.1]);
        if file_bytes >= (first.len() + last.len()) as u64 {
            read_exact(&file, &mut first, 0)?;
            read_exact(&file, &mut last, file_bytes - ENDS_BYTES.1 as u64)?;
        }
        let layout = Layout::parse(&first, &last, file_bytes)?;
        let (index, whole) = Default::default();
        Ok(Self { name: name.to_owned(), path, file: keeps.then_some(file), layout, file_bytes, index, whole, buffers })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its frames were decoded and digested before they were written.
    pub(crate) fn is_verified(&self) -> bool {
        self.name.starts_with(VERIFIED)
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// How many chunks.
    pub(crate) fn len(&self) -> usize {
        self.layout.len()
    }

    pub(crate) fn index_bytes(&self) -> u64 {
        self.layout.index().end - self.layout.index().start
    }

    fn read(&self, into: &mut [u8], at: u64) -> Result<(), Wrong> {
        match &self.file {
            Some(file) => read_exact(file, into, at),
            None => read_exact(&open(&self.path).map_err(Wrong::Unreadable)?, into, at),
        }
    }

    /// All of its index, read piece by piece.
    fn each_piece(&self, mut piece: impl FnMut(&[u8])) -> Result<(), Wrong> {
        let (index, mut buffer) = (self.layout.index(), vec![0; PIECE_BYTES.min(self.index_bytes() as usize)]);
        let mut at = index.start;
        while at < index.end {
            let part = &mut buffer[..PIECE_BYTES.min((index.end - at) as usize)];
            self.read(part, at)?;
            piece(part);
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Keep the index in memory from now on.
    pub(crate) fn keep_index(&self) -> Result<&Bytes, Wrong> {
        if let Some(index) = self.index.get() {
            return Ok(index);
        }
        let mut index = vec![0; self.index_bytes() as usize];
        self.read(&mut index, self.layout.index().start)?;
        Ok(self.index.get_or_init(|| Bytes::from(index)))
    }

    /// Check the index, if that was not done yet.
    pub(crate) fn check_index(&self) -> Result<(), Wrong> {
        let whole = match self.whole.get() {
            Some(whole) => *whole,
            None => {
                let mut sum = 0;
                match self.index.get() {
                    Some(index) => sum = checksum(0, index),
                    None => self.each_piece(|piece| sum = checksum(sum, piece))?,
                }
                *self.whole.get_or_init(|| sum == self.layout.checksum())
            }
        };
        if whole { Ok(()) } else { Err(ImageError::Checksum("pack's index").into()) }
    }

    /// All chunks of it.
    pub(crate) fn each_chunk(&self, mut chunk: impl FnMut(ChunkId)) -> Result<(), Wrong> {
        let mut all = |piece: &[u8]| entries_in(piece).for_each(|(id, _)| chunk(id));
        match self.index.get() {
            Some(index) => all(index),
            None => self.each_piece(all)?,
        }
        Ok(())
    }

    /// Where a chunk's frame lies, as far as the index tells.
    pub(crate) fn find(&self, id: &ChunkId) -> Result<Option<Placed>, Wrong> {
        let found = match self.index.get() {
            Some(index) => find_in(index, id),
            None => self.layout.find_by(id, |at, into| self.read(into, at))?,
        };
        let place = |(offset, len, crc)| self.layout.place(offset, len).map(|place| (place, crc));
        Ok(found.map(place).transpose()?)
    }

    /// The bytes there.
    pub(crate) fn bytes(&self, place: Range<u64>) -> Result<Bytes, Wrong> {
        let len = (place.end - place.start) as usize; // which the pack had when it was opened
        self.buffers.filled(len, |into| self.read(into, place.start))
    }

    /// A chunk's frame, its checksum checked.
    pub(crate) fn frame(&self, id: &ChunkId) -> Result<Option<Bytes>, Wrong> {
        let Some((place, crc)) = self.find(id)? else { return Ok(None) };
        let frame = self.bytes(place)?;
        check_frame(&frame, crc)?;
        Ok(Some(frame))
    }
}

/// A regular file; anything else in its place would make the reader wait.
fn open(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(Error::new(ErrorKind::InvalidData, "it is no regular file")) }
}

fn read_exact(file: &File, into: &mut [u8], at: u64) -> Result<(), Wrong> {
    file.read_exact_at(into, at).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => ImageError::Pack(CUT).into(),
        _ => Wrong::Unreadable(error),
    })
}
