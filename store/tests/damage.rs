//! A directory whose files were damaged is refused, with the file named; damage at every kind of place is tried.

extern crate defrost_store as store;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use images::codec::Encoder;
use images::manifest::Manifest;
use images::{Image, chunk_id};
use pages::{ChunkId, SnapshotName};
use std::path::{Path, PathBuf};
use store::{Access, LocalStore, Store, StoreError};

const CHUNKS: usize = 5;

type Damage<'a> = dyn Fn(&Path) -> Result<()> + 'a;

fn raw(n: usize) -> Vec<u8> {
    (0..4096).map(|at| (at * (n + 3) / 7) as u8).collect()
}

/// A store with one snapshot; its chunks, its pack, its image file.
fn stored(folder: &Path) -> Result<(Vec<ChunkId>, PathBuf, PathBuf)> {
    let store = LocalStore::open(folder, Access::Write)?;
    let mut upload = store.upload()?;
    let mut ids = Vec::new();
    for n in 0..CHUNKS {
        let id = chunk_id(&raw(n));
        upload.put(id, Encoder::new(3).encode(&raw(n))?)?;
        ids.push(id);
    }
    upload.finish()?;
    store.commit(Image::encode(&Manifest::default(), &ids), &name()?)?;
    Ok((ids, only_file(&folder.join("packs"))?, only_file(&folder.join("snapshots"))?))
}

fn frame(raw: &[u8]) -> Bytes {
    Encoder::new(1).encode(raw).expect("compressed")
}

fn numbered_frame(n: u32) -> Bytes {
    frame(&n.to_le_bytes())
}

fn name() -> Result<SnapshotName> {
    Ok("victim:v".parse()?)
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut entries = std::fs::read_dir(folder)?;
    let path = entries.next().context("a file")??.path();
    assert!(entries.next().is_none(), "{} has more than one file", folder.display());
    Ok(path)
}

/// Opening the store and reading all of it; each failure must name `file`.
fn must_name(folder: &Path, ids: &[ChunkId], file: &Path, what: &str) -> Result<()> {
    let read = || -> Result<(), StoreError> {
        let store = LocalStore::open(folder, Access::Read)?;
        let found = store.resolve(&"victim:v".parse().expect("a name"))?;
        store.image(&found)?;
        store.frames(ids).map(drop)
    };
    match read() {
        Err(error @ StoreError::Damaged { .. }) => assert!(error.to_string().contains(&*file.to_string_lossy()), "{what}: {error}"),
        other => panic!("{what}: {other:?}"),
    }
    Ok(())
}

#[test]
fn a_damaged_pack_is_refused_and_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ids, pack, _) = stored(folder.path())?;
    let whole = std::fs::read(&pack)?;
    let (index_at, footer_at) = (whole.len() - 32 - 48 * CHUNKS, whole.len() - 32);
    let places = [("header", 0..8), ("frame", 8..index_at), ("index", index_at..footer_at), ("footer", footer_at..whole.len())];
    for (what, range) in places {
        for at in range.clone().step_by(range.len().div_ceil(40)).chain([range.end - 1]) {
            let mut bad = whole.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&pack, bad)?;
            if (footer_at + 16..footer_at + 20).contains(&at) {
                // The index's checksum alone: who only reads has no use for it while nothing is missing.
                let store = LocalStore::open(folder.path(), Access::Read)?;
                assert!(store.frames(&ids).is_ok() && store.frame(&chunk_id(b"none")).is_err_and(|error| error.is_about_contents()));
                assert_eq!(LocalStore::open(folder.path(), Access::Write)?.find_missing(&ids)?, ids, "a writer relies on nothing of it");
                continue;
            }
            must_name(folder.path(), &ids, &pack, &format!("{what}, byte {at} flipped"))?;
        }
        for cut in [range.start, range.start + range.len() / 2, range.end - 1] {
            std::fs::write(&pack, &whole[..cut])?;
            must_name(folder.path(), &ids, &pack, &format!("{what}, cut to {cut} bytes"))?;
        }
    }
    std::fs::write(&pack, &whole)?;
    assert_eq!(LocalStore::open(folder.path(), Access::Read)?.frames(&ids)?.len(), CHUNKS);
    Ok(())
}

