//! What a collection takes, and what it must leave to uploads that are not committed yet.

extern crate defrost_store as store;

use anyhow::Result;
use bytes::Bytes;
use images::codec::Encoder;
use images::manifest::Manifest;
use images::{Image, chunk_id};
use pages::{ChunkId, SnapshotName};
use store::{Access, GcReport, LocalStore, Store, StoreError};

fn id(n: u32) -> ChunkId {
    chunk_id(&n.to_le_bytes())
}

fn frame(n: u32) -> Bytes {
    Encoder::new(1).encode(&n.to_le_bytes()).expect("compressed")
}

fn put(store: &LocalStore, chunks: impl IntoIterator<Item = u32>) -> Result<Vec<ChunkId>> {
    let mut upload = store.upload()?;
    let mut ids = Vec::new();
    for n in chunks {
        upload.put(id(n), frame(n))?;
        ids.push(id(n));
    }
    upload.finish()?;
    Ok(ids)
}

fn commit(store: &LocalStore, ids: &[ChunkId], name: &str) -> Result<()> {
    store.commit(Image::encode(&Manifest::default(), ids), &name.parse()?)?;
    Ok(())
}

/// Packs that a collection removes.
fn freed(store: &LocalStore) -> Result<u64> {
    let GcReport { packs, bytes, .. } = store.gc()?;
    assert_eq!(packs == 0, bytes == 0);
    Ok(packs)
}

fn opened() -> Result<(tempfile::TempDir, LocalStore)> {
    let folder = tempfile::tempdir()?;
    let store = LocalStore::open(folder.path(), Access::Write)?;
    Ok((folder, store))
}

fn name(text: &str) -> SnapshotName {
    text.parse().expect("a name")
}

#[test]
fn what_is_uploaded_and_not_yet_committed_is_left_alone() -> Result<()> {
    let (_folder, store) = opened()?;
    let ids = put(&store, 0..5)?;
    assert_eq!(freed(&store)?, 0);
    commit(&store, &ids, "a")?;
    // Removed, it is freed at once.
    store.remove(&name("a"))?;
    assert_eq!(store.gc()?.packs, 1);
    assert_eq!(store.find_missing(&ids)?, ids);
    Ok(())
}

#[test]
fn what_somebody_was_told_is_here_is_left_alone_until_then() -> Result<()> {
    let (_folder, store) = opened()?;
    let ids = put(&store, 0..5)?;
    commit(&store, &ids, "a")?;
    store.remove(&name("a"))?;
    // Another checkpoint has the same pages: it is told not to upload them.
    assert!(store.find_missing(&ids)?.is_empty());
    assert_eq!(freed(&store)?, 0);
    let more = put(&store, 10..12)?;
    assert_eq!(freed(&store)?, 0);
    commit(&store, &[ids, more].concat(), "b")?;
    assert_eq!(store.list()?.len(), 1);
    store.remove(&name("b"))?;
    assert_eq!(store.gc()?.packs, 2);
    Ok(())
}

#[test]
fn a_chunk_that_an_upload_left_out_is_left_alone() -> Result<()> {
    let (_folder, store) = opened()?;
    let ids = put(&store, 0..5)?;
    commit(&store, &ids, "a")?;
    let mut upload = store.upload()?;
    upload.put(id(3), frame(3))?; // is there
    upload.put(id(100), frame(100))?;
    store.remove(&name("a"))?;
    assert_eq!(freed(&store)?, 0);
    upload.finish()?;
    assert_eq!(freed(&store)?, 0);
    commit(&store, &[id(3), id(100)], "b")?;
    Ok(())
}

#[test]
fn one_commit_does_not_give_away_what_another_upload_relies_on() -> Result<()> {
    let (_folder, store) = opened()?;
    let ids = put(&store, 0..5)?;
    let mut other = store.upload()?;
    other.put(ids[2], frame(2))?; // is there
    commit(&store, &ids, "a")?;
    store.remove(&name("a"))?;
    assert_eq!(freed(&store)?, 0);
    other.finish()?;
    commit(&store, &ids[2..3], "b")?;
    store.remove(&name("b"))?;
    assert_eq!(store.gc()?.packs, 1);
    Ok(())
}

#[test]
fn collections_beside_uploads_fail_no_commit() -> Result<()> {
    let (_folder, store) = opened()?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| -> Result<u64, StoreError> {
            let mut packs = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                packs += store.gc()?.packs;
            }
            Ok(packs)
        });
        let uploads: Vec<_> = (0..4_u32)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || -> Result<()> {
                    for round in 0..25 {
                        // Half of it is shared by all threads.
                        let wanted: Vec<u32> =
                            (round * 4..round * 4 + 4).chain((thread + 1) * 10_000 + round..(thread + 1) * 10_000 + round + 2).collect();
                        let ids: Vec<ChunkId> = wanted.iter().map(|n| id(*n)).collect();
                        let missing = store.find_missing(&ids)?;
                        put(store, wanted.into_iter().filter(|n| missing.contains(&id(*n))))?;
                        let text = format!("t{thread}:{round}");
                        commit(store, &ids, &text)?;
                        store.remove(&name(&text))?;
                    }
                    Ok(())
                })
            })
            .collect();
        let outcome = uploads.into_iter().try_for_each(|thread| thread.join().expect("no panic"));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("{} packs were freed meanwhile", collector.join().expect("no panic")?);
        outcome
    })
}

