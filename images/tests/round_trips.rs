//! What is written is read again: images against a list of pages as the model, frames at every level, packs of any frames.

extern crate defrost_images as images;

use images::codec::{Decoder, Encoder, Unverified, Verified};
use images::manifest::{Backing, Extent, Manifest, Region};
use images::pack::{MAGIC, PackReader, PackWriter};
use images::{Image, PageMap, chunk_id, cut};
use pages::{ChunkId, PAGE_SIZE_BYTES, PageAddr, PageRange};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Ascending runs of pages with contents, each in a region that is somewhat larger.
fn memory() -> impl Strategy<Value = Manifest> {
    let run = (1_u64..40, 0_u64..3, 1_u64..70, 0_u64..3);
    (prop::collection::vec(run, 0..12), 12_u32..=20).prop_map(|(runs, size_bits)| {
        let chunk_size_bytes = 1 << size_bits;
        let (mut at, mut first_chunk) = (0x40_0000, 0);
        let (mut regions, mut extents) = (Vec::new(), Vec::new());
        for (gap, before, pages, behind) in runs {
            let start = at + gap / 2 * PAGE_SIZE_BYTES; // now and then right behind the last
            let contents = start + before * PAGE_SIZE_BYTES;
            at = contents + (pages + behind) * PAGE_SIZE_BYTES;
            regions.push(Region { start, end: at, prot: 3, backing: Backing::Anonymous as i32, lazy: true, ..Region::default() });
            extents.push(Extent { start: contents, pages, first_chunk });
            let range = PageRange::with_len(PageAddr::new(contents).expect("aligned"), pages).expect("is low");
            first_chunk += cut(range, chunk_size_bytes).count() as u64;
        }
        Manifest { regions, extents, chunk_size_bytes, ..Manifest::default() }
    })
}

fn image(manifest: &Manifest) -> Image {
    let chunks = manifest.extents.iter().map(|extent| {
        let range = PageRange::with_len(PageAddr::new(extent.start).expect("aligned"), extent.pages).expect("is low");
        cut(range, manifest.chunk_size_bytes).count() as u64
    });
    let table: Vec<ChunkId> = (0..chunks.sum::<u64>()).map(|n| chunk_id(&n.to_le_bytes())).collect();
    let image = Image::parse(&Image::encode(manifest, &table)).expect("is valid");
    assert_eq!((&image.manifest, image.table.to_vec()), (manifest, table));
    image
}

/// Page number → index of its chunk, by counting.
fn model(manifest: &Manifest) -> BTreeMap<u64, u32> {
    let (mut model, mut index, mut last) = (BTreeMap::new(), 0_u32, None);
    for extent in &manifest.extents {
        for page in (extent.start / PAGE_SIZE_BYTES..).take(extent.pages as usize) {
            let window = (extent.start, page * PAGE_SIZE_BYTES / u64::from(manifest.chunk_size_bytes));
            index += u32::from(last.is_some_and(|last| last != window));
            last = Some(window);
            model.insert(page, index);
        }
    }
    model
}

