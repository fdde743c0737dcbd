//! One contract for every store: a directory, memory, and a page server before either, over a loopback socket.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use images::codec::Encoder;
use images::manifest::Manifest;
use images::{GROUP_BYTES, Groups, Image, chunk_id};
use page_server::{Config, Server};
use pages::{ChunkId, SnapshotId, SnapshotName};
use proto::Address;
use std::path::Path;
use std::sync::Arc;
use store::{
    Access, Ahead, Arrived, Class, FlakyStore, LocalStore, MAX_WORKING_SET_BYTES, MemoryStore, Options, Plan, RemoteStore, Store,
    StoreError,
};

/// How long an answer may take before a test gives up.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn config(folder: &Path) -> Config {
    Config::new(Address::Plain("127.0.0.1:0".to_owned()), folder.to_owned())
}

fn name(text: &str) -> SnapshotName {
    text.parse().expect("a name")
}

/// A chunk and its frame.
fn chunk(seed: u64) -> (ChunkId, Bytes) {
    let mut random = fastrand::Rng::with_seed(seed);
    let raw: Vec<u8> = (0..random.usize(100..20_000)).map(|_| random.u8(..)).collect();
    (chunk_id(&raw), Encoder::new(1).encode(&raw).expect("compressed"))
}

fn put(store: &dyn Store, seeds: impl IntoIterator<Item = u64>) -> Result<Vec<ChunkId>> {
    let mut upload = store.upload()?;
    let mut ids = Vec::new();
    for seed in seeds {
        let (id, frame) = chunk(seed);
        upload.put(id, frame)?;
        ids.push(id);
    }
    upload.finish()?;
    Ok(ids)
}

fn image(ids: &[ChunkId]) -> Bytes {
    Image::encode(&Manifest::default(), ids)
}

fn bytes_of(groups: &std::ops::Range<u32>, file: &Bytes) -> std::ops::Range<usize> {
    let at = |group: u32| (group as usize * GROUP_BYTES).min(file.len());
    at(groups.start)..at(groups.end)
}

macro_rules! refused {
    ($call:expr, $pattern:pat) => {
        match $call {
            Err($pattern) => {}
            other => {
                panic!("{} instead of {}", other.map(|_| "success".to_owned()).unwrap_or_else(|e| format!("{e:?}")), stringify!($pattern))
            }
        }
    };
}

