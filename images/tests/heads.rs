//! An image read by its head, its table filled group by group: the same as read whole, and nothing of it before it was checked.

extern crate defrost_images as images;

use bytes::Bytes;
use images::manifest::{Backing, Extent, Manifest, Region};
use images::{GROUP_BYTES, Groups, Head, Image, ImageError, chunk_id};
use pages::{ChunkId, PAGE_SIZE_BYTES};
use proptest::prelude::*;

/// An image of so many chunks of a page each; the name of its region makes the manifest longer by so many bytes.
fn image(chunks: u64, name_bytes: usize) -> (Bytes, Vec<ChunkId>) {
    let start = 0x40_0000;
    let region = Region {
        start,
        end: start + (chunks + 1) * PAGE_SIZE_BYTES,
        prot: 3,
        backing: Backing::Anonymous as i32,
        lazy: true,
        name: "n".repeat(name_bytes),
        ..Region::default()
    };
    let extents = (chunks > 0).then_some(Extent { start, pages: chunks, first_chunk: 0 }).into_iter().collect();
    let manifest = Manifest { regions: vec![region], extents, chunk_size_bytes: 4096, ..Manifest::default() };
    let table: Vec<ChunkId> = (0..chunks).map(|n| chunk_id(&n.to_le_bytes())).collect();
    (Image::encode(&manifest, &table), table)
}

fn head(file: &Bytes) -> Head {
    Head::of_file(Groups::of(file), file).expect("is whole")
}

fn group(file: &Bytes, group: u32) -> Bytes {
    let at = |group: u32| (group as usize * GROUP_BYTES).min(file.len());
    file.slice(at(group)..at(group + 1))
}

#[test]
fn a_small_image_is_its_own_head() {
    for chunks in [0, 1, 2040, 2048, 5000, 32_000] {
        let (file, table) = image(chunks, 10);
        let head = head(&file);
        assert_eq!((head.first(), head.is_enough()), (&file, true));
        let image = Image::of_head(&head).expect("is whole");
        assert_eq!((image.id, image.table.to_vec()), (images::digest(&file), table));
        assert_eq!(image.table.lacks(&(0..chunks as u32)), None);
        assert_eq!(Image::parse(&file).map(|image| image.manifest), Ok(image.manifest));
    }
}

#[test]
fn the_table_of_a_large_image_comes_group_by_group() {
    for name_bytes in 0..40 {
        let (file, table) = image(70_000, name_bytes);
        let head = head(&file);
        assert_eq!(head.first().len(), GROUP_BYTES);
        let image = Image::of_head(&head).expect("its head is enough");
        let digests = image.table.clone(); // clones are filled together
        assert_eq!((image.table.len(), image.table.get(0), image.table.get(70_000)), (70_000, Some(table[0]), None));
        assert_eq!(image.table.get(3000), None, "it did not come yet");
        let last = head.groups().count() - 1;
        assert_eq!(image.table.lacks(&(0..70_000)), Some(1..last + 1));
        assert_eq!(image.table.lacks(&(0..100)), None);
        assert!(!image.table.fill(1, &group(&file, 2)) && !image.table.fill(last + 1, &group(&file, last)), "another's bytes");
        assert!(!image.table.fill(1, &group(&file, 1).slice(1..)) && image.table.get(3000).is_none());
        for at in (2..=last).rev() {
            assert!(image.table.fill(at, &group(&file, at)));
        }
        assert_eq!(image.table.lacks(&(0..70_000)), Some(1..2));
        assert_eq!(image.table.lacks(&(3000..3001)), Some(1..2));
        let known: Vec<bool> = (0..70_000).map(|index| digests.get(index).is_some()).collect();
        assert!(known.iter().zip(&table).enumerate().all(|(n, (known, id))| !known || digests.get(n as u32) == Some(*id)));
        assert!(image.table.fill(1, &file.slice(GROUP_BYTES..3 * GROUP_BYTES)), "one that is here already is left out");
        assert_eq!((digests.to_vec(), digests.lacks(&(0..70_000))), (table, None));
    }
}

#[test]
fn a_head_goes_from_process_to_process_and_is_checked_again() {
    let (file, _) = image(70_000, 5);
    let head = head(&file);
    let bytes = Bytes::from(head.encode());
    assert_eq!(Head::parse(head.id(), &bytes).as_ref(), Ok(&head));
    assert!(Head::parse(images::digest(b"another"), &bytes).is_err());
    for at in (0..bytes.len()).step_by(97).chain(0..200) {
        let mut bad = bytes.to_vec();
        bad[at] ^= 1 << (at % 8);
        assert!(Head::parse(head.id(), &bad.into()).is_err(), "byte {at}");
    }
    for cut in (0..bytes.len()).step_by(1009) {
        assert!(Head::parse(head.id(), &bytes.slice(..cut)).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_head_of_another_length_is_refused() {
    // A file that says by its header that it is longer than it is has an id as well.
    let (file, _) = image(70_000, 5);
    let cut = file.slice(..file.len() - 32);
    assert!(matches!(Head::of_file(Groups::of(&cut), &cut), Err(ImageError::Truncated { .. })));
    let longer = Bytes::from([&file[..], &[0; 32]].concat());
    assert!(matches!(Head::of_file(Groups::of(&longer), &longer), Err(ImageError::Surplus { .. })));
    let other = Bytes::from(vec![7; 3 * GROUP_BYTES]);
    assert!(matches!(Head::of_file(Groups::of(&other), &other), Err(ImageError::Magic(_))));
    assert!(Head::of_file(Groups::of(&[]), &Bytes::new()).is_err());
    // Header and manifest may need more than what is there.
    let groups = Groups::of(&file);
    assert!(Head::checked(groups.clone(), file.slice(..100)).is_err(), "no whole group");
    assert!(Head::checked(groups.clone(), Bytes::new()).is_err());
    assert!(Head::checked(groups, file.clone()).is_ok_and(|head| Image::of_head(&head).is_ok()), "more than is needed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Head::parse(images::digest(b"x"), &bytes.into()).is_err());
    }
}
