//! Peers that take and give nothing: what they make the server hold is bounded, and whoever comes after them is served.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use images::chunk_id;
use images::codec::Encoder;
use page_server::{Config, Server};
use pages::ChunkId;
use proto::Address;
use proto::wire::pages_client::PagesClient;
use proto::wire::snapshots_client::SnapshotsClient;
use proto::wire::{CommitPiece, Digests, FetchClass, FetchRequest};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Class, MemoryStore, Options, RemoteStore, Store};
use tokio_stream::StreamExt as _;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(60);

struct Served {
    server: Server,
    address: Address,
    ids: Vec<ChunkId>,
}

/// A server with 16 chunks whose frames have 1 MiB each.
fn served(change: impl FnOnce(&mut Config)) -> Result<Served> {
    let (memory, mut random) = (MemoryStore::new(), fastrand::Rng::with_seed(3));
    let mut upload = memory.upload()?;
    let mut ids = Vec::new();
    for _ in 0..16 {
        let raw: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(1 << 20).collect();
        ids.push(chunk_id(&raw));
        upload.put(chunk_id(&raw), Encoder::new(1).encode(&raw)?)?;
    }
    upload.finish()?;
    let mut config = Config::new(Address::Plain("127.0.0.1:0".to_owned()), "unused".into());
    config.admin = Some("127.0.0.1:0".to_owned());
    change(&mut config);
    let server = Server::start(&config, Arc::new(memory))?;
    let address = server.addresses()[0].clone();
    Ok(Served { server, address, ids })
}

impl Served {
    fn open(&self, class: Class) -> Result<RemoteStore, store::StoreError> {
        RemoteStore::open_with(&self.address, &Options { class, ca_pem: None })
    }

