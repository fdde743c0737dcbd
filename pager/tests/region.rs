//! The pager against live memory of another process, fed by a store in a directory.
//!
//! The memory belongs to this test program run a second time, which hands its userfaultfd over as a restored process does and then
//! touches, drops, moves and forks while pages arrive. It must not be our own: a C library's fork() holds the allocator's locks while
//! the kernel waits for the fork event to be read, and the pager's thread that should read it waits for the allocator.

use bytes::Bytes;
use defrost_pager::keep::{Keep, Place};
use defrost_pager::mailbox::Mailbox;
use defrost_pager::{Config, Pager, Policy, Recording, State, lazy_origins};
use images::codec::Encoder;
use images::manifest::{Backing, Extent, Manifest, Region};
use images::{Image, chunk_id};
use kernel::handoff;
use kernel::scratch::Scratch;
use kernel::uffd::Uffd;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use pages::{ChunkId, PAGE_SIZE_BYTES, SnapshotId, SnapshotName};
use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{Access, GcReport, LocalStore, SnapshotInfo, Store, StoreError, Upload};

const PAGE: usize = PAGE_SIZE_BYTES as usize;
const PAGES: u64 = 4096;
const CHUNK_PAGES: u64 = 4;
/// What the other process is to do.
const ORDER: &str = "DEFROST_REGION";

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

/// Another process's part; see the head. Nothing where nobody asked for it.
#[test]
fn the_other_process() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let memory = Scratch::map(PAGES).expect("map");
    let uffd = memory.watch().expect("watch");
    let mut socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().expect("socket"));
    handoff::send_fds(&socket, &[uffd.as_raw_fd()]).expect("send");
    writeln!(socket, "{}", memory.range().start().addr()).expect("tell");
    socket.read_exact(&mut [0]).expect("the pager serves");
    let right = |from: u64, to: u64| (from..to).for_each(|n| assert!(memory.read(n) == page(n), "page {n}"));
    let zero = |from: u64, to: u64| (from..to).for_each(|n| assert!(memory.read(n) == vec![0; PAGE], "page {n} is not zero"));
    let touch = |threads: u64| {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let right = &right;
                scope.spawn(move || {
                    let order = (0..PAGES).map(|n| (n * 2_654_435_761 + mix(thread)) % PAGES);
                    order.for_each(|n| right(n, n + 1));
                });
            }
        });
    };
    let half = PAGES / 2;
    match order.split_once(' ') {
        Some(("touch", threads)) => touch(threads.parse().expect("a number")),
        Some(("drop", _)) => {
            right(half - 10, half + 10);
            for first in (0..half).step_by(64) {
                memory.drop_contents(first, 32).expect("drop");
                zero(first, first + 32);
                right(first + 32, first + 64);
            }
            right(half, PAGES);
        }
        Some(("unmap", _)) => {
            for first in (0..half).step_by(64) {
                memory.unmap(first, 32).expect("unmap");
                right(first + 32, first + 64);
            }
            right(half, PAGES);
        }
        Some(("move", _)) => {
            for first in (0..half).step_by(64) {
                let moved = memory.move_away(first, 32).expect("move");
                (0..32).for_each(|n| assert!(moved.read(n) == page(first + n), "moved page {}", first + n));
                right(first + 32, first + 64);
            }
            right(half, PAGES);
        }
        Some(("fork", _)) => {
            let expected: Vec<u8> = (0..256).flat_map(page).collect();
            for _ in 0..8 {
                let child = memory.fork_comparing(&expected).expect("fork");
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
            touch(2);
        }
        Some(("protect", _)) => {
            for first in (0..PAGES).step_by(128) {
                memory.read_only(first + 3, 50).expect("mprotect");
                right(first, first + 128);
            }
        }
        other => panic!("{other:?}"),
    }
}

/// A store whose frames go through `frame`, told how many were asked for before.
struct Through<F> {
    inner: LocalStore,
    calls: AtomicU32,
    frame: F,
}

