//! Making checksums fit again: a fuzzer does not guess a CRC, so without this it would never get behind the first check.
//!
//! Each target tries its bytes as they are, then sealed. What is shared here is only where the checksums lie.
#![forbid(unsafe_code)]

/// Bytes of an image's header.
const HEADER_BYTES: usize = images::HEADER_BYTES;
/// Bytes of a pack's footer.
const FOOTER_BYTES: usize = 32;

/// `bytes` with the checksums of an image that fit; shorter than a header, as they are.
#[must_use]
pub fn seal_image(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    if sealed.len() >= HEADER_BYTES {
        let body = crc32c::crc32c(&sealed[HEADER_BYTES..]);
        sealed[40..44].copy_from_slice(&body.to_le_bytes());
        let head = crc32c::crc32c(&sealed[..44]);
        sealed[44..48].copy_from_slice(&head.to_le_bytes());
    }
    sealed
}

/// `bytes` as an image with lengths, too, that fit: `chunks` of table at most, the rest manifest.
#[must_use]
pub fn frame_image(bytes: &[u8], chunks: u64) -> Vec<u8> {
    let mut framed = bytes.to_vec();
    if framed.len() >= HEADER_BYTES {
        let body = (framed.len() - HEADER_BYTES) as u64;
        let chunks = chunks.min(body / 32);
        framed[24..32].copy_from_slice(&(body - chunks * 32).to_le_bytes());
        framed[32..40].copy_from_slice(&chunks.to_le_bytes());
    }
    seal_image(&framed)
}

/// `bytes` with a footer that fits the largest index they can hold; shorter than a footer, as they are.
#[must_use]
pub fn seal_pack(bytes: &[u8], entries: usize) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    if let Some(footer_at) = sealed.len().checked_sub(FOOTER_BYTES).filter(|at| *at >= 8) {
        let entries = entries.min((footer_at - 8) / 48);
        let index_at = footer_at - entries * 48;
        sealed[footer_at..footer_at + 8].copy_from_slice(&(entries as u64).to_le_bytes());
        sealed[footer_at + 8..footer_at + 16].copy_from_slice(&(index_at as u64).to_le_bytes());
        let crc = crc32c::crc32c(&sealed[index_at..footer_at]);
        sealed[footer_at + 16..footer_at + 20].copy_from_slice(&crc.to_le_bytes());
    }
    sealed
}
