//! What the tests share: a snapshot of made-up bytes, a store that misbehaves to order, a pager over memory of this process.
//!
//! The memory is ours while the "process" is a `sleep`: a pager that gives up kills that, not the test. Tests take turns, as a fork
//! in one is an event for all memory that is watched in this process.

use bytes::Bytes;
use defrost_pager::{Config, Pager, State, Status};
use images::codec::Encoder;
use images::manifest::{Backing, Extent, Manifest, Region};
use images::{Image, chunk_id};
use kernel::handoff::pidfd_open;
use kernel::scratch::Scratch;
use nix::unistd::Pid;
use pages::{ChunkId, PAGE_SIZE_BYTES, PageRange, SnapshotId, SnapshotName};
use std::collections::HashMap;
use std::ops::Range;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::{GcReport, SnapshotInfo, Store, StoreError, Upload};

pub const PAGE: usize = PAGE_SIZE_BYTES as usize;
const CHUNK_PAGES: u64 = 4;
static TURN: Mutex<()> = Mutex::new(());

/// How a store behaves until told otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mood {
    /// Does not answer.
    pub lost: bool,
    /// So many answers are another chunk's.
    pub wrong: u32,
    /// Each answer takes this long.
    pub slow: Duration,
}

/// A store of made-up chunks.
#[derive(Default)]
pub struct Moody {
    frames: HashMap<ChunkId, Bytes>,
    pub mood: Mutex<Mood>,
    pub asked: Mutex<HashMap<ChunkId, u32>>,
}

impl Moody {
    pub fn set(&self, change: impl FnOnce(&mut Mood)) {
        change(&mut self.mood.lock().expect("mood"));
    }
}

fn no<T>() -> Result<T, StoreError> {
    Err(StoreError::ReadOnly("moody".into()))
}

impl Store for Moody {
    fn frame(&self, id: &ChunkId) -> Result<Bytes, StoreError> {
        *self.asked.lock().expect("asked").entry(*id).or_default() += 1;
        let mut mood = self.mood.lock().expect("mood");
        if mood.lost {
            return Err(StoreError::Io { path: "moody".into(), source: std::io::ErrorKind::ConnectionReset.into() });
        }
        let wrong = mood.wrong > 0;
        mood.wrong = mood.wrong.saturating_sub(1);
        let slow = mood.slow;
        drop(mood);
        std::thread::sleep(slow);
        let other = || self.frames.iter().find(|(other, _)| *other != id).map(|(_, frame)| frame.clone());
        let frame = if wrong { other() } else { self.frames.get(id).cloned() };
        frame.ok_or(StoreError::MissingChunk(*id))
    }

    fn find_missing(&self, _: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        no()
    }
    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        no()
    }
    fn commit(&self, _: Bytes, _: &SnapshotName) -> Result<SnapshotId, StoreError> {
        no()
    }
    fn resolve(&self, _: &SnapshotName) -> Result<SnapshotId, StoreError> {
        no()
    }
    fn image(&self, _: &SnapshotId) -> Result<Bytes, StoreError> {
        no()
    }
    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        no()
    }
    fn remove(&self, _: &SnapshotName) -> Result<(), StoreError> {
        no()
    }
    fn gc(&self) -> Result<GcReport, StoreError> {
        no()
    }
}

/// One test's play.
pub struct Stage {
    pub memory: Scratch,
    pub store: Arc<Moody>,
    pub process: Child,
    /// What the snapshot holds, page by page; zeros where it has none.
    pub contents: Vec<Vec<u8>>,
    image: Arc<Image>,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    /// A snapshot with contents in `filled` of `pages` pages; `advice` are the region's flags.
    pub fn new(pages: u64, filled: &[Range<u64>], advice: u32) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = Scratch::map(pages).expect("map");
        let mut contents = vec![vec![0; PAGE]; pages as usize];
        let (mut store, mut table, mut extents) = (Moody::default(), Vec::new(), Vec::new());
        let mut encoder = Encoder::new(1);
        for run in filled {
            let range = memory.part(run.start, run.end - run.start);
            extents.push(Extent { start: range.start().addr(), pages: range.pages(), first_chunk: table.len() as u64 });
            for page in run.clone() {
                contents[page as usize] = (0..PAGE).map(|byte| (page as usize * 31 + byte / 8 + 1) as u8 | 1).collect();
            }
            for chunk in images::cut(range, (CHUNK_PAGES * PAGE_SIZE_BYTES) as u32) {
                let first = chunk.start().number() - memory.range().start().number();
                let raw = contents[first as usize..(first + chunk.pages()) as usize].concat();
                store.frames.insert(chunk_id(&raw), encoder.encode(&raw).expect("compress"));
                table.push(chunk_id(&raw));
            }
        }
        let region = Region {
            start: memory.range().start().addr(),
            end: memory.range().end().addr(),
            prot: 3,
            backing: Backing::Anonymous as i32,
            lazy: true,
            advice,
            ..Region::default()
        };
        let chunk_size_bytes = (CHUNK_PAGES * PAGE_SIZE_BYTES) as u32;
        let manifest = Manifest { regions: vec![region], extents, chunk_size_bytes, ..Manifest::default() };
        let image = Arc::new(Image { id: SnapshotId([0; 32]), manifest, table });
        let process = Command::new("sleep").arg("1000").spawn().expect("sleep");
        Self { memory, store: Arc::new(store), process, contents, image, _turn: turn }
    }

    /// Watch the memory and serve it.
    pub fn serve(&self, background: bool) -> Pager {
        Pager::start(Config {
            image: self.image.clone(),
            name: "made:up".to_owned(),
            demand: self.store.clone(),
            bulk: self.store.clone(),
            store_text: "moody".to_owned(),
            uffd: self.memory.watch().expect("watch"),
            pidfd: pidfd_open(Pid::from_raw(self.process.id() as i32)).expect("pidfd"),
            pid: std::process::id(),
            background,
            prefetch: Vec::new(),
        })
        .expect("start")
    }

    /// The process ends; the pager follows, within a time that nobody would call hanging.
    pub fn end(&mut self, pager: Pager) -> Status {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(pager.join()));
        receiver.recv_timeout(Duration::from_secs(10)).expect("the pager ends after its process")
    }

    /// Every page as the snapshot has it.
    pub fn all(&self) -> Vec<u8> {
        self.contents.concat()
    }

    /// Nothing here is watched any more.
    pub fn is_released(&self) -> bool {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        !smaps.lines().any(|line| line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "um"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A test that failed half way has not ended it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Wait for a state that will come.
pub fn until(pager: &Pager, wanted: impl Fn(&State) -> bool) -> Status {
    let begun = Instant::now();
    loop {
        let status = pager.status();
        if wanted(&status.state) {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{status:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The pages of `range` of `memory`, whole.
pub fn bytes_of(memory: &Scratch, range: PageRange) -> Vec<u8> {
    let first = range.start().number() - memory.range().start().number();
    (first..first + range.pages()).flat_map(|page| memory.read(page)).collect()
}