#[test]
fn a_damaged_image_is_refused_and_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ids, _, image) = stored(folder.path())?;
    let whole = std::fs::read(&image)?;
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&image, bad)?;
        must_name(folder.path(), &ids, &image, &format!("byte {at} flipped"))?;
        std::fs::write(&image, &whole[..at])?;
        must_name(folder.path(), &ids, &image, &format!("cut to {at} bytes"))?;
    }
    // Another image in its place is whole, but not that one.
    std::fs::write(&image, Image::encode(&Manifest::default(), &ids[1..]))?;
    must_name(folder.path(), &ids, &image, "exchanged")
}

#[test]
fn a_second_copy_of_a_chunk_stands_in_for_a_damaged_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ids, pack, _) = stored(folder.path())?;
    let whole = std::fs::read(&pack)?;
    std::fs::remove_file(&pack)?;
    let store = LocalStore::open(folder.path(), Access::Write)?;
    let mut upload = store.upload()?;
    upload.put(ids[0], Encoder::new(3).encode(&raw(0))?)?;
    upload.finish()?;
    drop(store);
    let mut bad = whole;
    bad[20] ^= 1; // in some frame of the first pack
    std::fs::write(&pack, bad)?;
    let store = LocalStore::open(folder.path(), Access::Read)?;
    assert_eq!(store.frame(&ids[0])?, Encoder::new(3).encode(&raw(0))?);
    Ok(())
}

#[test]
fn one_writer_at_a_time() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let first = LocalStore::open(folder.path(), Access::Write)?;
    match LocalStore::open(folder.path(), Access::Write) {
        Err(error @ StoreError::Busy { .. }) => {
            assert!(error.to_string().contains(&format!("by process {}", std::process::id())), "{error}")
        }
        other => panic!("{other:?}"),
    }
    LocalStore::open(folder.path(), Access::Read)?; // beside it
    drop(first);
    LocalStore::open(folder.path(), Access::Write)?;
    Ok(())
}

#[test]
fn what_a_killed_writer_left_is_swept_and_a_reader_sees_later_packs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    stored(folder.path())?;
    std::fs::write(folder.path().join("tmp/.tmpLEFT"), b"half")?;
    let reader = LocalStore::open(folder.path(), Access::Read)?;
    let writer = LocalStore::open(folder.path(), Access::Write)?;
    assert_eq!(std::fs::read_dir(folder.path().join("tmp"))?.count(), 0);
    let (id, frame) = (chunk_id(b"later"), frame(b"later"));
    let mut upload = writer.upload()?;
    upload.put(id, frame.clone())?;
    upload.finish()?;
    assert_eq!(reader.frame(&id)?, frame);
    // A collection takes nothing from a reader that has opened it.
    writer.commit(Image::encode(&Manifest::default(), &[id]), &"later".parse()?)?;
    writer.remove(&"later".parse()?)?;
    writer.gc()?;
    assert!(matches!(writer.frame(&id), Err(StoreError::MissingChunk(_))));
    assert_eq!(reader.frame(&id)?, frame);
    Ok(())
}

fn id(n: u32) -> ChunkId {
    chunk_id(&n.to_le_bytes())
}

/// A store with so many packs of so many chunks, numbered one after the other.
fn numbered(packs: u32, chunks: u32) -> Result<(tempfile::TempDir, LocalStore)> {
    let folder = tempfile::tempdir()?;
    let store = LocalStore::open(folder.path(), Access::Write)?;
    for pack in 0..packs {
        let mut upload = store.upload()?;
        for n in pack * chunks..(pack + 1) * chunks {
            upload.put(id(n), numbered_frame(n))?;
        }
        upload.finish()?;
    }
    Ok((folder, store))
}

