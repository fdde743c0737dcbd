//! A snapshot's human name, `NAME[:TAG]`, as container images have them.

use crate::SnapshotId;
use std::fmt;
use std::str::FromStr;

/// Longest name and longest tag, in bytes.
const MAX_PART_BYTES: usize = 128;
/// Longest `NAME:TAG`, in bytes: it is the name of a file, and Linux allows no more.
const MAX_BYTES: usize = 255;

/// A checked `NAME:TAG`; the tag is `latest` where none was given.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SnapshotName {
    name: String,
    tag: String,
}

/// A snapshot's name and, where `NAME@DIGEST` was written, the digest that it must stand for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotRef {
    /// The name.
    pub name: SnapshotName,
    /// The digest.
    pub digest: Option<SnapshotId>,
}

/// The text that is no snapshot name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InvalidName(pub String);

impl SnapshotName {
    /// The part before the colon.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part behind the colon.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

/// Letters, digits, `.`, `_`, `-`, and not first a `.` or `-` (hidden files, options).
fn well_formed(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= MAX_PART_BYTES
        && !part.starts_with(['.', '-'])
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

impl FromStr for SnapshotName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
        if well_formed(name) && well_formed(tag) && name.len() + 1 + tag.len() <= MAX_BYTES {
            Ok(Self { name: name.to_owned(), tag: tag.to_owned() })
        } else {
            Err(InvalidName(text.to_owned()))
        }
    }
}

impl FromStr for SnapshotRef {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('@') {
            Some((name, digest)) => {
                let digest = digest.parse().map_err(|_| InvalidName(text.to_owned()))?;
                Ok(Self { name: name.parse()?, digest: Some(digest) })
            }
            None => Ok(Self { name: text.parse()?, digest: None }),
        }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "snapshot name {:?} is malformed: use NAME or NAME:TAG of letters, digits, '.', '_' and '-' (at most {MAX_PART_BYTES} each, {MAX_BYTES} together)",
            self.0
        )
    }
}

impl std::error::Error for InvalidName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!("redis".parse::<SnapshotName>().map(|n| n.to_string()), Ok("redis:latest".to_owned()));
        assert_eq!("a:b-1".parse::<SnapshotName>().map(|n| n.tag().to_owned()), Ok("b-1".to_owned()));
        for bad in ["", ":", "a:", ":b", "a/b", "../x", ".a", "-a", "a:b:c", "a b", "ä"] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad:?} was taken");
        }
        let part = "n".repeat(MAX_PART_BYTES);
        assert!(format!("{part}:{}", &part[1..]).parse::<SnapshotName>().is_err(), "256 bytes are no file name");
        assert!(format!("{part}:{}", &part[2..]).parse::<SnapshotName>().is_ok());
        let digest = "0f".repeat(32);
        let named = format!("a:b@{digest}").parse::<SnapshotRef>().expect("well-formed");
        assert_eq!((named.name.to_string(), named.digest.map(|digest| digest.to_string())), ("a:b".to_owned(), Some(digest)));
        assert_eq!("a".parse::<SnapshotRef>().map(|named| named.digest), Ok(None));
        for bad in ["a@", "a@0f", "@", "a@b@c"] {
            assert!(bad.parse::<SnapshotRef>().is_err(), "{bad:?} was taken");
        }
    }
}