    fn raw(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.address.to_string().trim_start_matches("grpc://"))?)
    }

    fn metric(&self, name: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(self.server.admin().context("an admin address")?)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.strip_prefix("defrost_page_server_")?.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("{name} is not in {text}"))?.trim().parse()?)
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !holds()? {
        ensure!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Of more connections than there are places, each of which said one byte, none is in the way of a client, and all are dropped.
#[test]
fn silent_connections_shut_out_nobody() -> Result<()> {
    let served = served(|config| {
        (config.max_connections, config.max_connections_per_peer) = (8, 8);
        config.deadlines.first_request = Duration::from_secs(3);
    })?;
    let words: [&[u8]; 4] = [b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n", b""];
    let mut silent = Vec::new();
    for n in 0..24 {
        let mut stream = served.raw()?;
        stream.write_all(words[n % 4])?;
        silent.push(stream);
    }
    let clients = [Class::Demand, Class::Bulk].map(|class| served.open(class));
    for client in &clients {
        assert_eq!(client.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?.frames(&served.ids[..1])?.len(), 1);
    }
    for mut stream in silent {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest); // a reset is an end as well
    }
    eventually("only clients are left", || Ok(served.metric("connections_open")? == 2))
}

#[test]
fn the_last_places_are_for_demand_and_a_peer_has_its_share() -> Result<()> {
    let served = served(|config| (config.max_connections, config.max_connections_per_peer) = (8, 8))?;
    let others: Vec<_> = (0..6).map(|_| served.open(Class::Bulk)).collect::<Result<_, _>>()?;
    let refused = served.open(Class::Bulk).expect_err("a seventh").to_string();
    ensure!(refused.contains("kept for demand"), "{refused}");
    for _ in 0..2 {
        assert_eq!(served.open(Class::Demand)?.frames(&served.ids[..1])?.len(), 1);
    }
    drop(others);
    let served = self::served(|config| (config.max_connections, config.max_connections_per_peer) = (8, 3))?;
    let three: Vec<_> = (0..3).map(|_| served.open(Class::Demand)).collect::<Result<_, _>>()?;
    ensure!(served.open(Class::Demand).is_err(), "a fourth of one address");
    drop(three);
    eventually("a place is free again", || Ok(served.open(Class::Demand).is_ok()))
}

/// A peer that asks for everything on all its streams and reads nothing makes the server hold its share and no more, delays nobody, and is
/// dropped.
#[test]
fn a_peer_that_does_not_read_is_bounded_and_dropped() -> Result<()> {
    let served = served(|config| config.deadlines.stalled = Duration::from_secs(3))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let asked = FetchRequest {
        id: 1,
        digests: served.ids[..14].iter().map(|id| Bytes::copy_from_slice(&id.0)).collect(),
        class: FetchClass::Bulk as i32,
    };
    let channels = (0..8).map(|_| runtime.block_on(proto::client::connect(&served.address, &Options::default())));
    let channels = channels.collect::<Result<Vec<_>, _>>()?;
    let mut streams = Vec::new();
    for channel in &channels {
        for _ in 0..20 {
            let requests = (1..1000).map({
                let asked = asked.clone();
                move |id| FetchRequest { id, ..asked.clone() }
            });
            let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
            streams.push(runtime.block_on(PagesClient::new(channel.clone()).fetch(requests))?.into_inner());
        }
    }
    let client = served.open(Class::Demand)?;
    let mut most = 0;
    eventually("they are dropped", || {
        most = most.max(served.metric("held_bytes")?);
        assert_eq!(client.frames(&served.ids[..1])?.len(), 1);
        Ok(served.metric("connections_open")? == 1)
    })?;
    ensure!(most > 16 << 20 && most <= 224 << 20, "{most} bytes were held");
    eventually("nothing is held", || Ok(served.metric("held_bytes")? == 0))
}

#[test]
fn calls_that_do_not_come_to_their_end_are_ended() -> Result<()> {
    let served = served(|config| config.deadlines.idle_upload = Duration::from_millis(300))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = proto::client::connect(&served.address, &Options::default()).await?;
        let mut snapshots = SnapshotsClient::new(channel.clone());
        let piece = CommitPiece { name: "a".to_owned(), data: Bytes::from(vec![0; 1 << 20]) };
        let pieces = tokio_stream::iter([piece]).chain(tokio_stream::pending());
        let ended = snapshots.commit(pieces).await.expect_err("no end");
        assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
        let ended = snapshots.put_chunks(tokio_stream::pending()).await.expect_err("no end");
        assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
        // A stream of page requests may be silent for as long as its client likes.
        let one = FetchRequest { id: 7, digests: vec![Bytes::copy_from_slice(&served.ids[0].0)], class: FetchClass::Demand as i32 };
        let late = tokio_stream::once(()).then(|()| tokio::time::sleep(Duration::from_secs(1))).map(move |()| one.clone());
        let mut answers = PagesClient::new(channel).max_decoding_message_size(4 << 20).fetch(late).await?.into_inner();
        assert_eq!(answers.message().await?.context("an answer")?.id, 7);
        Ok(())
    })
}

#[test]
fn messages_that_are_too_long_or_malformed_are_the_clients_mistake() -> Result<()> {
    let served = served(|_| {})?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = proto::client::connect(&served.address, &Options::default()).await?;
        let digests = Digests { digests: vec![Bytes::new(); 5 << 20] };
        let refused = SnapshotsClient::new(channel.clone()).find_missing(digests).await.expect_err("10 MiB of nothing");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        // A digest where a name should be.
        let mut any = tonic::client::Grpc::new(channel);
        any.ready().await?;
        let codec = tonic_prost::ProstCodec::<proto::wire::SnapshotId, proto::wire::SnapshotId>::default();
        let message = tonic::Request::new(proto::wire::SnapshotId { digest: Bytes::from(vec![0xff; 32]) });
        let path = tonic::codegen::http::uri::PathAndQuery::from_static("/defrost.v1.Snapshots/Resolve");
        let refused = any.unary(message, path, codec).await.expect_err("no UTF-8");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        Ok(())
    })
}

/// Connections to the admin port that say nothing take nothing from the others, and end.
#[test]
fn idle_admin_connections_starve_nobody() -> Result<()> {
    let served = served(|_| {})?;
    let at = served.server.admin().context("an admin address")?.to_owned();
    let mut idle: Vec<_> = (0..40).map(|_| TcpStream::connect(&at)).collect::<Result<_, _>>()?;
    assert_eq!(served.open(Class::Demand)?.frames(&served.ids[..1])?.len(), 1);
    let first = &mut idle[0];
    first.set_read_timeout(Some(PATIENCE))?;
    assert_eq!(first.read(&mut [0; 1]).unwrap_or(0), 0, "it ends");
    Ok(())
}
