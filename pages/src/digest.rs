//! BLAKE3-256 names: of a chunk's raw pages and of a snapshot's image. Computing them is `images`' work.

use std::fmt;
use std::str::FromStr;

/// What a digest's text form must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidDigest;

impl fmt::Display for InvalidDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a digest is 64 hexadecimal digits")
    }
}

impl std::error::Error for InvalidDigest {}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The digest in `bytes`, or `None` unless there are exactly 32.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidDigest;

            fn from_str(text: &str) -> Result<Self, InvalidDigest> {
                let digits = text.as_bytes();
                if digits.len() != 64 {
                    return Err(InvalidDigest);
                }
                let mut out = [0; 32];
                for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
                    let nibble = |d: u8| (d as char).to_digit(16).ok_or(InvalidDigest);
                    *byte = (nibble(pair[0])? * 16 + nibble(pair[1])?) as u8;
                }
                Ok(Self(out))
            }
        }
    };
}

digest! {
    /// BLAKE3-256 of a chunk's raw (uncompressed) pages.
    ChunkId
}
impl ChunkId {
    /// The first eight bytes, which hardly ever are another chunk's too.
    #[must_use]
    pub fn prefix(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        [a, b, c, d, e, f, g, h]
    }
}

digest! {
    /// BLAKE3-256 of a whole snapshot image (header, manifest, chunk table).
    SnapshotId
}
