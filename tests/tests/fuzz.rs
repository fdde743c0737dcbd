//! Messages that no well-behaved peer sends, made up at random and sent to running daemons: a daemon lives on, answers others, takes no
//! memory without bound, and what it serves stays right.
//!
//! Each target runs for `DEFROST_FUZZ_SECONDS` (3 where that is not set); `cargo xtask fuzz` sets it. `DEFROST_FUZZ_SEED` makes the same
//! messages again; a failure prints it. The parsers have a fuzzer of their own, which is led by coverage (`images/fuzz`).

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use defrost_tests::criu::free_port;
use defrost_tests::machines::{Handler, MemoryFile};
use defrost_tests::{Ended, Server, Victim, binary, checkpoint, defrost_ok, eventually, need_root, restore_with};
use fastrand::Rng;
use images::Image;
use images::codec::Encoder;
use images::manifest::Manifest;
use pages::ChunkId;
use proto::wire;
use proto::wire::snapshots_client::SnapshotsClient;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use store::{Access, LocalStore, Store as _};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// The most memory that a page server takes whatever is sent to it.
const SERVER_MOST_KIB: u64 = 512 << 10;
/// The same of a daemon that serves one process.
const DAEMON_MOST_KIB: u64 = 256 << 10;
/// Where root's pagers are asked.
const RUNTIME: &str = "/run/defrost";
/// How long an answer may take.
const ANSWERED: Duration = Duration::from_secs(20);

/// A target's run: how long, and by which random numbers.
struct Run {
    random: Rng,
    until: Instant,
    sent: u64,
    name: &'static str,
}

impl Run {
    fn new(name: &'static str) -> Self {
        let set = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
        let seed = set("DEFROST_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
        println!("fuzz {name}: DEFROST_FUZZ_SEED={seed}");
        let seconds = set("DEFROST_FUZZ_SECONDS").unwrap_or(3);
        Self { random: Rng::with_seed(seed), until: Instant::now() + Duration::from_secs(seconds), sent: 0, name }
    }

    fn goes_on(&mut self) -> bool {
        self.sent += 1;
        Instant::now() < self.until
    }

    fn ends(&self) {
        println!("fuzz {}: {} messages", self.name, self.sent);
    }

    /// Bytes like these, but for a few places.
    fn mutated(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (r, mut made) = (&mut self.random, bytes.to_vec());
        for _ in 0..r.usize(..6) {
            let at = r.usize(..=made.len());
            match r.u8(..6) {
                0 if at < made.len() => made[at] ^= 1 << r.u8(..8),
                1 if at < made.len() => made[at] = *r.choice(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b'-', b'\n']).unwrap_or(&0),
                2 => made.truncate(at),
                3 => {
                    let more: Vec<u8> = (0..r.usize(1..40)).map(|_| r.u8(..)).collect();
                    made.splice(at..at, more);
                }
                4 => {
                    let piece = made[at..(at + r.usize(..64)).min(made.len())].to_vec();
                    made.splice(at..at, piece);
                }
                _ => {
                    // A number becomes another.
                    let digits = made.iter().skip(at).position(u8::is_ascii_digit).map(|found| at + found);
                    if let Some(first) = digits {
                        let last = made.iter().skip(first).position(|byte| !byte.is_ascii_digit()).map_or(made.len(), |n| first + n);
                        let numbers =
                            ["0", "1", "4095", "18446744073709551615", "18446744073709551616", "-1", "9223372036854775808", "1e99"];
                        made.splice(first..last, r.choice(numbers).unwrap_or_default().bytes());
                    }
                }
            }
        }
        made
    }
}

/// It lives, and has no more memory than that.
fn lives(pid: u32, most_kib: u64) -> Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} has ended"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    ensure!(!field("State:").starts_with('Z'), "process {pid} has ended");
    let kib: u64 = field("VmRSS:").trim_end_matches(" kB").parse().with_context(|| field("VmRSS:"))?;
    ensure!(kib < most_kib, "process {pid} has {kib} KiB of memory");
    Ok(())
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

// gRPC at a page server --------------------------------------------------------------------------------------------------------------

/// What a message is made of.
struct Pool {
    digests: Vec<Vec<u8>>,
    names: Vec<String>,
    frames: Vec<Vec<u8>>,
    image: Bytes,
}

