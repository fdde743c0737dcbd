//! The example of a front end, as another tool would run it: memory of its own comes to have what a snapshot has.

#[path = "../examples/lazy_memory.rs"]
mod lazy_memory;

use images::codec::Encoder;
use images::manifest::{Extent, Manifest};
use images::{Image, chunk_id, memory_file};
use store::{Access, LocalStore, Store as _};

const CHUNK: usize = 16 << 10;

#[test]
fn memory_of_our_own_has_what_the_snapshot_has() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = LocalStore::open(folder.path(), Access::Write).expect("open a store");
    let (mut encoder, mut upload, mut table) = (Encoder::new(1), store.upload().expect("upload"), Vec::new());
    // 64 chunks of which every third is a hole, then some that are all zeros.
    let (mut bytes, mut extents) = (vec![0_u8; 96 * CHUNK], Vec::new());
    for (n, chunk) in bytes.chunks_mut(CHUNK).enumerate().take(64).filter(|(n, _)| n % 3 != 0) {
        chunk.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 + n * 7 + at / 4096) as u8 | 1);
        extents.push(Extent { start: (n * CHUNK) as u64, pages: 4, first_chunk: table.len() as u64 });
        table.push(chunk_id(chunk));
        upload.put(chunk_id(chunk), encoder.encode(chunk).expect("encode")).expect("put");
    }
    upload.finish().expect("finish");
    let (_, regions) = memory_file::describe(bytes.len() as u64, 0).expect("is memory");
    let manifest = Manifest { regions, extents, chunk_size_bytes: CHUNK as u32, ..Manifest::default() };
    let name = "memory".parse().expect("a name");
    store.commit(Image::encode(&manifest, &table), &name).expect("commit");
    drop(store);
    let read = lazy_memory::contents(&folder.path().display().to_string(), "memory").expect("the memory is read");
    assert!(read == bytes, "page {:?} differs", read.chunks(4096).zip(bytes.chunks(4096)).position(|(a, b)| a != b));
}
