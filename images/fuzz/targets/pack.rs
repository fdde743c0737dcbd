//! Any bytes as a pack: an error, or an index whose frames all lie between head and index.
#![cfg_attr(fuzzing, no_main)]

use defrost_images_fuzz::seal_pack;
use images::pack::PackReader;
use libfuzzer_sys::fuzz_target;
use pages::ChunkId;

fn try_pack(bytes: &[u8]) {
    let Ok(pack) = PackReader::open(bytes) else { return };
    assert_eq!(pack.entries().count(), pack.len());
    let index_at = bytes.len() - 32 - pack.len() * 48;
    for id in pack.entries().map(|(id, _)| id).chain([ChunkId([0; 32]), ChunkId([255; 32])]) {
        match pack.frame(&id) {
            Ok(Some(range)) => {
                assert!(8 <= range.start && range.start <= range.end && range.end <= index_at);
                let (offset, len, crc) = pack.find(&id).expect("has a frame");
                assert_eq!((offset as usize, len as usize), (range.start, range.len()));
                assert_eq!(crc, crc32c::crc32c(&bytes[range]));
            }
            Ok(None) => assert!(!pack.contains(&id)),
            Err(_) => assert!(pack.contains(&id)),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    try_pack(bytes);
    for entries in [0, 1, 6, usize::MAX] {
        try_pack(&seal_pack(bytes, entries));
    }
});