impl Pool {
    /// A store with the snapshot `kept`, and what it has.
    fn new(folder: &Path) -> Result<Self> {
        let (store, mut encoder) = (LocalStore::open(folder, Access::Write)?, Encoder::new(1));
        let contents: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; 4096]).collect();
        let (mut upload, mut ids, mut frames) = (store.upload()?, Vec::<ChunkId>::new(), Vec::new());
        for content in &contents {
            let (id, frame) = (images::chunk_id(content), encoder.encode(content)?);
            upload.put(id, frame.clone())?;
            ids.push(id);
            frames.push(frame.to_vec());
        }
        upload.finish()?;
        let image = Image::encode(&Manifest::default(), &ids);
        let snapshot = store.commit(image.clone(), &"kept".parse()?)?;
        let mut digests: Vec<Vec<u8>> = ids.iter().map(|id| id.0.to_vec()).collect();
        digests.extend([snapshot.0.to_vec(), vec![0; 32], vec![255; 32], Vec::new(), vec![7; 31], vec![7; 33]]);
        let names = ["kept", "a", "b:1", "", "..", "a/../b", "\u{1b}[2J", "kept:latest", "kept@", "UPPER"].map(str::to_owned);
        let names = names.into_iter().chain(["n".repeat(255), "n".repeat(257), "n".repeat(100_000)]).collect();
        Ok(Self { digests, names, frames, image })
    }

    fn digest(&self, run: &mut Run) -> Bytes {
        let known = run.random.choice(&self.digests).cloned().unwrap_or_default();
        if run.random.u8(..8) == 0 { run.mutated(&known).into() } else { known.into() }
    }

    fn digests(&self, run: &mut Run) -> Vec<Bytes> {
        let most = if run.random.u8(..16) == 0 { 70_000 } else { 1100 };
        let count = if run.random.bool() { run.random.usize(..8) } else { run.random.usize(..most) };
        (0..count).map(|_| self.digest(run)).collect()
    }

    /// No name that `kept` goes by is removed.
    fn name(&self, run: &mut Run, spared: bool) -> String {
        let name = run.random.choice(&self.names).cloned().unwrap_or_default();
        if spared && name.starts_with("kept") { "a".to_owned() } else { name }
    }

    fn frame(&self, run: &mut Run) -> Vec<u8> {
        let frame = run.random.choice(&self.frames).cloned().unwrap_or_default();
        match run.random.u8(..8) {
            0 => run.mutated(&frame),
            1 => vec![0; run.random.usize(..2 << 20)],
            2 => Vec::new(),
            _ => frame,
        }
    }
}

/// One call, whatever comes of it.
async fn call(client: &mut SnapshotsClient<Channel>, pool: &Pool, run: &mut Run) -> Result<(), Status> {
    let digest = pool.digest(run);
    match run.random.u8(..16) {
        0 => {
            let class = run.random.i32(-2..6);
            client.hello(wire::HelloRequest { version: run.random.u32(..), class }).await.map(drop)
        }
        1 => client.resolve(wire::NameRequest { name: pool.name(run, false) }).await.map(drop),
        2 => {
            let mut pieces = client.get_image(wire::SnapshotId { digest }).await?.into_inner();
            // Not always to the end.
            for _ in 0..run.random.u8(..4) {
                pieces.message().await?;
            }
            Ok(())
        }
        3 => client.get_head(wire::SnapshotId { digest }).await.map(drop),
        4 => {
            let (first, count) = (*run.random.choice(&[0, 1, u32::MAX, 1 << 20]).unwrap_or(&0), run.random.u32(..40));
            client.get_groups(wire::GroupsRequest { digest, first, count }).await.map(drop)
        }
        5 => client.find_missing(wire::Digests { digests: pool.digests(run) }).await.map(drop),
        6 | 7 => {
            let batch = |run: &mut Run, pool: &Pool, last| wire::PutBatch {
                chunks: (0..run.random.u8(..5))
                    .map(|_| wire::StoredChunk { digest: pool.digest(run), frame: pool.frame(run).into() })
                    .collect(),
                last,
            };
            let count = run.random.u8(..5);
            let batches: Vec<_> = (0..count).map(|n| batch(run, pool, n + 1 == count && n > 0)).collect();
            client.put_chunks(tokio_stream::iter(batches)).await.map(drop)
        }
        8 | 9 => {
            let image = if run.random.bool() { pool.image.to_vec() } else { run.mutated(&pool.image) };
            let cut = run.random.usize(1..image.len().max(2));
            let mut pieces: Vec<_> =
                image.chunks(cut).map(|data| wire::CommitPiece { name: String::new(), data: Bytes::copy_from_slice(data) }).collect();
            if let Some(first) = pieces.first_mut() {
                first.name = pool.name(run, false);
            }
            if run.random.u8(..4) == 0 {
                run.random.shuffle(&mut pieces);
            }
            client.commit(tokio_stream::iter(pieces)).await.map(drop)
        }
        10 => client.tag(wire::TagRequest { from: pool.name(run, false), to: pool.name(run, true) }).await.map(drop),
        11 => client.list(wire::ListRequest {}).await.map(drop),
        12 => client.remove(wire::NameRequest { name: pool.name(run, true) }).await.map(drop),
        13 => client.gc(wire::GcRequest {}).await.map(drop),
        14 => {
            let holder = (*run.random.choice(&["h1", "", "a.b", "../x", "\n"]).unwrap_or(&"")).to_owned();
            client.lease(wire::LeaseRequest { digest, holder, release: run.random.bool() }).await.map(drop)
        }
        _ => {
            let data = vec![run.random.u8(..); run.random.usize(..9 << 10)].into();
            client.put_working_set(wire::WorkingSet { digest, data }).await.map(drop)
        }
    }
}