/// What every store does, in one life.
fn holds(store: &dyn Store) -> Result<()> {
    // Chunks come and are found.
    let all: Vec<ChunkId> = (0..40).map(|seed| chunk(seed).0).collect();
    assert_eq!(store.find_missing(&all)?, all);
    let first = put(store, 0..20)?;
    assert_eq!(store.find_missing(&all)?, all[20..]);
    for seed in 0..20 {
        assert_eq!(store.frame(&chunk(seed).0)?, chunk(seed).1);
    }
    let asked: Vec<u64> = vec![7, 3, 3, 19, 0];
    let frames = store.frames(&asked.iter().map(|seed| chunk(*seed).0).collect::<Vec<_>>())?;
    assert_eq!(frames, asked.iter().map(|seed| chunk(*seed).1).collect::<Vec<_>>(), "in the order asked");
    assert!(store.frames(&[])?.is_empty());
    match store.frames(&[first[0], all[25], first[1]]) {
        Err(StoreError::MissingChunk(id)) => assert_eq!(id, all[25]),
        other => panic!("{other:?}"),
    }

    // Others come behind those that are waited for, or are at hand; what is wrong with them harms nobody.
    let (frames, ahead) = store.frames_ahead(&first[..2], &first[2..9])?;
    assert_eq!(frames, (0..2).map(|seed| chunk(seed).1).collect::<Vec<_>>());
    match ahead {
        Ahead::AtOnce => {}
        Ahead::Coming(mut coming) => match coming.wait(PATIENCE) {
            Arrived::Frames(frames) => assert_eq!(frames, (2..9).map(|seed| chunk(seed).1).collect::<Vec<_>>()),
            other => panic!("{other:?}"),
        },
        Ahead::Lost => panic!("nothing comes behind"),
    }
    let (frames, ahead) = store.frames_ahead(&first[..1], &[first[1], all[25]])?;
    assert_eq!(frames, [chunk(0).1]);
    if let Ahead::Coming(mut coming) = ahead {
        assert!(matches!(coming.wait(PATIENCE), Arrived::Lost));
    }
    drop(store.frames_ahead(&first[..1], &first[1..])?); // who gives up is in nobody's way
    let (frames, ahead) = store.frames_ahead(&first[3..4], &first[4..5])?;
    assert_eq!(frames, [chunk(3).1]);
    if let Ahead::Coming(mut coming) = ahead {
        let begun = std::time::Instant::now();
        let came = std::iter::repeat_with(|| coming.look()).find(|came| !matches!(came, Arrived::NotYet) || begun.elapsed() > PATIENCE);
        assert!(matches!(came, Some(Arrived::Frames(frames)) if frames == [chunk(4).1]), "a look is enough to drive the connection");
    }

    // What is not the chunk that it is sent as is refused, and nothing of its upload stays.
    let [(id, frame), (other, another)] = [chunk(33), chunk(34)];
    let mut turned = frame.to_vec();
    turned[frame.len() / 2] ^= 1;
    for wrong in [another.clone(), turned.into(), frame.slice(1..), Bytes::from_static(b"no frame"), [&frame[..], b"more"].concat().into()]
    {
        let upload = || {
            let mut upload = store.upload()?;
            upload.put(other, another.clone())?;
            upload.put(id, wrong.clone())?;
            upload.finish()
        };
        let refused = upload().expect_err("another chunk").to_string();
        ensure!(refused.contains(&id.to_string()) && refused.contains("is refused"), "{refused}");
        assert_eq!(store.find_missing(&[id, other])?, [id, other]);
    }

    // A snapshot needs its chunks, and a name that is free.
    match store.commit(image(&[first[0], all[30]]), &name("a")) {
        Err(StoreError::MissingChunk(id)) => assert_eq!(id, all[30]),
        other => panic!("{other:?}"),
    }
    refused!(store.resolve(&name("a")), StoreError::NotFound { .. });
    let a = store.commit(image(&first[..10]), &name("a"))?;
    refused!(store.commit(image(&first), &name("a")), StoreError::NameTaken(_));
    assert_eq!(store.resolve(&name("a"))?, a);
    assert_eq!(store.resolve(&name("a:latest"))?, a);
    assert_eq!(store.image(&a)?, image(&first[..10]));
    refused!(store.image(&SnapshotId([7; 32])), StoreError::MissingImage(_));
    refused!(store.image_head(&SnapshotId([7; 32])), StoreError::MissingImage(_));
    refused!(store.image_groups(&SnapshotId([7; 32]), &(0..1), None), StoreError::MissingImage(_));
    assert_eq!(*store.image_head(&a)?.first(), image(&first[..10]), "a small image is its own head");
    let large = image(&first.repeat(2500)); // 1.6 MB
    let large_id = store.commit(large.clone(), &name("large"))?;
    for _ in 0..2 {
        let head = store.image_head(&large_id)?;
        assert_eq!((head.groups(), head.is_enough()), (&Groups::of(&large), true));
        assert_eq!(*head.first(), large[..GROUP_BYTES]);
    }
    for groups in [3..5, 20..36, 99..100] {
        let bytes = &large[bytes_of(&groups, &large)];
        assert_eq!(store.image_groups(&large_id, &groups, None)?, bytes, "{groups:?}");
        assert_eq!(store.image_groups(&large_id, &groups, Some(0))?, bytes, "{groups:?}");
    }
    store.remove(&name("large"))?;
    let mut turned = image(&first[..10]).to_vec();
    *turned.last_mut().context("not empty")? ^= 1;
    refused!(store.commit(Bytes::from(turned), &name("turned")), StoreError::WrongImage(_) | StoreError::Refused { .. });
    refused!(store.resolve(&name("turned")), StoreError::NotFound { .. });

    // An upload that is not finished leaves nothing.
    let mut upload = store.upload()?;
    for seed in 30..35 {
        upload.put(chunk(seed).0, chunk(seed).1)?;
    }
    drop(upload);
    assert_eq!(store.find_missing(&all[30..35])?, all[30..35]);

    // Names: a further one, a taken one, one that is not there.
    let second = put(store, 20..30)?;
    let b = store.commit(image(&second), &name("b:1"))?;
    assert_eq!(store.tag(&name("a"), &name("a:old"))?, a);
    refused!(store.tag(&name("a"), &name("b:1")), StoreError::NameTaken(_));
    match store.tag(&name("nobody"), &name("c")) {
        Err(StoreError::NotFound { name }) => assert_eq!(name, "nobody:latest"),
        other => panic!("{other:?}"),
    }
    let listed = store.list()?;
    let lines: Vec<_> = listed.iter().map(|s| (s.name.to_string(), s.id, s.chunks)).collect();
    assert_eq!(lines, [("a:latest".to_owned(), a, 10), ("a:old".to_owned(), a, 10), ("b:1".to_owned(), b, 10)]);
    assert!(listed.iter().all(|s| s.created_unix_s > 1_700_000_000));

    // Working sets.
    assert_eq!(store.working_set(&a)?, None);
    refused!(store.working_set(&SnapshotId([7; 32])), StoreError::MissingImage(_));
    refused!(store.put_working_set(&SnapshotId([7; 32]), Bytes::new()), StoreError::MissingImage(_));
    store.put_working_set(&a, Bytes::from_static(b"one"))?;
    store.put_working_set(&a, Bytes::from_static(b"two"))?;
    store.put_working_set(&b, Bytes::new())?;
    assert_eq!(store.working_set(&a)?, Some(Bytes::from_static(b"two")));
    assert_eq!(store.working_set(&b)?, Some(Bytes::new()));
    refused!(store.put_working_set(&a, Bytes::from(vec![0; MAX_WORKING_SET_BYTES + 1])), StoreError::TooLarge { .. });
    store.put_working_set(&a, Bytes::from(vec![9; MAX_WORKING_SET_BYTES]))?;
    assert_eq!(store.working_set(&a)?.map(|set| set.len()), Some(MAX_WORKING_SET_BYTES));

    // Forgetting and collecting.
    refused!(store.remove(&name("nobody")), StoreError::NotFound { .. });
    store.remove(&name("b:1"))?;
    refused!(store.resolve(&name("b:1")), StoreError::NotFound { .. });
    store.remove(&name("a"))?; // a:old still needs its chunks
    let report = store.gc()?;
    ensure!(report.packs > 0 && report.bytes > 0, "{report:?}");
    assert_eq!(store.find_missing(&second)?, second);
    refused!(store.image(&b), StoreError::MissingImage(_));
    refused!(store.working_set(&b), StoreError::MissingImage(_));
    assert_eq!(store.resolve(&name("a:old"))?, a);
    assert_eq!(store.working_set(&a)?.map(|set| set.len()), Some(MAX_WORKING_SET_BYTES));
    for seed in 0..10 {
        assert_eq!(store.frame(&chunk(seed).0)?, chunk(seed).1);
    }
    assert_eq!(store.gc()?, store::GcReport::default());

    // The same chunks from many at once.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|thread| {
                scope.spawn(move || -> Result<()> {
                    let ids = put(store, 100 + thread % 2..140)?;
                    let found = store.frames(&ids)?;
                    assert!(ids.iter().zip(&found).zip(100 + thread % 2..).all(|((id, frame), seed)| (*id, frame.clone()) == chunk(seed)));
                    store.commit(image(&ids), &name(&format!("many:{thread}")))?;
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("it did not panic"))
    })?;
    assert_eq!(store.list()?.len(), 7);
    // One name, asked for by many: one gets it.
    let ids = put(store, 100..101)?;
    let taken = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| store.commit(image(&ids), &name("wanted")).is_ok())).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).filter(|got| *got).count()
    });
    assert_eq!(taken, 1);
    Ok(())
}

