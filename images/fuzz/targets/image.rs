//! Any bytes as an image: an error, or a manifest whose page map is consistent and which is written as a valid image again.
#![cfg_attr(fuzzing, no_main)]

use defrost_images_fuzz::{frame_image, seal_image};
use images::{Image, PageMap};
use libfuzzer_sys::fuzz_target;

fn try_image(bytes: &[u8]) {
    let Ok(image) = Image::parse(bytes) else { return };
    let map = PageMap::new(&image);
    assert_eq!(map.chunks() as usize, image.table.len());
    for index in 0..map.chunks() {
        let range = map.pages_of(index).expect("every chunk has pages");
        assert!(!range.is_empty() && range.bytes() <= map.chunk_size_bytes());
        assert_eq!(map.chunk_of(range.start()), Some((index, range)));
    }
    assert_eq!(map.pages_of(map.chunks()), None);
    let of_extents: u64 = map.extents().map(|range| range.pages()).sum();
    assert_eq!(of_extents, image.manifest.extents.iter().map(|extent| extent.pages).sum::<u64>());
    let again = Image::parse(&Image::encode(&image.manifest, &image.table.to_vec())).expect("is valid again");
    assert_eq!((&again.manifest, &again.table), (&image.manifest, &image.table));
}

fuzz_target!(|bytes: &[u8]| {
    try_image(bytes);
    try_image(&seal_image(bytes));
    let manifest_alone = &bytes[..bytes.len().min(1 << 16)];
    for chunks in [0, 1, 4] {
        try_image(&frame_image(manifest_alone, chunks));
    }
});
