//! What can be wrong with an image, pack or frame.

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Fewer bytes than the structure needs.
    #[error("the {what} is truncated ({have} bytes of {need}): fetch it again")]
    Truncated {
        /// Which structure.
        what: &'static str,
        /// Bytes there.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// More bytes than the structure has.
    #[error("the {what} is followed by {surplus} bytes that do not belong to it: it was damaged, fetch it again")]
    Surplus {
        /// Which structure.
        what: &'static str,
        /// Bytes too many.
        surplus: u64,
    },
    /// Not ours.
    #[error("the {0} does not begin with its magic number: it is something else or damaged, check the path")]
    Magic(&'static str),
    /// Another version.
    #[error("the {what} has format version {found}, this defrost reads version {known}: use the defrost that wrote it")]
    Version {
        /// Which structure.
        what: &'static str,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A process described by a later version.
    #[error("the process is described with state version {0}, which this defrost does not know: use a newer defrost")]
    StateVersion(u32),
    /// A feature we must not ignore.
    #[error("the image uses features this defrost does not know ({0:#x}): use a newer defrost")]
    Features(u32),
    /// A checksum does not fit.
    #[error("the {0} is damaged: its checksum does not fit; fetch it again, or use another snapshot")]
    Checksum(&'static str),
    /// A value out of its bounds.
    #[error("the manifest is not valid ({0}): use another snapshot, or the defrost that wrote it")]
    Manifest(String),
    /// An impossible pack.
    #[error("the pack is damaged ({0}): restore its file from a copy, or check the snapshots anew")]
    Pack(&'static str),
}