#[test]
fn chunks_of_many_packs_are_found() -> Result<()> {
    let (folder, store) = numbered(300, 1)?;
    // A reader makes its table while it reads, and still finds what was stored after that.
    let again = LocalStore::open(folder.path(), Access::Read)?;
    for _ in 0..3 {
        for n in 0..300_u32 {
            assert_eq!(again.frame(&id(n))?, numbered_frame(n));
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(again.find_missing(&[id(3), id(1000)])?, [id(1000)]);
    let mut upload = store.upload()?;
    upload.put(id(1000), numbered_frame(1000))?;
    upload.finish()?;
    assert_eq!(again.frame(&id(1000))?, numbered_frame(1000));
    Ok(())
}

#[test]
fn frames_of_several_packs_come_in_the_order_asked() -> Result<()> {
    let (folder, _store) = numbered(3, 50)?;
    let reader = LocalStore::open(folder.path(), Access::Read)?;
    let asked: Vec<u32> = (0..150).chain((0..150).rev()).chain((0..150).map(|n| n * 61 % 150)).collect();
    let ids: Vec<_> = asked.iter().map(|n| id(*n)).collect();
    let expected: Vec<_> = asked.iter().map(|n| numbered_frame(*n)).collect();
    assert_eq!(reader.frames(&ids)?, expected);
    assert!(matches!(reader.frames(&[id(1), id(999)]), Err(StoreError::MissingChunk(missing)) if missing == id(999)));
    Ok(())
}

/// A reader looks at an index only where it misses something; a writer, who relies on it, at once.
#[test]
fn a_damaged_index_hides_nothing_that_is_in_another_pack() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ids, pack, _) = stored(folder.path())?;
    let store = LocalStore::open(folder.path(), Access::Write)?;
    let mut upload = store.upload()?;
    upload.put(chunk_id(b"other"), frame(b"other"))?;
    upload.finish()?;
    drop(store);
    let mut bytes = std::fs::read(&pack)?;
    let first_digest = bytes.len() - 32 - 48 * CHUNKS;
    bytes[first_digest] ^= 0x80;
    std::fs::write(&pack, bytes)?;
    let store = LocalStore::open(folder.path(), Access::Read)?;
    assert_eq!(store.frame(&chunk_id(b"other"))?, frame(b"other"));
    let found = ids.iter().filter(|id| store.frame(id).is_ok()).count();
    assert!(found < CHUNKS, "its digest is another");
    for id in &ids {
        if let Err(error) = store.frame(id) {
            assert!(error.is_about_contents() && error.to_string().contains(&*pack.to_string_lossy()), "{error}");
        }
    }
    assert_eq!(store.find_missing(&[ids[0], chunk_id(b"other")])?, [ids[0]], "nothing of a damaged index is relied on");
    // A writer serves what is whole.
    let store = LocalStore::open(folder.path(), Access::Write)?;
    assert_eq!((store.frame(&chunk_id(b"other"))?, store.damage().packs), (frame(b"other"), 1));
    assert_eq!(store.find_missing(&[ids[1], chunk_id(b"other")])?, [ids[1]]);
    Ok(())
}

/// A pack that is cut under a writer's feet, byte by byte: an error each time and never a signal, and a good upload mends it.
#[test]
fn a_pack_that_is_cut_while_it_is_open_is_an_error_and_is_mended() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ids, pack, _) = stored(folder.path())?;
    let len = std::fs::metadata(&pack)?.len();
    for access in [Access::Read, Access::Write] {
        let whole = std::fs::read(&pack)?;
        let store = LocalStore::open(folder.path(), access)?;
        for cut in (0..len).rev() {
            std::fs::File::options().write(true).open(&pack)?.set_len(cut)?;
            let lost = ids.iter().filter(|id| store.frame(id).is_err_and(|error| error.is_about_contents())).count();
            assert!(cut > 8 || lost == CHUNKS, "cut to {cut} bytes");
        }
        std::fs::write(&pack, whole)?;
    }
    std::fs::File::options().write(true).open(&pack)?.set_len(100)?;
    let store = LocalStore::open(folder.path(), Access::Write)?;
    assert_eq!(store.damage().packs, 1);
    let list = store.list()?;
    assert!(list[0].damage.as_deref().is_some_and(|damage| damage.contains(&*pack.to_string_lossy())), "{list:?}");
    store.gc()?;
    mend(&store, &ids)?;
    assert_eq!(store.frames(&ids)?.len(), CHUNKS);
    assert_eq!(store.list()?[0].damage, None);
    Ok(())
}

/// Store all chunks that are said to be missing.
fn mend(store: &LocalStore, ids: &[ChunkId]) -> Result<Vec<ChunkId>> {
    let missing = store.find_missing(ids)?;
    let mut upload = store.upload()?;
    for (n, id) in ids.iter().enumerate().filter(|(_, id)| missing.contains(id)) {
        upload.put(*id, Encoder::new(3).encode(&raw(n))?)?;
    }
    upload.finish()?;
    Ok(missing)
}

