//! Damaged bytes give an error or a valid value: every truncation, every flipped bit, and damage whose checksums were made to
//! fit again, which is what reaches the checks behind them.

extern crate defrost_images as images;

#[allow(dead_code, reason = "each test crate uses a part of it")]
mod sample;

use images::codec::{CodecError, Decoder, Encoder, Verified};
use images::pack::PackReader;
use images::{HEADER_BYTES, Image, ImageError, PageMap, chunk_id, parse_table};
use pages::{ChunkId, PageAddr};
use proptest::prelude::*;

fn image() -> Vec<u8> {
    Image::encode(&sample::process(), &sample::table(4)).to_vec()
}

/// Make both checksums fit.
fn seal(bytes: &mut [u8]) {
    let body = crc32c::crc32c(&bytes[HEADER_BYTES..]);
    bytes[40..44].copy_from_slice(&body.to_le_bytes());
    let head = crc32c::crc32c(&bytes[..44]);
    bytes[44..48].copy_from_slice(&head.to_le_bytes());
}

/// A value that was taken is one that all the rest can work with.
fn use_it(image: &Image) {
    let map = PageMap::new(image);
    let last = image.manifest.extents.last().map_or(0, |extent| extent.start);
    for index in (0..map.chunks()).chain([u32::MAX]) {
        let range = map.pages_of(index);
        assert_eq!(range.is_some(), index < map.chunks());
        if let Some(range) = range {
            assert_eq!(map.chunk_of(range.start()), Some((index, range)));
        }
    }
    assert_eq!(map.chunk_of(PageAddr::from_number(last / 4096)).is_some(), last != 0);
    assert_eq!(map.chunk_of(PageAddr::from_number(u64::MAX / 4096)), None);
    let again = Image::parse(&Image::encode(&image.manifest, &image.table.to_vec())).expect("a valid image is written as one");
    assert_eq!((again.manifest, again.table), (image.manifest.clone(), image.table.clone()));
}