/// Bytes that are no HTTP/2, or nearly.
fn raw(address: &str, run: &mut Run) -> Result<()> {
    const PREFACE: &[u8] =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x04\x01\x05\x00\x00\x00\x01\x82\x84\x86\x41";
    let mut stream = TcpStream::connect(address)?;
    let bytes = run.mutated(PREFACE);
    let _ = stream.write_all(&bytes); // it may hang up at any byte
    Ok(())
}

#[test]
fn a_page_server_takes_any_message() -> Result<()> {
    let (folder, mut run) = (tempfile::tempdir()?, Run::new("page server"));
    let pool = Pool::new(folder.path())?;
    let server = Server::start(folder.path())?;
    let address = server.store().trim_start_matches("grpc://").to_owned();
    let runtime = tokio::runtime::Runtime::new()?;
    let connect = || -> Result<SnapshotsClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.timeout(ANSWERED);
        Ok(SnapshotsClient::new(runtime.block_on(endpoint.connect()).context("the server takes no connection")?))
    };
    let mut client = connect()?;
    while run.goes_on() {
        match run.random.u8(..32) {
            0 => raw(&address, &mut run)?,
            1 => client = connect()?,
            2 => lives(server.pid(), SERVER_MOST_KIB)?,
            _ => {}
        }
        let told = runtime.block_on(call(&mut client, &pool, &mut run));
        let Err(status) = told else { continue };
        let faults = [Code::Internal, Code::Unknown, Code::DeadlineExceeded, Code::DataLoss];
        // A stream that the server has refused may end before its answer is read.
        let ended = status.message().contains("h2 protocol error") || status.message().contains("transport error");
        ensure!(ended || !faults.contains(&status.code()), "the server says {status:?}");
        ensure!(!status.message().contains(char::is_control), "control characters: {:?}", status.message());
        if ended {
            client = connect()?;
        }
    }
    run.ends();
    lives(server.pid(), SERVER_MOST_KIB)?;
    // What was there is there, and whole.
    let frames: Vec<ChunkId> = (0..40_u8).map(|n| images::chunk_id(&vec![n; 4096])).collect();
    let store = store::open(&server.store(), Access::Read)?;
    store.resolve(&"kept".parse()?)?;
    ensure!(store.frames(&frames)?.len() == 40);
    Ok(())
}

// The socket of a pager --------------------------------------------------------------------------------------------------------------

