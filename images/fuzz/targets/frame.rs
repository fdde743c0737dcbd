//! Any bytes as a frame: refused, or exactly the chunk asked for, in a buffer no larger than a chunk may be.
//!
//! The first two bytes say how long the chunk is to be; the rest is the frame, and also a chunk to compress.
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

fuzz_target!(|bytes: &[u8]| {
    let Some((head, frame)) = bytes.split_first_chunk::<2>() else { return };
    let expected_len = usize::from(u16::from_le_bytes(*head));
    CONTEXTS.with_borrow_mut(|(encoder, decoder, out)| {
        // No bytes we can name have this digest.
        assert!(decoder.decode(&ChunkId([0; 32]), frame, expected_len, out).is_err());
        assert!(out.is_empty() && out.capacity() <= 1 << 20);
        let good = encoder.encode(frame).expect("compresses");
        decoder.decode(&chunk_id(frame), &good, frame.len(), out).expect("is right");
        assert_eq!(&**out, frame);
        if !frame.is_empty() {
            assert!(decoder.decode(&chunk_id(frame), &good, frame.len() - 1, out).is_err());
            assert!(decoder.decode(&chunk_id(frame), &good[..good.len() - 1], frame.len(), out).is_err());
        }
    });
});
