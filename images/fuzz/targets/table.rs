//! Any bytes as the server reads an image: an error, or a table as long as the header says, never touching the manifest.
#![cfg_attr(fuzzing, no_main)]

use defrost_images_fuzz::{frame_image, seal_image};
use images::{Image, parse_table};
use libfuzzer_sys::fuzz_target;

fn try_table(bytes: &[u8]) {
    let table = parse_table(bytes);
    if let Ok((id, table)) = &table {
        assert_eq!(id.0, images::chunk_id(bytes).0);
        assert!(table.len() * 32 + images::HEADER_BYTES <= bytes.len());
        assert!(table.iter().map(|id| &id.0[..]).eq(bytes[bytes.len() - table.len() * 32..].chunks(32)));
    }
    match (table, Image::parse(bytes)) {
        (Ok((id, table)), Ok(image)) => assert_eq!((id, table), (image.id, image.table.to_vec())),
        (Err(_), Ok(_)) => panic!("an image is taken whose table is refused"),
        _ => {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    try_table(bytes);
    try_table(&seal_image(bytes));
    for chunks in [0, 1, 1000] {
        try_table(&frame_image(bytes, chunks));
    }
});