#[test]
fn a_pager_takes_any_question() -> Result<()> {
    need_root()?;
    let (folder, mut run) = (tempfile::tempdir()?, Run::new("control socket"));
    let store = path(folder.path());
    let mut victim = Victim::c("memory", &["8"])?;
    checkpoint(&mut victim, "v", &store)?;
    restore_with(&victim, "v", &store, &["--no-background", "--no-replay"])?;
    let pid = victim.pid();
    let pager = || -> Result<u32> {
        let status: serde_json::Value = serde_json::from_str(&defrost_ok(&["status", &pid.to_string(), "--json"])?)?;
        Ok(status.get("pager_pid").and_then(serde_json::Value::as_u64).context("no pager")? as u32)
    };
    let (socket, first, mut open) = (Path::new(RUNTIME).join(format!("{pid}.sock")), pager()?, Vec::new());
    while run.goes_on() {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        let question = *run.random.choice(&["status\n", "wait\n", "picture\n", "status", "\n", "status\nstatus\n"]).unwrap_or(&"");
        let bytes = if run.random.u8(..64) == 0 { vec![b'x'; run.random.usize(..4 << 20)] } else { run.mutated(question.as_bytes()) };
        let _ = stream.write_all(&bytes); // it may hang up at any byte
        match run.random.u8(..4) {
            0 => _ = stream.shutdown(std::net::Shutdown::Write),
            1 => {
                let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
                let _ = stream.read(&mut [0; 64]);
            }
            _ => {}
        }
        // Some stay open and say nothing more.
        if run.random.u8(..16) == 0 {
            open.push(stream);
        }
        if open.len() > 200 {
            open.clear();
        }
        if run.sent.is_multiple_of(500) {
            lives(first, DAEMON_MOST_KIB)?;
        }
    }
    run.ends();
    open.clear();
    eventually("the pager answers", || pager().is_ok())?;
    ensure!(pager()? == first, "the pager was replaced");
    lives(first, DAEMON_MOST_KIB)?;
    victim.check("")
}

// Front ends -------------------------------------------------------------------------------------------------------------------------

/// Connects as a microVM does, with whatever descriptor; argument 1 is the socket, 2 the message.
const NO_MACHINE: &str = "import os,socket,sys
s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
fds=[[],[0],[os.open('/dev/null',0)],[0,1,2]][int(sys.argv[3])]
try: socket.send_fds(s,[open(sys.argv[2],'rb').read() or b' '],fds); s.settimeout(.02); s.recv(9)
except OSError: pass";

#[test]
fn a_handler_of_machines_takes_any_message() -> Result<()> {
    need_root()?;
    let (file, folder, mut run) = (MemoryFile::new(256)?, tempfile::tempdir()?, Run::new("firecracker"));
    let store = path(&folder.path().join("store"));
    file.import("vm", &store)?;
    let handler = Handler::start("vm", &store, &[])?;
    let message = br#"[{"base_host_virt_addr":140000000000000,"size":1048576,"offset":0,"page_size":4096,"page_size_kib":4096}]"#;
    let said = folder.path().join("message");
    while run.goes_on() {
        let bytes = if run.random.u8(..16) == 0 { vec![b'['; run.random.usize(..2 << 20)] } else { run.mutated(message) };
        if run.random.u8(..8) > 0 {
            // Without a descriptor.
            let mut stream = UnixStream::connect(handler.socket())?;
            stream.set_write_timeout(Some(Duration::from_millis(200)))?;
            let _ = stream.write_all(&bytes); // it may hang up at any byte
            continue;
        }
        std::fs::write(&said, bytes)?;
        let fds = run.random.u8(..4).to_string();
        let mut machine = Command::new("/usr/bin/python3");
        machine.args(["-c", NO_MACHINE]).arg(handler.socket()).arg(&said).arg(fds).stdout(Stdio::null());
        machine.status().context("start python3")?; // one that said what cannot be is ended
        lives(handler.pid(), DAEMON_MOST_KIB)?;
    }
    run.ends();
    lives(handler.pid(), DAEMON_MOST_KIB)?;
    file.boot(&handler, &["1", "0", "0"])?.check("").with_context(|| handler.said())
}

/// CRIU's page-server protocol: a command, a task, an address, a number of pages, 8 or 4 bytes each.
fn iov(run: &mut Run) -> Vec<u8> {
    let command = *run.random.choice(&[1_u32, 2, 3, 4, 5, 6, 7, 0x1023, 0x10023, 0x20023, u32::MAX]).unwrap_or(&0);
    let pages = *run.random.choice(&[0_u32, 1, 16, 1 << 20, u32::MAX]).unwrap_or(&0);
    let address = *run.random.choice(&[0_u64, 0x1000, 0x7000_0000_0000, u64::MAX, 1 << 63]).unwrap_or(&0);
    let task = *run.random.choice(&[0_u64, 1, 17, u64::MAX]).unwrap_or(&0);
    let made = [&command.to_le_bytes()[..], &pages.to_le_bytes(), &address.to_le_bytes(), &task.to_le_bytes()].concat();
    run.mutated(&made)
}