impl<F: Fn(&LocalStore, u32, &ChunkId) -> Result<Bytes, StoreError> + Send + Sync> Store for Through<F> {
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
        ids.iter().map(|id| (self.frame)(&self.inner, self.calls.fetch_add(1, Ordering::Relaxed), id)).collect()
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

/// Run the other process with an order, serve it, and say how it ended and where the pager stood.
fn serve(
    order: &str,
    background: bool,
    frame: impl Fn(&LocalStore, u32, &ChunkId) -> Result<Bytes, StoreError> + Send + Sync + 'static,
) -> (std::process::ExitStatus, State, Option<String>) {
    let folder = tempfile::tempdir().expect("folder");
    let inner = LocalStore::open(folder.path(), Access::Write).expect("open a store");
    let (mut encoder, mut upload, mut table) = (Encoder::new(1), inner.upload().expect("upload"), Vec::new());
    for first in (0..PAGES).step_by(CHUNK_PAGES as usize) {
        let raw: Vec<u8> = (first..first + CHUNK_PAGES).flat_map(page).collect();
        table.push(chunk_id(&raw));
        upload.put(chunk_id(&raw), encoder.encode(&raw).expect("encode")).expect("put");
    }
    upload.finish().expect("finish");

    let (mut ours, theirs) = UnixStream::pair().expect("pair");
    let mut command = Command::new(std::env::current_exe().expect("our path"));
    command.args(["--exact", "the_other_process", "--nocapture"]).env(ORDER, order).stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut child = command.stdout(Stdio::null()).spawn().expect("start");
    let uffd = handoff::recv_fds(&ours, 1).expect("a userfaultfd").remove(0);
    let mut line = String::new();
    BufReader::new(&ours).read_line(&mut line).expect("an address");
    let start: u64 = line.trim().parse().expect("an address");

    let region =
        Region { start, end: start + PAGES * PAGE_SIZE_BYTES, backing: Backing::Anonymous as i32, lazy: true, ..Region::default() };
    let extents = vec![Extent { start, pages: PAGES, first_chunk: 0 }];
    let chunk_size_bytes = (CHUNK_PAGES * PAGE_SIZE_BYTES) as u32;
    let manifest = Manifest { regions: vec![region], extents, chunk_size_bytes, ..Manifest::default() };
    let store: Arc<dyn Store> = Arc::new(Through { inner, calls: AtomicU32::new(0), frame });
    let image = Arc::new(Image { id: SnapshotId([0; 32]), manifest, table: table.into_iter().collect() });
    let uffd = Uffd::adopt(uffd);
    // Kept as a restore's is, so that the journal is written along.
    let (folder, mailbox) = (tempfile::tempdir().expect("folder"), Mailbox::new().expect("mailbox"));
    let place = Place::new(folder.path(), child.id());
    // No inode is 0: at the end nothing is closed inside the other process, whose stops our own wait for its end would take away.
    let keep = Keep::new(place, Arc::new(lazy_origins(&image)), mailbox, 0, 1);
    let config = Config {
        image,
        name: "region".to_owned(),
        demand: store.clone(),
        bulk: store,
        store_text: "a folder".to_owned(),
        pidfd: handoff::pidfd_open(Pid::from_raw(child.id() as i32)).expect("pidfd"),
        pid: child.id(),
        background,
        prefetch: Vec::new(),
        eager: false,
        keep: Some(Arc::new(keep)),
        adopted: 0,
        marked: false,
        policy: Policy::default(),
        replay: true,
        recording: Recording::Add,
        reports: false,
        latency: defrost_pager::Latency::Usual,
        told: None,
        lease: None,
    };
    let pager = Pager::start(config, uffd).expect("start");
    pager.process_runs();
    ours.write_all(&[1]).expect("go");
    let ended = child.wait().expect("wait");
    let status = pager.join();
    (ended, status.state, status.last_error)
}

fn right(order: &str, frame: impl Fn(&LocalStore, u32, &ChunkId) -> Result<Bytes, StoreError> + Send + Sync + Clone + 'static) {
    for background in [true, false] {
        let (ended, state, error) = serve(order, background, frame.clone());
        assert!(ended.success(), "{order}, background {background}: {ended}, {error:?}");
        assert_eq!(state, State::Gone, "{order}");
    }
}

fn plain(store: &LocalStore, _: u32, id: &ChunkId) -> Result<Bytes, StoreError> {
    store.frame(id)
}

#[test]
fn any_number_of_threads_reads_what_is_right() {
    for threads in [1, 2, 4, 8] {
        right(&format!("touch {threads}"), plain);
    }
}

#[test]
fn memory_is_dropped_while_it_arrives() {
    right("drop 1", plain);
}

#[test]
fn memory_is_unmapped_while_it_arrives() {
    right("unmap 1", plain);
}

#[test]
fn memory_is_moved_while_it_arrives() {
    right("move 1", plain);
}

#[test]
fn memory_is_forked_while_it_arrives() {
    right("fork 1", plain);
}

#[test]
fn memory_is_protected_while_it_arrives() {
    right("protect 1", plain);
}

#[test]
fn a_slow_store_is_waited_for() {
    right("touch 4", |store, call, id| {
        std::thread::sleep(Duration::from_micros(u64::from(call % 7) * 100));
        store.frame(id)
    });
}

#[test]
fn a_store_that_is_away_for_a_while_is_waited_for() {
    right("touch 4", |store, call, id| match call {
        20..30 | 100..105 => Err(StoreError::Unreachable("away for a while".to_owned())),
        _ => store.frame(id),
    });
}

#[test]
fn a_chunk_that_is_wrong_once_is_fetched_again() {
    let corrupt = |store: &LocalStore, id: &ChunkId| store.frame(id).map(|frame| frame.slice(..frame.len() - 1));
    // The same chunk is not wrong twice, which would be fatal.
    let spoiled = Arc::new(Mutex::new(HashSet::new()));
    right("touch 4", move |store, call, id| {
        let once = call % 50 == 49 && spoiled.lock().is_ok_and(|mut spoiled| spoiled.insert(*id));
        if once { corrupt(store, id) } else { store.frame(id) }
    });
}

#[test]
fn a_chunk_that_stays_wrong_ends_the_process() {
    for background in [true, false] {
        // The frame of another chunk: a whole frame with a right checksum, yet not what was asked for.
        let other = chunk_id(&(0..CHUNK_PAGES).flat_map(page).collect::<Vec<u8>>());
        let wrong = chunk_id(&(400..400 + CHUNK_PAGES).flat_map(page).collect::<Vec<u8>>());
        let (ended, state, error) = serve("touch 2", background, move |store, _, id| store.frame(if *id == wrong { &other } else { id }));
        assert_eq!(ended.signal(), Some(nix::libc::SIGKILL), "{ended}");
        assert!(matches!(&state, State::Failed(why) if why.contains(&wrong.to_string())), "{state:?} {error:?}");
    }
}
