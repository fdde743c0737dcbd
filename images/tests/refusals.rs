//! One wrong value at a time: each must be refused by name; and the sample, which has something of everything, must not.

extern crate defrost_images as images;

#[allow(dead_code, reason = "each test crate uses a part of it")]
mod sample;

use images::manifest::description::Kind;
use images::manifest::*;
use images::{Image, ImageError, parse_table};

type Change = fn(&mut Manifest);

fn parse(manifest: &Manifest) -> Result<Image, ImageError> {
    Image::parse(&Image::encode(manifest, &sample::table(4)))
}

fn process(manifest: &mut Manifest) -> &mut Process {
    manifest.process.as_mut().expect("is in the sample")
}

fn kind(manifest: &mut Manifest, file: usize) -> &mut Kind {
    manifest.files[file].kind.as_mut().expect("is in the sample")
}

fn socket(manifest: &mut Manifest, file: usize) -> &mut Socket {
    match kind(manifest, file) {
        Kind::Socket(socket) => socket,
        other => panic!("{other:?} is no socket"),
    }
}

fn settings() -> TerminalSettings {
    TerminalSettings { termios: vec![0; 44], ..TerminalSettings::default() }
}

fn of_settings(settings: TerminalSettings) -> Terminal {
    Terminal { settings: Some(settings), ..Terminal::default() }
}

fn pipe(manifest: &mut Manifest, file: usize) -> &mut PipeEnd {
    match kind(manifest, file) {
        Kind::Pipe(end) => end,
        other => panic!("{other:?} is no pipe"),
    }
}

#[test]
fn the_samples_are_taken_whole() {
    assert_eq!(parse(&sample::process()).map(|image| image.manifest), Ok(sample::process()));
    let bytes = Image::encode(&sample::memory(), &sample::table(2));
    assert_eq!(Image::parse(&bytes).map(|image| image.manifest), Ok(sample::memory()));
}

#[test]
fn huge_pages_lie_apart_and_within_their_region() {
    const HUGE: u64 = 2 << 20;
    let parsed = |runs: &[(u64, u64)]| {
        let huge = runs.iter().map(|(start, huge_pages)| HugeRun { start: *start, huge_pages: *huge_pages }).collect();
        let mut manifest = sample::memory();
        manifest.regions[0] =
            Region { start: HUGE / 2, end: 8 * HUGE, prot: 3, backing: Backing::Anonymous as i32, huge, ..Region::default() };
        Image::parse(&Image::encode(&manifest, &sample::table(2)))
    };
    let taken = parsed(&[(HUGE, 2), (3 * HUGE, 1), (5 * HUGE, 3)]).map(|image| image.manifest.regions[0].huge.len());
    assert_eq!(taken, Ok(3));
    for wrong in [&[(0, 1)][..], &[(HUGE + 4096, 1)], &[(HUGE, 0)], &[(HUGE, 8)], &[(HUGE, u64::MAX / HUGE)], &[(HUGE, 2), (2 * HUGE, 1)]] {
        assert!(matches!(parsed(wrong), Err(ImageError::Manifest(_))), "{wrong:?}");
    }
}

fn guards(runs: &[(u64, u64)]) -> Vec<GuardRun> {
    runs.iter().map(|(start, pages)| GuardRun { start: *start, pages: *pages }).collect()
}

#[test]
fn memory_of_huge_pages_consists_of_whole_ones() {
    const HUGE: u64 = 2 << 20;
    let parsed = |start: u64, end: u64, huge_page_bits: u32| {
        let mut manifest = sample::memory();
        let backing = Backing::Hugetlb as i32;
        manifest.regions[0] = Region { start, end, prot: 3, backing, huge_page_bits, object: 7, ..Region::default() };
        Image::parse(&Image::encode(&manifest, &sample::table(2))).map(drop)
    };
    assert_eq!(parsed(0, 2 * HUGE, 21), Ok(()));
    for (start, end, bits) in [(0, 2 * HUGE, 0), (0, 2 * HUGE, 22), (0, 2 * HUGE + 4096, 21), (4096, 2 * HUGE, 21), (0, 2 * HUGE, 30)] {
        assert!(matches!(parsed(start, end, bits), Err(ImageError::Manifest(_))), "{start} {end} {bits}");
    }
}

