//! Several servers as one store: one dies, is late, lacks, damages or refuses what another has.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use images::codec::Encoder;
use images::manifest::Manifest;
use images::{Image, chunk_id};
use page_server::{Config, Server};
use pages::{ChunkId, SnapshotName};
use proto::Address;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Access, Class, FlakyStore, MemoryStore, Options, Plan, Replicas, Store, StoreError};

fn chunk(seed: u64) -> (ChunkId, Bytes) {
    let raw: Vec<u8> = seed.to_le_bytes().repeat(100);
    (chunk_id(&raw), Encoder::new(1).encode(&raw).expect("compressed"))
}

const CHUNKS: u64 = 50;

/// A store with the snapshot `a` of all chunks; without some of them, where told so after the commit.
struct Copy {
    flaky: Arc<FlakyStore<MemoryStore>>,
    server: Option<Server>,
    address: Address,
    folder: tempfile::TempDir,
}

impl Copy {
    fn start(memory: MemoryStore) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let flaky = Arc::new(FlakyStore::new(memory, Plan::default()));
        let config = Config::new(format!("unix:{}", folder.path().join("socket").display()).parse()?, folder.path().to_owned());
        let server = Server::start(&config, flaky.clone())?;
        let address = server.addresses()[0].clone();
        Ok(Self { flaky, server: Some(server), address, folder })
    }

    fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.drain();
        }
    }

    fn start_again(&mut self) -> Result<()> {
        let config = Config::new(self.address.clone(), self.folder.path().to_owned());
        self.server = Some(Server::start(&config, self.flaky.clone())?);
        Ok(())
    }
}

fn filled(chunks: impl IntoIterator<Item = u64>) -> Result<MemoryStore> {
    let memory = MemoryStore::new();
    let (mut upload, mut ids) = (memory.upload()?, Vec::new());
    for seed in chunks {
        upload.put(chunk(seed).0, chunk(seed).1)?;
        ids.push(chunk(seed).0);
    }
    upload.finish()?;
    memory.commit(Image::encode(&Manifest::default(), &ids), &name())?;
    Ok(memory)
}

fn name() -> SnapshotName {
    "a".parse().expect("a name")
}

fn two() -> Result<[Copy; 2]> {
    Ok([Copy::start(filled(0..CHUNKS)?)?, Copy::start(filled(0..CHUNKS)?)?])
}

fn replicas(copies: &[Copy], class: Class) -> Result<Replicas> {
    let addresses: Vec<Address> = copies.iter().map(|copy| copy.address.clone()).collect();
    Ok(Replicas::open(&addresses, &Options { class, ca_pem: None })?)
}

fn all_right(store: &dyn Store) -> Result<()> {
    for seed in 0..CHUNKS {
        assert!(store.frame(&chunk(seed).0).with_context(|| format!("chunk {seed}"))? == chunk(seed).1, "chunk {seed}");
    }
    let ids: Vec<ChunkId> = (0..CHUNKS).map(|seed| chunk(seed).0).collect();
    assert!(store.frames(&ids)?.iter().zip(0..).all(|(frame, seed)| *frame == chunk(seed).1));
    Ok(())
}

/// Ask as a pager does, until it is answered.
fn in_the_end(store: &dyn Store, id: &ChunkId) -> Result<Bytes> {
    let begun = Instant::now();
    loop {
        match store.frame(id) {
            Err(StoreError::Unreachable(_)) if begun.elapsed() < Duration::from_secs(60) => std::thread::sleep(Duration::from_millis(5)),
            answer => return Ok(answer?),
        }
    }
}

#[test]
fn the_next_is_asked_where_one_is_gone_and_stays_in_use() -> Result<()> {
    for class in [Class::Demand, Class::Bulk] {
        let mut copies = two()?;
        let store = replicas(&copies, class)?;
        let (first, second) = (copies[0].address.to_string(), copies[1].address.to_string());
        all_right(&store)?;
        assert_eq!(store.in_use(), Some(first.clone()));
        copies[0].stop();
        all_right(&store)?;
        assert_eq!(store.in_use(), Some(second.clone()));
        assert_eq!((store.list()?.len(), store.resolve(&name()).is_ok()), (1, true));
        // It is back, but the other does well.
        copies[0].start_again()?;
        all_right(&store)?;
        assert_eq!(store.in_use(), Some(second));
        // Both are gone: whoever asks is told of both, at once.
        copies.iter_mut().for_each(Copy::stop);
        let error = loop {
            match store.frame(&chunk(0).0) {
                Err(StoreError::Unreachable(why)) if copies.iter().all(|copy| why.contains(&copy.address.to_string())) => break why,
                Err(StoreError::Unreachable(_)) => {} // an open stream was ended: a word of its own
                other => panic!("{other:?}"),
            }
        };
        println!("{error}");
        let begun = Instant::now();
        (0..200).for_each(|_| assert!(matches!(store.frame(&chunk(0).0), Err(StoreError::Unreachable(_)))));
        println!("200 refusals took {:?}", begun.elapsed());
        copies[0].start_again()?;
        assert!(in_the_end(&store, &chunk(7).0)? == chunk(7).1);
        assert_eq!(store.in_use(), Some(first));
        all_right(&store)?;
    }
    Ok(())
}