/// The contract again, through a server before `inner`, for both kinds of clients.
fn holds_remotely(inner: impl Fn(&Path) -> Result<Arc<dyn Store>>) -> Result<()> {
    for class in [Class::Bulk, Class::Demand] {
        let folder = tempfile::tempdir()?;
        let server = Server::start(&config(folder.path()), inner(folder.path())?)?;
        let store = RemoteStore::open_with(&server.addresses()[0], &Options { class, ca_pem: None })?;
        holds(&store).with_context(|| format!("{class:?}"))?;
        assert_eq!(server.drain(), 0, "it holds no connection back although a client keeps its stream open");
    }
    Ok(())
}

#[test]
fn a_directory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    holds(&LocalStore::open(folder.path(), Access::Write)?)?;
    // What is there is there again.
    let again = LocalStore::open(folder.path(), Access::Read)?;
    assert_eq!(again.list()?.len(), 8);
    assert_eq!(again.frame(&chunk(3).0)?, chunk(3).1);
    refused!(again.upload(), StoreError::ReadOnly(_));
    refused!(again.remove(&name("a:old")), StoreError::ReadOnly(_));
    // A restore keeps its working set, although it only reads.
    let id = again.resolve(&name("a:old"))?;
    again.put_working_set(&id, Bytes::from_static(b"read"))?;
    assert_eq!(again.working_set(&id)?, Some(Bytes::from_static(b"read")));
    Ok(())
}

