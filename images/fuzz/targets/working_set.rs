//! Any bytes as a working set: none, or chunks of the snapshot, none twice, which are read again as written.
#![cfg_attr(fuzzing, no_main)]

use images::working_set::WorkingSet;
use libfuzzer_sys::fuzz_target;
use std::collections::HashSet;

const CHUNKS: u32 = 5000;

fuzz_target!(|bytes: &[u8]| {
    if let Some(set) = WorkingSet::parse(bytes, CHUNKS) {
        let unique: HashSet<u32> = set.chunks().iter().copied().collect();
        assert!(unique.len() == set.chunks().len() && unique.iter().all(|chunk| *chunk < CHUNKS));
        assert_eq!(WorkingSet::parse(&set.to_bytes(), CHUNKS).as_ref(), Some(&set));
    }
});
