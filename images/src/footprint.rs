//! How much memory a manifest takes once it is decoded, counted on its bytes before anything is allocated for it.
//!
//! In protobuf an empty message is two bytes, decoded it is up to six hundred. [`check`] walks over the fields as the decoder will, by
//! a table that the build makes of manifest.proto, and refuses a manifest that would take many times its length. What a checkpoint
//! writes takes at most twelve times its length: each element says at least where it lies or what it is.
//!
//! Known hole: vectors grow by doubling, so that a decoder may use up to three times what is counted for a moment.

use crate::error::ImageError;

/// A manifest may take so much in any case: as much as a process with 100 000 mappings.
const FREE_BYTES: u64 = 32 << 20;
/// And so many times its length.
const TIMES: u64 = 16;

/// What a field holds.
enum Holds {
    /// Another message, by its place in [`MESSAGES`].
    Message(usize),
    /// Text or bytes.
    Bytes,
    /// A number, at most eight bytes.
    Number,
}

struct Field {
    number: u64,
    /// It lies in memory of its own: it is repeated or boxed. Others are a part of their message.
    apart: bool,
    holds: Holds,
}

struct Message {
    /// Memory of one, without what it points to.
    bytes: u64,
    fields: &'static [Field],
}

/// Those of manifest.proto, the manifest first.
static MESSAGES: &[Message] = include!(concat!(env!("OUT_DIR"), "/footprint.rs"));

/// Memory of a vector's or a text's own.
const VECTOR_BYTES: u64 = size_of::<Vec<u8>>() as u64;
const NUMBER_BYTES: u64 = size_of::<u64>() as u64;

/// A manifest that may be decoded.
pub(crate) fn check(manifest: &[u8]) -> Result<(), ImageError> {
    let (takes, len) = (memory(manifest)?, manifest.len() as u64);
    let most = len.saturating_mul(TIMES).saturating_add(FREE_BYTES);
    if takes <= most {
        return Ok(());
    }
    let why = format!("its {len} bytes would take {takes} bytes of memory, more than any process's: nothing is read of it");
    Err(ImageError::Manifest(why))
}

/// Memory that it takes once it is decoded.
fn memory(manifest: &[u8]) -> Result<u64, ImageError> {
    of(0, manifest).ok_or_else(|| ImageError::Manifest("it is no protobuf message".to_owned()))
}

/// The same of one message, without its own struct; `None` where the bytes are none. No message of the manifest contains itself, so
/// that this ends.
fn of(message: usize, mut bytes: &[u8]) -> Option<u64> {
    let message = MESSAGES.get(message)?;
    let mut takes = 0_u64;
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = message.fields.iter().find(|field| field.number == key >> 3);
        let body = match key & 7 {
            0 => {
                varint(&mut bytes)?;
                &[]
            }
            1 => part(&mut bytes, 8)?,
            2 => {
                let len = varint(&mut bytes)?;
                part(&mut bytes, len)?
            }
            5 => part(&mut bytes, 4)?,
            _ => return None, // groups: no version of the format has any
        };
        let Some(Field { apart, holds, .. }) = field else { continue };
        let (own, behind) = match holds {
            Holds::Message(index) => (MESSAGES.get(*index)?.bytes, of(*index, body)?),
            Holds::Bytes => (VECTOR_BYTES, body.len() as u64),
            // Several may come as one.
            Holds::Number => (NUMBER_BYTES, body.iter().filter(|byte| **byte < 0x80).count() as u64 * NUMBER_BYTES),
        };
        takes += behind + if *apart { own } else { 0 };
    }
    Some(takes)
}

fn part<'a>(bytes: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (part, rest) = bytes.split_at_checked(usize::try_from(len).ok()?)?;
    *bytes = rest;
    Some(part)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}
