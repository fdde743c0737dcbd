//! Connections do not disturb each other: one that panics, one too many, one that is silent, one that speaks nonsense; and draining
//! waits for what is under way, but not for ever.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use images::chunk_id;
use images::codec::Encoder;
use page_server::{Config, Server};
use pages::{ChunkId, SnapshotId, SnapshotName};
use proto::Address;
use proto::wire::pages_client::PagesClient;
use proto::wire::snapshots_client::SnapshotsClient;
use proto::wire::{Digests, FetchClass, FetchRequest, FetchStatus, NameRequest, PutBatch, StoredChunk, WorkingSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{GcReport, MemoryStore, RemoteStore, SnapshotInfo, Store, StoreError, Upload};
use tonic::Code;

/// A chunk at which the store below panics, and one at which it takes its time.
const PANICS: ChunkId = ChunkId([0xff; 32]);
const SLOW: ChunkId = ChunkId([0xee; 32]);
const LATE: Duration = Duration::from_millis(1500);

/// A store with a bug.
struct Buggy(MemoryStore);

impl Store for Buggy {
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        self.0.find_missing(ids)
    }
    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        self.0.upload()
    }
    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.0.commit(image, name)
    }
    fn tag(&self, from: &SnapshotName, to: &SnapshotName) -> Result<SnapshotId, StoreError> {
        self.0.tag(from, to)
    }
    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        assert_ne!(name.name(), "panics", "as the test wants");
        if name.name() == "slow" {
            std::thread::sleep(LATE);
        }
        self.0.resolve(name)
    }
    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        self.0.image(id)
    }
    fn frames(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, StoreError> {
        assert!(!ids.contains(&PANICS), "as the test wants");
        if ids.contains(&SLOW) {
            std::thread::sleep(LATE);
        }
        self.0.frames(ids)
    }
    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        self.0.list()
    }
    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        self.0.remove(name)
    }
    fn gc(&self) -> Result<GcReport, StoreError> {
        self.0.gc()
    }
    fn put_working_set(&self, id: &SnapshotId, bytes: Bytes) -> Result<(), StoreError> {
        self.0.put_working_set(id, bytes)
    }
    fn working_set(&self, id: &SnapshotId) -> Result<Option<Bytes>, StoreError> {
        self.0.working_set(id)
    }
}

/// Of the chunk that the server below has.
fn frame() -> Bytes {
    Encoder::new(1).encode(b"one").expect("compressed")
}

fn started(change: impl FnOnce(&mut Config)) -> Result<(Server, String, ChunkId)> {
    let memory = MemoryStore::new();
    let id = chunk_id(b"one");
    let mut upload = memory.upload()?;
    upload.put(id, frame())?;
    upload.finish()?;
    let mut config = Config::new(Address::Plain("127.0.0.1:0".to_owned()), "unused".into());
    change(&mut config);
    let server = Server::start(&config, Arc::new(Buggy(memory)))?;
    let address = server.addresses()[0].to_string();
    Ok((server, address, id))
}

fn host(address: &str) -> &str {
    address.trim_start_matches("grpc://")
}

#[test]
fn a_panic_ends_its_connection_and_no_other() -> Result<()> {
    let (server, address, id) = started(|_| {})?;
    let (bystander, victim) = (RemoteStore::open(&address)?, RemoteStore::open(&address)?);
    assert_eq!(bystander.frame(&id)?, frame());
    assert!(matches!(victim.frame(&PANICS), Err(StoreError::Unreachable(_))));
    assert!(victim.resolve(&"panics".parse()?).is_err_and(|error| error.to_string().contains("see its log")));
    assert_eq!(bystander.frame(&id)?, frame());
    assert_eq!(victim.frame(&id)?, frame(), "over a new connection");
    assert_eq!(RemoteStore::open(&address)?.frame(&id)?, frame());
    assert_eq!(server.drain(), 0);
    Ok(())
}

#[test]
fn a_slow_store_call_delays_its_connection_and_no_other() -> Result<()> {
    let (_server, address, id) = started(|_| {})?;
    let (slow, quick) = (RemoteStore::open(&address)?, RemoteStore::open(&address)?);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| slow.frame(&SLOW));
        let mut answers = 0;
        while !slow.is_finished() {
            assert_eq!(quick.frame(&id).expect("an answer"), frame());
            answers += 1;
        }
        assert!(answers > 10, "only {answers} answers beside a slow one");
    });
    Ok(())
}

