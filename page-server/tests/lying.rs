//! A server that lies about an image is found out and named, and no digest of its is ever used; one that knows heads not is asked for all.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use images::manifest::{Backing, Extent, Manifest, Region};
use images::{GROUP_BYTES, Groups, Image, chunk_id};
use pages::{ChunkId, PAGE_SIZE_BYTES};
use proto::wire::snapshots_server::{Snapshots, SnapshotsServer};
use proto::wire::{self, ImageHead, Piece};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use store::{RemoteStore, Store, StoreError, bring_table};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

const CHUNKS: u64 = 70_000;

/// An image whose table is not part of its head, and that table.
fn image() -> (Bytes, Vec<ChunkId>) {
    let (start, end) = (0x40_0000, 0x40_0000 + CHUNKS * PAGE_SIZE_BYTES);
    let region = Region { start, end, prot: 3, backing: Backing::Anonymous as i32, lazy: true, ..Region::default() };
    let extents = vec![Extent { start, pages: CHUNKS, first_chunk: 0 }];
    let manifest = Manifest { regions: vec![region], extents, chunk_size_bytes: 4096, ..Manifest::default() };
    let table: Vec<ChunkId> = (0..CHUNKS).map(|n| chunk_id(&n.to_le_bytes())).collect();
    (Image::encode(&manifest, &table), table)
}

/// What it does to its answers; how often it was asked comes with them.
type Head = fn(ImageHead, u32) -> Result<ImageHead, Status>;
type Some = fn(Bytes, u32) -> Result<Bytes, Status>;

struct Lying {
    file: Bytes,
    head: Head,
    groups: Some,
    asked: Arc<AtomicU32>,
}

macro_rules! not_asked {
    ($($call:ident($($request:ty)+) -> $answer:ty;)*) => {
        #[tonic::async_trait]
        impl Snapshots for Lying {
            type GetImageStream = tokio_stream::Once<Result<Piece, Status>>;

            async fn hello(&self, _: Request<wire::HelloRequest>) -> Result<Response<wire::HelloAnswer>, Status> {
                Ok(Response::new(wire::HelloAnswer { version: proto::VERSION }))
            }

            async fn get_image(&self, _: Request<wire::SnapshotId>) -> Result<Response<Self::GetImageStream>, Status> {
                Ok(Response::new(tokio_stream::once(Ok(Piece { data: self.file.clone() }))))
            }

            async fn get_head(&self, _: Request<wire::SnapshotId>) -> Result<Response<ImageHead>, Status> {
                let groups = Groups::of(&self.file);
                let values = Bytes::copy_from_slice(groups.values());
                let head = ImageHead { file_bytes: groups.file_bytes(), values, first: self.file.slice(..GROUP_BYTES) };
                (self.head)(head, self.asked.fetch_add(1, Ordering::Relaxed)).map(Response::new)
            }

            async fn get_groups(&self, request: Request<wire::GroupsRequest>) -> Result<Response<Piece>, Status> {
                let wire::GroupsRequest { first, count, .. } = request.into_inner();
                let at = |group: u32| (group as usize * GROUP_BYTES).min(self.file.len());
                let data = self.file.slice(at(first)..at(first + count));
                Ok(Response::new(Piece { data: (self.groups)(data, self.asked.fetch_add(1, Ordering::Relaxed))? }))
            }

            $(async fn $call(&self, _: Request<$($request)+>) -> Result<Response<$answer>, Status> {
                Err(Status::internal("it was asked for something else"))
            })*
        }
    };
}

not_asked! {
    resolve(wire::NameRequest) -> wire::SnapshotId;
    find_missing(wire::Digests) -> wire::Digests;
    put_chunks(Streaming<wire::PutBatch>) -> wire::PutAnswer;
    commit(Streaming<wire::CommitPiece>) -> wire::SnapshotId;
    tag(wire::TagRequest) -> wire::SnapshotId;
    list(wire::ListRequest) -> wire::ListAnswer;
    remove(wire::NameRequest) -> wire::RemoveAnswer;
    gc(wire::GcRequest) -> wire::GcAnswer;
    lease(wire::LeaseRequest) -> wire::LeaseAnswer;
    put_working_set(wire::WorkingSet) -> wire::PutWorkingSetAnswer;
    get_working_set(wire::SnapshotId) -> wire::WorkingSetAnswer;
}

/// One that serves until this goes.
struct Served {
    store: RemoteStore,
    file: Bytes,
    table: Vec<ChunkId>,
    asked: Arc<AtomicU32>,
    _runtime: Runtime,
    _folder: tempfile::TempDir,
}

fn serve(head: Head, groups: Some) -> Result<Served> {
    let (folder, (file, table), asked) = (tempfile::tempdir()?, image(), Arc::new(AtomicU32::new(0)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let path = folder.path().join("socket");
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(&path) })?;
    let service = SnapshotsServer::new(Lying { file: file.clone(), head, groups, asked: asked.clone() });
    let serving = tonic::transport::Server::builder().add_service(service.max_encoding_message_size(64 << 20));
    runtime.spawn(serving.serve_with_incoming(UnixListenerStream::new(listener)));
    let store = RemoteStore::open(&format!("unix:{}", path.display()))?;
    Ok(Served { store, file, table, asked, _runtime: runtime, _folder: folder })
}

