//! Files written by earlier versions keep opening, byte for byte. A failure here means that snapshots people have are lost:
//! mend the reader, never the file. New files come from `cargo run -p defrost-images --example golden`.

extern crate defrost_images as images;

#[allow(dead_code, reason = "each test crate uses a part of it")]
mod sample;

use images::codec::{Decoder, Verified};
use images::pack::PackReader;
use images::{Image, PageMap, chunk_id, parse_table};

const PROCESS: &[u8] = include_bytes!("golden/v1-process.img");
const STATE: &[u8] = include_bytes!("golden/v1-state1.img");
const MEMORY: &[u8] = include_bytes!("golden/v1-memory.img");
const MACHINE: &[u8] = include_bytes!("golden/v1-machine.img");
const CRIU: &[u8] = include_bytes!("golden/v1-criu.img");
const PACK: &[u8] = include_bytes!("golden/v1.pack");
const TEXT: &[u8] = include_bytes!("golden/v1-text.frame");
const BITS: &[u8] = include_bytes!("golden/v1-bits.frame");

#[test]
fn golden_files_are_those_committed() {
    let digests = [PROCESS, MEMORY, PACK, TEXT, BITS, CRIU, MACHINE, STATE].map(|bytes| chunk_id(bytes).to_string());
    assert_eq!(
        digests,
        [
            "085573ea31fca394b009c3bd763aa2d6592ff0d72cba76c629f2fab87577e9bb",
            "603da1c31673aa28c861d2e2d61cac7caffefed1484f843f4404b91497a9776d",
            "70224aec8a7a308361aa2f4d9b584fa8eae6bc8da682582b76b5e371e414248e",
            "a334b7a3fbca880512dbeb03f3e2f2959e4700586d53f197194d48037bcde5ca",
            "f46085d2b8c63db88ed1a09895a79b94bdeab0c53ae7bbbbcba1f9a8f163c5f4",
            "501c767afe067b666ca275a817c3e5daa9ef81dce4f1901f32f7b9ee65a65b18",
            "b8f09d2066cf98ba9c2993a1ab5da2109fa339c3b368ea6f5dafa4fc2e7f91fe",
            "cab85fefd75448996a11e2572d04f8bbaf4783113360b6769f4b167d44cb0d1a",
        ]
    );
}

#[test]
fn golden_images_open_and_are_written_the_same_again() {
    for (bytes, manifest, chunks) in [
        (PROCESS, sample::process(), 4),
        (STATE, sample::state(), 4),
        (MEMORY, sample::memory(), 2),
        (CRIU, sample::criu(), 2),
        (MACHINE, sample::machine(), 2),
    ] {
        let image = Image::parse(bytes).expect("is whole");
        assert_eq!(image.id.0, chunk_id(bytes).0);
        assert_eq!(image.manifest, manifest);
        assert_eq!(image.table.to_vec(), sample::table(chunks));
        assert_eq!(parse_table(bytes), Ok((image.id, image.table.to_vec())));
        assert_eq!(Image::encode(&image.manifest, &image.table.to_vec()), bytes);
    }
}

#[test]
fn the_golden_map_finds_its_pages() {
    let map = PageMap::new(&Image::parse(PROCESS).expect("is whole"));
    let ranges: Vec<_> = (0..=4).map(|n| map.pages_of(n).map(|r| (r.start().addr(), r.end().addr()))).collect();
    assert_eq!(
        ranges,
        [
            Some((0x40_2000, 0x40_3000)),
            Some((0x7f00_0000_3000, 0x7f00_0000_4000)),
            Some((0x7f00_0000_4000, 0x7f00_0000_8000)),
            Some((0x7f00_0000_8000, 0x7f00_0000_9000)),
            None,
        ]
    );
}

#[test]
fn golden_frames_decode() {
    let pack = PackReader::open(PACK).expect("is whole");
    assert_eq!(pack.len(), 6);
    let (mut decoder, mut out) = (Decoder::new(), Verified::default());
    for n in 0..6 {
        let raw = sample::chunk(n);
        let id = chunk_id(&raw);
        let range = pack.frame(&id).expect("is whole").expect("is there");
        decoder.decode(&id, &PACK[range], raw.len(), &mut out).expect("is right");
        assert_eq!(*out, *raw);
    }
    for (n, frame) in [(0, TEXT), (5, BITS)] {
        let raw = sample::chunk(n);
        decoder.decode(&chunk_id(&raw), frame, raw.len(), &mut out).expect("is right");
        assert_eq!(*out, *raw);
    }
}
