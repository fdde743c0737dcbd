//! What a file contains, told in a few bytes: the build id of an ELF file, the digest of any other.
//!
//! A checkpoint records one of the two ([`Told::of`]), a restore compares where time or inode of
//! the file differ. Build ids are read from two pages of the file; digests cost reading all of it,
//! so that files of more than [`DIGESTED_BYTES`] have none.

use object::{Object as _, ReadCache, read::elf::ElfFile64};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Files of up to 64 MiB are digested: that takes some 20 ms.
pub const DIGESTED_BYTES: u64 = 64 << 20;
const PIECE_BYTES: usize = 256 << 10;

/// What tells a file's contents; both empty where neither can be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// GNU build id.
    pub build_id: Vec<u8>,
    /// BLAKE3-256.
    pub digest: Vec<u8>,
}

impl Told {
    /// Look into `file`, which has `size_bytes`.
    #[must_use]
    pub fn of(file: &File, size_bytes: u64) -> Self {
        let build_id = build_id(file).unwrap_or_default();
        let wanted = build_id.is_empty() && size_bytes <= DIGESTED_BYTES;
        let digest = if wanted { digest(file, size_bytes).unwrap_or_default() } else { Vec::new() };
        Self { build_id, digest }
    }
}

/// The build id of a 64-bit ELF file that has one.
#[must_use]
pub fn build_id(file: &File) -> Option<Vec<u8>> {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).ok()?;
    if &magic != b"\x7fELF" {
        return None;
    }
    let cache = ReadCache::new(file);
    let elf = ElfFile64::<object::Endianness, _>::parse(&cache).ok()?;
    elf.build_id().ok()?.map(<[u8]>::to_vec)
}

/// The digest of the file's first `size_bytes`; `None` where there are fewer.
#[must_use]
pub fn digest(file: &File, size_bytes: u64) -> Option<Vec<u8>> {
    let mut digesting = images::Digesting::default();
    let (mut piece, mut at) = (vec![0; PIECE_BYTES], 0);
    while at < size_bytes {
        let length = PIECE_BYTES.min((size_bytes - at) as usize);
        file.read_exact_at(&mut piece[..length], at).ok()?;
        digesting.add(&piece[..length]);
        at += length as u64;
    }
    Some(digesting.id().0.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_has_a_build_id_and_a_text_a_digest() {
        let program = File::open("/proc/self/exe").expect("opens");
        let size = program.metadata().expect("is there").len();
        // Linkers are told to write one by the distribution's compilers, not by rustc: both may be.
        let told = Told::of(&program, size);
        assert!(told.build_id.is_empty() != told.digest.is_empty() || size > DIGESTED_BYTES, "{told:?}");
        let text = tempfile::tempfile().expect("is made");
        text.write_all_at(b"hello", 0).expect("is written");
        assert_eq!(Told::of(&text, 5).digest.len(), 32);
        assert_eq!(Told::of(&text, 6), Told::default());
    }
}