/// A listing reads the header of each image alone. One that is damaged or cut is marked, and is in nobody's way.
#[test]
fn a_listing_reads_headers_alone_and_marks_a_damaged_one() -> Result<()> {
    let (folder, store) = opened()?;
    let ids = put(&store, 0..1000)?;
    commit(&store, &ids, "a")?;
    let image = std::fs::read_dir(folder.path().join("snapshots"))?.flatten().next().expect("an image").path();
    let other = put(&store, 2000..2001)?;
    commit(&store, &other, "b")?;
    let whole = std::fs::read(&image)?;
    let mut behind = whole.clone();
    behind[images::HEADER_BYTES + 100] ^= 1;
    std::fs::write(&image, behind)?;
    assert_eq!((store.list()?[0].chunks, &store.list()?[0].damage), (1000, &None));
    for cut in [0, 10, images::HEADER_BYTES, whole.len() - 1] {
        std::fs::write(&image, &whole[..cut])?;
        assert!(store.list()?[0].damage.as_deref().is_some_and(|damage| damage.contains("truncated")), "cut to {cut} bytes");
    }
    for at in 0..images::HEADER_BYTES {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        std::fs::write(&image, bad)?;
        let list = store.list()?;
        let damage = list[0].damage.as_deref().expect("a damaged header");
        assert!(damage.contains(&*image.to_string_lossy()), "byte {at}: {damage}");
        assert_eq!((list[1].chunks, &list[1].damage), (1, &None));
    }
    std::fs::remove_file(&image)?;
    assert!(store.list()?[0].damage.as_deref().is_some_and(|damage| damage.contains("is missing from the store")));
    assert_eq!(store.damage().names, 1);
    Ok(())
}

/// A name that cannot be read: all others are listed, nothing that it may stand for is collected, and what no name can need is.
#[test]
fn a_name_that_cannot_be_read_breaks_no_listing_and_no_collection() -> Result<()> {
    let (folder, store) = opened()?;
    let ids = put(&store, 0..5)?;
    commit(&store, &ids, "a")?;
    let unnamed = put(&store, 10..15)?;
    commit(&store, &unnamed, "b")?;
    std::fs::write(folder.path().join("refs/a:latest"), "no digest")?;
    let list = store.list()?;
    assert!(list[0].damage.as_deref().is_some_and(|damage| damage.contains("/refs/a:latest")), "{list:?}");
    assert_eq!((list[1].name.to_string(), &list[1].damage), ("b:latest".to_owned(), &None));
    store.remove(&name("b"))?;
    assert_eq!(store.gc()?, GcReport { unreadable: 1, ..GcReport::default() });
    assert!(store.frames(&ids).is_ok() && store.frames(&unnamed).is_ok(), "either may be what it stands for");
    store.remove(&name("a"))?;
    assert_eq!(freed(&store)?, 2);
    Ok(())
}

/// What an upload that failed had stored is free at once, not after ten minutes.
#[test]
fn what_a_failed_upload_left_is_freed_at_once() -> Result<()> {
    let (folder, store) = opened()?;
    let mut upload = store.upload()?;
    for n in 0..(1 << 18) + 1 {
        upload.put(id(n), frame(n))?; // one more than a pack takes
    }
    assert_eq!(std::fs::read_dir(folder.path().join("packs"))?.count(), 1, "a pack is closed");
    drop(upload);
    assert_eq!(freed(&store)?, 1);
    Ok(())
}

/// A collection spares what a live restore needs, and no longer than it lives.
#[test]
fn a_lease_keeps_a_snapshot_that_has_no_name() -> Result<()> {
    let (folder, store) = opened()?;
    let ids = put(&store, 0..5)?;
    commit(&store, &ids, "a")?;
    let snapshot = store.resolve(&name("a"))?;
    // A reader takes it, as a restore from a directory does.
    let reader = LocalStore::open(folder.path(), Access::Read)?;
    reader.lease(&snapshot, "one")?;
    store.lease(&snapshot, "two")?;
    store.lease(&snapshot, "two")?;
    assert_eq!((store.leases(&snapshot)?, store.list()?[0].leases), (2, 2));
    store.remove(&name("a"))?;
    assert_eq!(freed(&store)?, 0);
    assert!(reader.image(&snapshot).is_ok() && LocalStore::open(folder.path(), Access::Read)?.frames(&ids).is_ok());
    reader.release(&snapshot, "one")?;
    assert_eq!(freed(&store)?, 0);
    // The other holder is never heard of again.
    let lease = folder.path().join(format!("leases/{snapshot}.two"));
    std::fs::File::options().write(true).open(&lease)?.set_modified(std::time::SystemTime::now() - 2 * store::LEASE)?;
    assert_eq!(freed(&store)?, 1);
    assert!(!lease.exists() && matches!(store.lease(&snapshot, "late"), Err(StoreError::MissingImage(_))));
    for bad in ["", "../x", "a.b", &"x".repeat(65)] {
        assert!(matches!(store.release(&snapshot, bad), Err(StoreError::Holder)), "{bad:?}");
    }
    Ok(())
}

#[test]
fn what_is_read_under_a_lease_is_left_alone_until_the_end() -> Result<()> {
    let (_folder, store) = opened()?;
    let ids = put(&store, 0..5)?;
    commit(&store, &ids, "a")?;
    let other = put(&store, 10..12)?;
    let read = store::held::held(&store, &name("a"), None, |id| {
        // Under the same name there is another snapshot now.
        store.remove(&name("a"))?;
        commit(&store, &other, "a").expect("the name is free");
        assert_eq!(store.gc()?.packs, 0);
        store.image(id)?;
        store.frames(&ids)
    })?;
    assert_eq!(read.len(), 5);
    assert_eq!(store.gc()?.packs, 1);
    store.remove(&name("a"))?;
    assert_eq!(store.gc()?.packs, 1);
    Ok(())
}