#[test]
fn memory_values_are_checked() {
    let changes: [(&str, Change); 33] = [
        ("chunk size", |m| m.chunk_size_bytes = 0),
        ("chunk size", |m| m.chunk_size_bytes = 2048),
        ("chunk size", |m| m.chunk_size_bytes = 12288),
        ("chunk size", |m| m.chunk_size_bytes = 2 << 20),
        ("region 400001-402000", |m| m.regions[0].start += 1),
        ("region 400000-400000", |m| m.regions[0].end = 0x40_0000),
        ("region 402000-403000", |m| m.regions[0].end += 0x1000),
        ("region 400000-402000", |m| m.regions.swap(0, 1)),
        ("region 7ffc10004000", |m| m.regions[6].end = (1 << 56) + 0x1000),
        ("region 400000-402000", |m| m.regions[0].backing = 0),
        ("region 400000-402000", |m| m.regions[0].file = None),
        ("region 7ffc10000000", |m| m.regions[5].backing = 99),
        ("region 400000-402000", |m| m.regions[0].prot = 8),
        ("region 400000-402000", |m| m.regions[0].advice = 2048),
        ("region 400000-402000", |m| m.regions[0].advice = 4096),
        ("region 400000-402000", |m| m.regions[0].advice = 65536),
        ("region 400000-402000", |m| m.regions[0].guards = guards(&[(0x40_0000, 3)])),
        ("region 400000-402000", |m| m.regions[0].guards = guards(&[(0x40_0000, 0)])),
        ("region 400000-402000", |m| m.regions[0].guards = guards(&[(0x40_1000, 1), (0x40_1000, 1)])),
        ("region 400000-402000", |m| m.regions[0].guards = guards(&[(0x40_0000, u64::MAX / 4096)])),
        ("region 400000-402000", |m| m.regions[0].huge_page_bits = 21),
        ("region 400000-402000", |m| m.regions[0].policy = Some(MemoryPolicy { mode: 16, nodes: vec![1] })),
        ("region 400000-402000", |m| m.regions[0].file_offset = 1),
        ("region 400000-402000", |m| m.regions[0].lazy = true),
        ("region 400000-402000", |m| m.regions[0].huge = vec![HugeRun { start: 0x40_0000, huge_pages: 1 }]),
        ("region 7f0000000000", |m| m.regions[2].huge = vec![HugeRun { start: 0x7f00_0000_0000, huge_pages: 1 }]),
        ("extent at 402001", |m| m.extents[0].start += 1),
        ("extent at 402000", |m| m.extents[0].pages = 2),
        ("extent at 402000", |m| m.extents[0].pages = u64::MAX),
        ("extent at 402000", |m| m.regions[1].guards = guards(&[(0x40_2000, 1)])),
        ("extent at 7f0000003000", |m| m.extents[1].first_chunk = 2),
        ("extent at 7f0000010000", |m| m.extents[1] = Extent { start: 0x7f00_0001_0000, pages: 1, first_chunk: 1 }),
        ("extents of 3 chunks with a table of 4", |m| m.extents[1].pages = 5),
    ];
    refuse_all(&changes);
}