/// Bytes as memory has them: runs, text-like noise, noise.
fn chunk() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        (any::<u8>(), 1_usize..9000).prop_map(|(byte, times)| vec![byte; times]),
        prop::collection::vec(b'a'..b'f', 1..3000),
        prop::collection::vec(any::<u8>(), 1..3000),
    ];
    prop::collection::vec(part, 1..8).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn maps_agree_with_counting(manifest in memory()) {
        let map = PageMap::new(&image(&manifest));
        let model = model(&manifest);
        let first = manifest.regions.first().map_or(0, |region| region.start / PAGE_SIZE_BYTES - 1);
        let last = manifest.regions.last().map_or(9, |region| region.end / PAGE_SIZE_BYTES + 1);
        for page in first..=last {
            let found = map.chunk_of(PageAddr::from_number(page));
            prop_assert_eq!(found.map(|(index, _)| index), model.get(&page).copied(), "page {:#x}", page);
            if let Some((index, range)) = found {
                prop_assert!(range.contains(PageAddr::from_number(page)));
                prop_assert_eq!(map.pages_of(index), Some(range));
            }
        }
        let of_chunks: u64 = (0..map.chunks()).filter_map(|index| map.pages_of(index)).map(|range| range.pages()).sum();
        prop_assert_eq!(of_chunks, model.len() as u64);
        for beyond in [map.chunks(), map.chunks() + 1, u32::MAX] {
            prop_assert_eq!(map.pages_of(beyond), None);
        }
    }

    #[test]
    fn cuts_lie_on_multiples_and_miss_nothing(start in 0_u64..1000, pages in 0_u64..1000, size_bits in 12_u32..=20) {
        let range = PageRange::with_len(PageAddr::from_number(start), pages).expect("is low");
        let (mut at, size) = (range.start(), 1_u64 << size_bits);
        for part in cut(range, 1 << size_bits) {
            prop_assert_eq!(part.start(), at);
            prop_assert!(!part.is_empty() && part.start().addr() / size == (part.end().addr() - 1) / size);
            at = part.end();
            prop_assert!(at == range.end() || at.addr().is_multiple_of(size));
        }
        prop_assert_eq!(at, range.end());
    }

    #[test]
    fn frames_round_trip_at_every_level(raws in prop::collection::vec(chunk(), 1..5), level in -50_i32..=12) {
        let (mut encoder, mut decoder, mut out) = (Encoder::new(level), Decoder::new(), Verified::default());
        for raw in raws {
            let frame = encoder.encode(&raw).expect("compresses");
            prop_assert_eq!(frame[4] & 0b100, 0, "a checksum is in the frame");
            prop_assert_eq!(&encoder.encode(&raw).expect("compresses"), &frame, "the context remembers the last chunk");
            decoder.decode(&chunk_id(&raw), &frame, raw.len(), &mut out).expect("is right");
            prop_assert_eq!(&*out, raw.as_slice());
        }
    }

    #[test]
    fn packs_keep_their_frames(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..40)) {
        let (mut writer, mut bytes) = (PackWriter::new(), MAGIC.to_vec());
        for frame in &frames {
            prop_assert_eq!(writer.append(chunk_id(frame), frame), bytes.len() as u64);
            bytes.extend(frame);
        }
        prop_assert_eq!(writer.chunks(), frames.len() as u64);
        bytes.extend(writer.finish());
        let pack = PackReader::open(&bytes).expect("is whole");
        for frame in &frames {
            let range = pack.frame(&chunk_id(frame)).expect("is whole").expect("is there");
            prop_assert_eq!(&bytes[range], frame.as_slice());
            prop_assert_eq!(pack.find(&chunk_id(frame)).map(|(_, len, crc)| (len, crc)), Some((frame.len() as u32, crc32c::crc32c(frame))));
        }
        let listed: Vec<ChunkId> = pack.entries().map(|(id, _)| id).collect();
        prop_assert!(listed.is_sorted() && listed.len() == frames.len() && pack.len() == frames.len());
        prop_assert_eq!(pack.frame(&chunk_id(b"something else")), Ok(None));
        prop_assert!(!pack.contains(&chunk_id(b"something else")));
    }
}

#[test]
fn unverified_bytes_become_verified_only_by_their_digest() {
    let refused = Unverified::new(b"page".to_vec()).verify(&ChunkId([0; 32])).expect_err("is another chunk");
    assert_eq!((refused.len(), refused.is_empty()), (4, false));
    let verified = refused.verify(&chunk_id(b"page")).expect("is this chunk");
    assert_eq!(&*verified, b"page");
    assert!(Unverified::new(b"page".to_vec()).discard().is_empty());
}

#[test]
fn an_empty_pack_is_a_pack() {
    let bytes = [MAGIC.to_vec(), PackWriter::new().finish()].concat();
    assert!(PackReader::open(bytes).expect("is whole").is_empty());
}
