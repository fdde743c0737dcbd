//! Images that use every field of the format, the same on every run; the golden files are made of these.

use bytes::Bytes;
use images::codec::Encoder;
use images::manifest::description::Kind;
use images::manifest::*;
use images::pack::{MAGIC, PackWriter};
use images::{Image, chunk_id};
use pages::ChunkId;

/// Bytes of a chunk in [`process`].
pub const CHUNK_SIZE_BYTES: u32 = 16384;

/// A golden file: its name and how its bytes are made.
pub type Golden = (&'static str, fn() -> Vec<u8>);

/// All golden files of the current format.
pub const GOLDEN: [Golden; 8] = [
    ("v1-process.img", process_image),
    ("v1-memory.img", memory_image),
    ("v1-criu.img", || Image::encode(&criu(), &table(2)).to_vec()),
    ("v1-machine.img", || Image::encode(&machine(), &table(2)).to_vec()),
    ("v1-state1.img", || Image::encode(&state(), &table(4)).to_vec()),
    ("v1.pack", pack),
    ("v1-text.frame", || frames()[0].1.to_vec()),
    ("v1-bits.frame", || frames()[5].1.to_vec()),
];

/// Chunk `n` of the samples: compressible, incompressible and half a page size by turns.
pub fn chunk(n: u32) -> Vec<u8> {
    let mut state = n.wrapping_mul(2_654_435_761).wrapping_add(1);
    let noise = std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    match n % 3 {
        0 => format!("chunk {n} of the sample; ").into_bytes().into_iter().cycle().take(16384).collect(),
        1 => noise.take(16384).collect(),
        _ => noise.map(|byte| byte & 1).take(4096).collect(),
    }
}

/// Digests of the first `n` chunks.
pub fn table(n: u32) -> Vec<ChunkId> {
    (0..n).map(|n| chunk_id(&chunk(n))).collect()
}

fn process_image() -> Vec<u8> {
    Image::encode(&process(), &table(4)).to_vec()
}

fn memory_image() -> Vec<u8> {
    Image::encode(&memory(), &table(2)).to_vec()
}

/// A dump of CRIU's and its parent: five pages of a task, the second of which the parent has, and a log.
pub fn criu() -> Manifest {
    let image = |magics: &[u32], records: &[&[u8]]| {
        let mut bytes: Vec<u8> = magics.iter().flat_map(|magic| magic.to_le_bytes()).collect();
        for record in records {
            bytes.extend((record.len() as u32).to_le_bytes());
            bytes.extend(*record);
        }
        bytes
    };
    let page = |low: u8, flags: u8, pages: u8| vec![8, 0x80, 0x80 | (low << 5), low >> 2, 0x20, flags, 0x28, pages];
    let pagemap = |entries: &[Vec<u8>]| {
        let records: Vec<&[u8]> = std::iter::once(&[8, 1][..]).chain(entries.iter().map(Vec::as_slice)).collect();
        image(&[0x5456_4319, 0x5608_4025], &records)
    };
    let file = |name: &str, contents: Vec<u8>| CriuFile { name: name.to_owned(), body: Some(criu_file::Body::Contents(contents)) };
    let stored = |name: &str, bytes| CriuFile { name: name.to_owned(), body: Some(criu_file::Body::StoredBytes(bytes)) };
    let mapping = [0x72, 13, 8, 0x80, 0x80, 1, 0x10, 0x80, 0x80, 4, 0x30, 0x22, 0x38, 0x81, 4];
    let folders = vec![
        CriuFolder {
            files: vec![
                file("dump.log", b"(00.000001) a line".to_vec()),
                file("inventory.img", image(&[0x5831_3116], &[&[8, 2]])),
                file("mm-7.img", image(&[0x5456_4319, 0x5749_2820], &[&mapping])),
                file("pagemap-7.img", pagemap(&[page(4, 6, 1), page(5, 3, 1), page(6, 6, 2), page(8, 4, 1)])),
                stored("pages-1.img", 4 * 4096),
                file("pstree.img", image(&[0x5456_4319, 0x5027_3030], &[&[8, 7]])),
            ],
        },
        CriuFolder { files: vec![file("pagemap-7.img", pagemap(&[page(5, 6, 1)])), stored("pages-1.img", 4096)] },
    ];
    let criu_dump = CriuDump { folders };
    let layout = images::criu::Dump::of(&criu_dump).and_then(|dump| images::criu::Layout::new(&dump)).expect("is whole");
    let extents = vec![Extent { start: 0x10_4000, pages: 1, first_chunk: 0 }, Extent { start: 0x20_5000, pages: 1, first_chunk: 1 }];
    let (chunk_size_bytes, created_unix_s) = (CHUNK_SIZE_BYTES, 1_700_000_000);
    Manifest { regions: layout.regions(), extents, chunk_size_bytes, created_unix_s, criu_dump: Some(criu_dump), ..Manifest::default() }
}

/// Frames of six chunks and their pack, at a level that is fast and one that is not.
pub fn pack() -> Vec<u8> {
    let mut writer = PackWriter::new();
    let mut bytes = MAGIC.to_vec();
    for (n, frame) in frames() {
        writer.append(chunk_id(&chunk(n)), &frame);
        bytes.extend(frame);
    }
    bytes.extend(writer.finish());
    bytes
}

/// The frames in [`pack`].
pub fn frames() -> Vec<(u32, Bytes)> {
    let (mut fast, mut small) = (Encoder::new(-5), Encoder::new(9));
    (0..6).map(|n| (n, if n < 3 { &mut fast } else { &mut small }.encode(&chunk(n)).expect("compresses"))).collect()
}

/// Memory without a process.
pub fn memory() -> Manifest {
    Manifest {
        regions: vec![Region {
            start: 0,
            end: 0x4000_0000,
            prot: 3,
            backing: Backing::SharedAnonymous as i32,
            lazy: true,
            ..Region::default()
        }],
        extents: vec![Extent { start: 0x10_0000, pages: 16, first_chunk: 0 }],
        chunk_size_bytes: 32768,
        created_unix_s: 1,
        ..Manifest::default()
    }
}

/// A virtual machine's memory, and its state.
pub fn machine() -> Manifest {
    let (memory_file, regions) = images::memory_file::describe(0x28_1000, 5000).expect("is memory");
    Manifest {
        regions,
        extents: vec![Extent { start: 0x8000, pages: 4, first_chunk: 0 }, Extent { start: 0x30_0000, pages: 2, first_chunk: 1 }],
        chunk_size_bytes: CHUNK_SIZE_BYTES,
        created_unix_s: 1_700_000_001,
        memory_file: Some(memory_file),
        ..Manifest::default()
    }
}

/// A process with something of everything.
pub fn process() -> Manifest {
    Manifest {
        host: Some(Host { kernel_release: "6.18.0".to_owned(), vdso_digest: vec![7; 32], xstate_features: 7, xstate_size_bytes: 832 }),
        process: Some(one_process()),
        threads: vec![thread(4711), Thread { comm: "worker".to_owned(), scheduling: None, rseq: None, ..thread(4713) }],
        regions: regions(),
        extents: vec![Extent { start: 0x40_2000, pages: 1, first_chunk: 0 }, Extent { start: 0x7f00_0000_3000, pages: 6, first_chunk: 1 }],
        files: files(),
        descriptors: (0..14).map(|n| Descriptor { fd: n * n, file: n, close_on_exec: n % 2 == 1 }).collect(),
        chunk_size_bytes: CHUNK_SIZE_BYTES,
        created_unix_s: 1_800_000_000,
        criu_dump: None,
        memory_file: None,
        state_version: 0,
        ..Manifest::default()
    }
}

/// The same with something of what state version 1 adds.
pub fn state() -> Manifest {
    let mut manifest = process();
    manifest.state_version = 1;
    manifest.clocks = Some(Clocks { monotonic_ns: 950_400_000_000_000, boottime_ns: 950_500_000_000_000 });
    manifest.objects = vec![Object {
        kind: ObjectKind::Memfd as i32,
        path: "kept".to_owned(),
        start: images::OBJECTS_START,
        mode: 0o600,
        seals: 3,
        ..Object::default()
    }];
    if let Some(process) = &mut manifest.process {
        process.stop_signal = 19;
        process.cgroups = vec![":/sample".to_owned()];
        process.coredump_filter = Some(0x33);
    }
    for thread in &mut manifest.threads {
        thread.personality = 0x4_0000;
        thread.ioprio = 0x4007;
    }
    manifest.files.push(Description { kind: Some(Kind::Kept(KeptFile { object: 0 })), ..Description::default() });
    manifest.descriptors.push(Descriptor { fd: 1000, file: manifest.files.len() as u32 - 1, close_on_exec: false });
    manifest
}

fn identity(path: &str) -> FileIdentity {
    FileIdentity {
        path: path.to_owned(),
        size_bytes: 12345,
        mtime_s: -1,
        mtime_ns: 999_999_999,
        build_id: vec![9; 20],
        ..FileIdentity::default()
    }
}

fn one_process() -> Process {
    Process {
        pid: 4711,
        exe: "/usr/bin/sample".to_owned(),
        cwd: "/var/lib/sample".to_owned(),
        umask: 0o22,
        comm: "sample".to_owned(),
        mm: Some(MemoryMap {
            start_code: 0x40_0000,
            end_code: 0x40_1000,
            start_data: 0x40_2000,
            end_data: 0x40_2800,
            start_brk: 0x50_0000,
            brk: 0x51_0000,
            start_stack: 0x7ffc_0000_0000,
            arg_start: 0x7ffc_0000_0100,
            arg_end: 0x7ffc_0000_0200,
            env_start: 0x7ffc_0000_0200,
            env_end: 0x7ffc_0000_0300,
            auxv: vec![3; 320],
        }),
        rlimits: (0..16).map(|resource| Rlimit { resource, soft: 1024, hard: u64::MAX }).collect(),
        actions: vec![SignalAction { signal: 1, sigaction: vec![1; 32] }, SignalAction { signal: 64, sigaction: vec![2; 32] }],
        shared_pending: vec![vec![4; 128]],
        interval_timers: vec![IntervalTimer { which: 2, interval_us: 10, value_us: 20 }],
        posix_timers: vec![PosixTimer {
            id: 3,
            clock: 1,
            signal: 34,
            sigev_value: u64::MAX,
            notify: 4,
            notify_tid: 4713,
            interval_ns: 1_000_000_000,
            value_ns: 5,
        }],
        session_leader: true,
        group_leader: true,
        dumpable: true,
        child_subreaper: true,
        thp_disabled: true,
        oom_score_adj: -1000,
        exe_identity: Some(identity("/usr/bin/sample")),
        ..Process::default()
    }
}

fn thread(tid: u32) -> Thread {
    Thread {
        tid,
        comm: "sample".to_owned(),
        registers: (0..216).map(|n| n as u8).collect(),
        xstate: vec![5; 832],
        signal_mask: 0x8000_0000_0000_0001,
        pending: vec![vec![6; 128], vec![7; 128]],
        alternate_stack: Some(AlternateStack { base: 0x7f00_0000_0000, flags: 0x8000_0000, size_bytes: 8192 }),
        robust_list_head: 0x7f00_0000_0020,
        robust_list_len: 24,
        rseq: Some(Rseq { address: 0x7f00_0000_0040, size_bytes: 32, signature: 0x5305_3053, flags: 0 }),
        clear_child_tid: 0x7f00_0000_0060,
        scheduling: Some(Scheduling {
            policy: 1,
            nice: -20,
            priority: 99,
            affinity: vec![3],
            reset_on_fork: true,
            ..Scheduling::default()
        }),
        credentials: Some(Credentials {
            ruid: 1,
            euid: 2,
            suid: 3,
            fsuid: 4,
            rgid: 5,
            egid: 6,
            sgid: 7,
            fsgid: 8,
            groups: vec![0, 10, u32::MAX],
            cap_inheritable: 1,
            cap_permitted: 2,
            cap_effective: 4,
            cap_bounding: 8,
            cap_ambient: 16,
            securebits: 47,
        }),
        parent_death_signal: 9,
        timer_slack_ns: 50_000,
        no_new_privs: true,
        ..Thread::default()
    }
}

fn regions() -> Vec<Region> {
    let plain = |start, end, backing: Backing| Region { start, end, prot: 3, backing: backing as i32, ..Region::default() };
    let of_file = |region: Region| Region { file: Some(identity("/usr/bin/sample")), file_offset: 0x1000, ..region };
    vec![
        Region { prot: 5, ..of_file(plain(0x40_0000, 0x40_2000, Backing::FilePrivate)) },
        of_file(plain(0x40_2000, 0x40_3000, Backing::FilePrivate)),
        Region { lazy: true, name: "arena".to_owned(), advice: 2047, ..plain(0x7f00_0000_0000, 0x7f00_0001_0000, Backing::Anonymous) },
        of_file(plain(0x7f00_0001_0000, 0x7f00_0001_1000, Backing::FileShared)),
        Region { lazy: true, ..plain(0x7f00_0002_0000, 0x7f00_0002_1000, Backing::SharedAnonymous) },
        plain(0x7ffc_1000_0000, 0x7ffc_1000_4000, Backing::Vvar),
        plain(0x7ffc_1000_4000, 0x7ffc_1000_6000, Backing::Vdso),
    ]
}

fn files() -> Vec<Description> {
    let socket = |family, address: &[u8], pair| Socket {
        family,
        r#type: 1,
        protocol: 6,
        listening: pair == 0,
        backlog: 4096,
        address: address.to_vec(),
        options: vec![SocketOption { level: 1, name: 2, value: vec![1, 0, 0, 0] }],
        pair,
        queue: vec![b"waiting".to_vec()],
        ..Socket::default()
    };
    let kinds = [
        Kind::Terminal(Terminal::default()),
        Kind::OutsidePipe(OutsidePipe { fd: 1, write: true, ..OutsidePipe::default() }),
        Kind::Regular(RegularFile { identity: Some(identity("/var/lib/sample/log")) }),
        Kind::Directory(Directory { path: "/".to_owned(), ..Directory::default() }),
        Kind::Device(CharacterDevice { path: "/dev/null".to_owned(), major: 1, minor: 3 }),
        Kind::Pipe(PipeEnd { pipe: 77, write: false, contents: b"in the pipe".to_vec(), capacity_bytes: 65536, ..PipeEnd::default() }),
        Kind::Pipe(PipeEnd { pipe: 77, write: true, contents: Vec::new(), capacity_bytes: 65536, ..PipeEnd::default() }),
        Kind::Eventfd(EventFd { count: 5, semaphore: true }),
        Kind::Epoll(Epoll {
            interests: vec![Interest { fd: 49, events: 0x8000_0001, data: 8, ..Interest::default() }],
            ..Epoll::default()
        }),
        Kind::Timerfd(TimerFd { clock: 1, ticks: 2, interval_ns: 3, value_ns: 4, settime_flags: 1, ..TimerFd::default() }),
        Kind::Signalfd(SignalFd { mask: 0x200 }),
        Kind::Socket(Box::new(socket(10, b"[::1]:6379", 0))),
        Kind::Socket(Box::new(socket(1, b"\0abstract", 8))),
        Kind::Socket(Box::new(socket(1, b"", 8))),
    ];
    let owner = Some(Owner { kind: 1, id: 4711, signal: 29 });
    kinds.into_iter().map(|kind| Description { flags: 0o4002, offset: 9, owner, kind: Some(kind), ..Description::default() }).collect()
}