/// A stored frame that is wrong is not relied on: neither one whose checksum does not fit, nor one that was stored as another chunk
/// before stores verified frames. What is uploaded instead is answered from then on, also after the store was opened again.
#[test]
fn a_wrong_frame_is_not_relied_on_and_is_replaced() -> Result<()> {
    // By flipped bits anywhere in the frames, and by a pack of an older release with a frame that is another chunk.
    let flip = |pack: &Path| -> Result<()> {
        let mut bytes = std::fs::read(pack)?;
        bytes[20] ^= 1;
        Ok(std::fs::write(pack, bytes)?)
    };
    let poison = |pack: &Path| -> Result<()> {
        let (mut books, mut bytes) = (images::pack::PackWriter::new(), images::pack::MAGIC.to_vec());
        for n in 0..CHUNKS {
            let frame = Encoder::new(3).encode(&raw(n + usize::from(n == 2)))?;
            books.append(chunk_id(&raw(n)), &frame);
            bytes.extend(frame);
        }
        bytes.extend(books.finish());
        std::fs::remove_file(pack)?;
        Ok(std::fs::write(pack.with_file_name("0123.pack"), bytes)?)
    };
    let damages: [(&str, &Damage); 2] = [("flipped", &flip), ("poisoned", &poison)];
    for (what, damage) in damages {
        for open_meanwhile in [false, true] {
            let folder = tempfile::tempdir()?;
            let (ids, pack, image) = stored(folder.path())?;
            let before = if open_meanwhile && what == "flipped" { Some(LocalStore::open(folder.path(), Access::Write)?) } else { None };
            damage(&pack)?;
            let store = match before {
                Some(store) => store,
                None => LocalStore::open(folder.path(), Access::Write)?,
            };
            // Nobody asked what is missing: the commit finds out itself.
            let again = store.commit(Bytes::from(std::fs::read(&image)?), &"again".parse()?);
            assert!(matches!(again, Err(StoreError::MissingChunk(_))), "{what}: {again:?}");
            let missing = mend(&store, &ids)?;
            assert_eq!(missing.len(), 1, "{what}");
            store.commit(Bytes::from(std::fs::read(&image)?), &"again".parse()?)?;
            drop(store);
            for access in [Access::Read, Access::Write] {
                let store = LocalStore::open(folder.path(), access)?;
                for (n, id) in ids.iter().enumerate() {
                    assert_eq!(store.frame(id)?, Encoder::new(3).encode(&raw(n))?, "{what}: chunk {n}");
                }
                assert!(store.frames(&ids)?.iter().enumerate().all(|(n, frame)| Encoder::new(3).encode(&raw(n)).as_ref() == Ok(frame)));
            }
        }
    }
    Ok(())
}

/// Of a large image the groups are kept beside it; whatever becomes of them, the head is right.
#[test]
fn groups_are_a_hint() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ids, ..) = stored(folder.path())?;
    let store = LocalStore::open(folder.path(), Access::Write)?;
    let image = Image::encode(&Manifest::default(), &ids.repeat(10_000));
    let id = store.commit(image.clone(), &"large".parse()?)?;
    let path = folder.path().join(format!("snapshots/{id}.groups"));
    let kept = std::fs::read(&path)?;
    assert_eq!(kept, images::Groups::of(&image).values());
    let head = store.image_head(&id)?;
    let mut turned = kept.clone();
    turned[100] ^= 1;
    for bad in [Some(&turned[..]), Some(&kept[32..]), Some(&[]), None] {
        match bad {
            Some(bad) => std::fs::write(&path, bad)?,
            None => std::fs::remove_file(&path)?,
        }
        let reader = LocalStore::open(folder.path(), Access::Read)?;
        assert_eq!(reader.image_head(&id)?, head);
        assert_ne!(std::fs::read(&path).ok().as_ref(), Some(&kept), "a reader writes nothing");
        assert_eq!(store.image_head(&id)?, head);
        assert_eq!(std::fs::read(&path)?, kept, "a writer mends it");
    }
    // With good groups a damaged head is found out, and named.
    let file = folder.path().join(format!("snapshots/{id}.image"));
    let mut bad = image.to_vec();
    bad[60] ^= 1;
    std::fs::write(&file, &bad)?;
    let error = LocalStore::open(folder.path(), Access::Read)?.image_head(&id).expect_err("a byte is another");
    assert!(error.is_about_contents() && error.to_string().contains(&*file.to_string_lossy()), "{error}");
    std::fs::write(&file, &image)?;
    store.remove(&"large".parse()?)?;
    store.gc()?;
    assert!(!path.exists() && !file.exists(), "both go together");
    Ok(())
}
