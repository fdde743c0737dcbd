//! What a collection takes, and what it must leave to uploads that are not committed yet.

extern crate defrost_store as store;

use anyhow::Result;
use bytes::Bytes;
use images::manifest::Manifest;
use images::{Image, chunk_id};
use pages::{ChunkId, SnapshotName};
use store::{Access, GcReport, LocalStore, Store, StoreError};

fn id(n: u32) -> ChunkId {
    chunk_id(&n.to_le_bytes())
}

fn put(store: &LocalStore, chunks: impl IntoIterator<Item = u32>) -> Result<Vec<ChunkId>> {
    let mut upload = store.upload()?;
    let mut ids = Vec::new();
    for n in chunks {
        upload.put(id(n), Bytes::from(vec![n as u8; 1000]))?;
        ids.push(id(n));
    }
    upload.finish()?;
    Ok(ids)
}

fn commit(store: &LocalStore, ids: &[ChunkId], name: &str) -> Result<()> {
    store.commit(Image::encode(&Manifest::default(), ids), &name.parse()?)?;
    Ok(())
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
    assert_eq!(store.gc()?, GcReport::default());
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
    assert_eq!(store.gc()?, GcReport::default());
    let more = put(&store, 10..12)?;
    assert_eq!(store.gc()?, GcReport::default());
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
    upload.put(id(3), Bytes::from(vec![3; 1000]))?; // is there
    upload.put(id(100), Bytes::from(vec![100; 1000]))?;
    store.remove(&name("a"))?;
    assert_eq!(store.gc()?, GcReport::default());
    upload.finish()?;
    assert_eq!(store.gc()?, GcReport::default());
    commit(&store, &[id(3), id(100)], "b")?;
    Ok(())
}

#[test]
fn one_commit_does_not_give_away_what_another_upload_relies_on() -> Result<()> {
    let (_folder, store) = opened()?;
    let ids = put(&store, 0..5)?;
    let mut other = store.upload()?;
    other.put(ids[2], Bytes::from(vec![2; 1000]))?; // is there
    commit(&store, &ids, "a")?;
    store.remove(&name("a"))?;
    assert_eq!(store.gc()?, GcReport::default());
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

/// A listing reads the head of each image alone: an image of which nothing else is there is listed all the same.
#[test]
fn a_listing_reads_headers_alone_and_refuses_a_damaged_one() -> Result<()> {
    let (folder, store) = opened()?;
    let ids = put(&store, 0..1000)?;
    commit(&store, &ids, "a")?;
    let image = std::fs::read_dir(folder.path().join("snapshots"))?.flatten().next().expect("an image").path();
    let whole = std::fs::read(&image)?;
    std::fs::write(&image, &whole[..images::HEADER_BYTES])?;
    assert_eq!(store.list()?[0].chunks, 1000);
    for at in 0..images::HEADER_BYTES {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        std::fs::write(&image, bad)?;
        let error = store.list().expect_err("a damaged header").to_string();
        assert!(error.contains(&*image.to_string_lossy()), "byte {at}: {error}");
    }
    std::fs::remove_file(&image)?;
    assert!(matches!(store.list(), Err(StoreError::MissingImage(_))));
    Ok(())
}