#[test]
fn one_that_is_gone_at_the_start_is_no_obstacle_and_none_at_all_is() -> Result<()> {
    let mut copies = two()?;
    copies[0].stop();
    all_right(&replicas(&copies, Class::Demand)?)?;
    all_right(&replicas(&copies, Class::Bulk)?)?;
    copies[1].stop();
    let error = replicas(&copies, Class::Bulk).expect_err("nobody is there").to_string();
    assert!(copies.iter().all(|copy| error.contains(&copy.address.to_string())), "{error}");
    Ok(())
}

#[test]
fn what_one_lacks_or_has_damaged_comes_from_the_other() -> Result<()> {
    for class in [Class::Demand, Class::Bulk] {
        // Each lacks what the other has; one chunk is in neither.
        let copies = [Copy::start(filled(0..30)?)?, Copy::start(filled(20..CHUNKS)?)?];
        let store = replicas(&copies, class)?;
        all_right(&store)?;
        let nowhere = chunk(1000).0;
        assert!(matches!(store.frame(&nowhere), Err(StoreError::MissingChunk(id)) if id == nowhere));
        assert!(matches!(store.resolve(&"b".parse()?), Err(StoreError::NotFound { .. })));
        // Damaged in one of them.
        let mut copies = two()?;
        let store = replicas(&copies, class)?;
        copies[0].flaky.set_plan(Plan { damaged: 1.0, ..Plan::default() });
        all_right(&store)?;
        let id = store.resolve(&name())?;
        assert!(store.image(&id).is_ok());
        // The one that has it sound is gone: that is worth waiting for.
        copies[1].stop();
        let error = loop {
            match store.frame(&chunk(3).0) {
                Err(StoreError::Unreachable(why)) if why.contains("as planned") => break why,
                Err(StoreError::Unreachable(_)) => std::thread::sleep(Duration::from_millis(1)),
                other => panic!("{other:?}"),
            }
        };
        println!("{error}");
        copies[1].start_again()?;
        assert!(in_the_end(&store, &chunk(3).0)? == chunk(3).1);
    }
    Ok(())
}

#[test]
fn each_copy_can_be_asked_for_by_itself_and_preferred() -> Result<()> {
    let copies = two()?;
    let store = replicas(&copies, Class::Demand)?;
    assert_eq!(store.copies(), 2);
    copies[0].flaky.set_plan(Plan { wrong_frame: 1.0, ..Plan::default() });
    let (id, frame) = chunk(5);
    assert!(store.frame(&id)? != frame, "it lies");
    assert!(store.frame_of_copy(&id, 0)? != frame);
    assert!(store.frame_of_copy(&id, 1)? == frame);
    store.prefer(1);
    all_right(&store)
}

#[test]
fn a_late_answer_is_overtaken_and_who_is_always_late_is_asked_no_more() -> Result<()> {
    let copies = two()?;
    let store = replicas(&copies, Class::Demand)?;
    all_right(&store)?;
    let before = store.tally().hedges;
    // So late that only the other's answers can be what comes.
    copies[0].flaky.set_plan(Plan { late: 1.0, late_by: Duration::from_secs(5), ..Plan::default() });
    let begun = Instant::now();
    all_right(&store)?;
    let took = begun.elapsed();
    println!("{took:?}, {} hedges", store.tally().hedges - before);
    assert_eq!(store.in_use(), Some(copies[1].address.to_string()));
    assert!((3..10).contains(&(store.tally().hedges - before)), "{} hedges", store.tally().hedges - before);
    assert!(took < Duration::from_secs(5), "{took:?}: somebody waited for the late one");
    // For bulk nobody waits: no hedge.
    let store = replicas(&copies, Class::Bulk)?;
    assert!(store.frame(&chunk(1).0)? == chunk(1).1);
    assert_eq!(store.tally().hedges, 0);
    Ok(())
}

#[test]
fn hedges_are_bounded_where_both_are_slow() -> Result<()> {
    let copies = two()?;
    let store = replicas(&copies, Class::Demand)?;
    for copy in &copies {
        copy.flaky.set_plan(Plan { seed: 5, late: 0.5, late_by: Duration::from_millis(20), ..Plan::default() });
    }
    for round in 0..400 {
        let (id, frame) = chunk(round % CHUNKS);
        assert!(store.frame(&id)? == frame);
    }
    println!("{} hedges of 400", store.tally().hedges);
    assert!(store.tally().hedges <= 40 + 8, "{}", store.tally().hedges);
    Ok(())
}

#[test]
fn several_servers_are_not_written_to() -> Result<()> {
    let copies = two()?;
    let addresses = format!("{},{}", copies[0].address, copies[1].address);
    let error = store::open(&addresses, Access::Write).err().context("it was opened for writing")?.to_string();
    assert!(error.contains(&addresses) && error.contains("defrost copy"), "{error}");
    let store = store::open(&addresses, Access::Read)?;
    for refused in [
        store.upload().map(drop),
        store.commit(Bytes::new(), &name()).map(drop),
        store.remove(&name()),
        store.gc().map(drop),
        store.tag(&name(), &name()).map(drop),
    ] {
        assert!(matches!(refused, Err(StoreError::Several(_))), "{refused:?}");
    }
    Ok(())
}