#[test]
fn every_truncation_of_an_image_is_refused() {
    let whole = image();
    for cut in 0..whole.len() {
        assert!(matches!(Image::parse(&whole[..cut]), Err(ImageError::Truncated { .. })), "cut at {cut}");
        assert!(parse_table(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn every_flipped_bit_of_an_image_is_noticed() {
    let mut bytes = image();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Image::parse(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn every_flipped_bit_behind_fitting_checksums_is_refused_or_harmless() {
    let whole = image();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        seal(&mut bytes);
        if let Ok(image) = Image::parse(&bytes) {
            use_it(&image);
        }
    }
}

#[test]
fn every_flipped_bit_of_a_frame_is_noticed_or_harmless() {
    let (mut decoder, mut out) = (Decoder::new(), Verified::default());
    for n in [0, 2] {
        let raw = sample::chunk(n);
        let frame = Encoder::new(3).encode(&raw).expect("compresses").to_vec();
        for cut in 0..frame.len() {
            assert!(decoder.decode(&chunk_id(&raw), &frame[..cut], raw.len(), &mut out).is_err(), "cut at {cut}");
            assert!(out.is_empty());
        }
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match decoder.decode(&chunk_id(&raw), &bad, raw.len(), &mut out) {
                Ok(()) => assert_eq!(*out, *raw, "bit {bit}"),
                Err(_) => assert!(out.is_empty(), "bit {bit}"),
            }
        }
    }
}

#[test]
fn a_frame_that_claims_a_tebibyte_is_refused_before_allocation() {
    // Magic, descriptor (8-byte size, single segment), size 2^40, one empty last block.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    frame.extend((1_u64 << 40).to_le_bytes());
    frame.extend([1, 0, 0]);
    let mut out = Verified::default();
    let refused = Decoder::new().decode(&ChunkId([0; 32]), &frame, 16384, &mut out);
    assert_eq!(refused, Err(CodecError::Length { found: 1 << 40, expected: 16384 }));
    assert_eq!(out.capacity(), 0);
}

#[test]
fn only_one_frame_of_the_right_contents_is_taken() {
    let raw = sample::chunk(0);
    let (id, frame) = (chunk_id(&raw), Encoder::new(1).encode(&raw).expect("compresses"));
    let (mut decoder, mut out) = (Decoder::new(), Verified::default());
    decoder.decode(&id, &frame, raw.len(), &mut out).expect("is right");
    assert_eq!(*out, *raw);
    assert_eq!(decoder.decode(&ChunkId([0; 32]), &frame, raw.len(), &mut out), Err(CodecError::Digest));
    assert!(out.is_empty(), "wrong bytes can be read");
    let length = CodecError::Length { found: 16384, expected: 4096 };
    assert_eq!(decoder.decode(&id, &frame, 4096, &mut out), Err(length));
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    for longer in [[&frame[..], &frame[..]].concat(), [&frame[..], &skippable].concat(), [&frame[..], &[0]].concat()] {
        assert!(matches!(decoder.decode(&id, &longer, raw.len(), &mut out), Err(CodecError::Frame(_))));
    }
    assert!(decoder.decode(&id, &[&skippable, &frame[..]].concat(), raw.len(), &mut out).is_err());
    // The same without its length: descriptor 0, a window, one raw block, as streaming encoders write.
    let untold = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x58][..], &[0x21, 0, 0], b"page"].concat();
    assert!(matches!(decoder.decode(&chunk_id(b"page"), &untold, 4, &mut out), Err(CodecError::Frame(_))));
}

#[test]
fn any_damage_to_a_pack_is_noticed() {
    let whole = sample::pack();
    let ids: Vec<ChunkId> = sample::table(6);
    let index_at = whole.len() - 32 - 6 * 48;
    for cut in (0..whole.len()).filter(|cut| *cut < 100 || *cut > index_at - 100) {
        assert!(PackReader::open(&whole[..cut]).is_err(), "cut at {cut}");
    }
    // All of head, index and footer, and a sample of the frames.
    for at in (0..whole.len()).filter(|at| *at < 8 || *at >= index_at || at % 97 == 0) {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        let noticed = PackReader::open(&bad).map_or(true, |pack| ids.iter().any(|id| pack.frame(id).is_err()));
        assert!(noticed, "flip at {at}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_a_value(bytes in prop::collection::vec(any::<u8>(), 0..300), expected in 0_usize..5000) {
        prop_assert!(Image::parse(&bytes).is_err());
        prop_assert!(parse_table(&bytes).is_err());
        prop_assert!(PackReader::open(&bytes).is_err());
        let mut out = Verified::default();
        prop_assert!(Decoder::new().decode(&ChunkId([0; 32]), &bytes, expected, &mut out).is_err());
        prop_assert!(out.is_empty());
    }

    #[test]
    fn any_body_behind_a_fitting_header_is_an_error_or_a_value(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        lengths in (0_u64..20_000, 0_u64..200),
    ) {
        let mut bytes = image();
        for (at, value) in edits {
            let at = HEADER_BYTES + at.index(bytes.len() - HEADER_BYTES);
            bytes[at] = value;
        }
        seal(&mut bytes);
        if let Ok(image) = Image::parse(&bytes) {
            use_it(&image);
        }
        // The body cut somewhere, shared out anew between manifest and table, or said to be of other lengths.
        bytes.truncate(HEADER_BYTES + cut.index(bytes.len() - HEADER_BYTES));
        let body = (bytes.len() - HEADER_BYTES) as u64;
        for (manifest, chunks) in [lengths, (body % 32, body / 32), (body, 0)] {
            bytes[24..32].copy_from_slice(&manifest.to_le_bytes());
            bytes[32..40].copy_from_slice(&chunks.to_le_bytes());
            seal(&mut bytes);
            if let Ok(image) = Image::parse(&bytes) {
                use_it(&image);
            }
        }
    }

    #[test]
    fn any_index_behind_fitting_checksums_is_an_error_or_a_value(edits in prop::collection::vec((0_usize..6 * 48 + 16, any::<u8>()), 1..6)) {
        let mut bytes = sample::pack();
        let (index_at, footer_at) = (bytes.len() - 32 - 6 * 48, bytes.len() - 32);
        for (at, value) in edits {
            bytes[index_at + at] = value;
        }
        let crc = crc32c::crc32c(&bytes[index_at..footer_at]);
        bytes[footer_at + 16..footer_at + 20].copy_from_slice(&crc.to_le_bytes());
        if let Ok(pack) = PackReader::open(&bytes) {
            for id in pack.entries().map(|(id, _)| id).chain(sample::table(6)) {
                if let Ok(Some(range)) = pack.frame(&id) {
                    prop_assert!(range.end <= index_at && range.start >= 8);
                }
            }
        }
    }
}