#[test]
fn connections_are_limited_and_places_come_back() -> Result<()> {
    let (server, address, id) = started(|config| {
        config.max_connections = 2;
        config.admin = Some("127.0.0.1:0".to_owned());
    })?;
    let first = RemoteStore::open(&address)?;
    let second = RemoteStore::open(&address)?;
    let refused = RemoteStore::open(&address).expect_err("a third");
    assert!(refused.to_string().contains("hung up"), "{refused}");
    assert_eq!(first.frame(&id)?, frame());
    drop(second);
    let begun = Instant::now();
    while RemoteStore::open(&address).is_err() {
        ensure!(begun.elapsed() < Duration::from_secs(60), "the place did not come back");
        std::thread::sleep(Duration::from_millis(10));
    }
    let metrics = http(server.admin().context("an admin address")?, "/metrics")?;
    for line in [
        "defrost_page_server_requests_total{class=\"bulk\"} 1",
        "defrost_page_server_frames_total 1",
        "defrost_page_server_connections_refused_total ",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(http(server.admin().context("an admin address")?, "/ready")?.starts_with("HTTP/1.1 200"));
    Ok(())
}

fn http(at: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(at)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn nonsense_ends_its_connection_and_no_other() -> Result<()> {
    let (server, address, id) = started(|_| {})?;
    let mut random = fastrand::Rng::with_seed(7);
    let bystander = RemoteStore::open(&address)?;
    for round in 0..20 {
        let mut stream = TcpStream::connect(host(&address))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut nonsense: Vec<u8> = if round % 2 == 0 { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec() } else { Vec::new() };
        nonsense.extend((0..random.usize(1..2000)).map(|_| random.u8(..)));
        let _ = stream.write_all(&nonsense); // it may hang up in the middle
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(bystander.frame(&id)?, frame());
    }
    let half_open = TcpStream::connect(host(&address))?; // says nothing
    let begun = Instant::now();
    assert_eq!(server.drain(), 0);
    ensure!(begun.elapsed() < Duration::from_secs(25), "a silent connection held the server");
    drop(half_open);
    Ok(())
}

#[test]
fn draining_waits_for_calls_and_no_longer_than_its_deadline() -> Result<()> {
    for (deadline, left) in [(Duration::from_secs(60), 0), (Duration::from_millis(200), 1)] {
        let (server, address, _) = started(|config| config.drain = deadline)?;
        let store = RemoteStore::open(&address)?;
        std::thread::scope(|scope| {
            let call = scope.spawn(|| store.resolve(&"slow".parse().expect("a name")));
            std::thread::sleep(LATE / 3);
            assert_eq!(server.drain(), left, "with a deadline of {deadline:?}");
            if left == 0 {
                // It was answered: there is no such name.
                let answered = call.join().expect("no panic");
                assert!(matches!(answered, Err(StoreError::NotFound { .. })), "{answered:?}");
            }
            assert!(RemoteStore::open(&address).is_err(), "it accepts no more");
        });
    }
    Ok(())
}

#[test]
fn malformed_messages_are_refused_by_field() -> Result<()> {
    let (_server, address, id) = started(|_| {})?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = proto::client::connect(&address.parse()?, &store::Options::default()).await?;
        let mut snapshots = SnapshotsClient::new(channel.clone());
        let refused = |status: tonic::Status, field: &str| {
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
            assert!(status.message().contains(&format!("field {field}")), "{status:?}");
        };
        refused(snapshots.resolve(NameRequest { name: String::new() }).await.expect_err("no name"), "name");
        refused(snapshots.resolve(NameRequest { name: "../x".to_owned() }).await.expect_err("a path"), "name");
        refused(snapshots.find_missing(Digests { digests: vec![Bytes::from_static(b"short")] }).await.expect_err("short"), "digests");
        let large = WorkingSet { digest: Bytes::from(vec![1; 32]), data: Bytes::from(vec![0; (8 << 20) + 1]) };
        refused(snapshots.put_working_set(large).await.expect_err("large"), "data");
        let unfinished = PutBatch {
            chunks: vec![StoredChunk { digest: Bytes::copy_from_slice(&chunk_id(b"two").0), frame: Encoder::new(1).encode(b"two")? }],
            last: false,
        };
        refused(snapshots.put_chunks(tokio_stream::iter([unfinished.clone()])).await.expect_err("no last batch"), "last");
        let hollow = PutBatch { chunks: vec![StoredChunk { digest: Bytes::from(vec![9; 32]), frame: Bytes::new() }], last: true };
        refused(snapshots.put_chunks(tokio_stream::iter([hollow])).await.expect_err("no frame"), "chunks.frame");
        let asked = Digests { digests: vec![Bytes::from(vec![9; 32])] };
        assert_eq!(snapshots.find_missing(asked.clone()).await?.into_inner(), asked, "nothing of them stays");

        // On the stream, each is told in its own answer, and the stream goes on.
        let good = FetchRequest { id: 5, digests: vec![Bytes::copy_from_slice(&id.0)], class: FetchClass::Demand as i32 };
        let requests = [
            FetchRequest { class: 0, ..good.clone() },
            FetchRequest { class: 99, ..good.clone() },
            FetchRequest { id: 0, ..good.clone() },
            FetchRequest { digests: Vec::new(), ..good.clone() },
            FetchRequest { digests: vec![Bytes::copy_from_slice(&id.0); 1025], ..good.clone() },
            FetchRequest { digests: vec![Bytes::from(vec![1; 32])], ..good.clone() },
            good,
        ];
        let mut answers = PagesClient::new(channel).fetch(tokio_stream::iter(requests)).await?.into_inner();
        for field in ["class", "class", "id", "digests", "digests"] {
            let answer = answers.message().await?.context("an answer")?;
            assert_eq!(answer.status(), FetchStatus::Invalid);
            assert!(answer.message.contains(&format!("field {field}")) && answer.frames.is_empty(), "{answer:?}");
        }
        let answer = answers.message().await?.context("an answer")?;
        assert_eq!((answer.status(), answer.failed), (FetchStatus::NotFound, Bytes::from(vec![1; 32])));
        let answer = answers.message().await?.context("an answer")?;
        assert_eq!((answer.id, answer.status(), answer.frames), (5, FetchStatus::Ok, vec![frame()]));
        assert!(answers.message().await?.is_none());
        Ok(())
    })
}