#[test]
fn memory() -> Result<()> {
    holds(&MemoryStore::new())
}

#[test]
fn a_server_before_a_directory() -> Result<()> {
    holds_remotely(|folder| Ok(Arc::new(LocalStore::open(folder, Access::Write)?)))
}

#[test]
fn a_server_before_memory() -> Result<()> {
    holds_remotely(|_| Ok(Arc::new(MemoryStore::new())))
}

#[test]
fn a_flaky_store_that_is_not_told_to_fail() -> Result<()> {
    holds(&FlakyStore::new(MemoryStore::new(), Plan::default()))
}

#[test]
fn an_answer_that_exceeds_a_message_comes_in_parts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let memory = MemoryStore::new();
    let mut random = fastrand::Rng::with_seed(1);
    let raws: Vec<Vec<u8>> = (0..40).map(|_| std::iter::repeat_with(|| random.u8(..)).take(1 << 20).collect()).collect();
    let ids: Vec<ChunkId> = raws.iter().map(|raw| chunk_id(raw)).collect();
    let sent = raws.iter().map(|raw| Encoder::new(1).encode(raw)).collect::<Result<Vec<_>, _>>()?;
    let mut upload = memory.upload()?;
    for (id, frame) in ids.iter().zip(&sent) {
        upload.put(*id, frame.clone())?;
    }
    upload.finish()?;
    let server = Server::start(&config(folder.path()), Arc::new(memory))?;
    let store = RemoteStore::open(&server.addresses()[0].to_string())?;
    let frames = store.frames(&ids)?;
    assert!(frames == sent);
    Ok(())
}

#[test]
fn a_flaky_store_fails_as_planned_through_a_server_and_answers_right_in_between() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let memory = MemoryStore::new();
    let ids = put(&memory, 0..20)?;
    let seed = 20;
    let plan = Plan {
        seed,
        unreachable: 0.1,
        damaged: 0.1,
        wrong_frame: 0.1,
        late: 0.1,
        late_by: std::time::Duration::from_millis(5),
        full: 0.5,
        ..Plan::default()
    };
    let flaky = Arc::new(FlakyStore::new(memory, plan));
    let server = Server::start(&config(folder.path()), flaky.clone())?;
    let store = RemoteStore::open(&server.addresses()[0].to_string())?;
    let (mut right, mut wrong, mut damaged, mut unreachable) = (0, 0, 0, 0);
    for round in 0..400_u64 {
        match store.frame(&ids[(round % 20) as usize]) {
            Ok(frame) if frame == chunk(round % 20).1 => right += 1,
            Ok(frame) => {
                assert_eq!(frame.len(), chunk(round % 20).1.len());
                wrong += 1;
            }
            Err(error) if error.is_about_contents() => damaged += 1,
            Err(_) => unreachable += 1,
        }
    }
    println!("seed {seed}: {right} right, {wrong} wrong, {damaged} damaged, {unreachable} unreachable, {} failures", flaky.failures());
    assert!(right > 200 && wrong > 5 && damaged > 5 && unreachable > 5);
    let full = (0..20).filter(|_| matches!(put(&store, [50]), Err(error) if error.to_string().contains("disk is full"))).count();
    assert!(full > 5, "full {full} times");
    Ok(())
}