#[test]
fn a_page_server_for_criu_takes_any_message() -> Result<()> {
    need_root()?;
    let (folder, mut run) = (tempfile::tempdir()?, Run::new("criu page server"));
    // As small as a dump may be: its inventory and no task's memory.
    let images = folder.path().join("images");
    std::fs::create_dir(&images)?;
    for (name, magics, body) in [
        ("inventory.img", &[0x5831_3116_u32][..], &[2_u8, 0, 0, 0, 8, 2][..]),
        ("pstree.img", &[0x5456_4319, 0x5027_3030], &[2, 0, 0, 0, 8, 1, 2, 0, 0, 0, 8, 2]),
    ] {
        let bytes: Vec<u8> = magics.iter().flat_map(|magic| magic.to_le_bytes()).chain(body.iter().copied()).collect();
        std::fs::write(images.join(name), bytes)?;
    }
    let address = format!("127.0.0.1:{}", free_port()?);
    let mut command = Command::new(binary("defrost")?);
    command.args(["pager", "criu-page-server", "--listen", &address, "--images"]).arg(&images).stderr(Stdio::null());
    let mut server = Ended(command.spawn()?);
    eventually("it listens", || TcpStream::connect(&address).is_ok())?;
    while run.goes_on() {
        let mut stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(Duration::from_millis(2)))?;
        for _ in 0..run.random.u8(1..5) {
            let bytes = iov(&mut run);
            let _ = stream.write_all(&bytes); // it may hang up at any byte
            let _ = stream.read(&mut [0; 4096]);
        }
        if run.sent.is_multiple_of(50) {
            lives(server.0.id(), DAEMON_MOST_KIB)?;
        }
    }
    run.ends();
    ensure!(server.0.try_wait()?.is_none(), "it has ended");
    lives(server.0.id(), DAEMON_MOST_KIB)
}

// Records ----------------------------------------------------------------------------------------------------------------------------

/// Records and journals in a runtime directory of the test's own; commands refuse them in words.
#[test]
fn commands_take_any_record() -> Result<()> {
    need_root()?;
    let (folder, mut run) = (tempfile::tempdir()?, Run::new("records"));
    let (runtime, store) = (folder.path().join("runtime"), path(&folder.path().join("store")));
    let mut victim = Victim::c("memory", &["8"])?;
    checkpoint(&mut victim, "v", &store)?;
    restore_with(&victim, "v", &store, &["--no-background", "--no-replay"])?;
    let pid = victim.pid().to_string();
    let real = Path::new(RUNTIME);
    let read = |suffix: &str| std::fs::read(real.join(format!("{pid}.{suffix}"))).with_context(|| suffix.to_owned());
    let (record, journal) = (read("restore")?, read("0.journal")?);
    victim.check("")?;
    victim.end()?;
    std::fs::create_dir(&runtime)?;
    std::fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    // A number that no process has.
    let gone = 4_194_000.to_string();
    while run.goes_on() {
        std::fs::write(runtime.join(format!("{gone}.restore")), run.mutated(&record))?;
        std::fs::write(runtime.join(format!("{gone}.0.journal")), run.mutated(&journal))?;
        for args in [&["status", gone.as_str()][..], &["status"], &["pager", "--adopt", &gone]] {
            let script = "mount --make-rprivate / && mount --bind \"$0\" /run/defrost && exec \"$@\"";
            let mut command = Command::new("timeout");
            command.args(["20", "unshare", "--mount", "sh", "-c", script]).arg(&runtime).arg(binary("defrost")?).args(args);
            let output = command.stdin(Stdio::null()).output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(matches!(output.status.code(), Some(0 | 1)), "{args:?}: {}: {said}", output.status);
            ensure!(!said.contains("panicked"), "{args:?}: {said}");
        }
    }
    run.ends();
    Ok(())
}
