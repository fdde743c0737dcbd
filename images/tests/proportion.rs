//! What a manifest may take in memory: many times its length is refused, and no process is.

extern crate defrost_images as images;

use images::manifest::description::Kind;
use images::manifest::*;
use images::{Image, ImageError};

/// How many elements, each as short as it can be on the wire.
const MEMBERS: usize = 1 << 20;

fn is_too_large(manifest: &Manifest) {
    let parsed = Image::parse(&Image::encode(manifest, &[]));
    let refused = matches!(&parsed, Err(ImageError::Manifest(why)) if why.contains("bytes of memory"));
    assert!(refused, "{:?}", parsed.map(|_| ()));
}

#[test]
fn empty_elements_are_refused_wherever_they_lie() {
    let files = |kind: Kind| {
        let file = Description { kind: Some(kind), ..Description::default() };
        Manifest { files: vec![file; MEMBERS], ..Manifest::default() }
    };
    is_too_large(&Manifest { threads: vec![Thread::default(); MEMBERS], ..Manifest::default() });
    is_too_large(&Manifest { regions: vec![Region::default(); MEMBERS], ..Manifest::default() });
    is_too_large(&Manifest { objects: vec![Object::default(); MEMBERS], ..Manifest::default() });
    is_too_large(&files(Kind::Signalfd(SignalFd::default())));
    is_too_large(&files(Kind::Socket(Box::default())));
    let process = Process { posix_timers: vec![PosixTimer::default(); 4 * MEMBERS], ..Process::default() };
    is_too_large(&Manifest { process: Some(process), ..Manifest::default() });
    let socket = Socket { memberships: vec![Membership::default(); 2 * MEMBERS], ..Socket::default() };
    let file = Description { kind: Some(Kind::Socket(Box::new(socket))), ..Description::default() };
    is_too_large(&Manifest { files: vec![file], ..Manifest::default() });
}

/// As many as the kernel lets a process have, each as short as it can be.
#[test]
fn the_largest_processes_are_read() {
    let regions = (1..=MEMBERS as u64).map(|n| {
        let start = 0x7f00_0000_0000 + n * 0x2000;
        Region { start, end: start + 0x1000, backing: Backing::Anonymous as i32, prot: 3, lazy: true, ..Region::default() }
    });
    let extents = (1..=MEMBERS as u64).map(|n| Extent { start: 0x7f00_0000_0000 + n * 0x2000, pages: 1, first_chunk: n - 1 });
    let event = Description { flags: 0o2, kind: Some(Kind::Eventfd(EventFd::default())), ..Description::default() };
    let manifest = Manifest {
        chunk_size_bytes: 4096,
        regions: regions.collect(),
        extents: extents.collect(),
        files: vec![event; MEMBERS],
        descriptors: (0..MEMBERS as u32).map(|fd| Descriptor { fd, file: fd, close_on_exec: false }).collect(),
        ..Manifest::default()
    };
    let table = vec![images::chunk_id(b"page"); MEMBERS];
    let parsed = Image::parse(&Image::encode(&manifest, &table));
    // Files without a process are refused for another reason, which is told only of a manifest that was decoded.
    assert!(matches!(&parsed, Err(ImageError::Manifest(why)) if why.contains("no process")), "{:?}", parsed.map(|_| ()));
    let manifest = Manifest { files: Vec::new(), descriptors: Vec::new(), ..manifest };
    let parsed = Image::parse(&Image::encode(&manifest, &table));
    assert!(parsed.is_ok(), "{:?}", parsed.map(|_| ()));
}