fn honest_head(head: ImageHead, _: u32) -> Result<ImageHead, Status> {
    Ok(head)
}

fn honest(groups: Bytes, _: u32) -> Result<Bytes, Status> {
    Ok(groups)
}

fn turned(bytes: &[u8], at: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes.into()
}

#[test]
fn an_honest_one_is_believed() -> Result<()> {
    let served = serve(honest_head, honest)?;
    let image = Image::of_head(&served.store.image_head(&images::digest(&served.file))?)?;
    assert_eq!((image.table.len() as u64, image.table.get(3000)), (CHUNKS, None));
    bring_table(&served.store, &image.table, &(3000..3001))?;
    assert_eq!(image.table.at(3000), served.table[3000]);
    assert_eq!(served.asked.load(Ordering::Relaxed), 2, "one call for the head, one for a group");
    bring_table(&served.store, &image.table, &(0..CHUNKS as u32))?;
    assert!(image.table.to_vec() == served.table);
    Ok(())
}

#[test]
fn a_lie_about_the_head_is_found_out() -> Result<()> {
    let lies: [(&str, Head); 9] = [
        ("a value", |head, _| Ok(ImageHead { values: turned(&head.values, 40), ..head })),
        ("a value less", |head, _| Ok(ImageHead { values: head.values.slice(32..), ..head })),
        ("no values", |head, _| Ok(ImageHead { values: Bytes::new(), ..head })),
        ("a longer file", |head, _| Ok(ImageHead { file_bytes: head.file_bytes + 1, ..head })),
        ("a huge file", |head, _| Ok(ImageHead { file_bytes: u64::MAX, ..head })),
        ("no file", |_, _| Ok(ImageHead { file_bytes: 0, values: Bytes::new(), first: Bytes::new() })),
        ("a wrong byte", |head, _| Ok(ImageHead { first: turned(&head.first, 5000), ..head })),
        ("half a group", |head, _| Ok(ImageHead { first: head.first.slice(..1000), ..head })),
        ("nothing", |_, _| Ok(ImageHead::default())),
    ];
    for (what, lie) in lies {
        let served = serve(lie, honest)?;
        match served.store.image_head(&images::digest(&served.file)) {
            Err(error @ StoreError::Damaged { .. }) => {
                ensure!(error.to_string().starts_with("unix:"), "{what}: {error}");
            }
            other => bail!("{what}: {other:?}"),
        }
        assert_eq!(served.asked.load(Ordering::Relaxed), 2, "{what}: once more, as it may have been damaged on its way");
    }
    // The second time it is right.
    let served = serve(|head, asked| Ok(if asked == 0 { ImageHead { first: turned(&head.first, 9), ..head } } else { head }), honest)?;
    served.store.image_head(&images::digest(&served.file)).context("asked twice")?;
    Ok(())
}

#[test]
fn a_lie_about_a_group_is_found_out_and_no_digest_of_it_is_read() -> Result<()> {
    let lies: [(&str, Some); 5] = [
        ("a wrong byte", |groups, _| Ok(turned(&groups, 77))),
        ("nothing", |_, _| Ok(Bytes::new())),
        ("too little", |groups, _| Ok(groups.slice(1..))),
        ("too much", |groups, _| Ok([&groups[..], b"x"].concat().into())),
        ("megabytes", |_, _| Ok(vec![0; 8 << 20].into())),
    ];
    for (what, lie) in lies {
        let served = serve(honest_head, lie)?;
        let image = Image::of_head(&served.store.image_head(&images::digest(&served.file))?)?;
        match bring_table(&served.store, &image.table, &(3000..3001)) {
            Err(error @ StoreError::Damaged { .. }) => ensure!(error.to_string().starts_with("unix:"), "{what}: {error}"),
            other => bail!("{what}: {other:?}"),
        }
        assert_eq!(image.table.get(3000), None, "{what}");
    }
    // More than any message: refused before it is read.
    let served = serve(honest_head, |_, _| Ok(vec![0; 40 << 20].into()))?;
    let image = Image::of_head(&served.store.image_head(&images::digest(&served.file))?)?;
    assert!(bring_table(&served.store, &image.table, &(3000..3001)).is_err() && image.table.get(3000).is_none());
    // The second time it is right.
    let served = serve(honest_head, |groups, asked| Ok(if asked == 1 { turned(&groups, 9) } else { groups }))?;
    let image = Image::of_head(&served.store.image_head(&images::digest(&served.file))?)?;
    bring_table(&served.store, &image.table, &(3000..3001))?;
    assert_eq!(image.table.at(3000), served.table[3000]);
    Ok(())
}

#[test]
fn an_older_server_is_asked_for_the_whole_image() -> Result<()> {
    let served = serve(|_, _| Err(Status::unimplemented("what is a head?")), |_, _| Err(Status::unimplemented("what is a group?")))?;
    let image = Image::of_head(&served.store.image_head(&images::digest(&served.file))?)?;
    assert!(image.table.lacks(&(0..CHUNKS as u32)).is_none() && image.table.to_vec() == served.table);
    Ok(())
}
