//! The service of a front end over memory of our own, with a store that counts what it is asked for and may stop to answer.

use bytes::Bytes;
use defrost_pager::Recording;
use defrost_pager::frontend::{Arrival, Failure, FrontEnd, FrontEndError, Mapped, Places, Recall, Served, Snapshot, serve};
use images::codec::Encoder;
use images::manifest::{Extent, Manifest};
use images::working_set::WorkingSet;
use images::{Image, chunk_id, memory_file};
use kernel::lazy_memory::LazyMemory;
use pages::{ChunkId, PAGE_SIZE_BYTES, PageAddr, SnapshotId, SnapshotName};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::{GcReport, MemoryStore, SnapshotInfo, Store, StoreError, Upload};

const PAGE: usize = PAGE_SIZE_BYTES as usize;
const CHUNK_PAGES: u64 = 4;
/// With contents; as many follow that have none.
const CHUNKS: u64 = 2048;
const PAGES: u64 = CHUNKS * CHUNK_PAGES;
/// More than any of this takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// splitmix64.
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn page(number: u64) -> Vec<u8> {
    (0..PAGE as u64 / 8).flat_map(|word| mix(number << 16 | word).to_ne_bytes()).collect()
}

/// A store that remembers what it was asked for; while it is stuck it does not answer.
struct Watched {
    inner: Arc<MemoryStore>,
    asked: Mutex<Vec<ChunkId>>,
    stuck: Mutex<bool>,
    changed: Condvar,
}

impl Watched {
    fn over(inner: &Arc<MemoryStore>, stuck: bool) -> Arc<Self> {
        Arc::new(Self { inner: inner.clone(), asked: Mutex::default(), stuck: Mutex::new(stuck), changed: Condvar::new() })
    }

    fn asked(&self) -> Vec<ChunkId> {
        std::mem::take(&mut self.asked.lock().expect("not poisoned"))
    }

    fn release(&self) {
        *self.stuck.lock().expect("not poisoned") = false;
        self.changed.notify_all();
    }
}

impl Store for Watched {
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        self.inner.find_missing(ids)
    }
    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.upload()
    }
    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.inner.commit(image, name)
    }
    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.inner.resolve(name)
    }
    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        self.inner.image(id)
    }
    fn frames(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, StoreError> {
        self.asked.lock().expect("not poisoned").extend(ids);
        drop(self.changed.wait_while(self.stuck.lock().expect("not poisoned"), |stuck| *stuck));
        self.inner.frames(ids)
    }
    fn tag(&self, from: &SnapshotName, to: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.inner.tag(from, to)
    }
    fn put_working_set(&self, id: &SnapshotId, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.put_working_set(id, bytes)
    }
    fn working_set(&self, id: &SnapshotId) -> Result<Option<Bytes>, StoreError> {
        self.inner.working_set(id)
    }
    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        self.inner.list()
    }
    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        self.inner.remove(name)
    }
    fn gc(&self) -> Result<GcReport, StoreError> {
        self.inner.gc()
    }
}

/// A store with the snapshot `memory`, and its chunks in order.
fn stored() -> (Arc<MemoryStore>, Vec<ChunkId>) {
    let store = Arc::new(MemoryStore::default());
    let (mut encoder, mut upload, mut table) = (Encoder::new(1), store.upload().expect("upload"), Vec::new());
    for chunk in 0..CHUNKS {
        let bytes: Vec<u8> = (chunk * CHUNK_PAGES..(chunk + 1) * CHUNK_PAGES).flat_map(page).collect();
        upload.put(chunk_id(&bytes), encoder.encode(&bytes).expect("encode")).expect("put");
        table.push(chunk_id(&bytes));
    }
    upload.finish().expect("finish");
    let (_, regions) = memory_file::describe(2 * PAGES * PAGE_SIZE_BYTES, 0).expect("is memory");
    let extents = vec![Extent { start: 0, pages: PAGES, first_chunk: 0 }];
    let manifest = Manifest { regions, extents, chunk_size_bytes: (CHUNK_PAGES * PAGE_SIZE_BYTES) as u32, ..Manifest::default() };
    store.commit(Image::encode(&manifest, &table), &"memory".parse().expect("a name")).expect("commit");
    (store, table)
}

struct Script(Receiver<Arrival>);

impl FrontEnd for Script {
    fn next(&mut self) -> Result<Option<Arrival>, Failure> {
        Ok(self.0.recv().ok())
    }
}

/// Memory that is served.
struct Lazy {
    memory: Arc<LazyMemory>,
    say: Sender<Arrival>,
    serving: JoinHandle<Result<Served, FrontEndError>>,
}

impl Lazy {
    fn begin(demand: Arc<dyn Store>, bulk: Arc<dyn Store>, recall: Recall) -> Self {
        let snapshot = Snapshot::open(&"memory".parse().expect("a name"), demand.as_ref()).expect("the snapshot");
        let (memory, uffd) = LazyMemory::map(2 * PAGES).expect("memory");
        let mapped = vec![Mapped { at: memory.range(), from: PageAddr::from_number(0) }];
        let (say, said) = channel();
        say.send(Arrival::Memory(snapshot.memory(3, uffd, &mapped))).expect("said");
        let sources = snapshot.sources(Places::new(mapped.into_iter().map(|mapped| (3, mapped))), demand, bulk, recall);
        Self { memory: Arc::new(memory), say, serving: std::thread::spawn(move || serve(Script(said), sources)) }
    }

