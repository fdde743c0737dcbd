//! Any bytes as a frame: refused, or exactly the chunk asked for, in a buffer no larger than a chunk may be.
//!
//! The bytes are tried as a frame of each length a chunk may have, and as a chunk to compress.
#![cfg_attr(fuzzing, no_main)]

use images::chunk_id;
use images::codec::{Decoder, Encoder, Verified};
use libfuzzer_sys::fuzz_target;
use pages::ChunkId;
use std::cell::RefCell;

thread_local! {
    /// Contexts as a server keeps them: what one frame leaves behind must not reach the next.
    static CONTEXTS: RefCell<(Encoder, Decoder, Verified)> =
        RefCell::new((Encoder::new(1), Decoder::new(), Verified::default()));
}

/// One page, the default chunk, the largest chunk, and none.
const LENGTHS: [usize; 4] = [4096, 16384, 1 << 20, 0];

fuzz_target!(|bytes: &[u8]| {
    CONTEXTS.with_borrow_mut(|(encoder, decoder, out)| {
        for expected_len in LENGTHS {
            // No bytes we can name have this digest.
            assert!(decoder.decode(&ChunkId([0; 32]), bytes, expected_len, out).is_err());
            assert!(out.is_empty() && out.capacity() <= 1 << 20);
        }
        let good = encoder.encode(bytes).expect("compresses");
        decoder.decode(&chunk_id(bytes), &good, bytes.len(), out).expect("is right");
        assert_eq!(&**out, bytes);
        assert!(decoder.decode(&chunk_id(bytes), &good, bytes.len() + 1, out).is_err());
        assert!(decoder.decode(&chunk_id(bytes), &good[..good.len() - 1], bytes.len(), out).is_err());
    });
});