#[test]
fn process_values_are_checked() {
    let changes: [(&str, Change); 29] = [
        ("no process", |m| m.process = None),
        ("not the leader", |m| m.threads.swap(0, 1)),
        ("not the leader", |m| m.threads.clear()),
        ("no host", |m| m.host = None),
        ("host's description", |m| m.host = Some(Host::default())),
        ("two threads", |m| m.threads[1].tid = 4711),
        ("executable", |m| process(m).exe = "a\0b".to_owned()),
        ("executable", |m| process(m).exe_identity = Some(FileIdentity::default())),
        ("umask", |m| process(m).umask = 0o1000),
        ("memory layout", |m| process(m).mm = None),
        ("memory layout", |m| process(m).mm = Some(MemoryMap { auxv: vec![0; 17], ..MemoryMap::default() })),
        ("resource limit", |m| process(m).rlimits[0].resource = 16),
        ("resource limit", |m| process(m).rlimits[0].resource = 1),
        ("resource limit", |m| process(m).rlimits[0].hard = 0),
        ("signal action", |m| process(m).actions[0].signal = 0),
        ("signal action", |m| process(m).actions[0].signal = 64),
        ("signal action", |m| process(m).actions[0].sigaction.push(0)),
        ("pending signal", |m| process(m).shared_pending[0].push(0)),
        ("interval timer", |m| process(m).interval_timers[0].which = 3),
        ("POSIX timer", |m| process(m).posix_timers[0].signal = 65),
        ("OOM score", |m| process(m).oom_score_adj = 1001),
        ("stop signal", |m| process(m).stop_signal = 18),
        ("stop signal", |m| process(m).stop_signal = 23),
        ("registers of thread 4713", |m| m.threads[1].registers.truncate(215)),
        ("vector registers of thread 4713", |m| m.threads[1].xstate = vec![0; 512]),
        ("pending signal of thread 4711", |m| m.threads[0].pending[1].clear()),
        ("signal stack", |m| m.threads[0].alternate_stack = Some(AlternateStack { base: 1, flags: 0, size_bytes: u64::MAX })),
        ("scheduling", |m| m.threads[0].scheduling = Some(Scheduling { nice: 20, ..Scheduling::default() })),
        ("parent-death", |m| m.threads[0].parent_death_signal = 65),
    ];
    refuse_all(&changes);
}

/// The sample with a deleted file, a memfd, a deleted directory, and all that may name them.
fn with_objects() -> Manifest {
    let object = |kind: ObjectKind, path: &str, size_bytes, mib: u64| Object {
        kind: kind as i32,
        path: path.to_owned(),
        size_bytes,
        start: images::OBJECTS_START + (mib << 20),
        mode: 0o640,
        ..Object::default()
    };
    let mut manifest = sample::process();
    manifest.objects = vec![
        object(ObjectKind::DeletedFile, "/tmp/gone", 5000, 0),
        object(ObjectKind::Memfd, "two\nlines", 1 << 20, 1),
        object(ObjectKind::DeletedDirectory, "/tmp/none", 0, 3),
        object(ObjectKind::NamedFile, "/dev/shm/x", 4096, 4),
    ];
    manifest.extents.truncate(1);
    manifest.extents.push(Extent { start: images::OBJECTS_START, pages: 2, first_chunk: 1 });
    manifest.extents.push(Extent { start: images::OBJECTS_START + (4 << 20), pages: 1, first_chunk: 2 });
    let start = manifest.regions.last().expect("is in the sample").end + 0x10_0000;
    let kept = |start, backing: Backing, kept| Region { start, end: start + 4096, backing: backing as i32, kept, ..Region::default() };
    manifest.regions.push(kept(start, Backing::KeptShared, 2));
    manifest.regions.push(kept(start + 4096, Backing::KeptPrivate, 1));
    manifest.files.push(Description { kind: Some(Kind::Kept(KeptFile { object: 2 })), ..Description::default() });
    process(&mut manifest).cwd_object = 3;
    manifest
}