    fn is_right(&self, number: u64) {
        let mut found = vec![1; PAGE];
        self.memory.read(number as usize * PAGE, &mut found);
        let expected = if number < PAGES { page(number) } else { vec![0; PAGE] };
        assert!(found == expected, "page {number} is wrong");
    }

    fn end(&mut self) -> Served {
        let _ = self.say.send(Arrival::Complete); // it may be over
        let begun = Instant::now();
        while !self.serving.is_finished() {
            assert!(begun.elapsed() < PATIENCE, "the service does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let serving = std::mem::replace(&mut self.serving, std::thread::spawn(|| Ok(Served::default())));
        serving.join().expect("no panic").expect("it is served")
    }
}

#[test]
fn bulk_brings_every_chunk_once_however_many_threads_do() {
    let (store, table) = stored();
    let (demand, bulk) = (Watched::over(&store, false), Watched::over(&store, false));
    let mut lazy = Lazy::begin(demand.clone(), bulk.clone(), Recall::NONE);
    let served = lazy.end();
    let (mut asked, mut all) = (bulk.asked(), table);
    asked.sort_unstable();
    all.sort_unstable();
    assert!(asked == all, "{} chunks were asked for, {} are there", asked.len(), all.len());
    assert_eq!(demand.asked(), []);
    assert_eq!((served.bulk_pages, served.demand_faults, served.replayed_pages), (PAGES, 0, 0));
    (0..2 * PAGES).for_each(|number| lazy.is_right(number));
}

#[test]
fn what_was_touched_is_there_the_next_time() {
    let (store, _) = stored();
    let name = "memory".parse().expect("a name");
    let id = store.resolve(&name).expect("the snapshot");
    let known = || store.working_set(&id).expect("a store").and_then(|bytes| WorkingSet::parse(&bytes, CHUNKS as u32));
    let touched: Vec<u64> = (0..300).map(|n| mix(n) % PAGES).collect();
    let recall = |replay, recording| Recall { replay, recording };
    let run = |recall: Recall, replayed: bool| {
        let watched = Watched::over(&store, false);
        let mut lazy = Lazy::begin(store.clone(), watched.clone(), recall);
        let (begun, expected) = (Instant::now(), known().map_or(0, |set| set.chunks().len()));
        let mut came = 0;
        while replayed && came < expected {
            assert!(begun.elapsed() < PATIENCE, "{came} of {expected} chunks were replayed");
            std::thread::sleep(Duration::from_millis(20));
            came += watched.asked().len();
        }
        std::thread::sleep(Duration::from_millis(50)); // for the last of them to be installed
        touched.iter().for_each(|number| lazy.is_right(*number));
        let served = lazy.end();
        (0..2 * PAGES).for_each(|number| lazy.is_right(number));
        served
    };
    let cold = run(recall(true, Recording::Off), false);
    assert!(cold.demand_faults > 200 && cold.replayed_pages == 0 && known().is_none(), "{cold:?}");
    let first = run(recall(true, Recording::Add), false);
    let set = known().expect("a working set is kept");
    assert_eq!(set.chunks().first().map(|chunk| u64::from(*chunk)), touched.first().map(|number| number / CHUNK_PAGES), "{first:?}");
    assert!(touched.iter().all(|number| set.chunks().contains(&((number / CHUNK_PAGES) as u32))), "something is not recorded");
    let second = run(recall(true, Recording::Add), true);
    assert!(second.demand_faults * 20 <= cold.demand_faults, "{second:?} after {cold:?}");
    // Whatever a fault was faster with was not replayed.
    assert!(second.replayed_pages * 10 >= set.chunks().len() as u64 * CHUNK_PAGES * 9, "{second:?}");
    let without = run(recall(false, Recording::Anew), false);
    assert!(without.replayed_pages == 0 && without.demand_faults > 200, "{without:?}");
    assert_eq!(known().map(|set| set.restores()), Some(1));
}

#[test]
fn a_store_that_is_lost_does_not_hold_up_the_end() {
    let (store, _) = stored();
    let bulk = Watched::over(&store, true);
    let mut lazy = Lazy::begin(store.clone(), bulk.clone(), Recall::NONE);
    lazy.say.send(Arrival::Complete).expect("said");
    let begun = Instant::now();
    while bulk.asked().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "bulk does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    (0..PAGES).for_each(|number| lazy.is_right(number));
    let served = lazy.end();
    assert_eq!(served.bulk_pages, 0, "{served:?}");
    // Nobody watches it any more: what was never touched waits for nobody, though bulk still waits for its store.
    let (told, heard) = channel();
    let memory = lazy.memory.clone();
    std::thread::spawn(move || {
        let mut found = vec![1; PAGES as usize * PAGE];
        memory.read(PAGES as usize * PAGE, &mut found);
        told.send(found.iter().all(|byte| *byte == 0))
    });
    assert_eq!(heard.recv_timeout(PATIENCE), Ok(true));
    bulk.release();
}
