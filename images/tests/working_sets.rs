//! Working sets: what is written is read, and any bytes are a set of the snapshot's chunks or none.

use defrost_images::working_set::WorkingSet;
use proptest::prelude::*;

#[test]
fn the_first_touch_counts_and_a_restore_adds_what_it_missed() {
    let mut set = WorkingSet::recorded([7, 3, 7, 9, 3]);
    assert_eq!((set.chunks(), set.restores()), (&[7, 3, 9][..], 1));
    set.merge([9, 1, 7, 2]);
    assert_eq!((set.chunks(), set.restores()), (&[7, 3, 9, 1, 2][..], 2));
}

#[test]
fn neighbours_cost_a_byte_each() {
    let set = WorkingSet::recorded(5000..6000);
    assert!(set.to_bytes().len() < 1020, "{} bytes", set.to_bytes().len());
}

proptest! {
    #[test]
    fn what_is_written_is_read(chunks in proptest::collection::vec(0..u32::MAX, 0..300)) {
        let set = WorkingSet::recorded(chunks);
        prop_assert_eq!(WorkingSet::parse(&set.to_bytes(), u32::MAX), Some(set));
    }

    #[test]
    fn any_bytes_are_chunks_of_the_snapshot_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..400), chunks in 0_u32..1000) {
        if let Some(set) = WorkingSet::parse(&bytes, chunks) {
            prop_assert!(set.chunks().iter().all(|chunk| *chunk < chunks));
            prop_assert!(set.chunks().len() <= chunks as usize);
        }
    }
}