#[test]
fn objects_are_checked() {
    let parse = |manifest: &Manifest| Image::parse(&Image::encode(manifest, &sample::table(3)));
    assert_eq!(parse(&with_objects()).map(|image| image.manifest), Ok(with_objects()));
    let changes: [(&str, Change); 24] = [
        ("object 0", |m| m.objects[0].start -= 1 << 20),
        ("object 0", |m| m.objects[0].start += 4096),
        ("object 1", |m| m.objects[0].size_bytes = 1 << 20),
        ("object 1", |m| m.objects[1].size_bytes = u64::MAX),
        ("object 0", |m| m.objects[0].kind = 0),
        ("object 0", |m| m.objects[0].kind = 99),
        ("object 0", |m| m.objects[0].path = "gone".to_owned()),
        ("object 0", |m| m.objects[0].path.push('\0')),
        ("object 1", |m| m.objects[1].path = "m".repeat(250)),
        ("object 0", |m| m.objects[0].mode = 0o10_000),
        ("object 0", |m| m.objects[0].mtime_ns = 1_000_000_000),
        ("object 0", |m| m.objects[0].seals = 1),
        ("object 1", |m| m.objects[1].seals = 0x40),
        ("object 2", |m| m.objects[2].size_bytes = 1),
        ("object 0", |m| m.objects[0].xattrs = vec![Xattr::default()]),
        ("object 0", |m| m.objects[0].xattrs = vec![Xattr { name: "user.x".to_owned(), value: vec![0; 65_537] }]),
        ("extent at 100000000000000", |m| m.extents[1].pages = 3),
        ("object of region", |m| m.regions.last_mut().expect("is in the sample").kept = 5),
        ("object of region", |m| m.regions.last_mut().expect("is in the sample").kept = 3),
        ("region", |m| m.regions.last_mut().expect("is in the sample").kept = 0),
        ("object of file", |m| m.files.iter_mut().for_each(|file| file.kind = Some(Kind::Kept(KeptFile { object: 4 })))),
        ("object of cwd", |m| process(m).cwd_object = 1),
        ("object of exe", |m| process(m).exe_object = 3),
        ("file of region", |m| m.regions[0].file.as_mut().expect("is in the sample").kept = 4),
    ];
    for (what, change) in changes {
        let mut manifest = with_objects();
        change(&mut manifest);
        match parse(&manifest) {
            Err(ImageError::Manifest(text)) => assert!(text.contains(what), "{what}: {text}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn terminals_and_clocks_are_checked() {
    let taken = |change: Change| {
        let mut manifest = sample::process();
        change(&mut manifest);
        parse(&manifest).map(drop)
    };
    assert_eq!(taken(|m| *kind(m, 0) = Kind::Terminal(of_settings(settings()))), Ok(()));
    assert_eq!(taken(|m| m.clocks = Some(Clocks { monotonic_ns: 1 << 60, boottime_ns: 0 })), Ok(()));
    let changes: [(&str, Change); 5] = [
        ("file 0", |m| *kind(m, 0) = Kind::Terminal(of_settings(TerminalSettings { termios: vec![0; 36], ..settings() }))),
        ("file 0", |m| *kind(m, 0) = Kind::Terminal(of_settings(TerminalSettings { locks: vec![0; 44], ..settings() }))),
        ("file 0", |m| *kind(m, 0) = Kind::Terminal(of_settings(TerminalSettings { rows: 65536, ..settings() }))),
        ("the clocks", |m| m.clocks = Some(Clocks { monotonic_ns: u64::MAX / 2, boottime_ns: 0 })),
        ("the clocks", |m| m.clocks = Some(Clocks { monotonic_ns: 0, boottime_ns: u64::MAX })),
    ];
    refuse_all(&changes);
}

#[test]
fn file_values_are_checked() {
    let changes: [(&str, Change); 44] = [
        ("file 2", |m| m.files[2].flags |= 0o1000),
        ("file 3", |m| m.files[3].flags |= 0o100),
        ("file 14", |m| add(m, Kind::Device(CharacterDevice { path: "/dev/kmsg".to_owned(), major: 1, minor: 11 }))),
        ("file 14", |m| add(m, Kind::Device(CharacterDevice { path: "/dev/tty".to_owned(), major: 5, minor: 0 }))),
        ("descriptor 1", |m| m.descriptors[1].file = 14),
        ("descriptor 0", |m| m.descriptors[1].fd = 0),
        ("descriptor 4294967295", |m| m.descriptors[13].fd = u32::MAX),
        ("file 0", |m| m.files[0].kind = None),
        ("file 0", |m| *kind(m, 0) = Kind::Terminal(Terminal { fd: 3, ..Terminal::default() })),
        ("file 1", |m| *kind(m, 1) = Kind::OutsidePipe(OutsidePipe { fd: 3, write: false, ..OutsidePipe::default() })),
        ("file 2", |m| *kind(m, 2) = Kind::Regular(RegularFile { identity: None })),
        ("file 3", |m| *kind(m, 3) = Kind::Directory(Directory { path: "relative".to_owned(), ..Directory::default() })),
        ("file 5", |m| pipe(m, 5).capacity_bytes = 3),
        ("file 6", |m| pipe(m, 6).contents.push(0)),
        ("file 5", |m| pipe(m, 5).packets = vec![vec![0; 70_000]]),
        ("file 8", |m| *kind(m, 8) = watching(Interest { fd: u32::MAX, ..Interest::default() })),
        ("file 8", |m| *kind(m, 8) = watching(Interest { file: Some(20), ..Interest::default() })),
        ("file 2", |m| m.files[2].locks = vec![FileLock { kind: 5, end: 1, ..FileLock::default() }]),
        ("file 2", |m| m.files[2].locks = vec![FileLock { kind: 1, start: 2, end: 1, write: true }]),
        ("file 7", |m| *kind(m, 7) = Kind::Eventfd(EventFd { count: u64::MAX, semaphore: false })),
        ("file 9", |m| *kind(m, 9) = Kind::Timerfd(TimerFd { clock: 2, ..TimerFd::default() })),
        ("file 14", |m| add(m, Kind::NamedPipe(NamedPipe { path: "fifo".to_owned(), ..NamedPipe::default() }))),
        ("file 14", |m| add(m, Kind::KernelFile(KernelFile { path: String::new() }))),
        ("file 14", |m| add(m, Kind::PathOnly(PathOnly { path: "a".to_owned(), ..PathOnly::default() }))),
        ("file 14", |m| add(m, watches(&[(2, "/a"), (2, "/b")]))),
        ("file 14", |m| add(m, watches(&[(2, "a")]))),
        ("file 14", |m| add(m, Kind::Pidfd(PidFd { pid: 0 }))),
        ("file 14", |m| add(m, Kind::Namespace(NamespaceFd { name: "../net".to_owned() }))),
        ("file 11", |m| socket(m, 11).family = 16),
        ("file 11", |m| socket(m, 11).address = b"localhost:1".to_vec()),
        ("file 12", |m| socket(m, 12).address = vec![1; 110]),
        ("socket pair 9", |m| socket(m, 12).pair = 9),
        ("file 11", |m| socket(m, 11).peer = b"localhost:1".to_vec()),
        ("file 11", |m| socket(m, 11).closed = 9),
        ("file 12", |m| socket(m, 12).closed = ClosedConnection::Reset as i32),
        ("file 11", |m| socket(m, 11).file = Some(SocketFile::default())),
        ("file 12", |m| {
            let path = b"relative".to_vec();
            socket(m, 12).file = Some(SocketFile { path, ..SocketFile::default() });
        }),
        ("file 12", |m| {
            socket(m, 12).owner = Some(FileOwner { mode: 0o10_000, ..FileOwner::default() });
        }),
        ("file 12", |m| socket(m, 12).senders = vec![PeerCredentials::default(); 3]),
        ("file 11", |m| socket(m, 11).filter = vec![0; 7]),
        ("file 11", |m| socket(m, 11).netlink_groups = vec![0; 1025]),
        ("file 11", |m| socket(m, 11).interface = "seventeen letters".to_owned()),
        ("file 11", |m| {
            let (group, sources) = (vec![239, 7, 7, 7], vec![vec![1; 16]]);
            socket(m, 11).memberships = vec![Membership { group, sources, ..Membership::default() }];
        }),
        ("file 13", |m| m.files[13].owner = Some(Owner { kind: 0, id: 0, signal: 65 })),
    ];
    // A pair with one end is named whichever of the two is found first.
    let pair = changes.iter().position(|(what, _)| what.starts_with("socket pair")).expect("one is of a pair");
    let (last, first) = (changes[pair], [&changes[..pair], &changes[pair + 1..]].concat());
    refuse_all(&first);
    let mut manifest = sample::process();
    last.1(&mut manifest);
    assert!(matches!(parse(&manifest), Err(ImageError::Manifest(why)) if why.contains("has not two ends")));
}

fn add(manifest: &mut Manifest, kind: Kind) {
    manifest.files.push(Description { kind: Some(kind), ..Description::default() });
}

#[test]
fn every_kind_of_descriptor_may_be_there() {
    let mut manifest = sample::process();
    let owner = Some(FileOwner { uid: 33, gid: 33, mode: 0o620, attributes: Vec::new() });
    let packets = vec![b"one".to_vec(), b"two".to_vec()];
    let pipe = PipeEnd { pipe: 5, packets: packets.clone(), capacity_bytes: 4096, owner: owner.clone(), ..PipeEnd::default() };
    let named = NamedPipe { path: "/fifo".to_owned(), owner, capacity_bytes: 4096, packets, ..NamedPipe::default() };
    add(&mut manifest, Kind::Pipe(pipe));
    add(&mut manifest, Kind::NamedPipe(named));
    add(&mut manifest, Kind::KernelFile(KernelFile { path: "/proc/4711/stat".to_owned() }));
    add(&mut manifest, Kind::PathOnly(PathOnly { path: "/".to_owned(), mode: 0o040_000, ..PathOnly::default() }));
    add(&mut manifest, watches(&[(1, "/a"), (3, "/b")]));
    add(&mut manifest, Kind::Pidfd(PidFd { pid: 4711 }));
    add(&mut manifest, Kind::Namespace(NamespaceFd { name: "pid_for_children".to_owned() }));
    add(&mut manifest, watching(Interest { fd: 7, file: Some(20), ..Interest::default() }));
    manifest.files[2].locks = (1..=4).map(|kind| FileLock { kind, write: true, start: 0, end: i64::MAX as u64 }).collect();
    manifest.files[2].write_hint = 5;
    let read = parse(&manifest).expect("is whole").manifest;
    assert_eq!(read, manifest);
}

fn watching(interest: Interest) -> Kind {
    Kind::Epoll(Epoll { interests: vec![interest], ..Epoll::default() })
}

fn watches(watches: &[(u32, &str)]) -> Kind {
    let watch = |(wd, path): &(u32, &str)| Watch { wd: *wd, mask: 2, path: (*path).to_owned() };
    Kind::Inotify(Inotify { watches: watches.iter().map(watch).collect() })
}

fn refuse_all(changes: &[(&str, Change)]) {
    for (index, (name, change)) in changes.iter().enumerate() {
        let mut manifest = sample::process();
        change(&mut manifest);
        match parse(&manifest) {
            Err(ImageError::Manifest(why)) => assert!(why.contains(name), "change {index}: {why:?} does not name {name:?}"),
            other => panic!("change {index} ({name}): {:?}", other.map(|image| image.id)),
        }
    }
}

#[test]
fn headers_are_checked_in_the_order_of_their_fields() {
    let whole = Image::encode(&sample::process(), &sample::table(4)).to_vec();
    let with = |at: usize, value: u32| {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        parse_table(&bytes).map(|(_, table)| table.len())
    };
    assert_eq!(with(0, 0), Err(ImageError::Magic("image")));
    assert_eq!(with(8, 2), Err(ImageError::Version { what: "image", found: 2, known: 1 }));
    assert_eq!(with(12, u32::MAX), Ok(4), "compatible flags may be ignored");
    assert_eq!(with(16, u32::MAX), Ok(4), "read-only flags may be ignored by a reader");
    assert_eq!(with(20, 0x10), Err(ImageError::Features(0x10)));
    assert!(matches!(with(24, u32::MAX), Err(ImageError::Truncated { .. })));
    assert_eq!(with(36, u32::MAX), Err(ImageError::Checksum("image's header")), "the sum of the lengths overflows");
    assert_eq!(with(40, 0), Err(ImageError::Checksum("image")));
    let mut longer = whole.clone();
    longer.push(0);
    assert_eq!(parse_table(&longer).err(), Some(ImageError::Surplus { what: "image", surplus: 1 }));
}

#[test]
fn a_machine_is_checked() {
    let parse = |manifest: &Manifest| Image::parse(&Image::encode(manifest, &sample::table(2)));
    assert_eq!(parse(&sample::machine()).map(|image| image.manifest), Ok(sample::machine()));
    fn file(manifest: &mut Manifest) -> &mut images::manifest::MemoryFile {
        manifest.memory_file.as_mut().expect("is in the sample")
    }
    let changes: [(&str, Change); 9] = [
        ("a virtual machine and something else", |m| {
            let Manifest { host, process, threads, files, descriptors, .. } = sample::process();
            *m = Manifest { host, process, threads, files, descriptors, ..m.clone() };
        }),
        ("memory of 0 bytes", |m| file(m).memory_bytes = 0),
        ("memory of 4097 bytes", |m| file(m).memory_bytes = 4097),
        ("memory of 18446744073709547520 bytes", |m| file(m).memory_bytes = u64::MAX - 4095),
        ("memory of", |m| file(m).state_start += 4096),
        ("memory and state", |m| file(m).state_bytes = 9000),
        ("memory of", |m| file(m).state_bytes = u64::MAX),
        ("memory and state", |m| m.regions[0].lazy = true),
        ("memory and state", |m| m.regions[1].name = "other".to_owned()),
    ];
    for (what, change) in changes {
        let mut manifest = sample::machine();
        change(&mut manifest);
        match parse(&manifest) {
            Err(ImageError::Manifest(why)) => assert!(why.contains(what), "{what}: {why}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_dump_is_checked() {
    let parse = |manifest: &Manifest| Image::parse(&Image::encode(manifest, &sample::table(2)));
    assert_eq!(parse(&sample::criu()).map(|image| image.manifest), Ok(sample::criu()));
    fn folder(manifest: &mut Manifest, at: usize) -> &mut Vec<CriuFile> {
        &mut manifest.criu_dump.as_mut().expect("is in the sample").folders[at].files
    }
    let changes: [(&str, Change); 12] = [
        ("a dump of CRIU's", |m| {
            let Manifest { host, process, threads, files, descriptors, .. } = sample::process();
            *m = Manifest { host, process, threads, files, descriptors, ..m.clone() };
        }),
        ("file \"../x\"", |m| folder(m, 0)[0].name = "../x".to_owned()),
        ("file \"\"", |m| folder(m, 0)[0].name = String::new()),
        ("file \"..\"", |m| folder(m, 0)[0].name = "..".to_owned()),
        ("file \"parent\"", |m| folder(m, 0)[5].name = "parent".to_owned()),
        ("file \"dump.log\"", |m| folder(m, 0).swap(0, 1)),
        ("file \"dump.log\"", |m| folder(m, 0)[0].body = None),
        ("inventory.img", |m| drop(folder(m, 0).remove(1))),
        ("parent/pages-1.img", |m| folder(m, 1)[1].body = Some(criu_file::Body::StoredBytes(8192))),
        ("pagemap-7.img, record 2", |m| drop(m.criu_dump.as_mut().map(|dump| dump.folders.pop()))),
        ("page data", |m| m.regions[0].end += 4096),
        ("page data", |m| m.regions[1].prot = 1),
    ];
    for (what, change) in changes {
        let mut manifest = sample::criu();
        change(&mut manifest);
        match parse(&manifest) {
            Err(ImageError::Manifest(why)) => assert!(why.contains(what), "{what}: {why}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    // The bit without the dump, and the dump without the bit.
    for manifest in [sample::criu(), sample::memory()] {
        let mut bytes = Image::encode(&manifest, &sample::table(2)).to_vec();
        bytes[20] ^= 1;
        let head = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&head.to_le_bytes());
        assert!(matches!(Image::parse(&bytes), Err(ImageError::Features(_))));
    }
}
