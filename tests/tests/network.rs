//! A network that is cut, slow, silent or wrong while a process's memory comes over it: the process is late, or it is ended with an
//! error that says why; it never reads a wrong byte.
//!
//! Server and process are on two ends of a cable of their own (`defrost_tests::netns`). Each test lets a process begin to check
//! itself while most of its memory is missing, then does what its name says, and waits for the verdict.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::netns::{Cable, Side};
use defrost_tests::{PATIENCE, Server, Victim, checkpoint, defrost, defrost_through, eventually, need_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Where the server listens; every cable has this port for itself.
const PORT: u16 = 7440;

/// What is told of a status.
#[derive(Deserialize)]
struct Status {
    state: String,
    missing_bytes: u64,
    total_bytes: u64,
    last_error: Option<String>,
}

/// MiB of the victims.
const MIB: u32 = 48;

/// A process in a snapshot on one end, to be restored on the other.
struct Apart {
    // In the order of their ends: the process first, the cable last.
    victim: Victim,
    server: Option<Server>,
    folder: TempDir,
    cable: Cable,
}

impl Apart {
    /// Freeze the victim `memory` with so many MiB, which take some seconds on their way back: time to do something to them.
    fn new(mib: u32) -> Result<Self> {
        let apart = Self::of("memory", mib)?;
        apart.cable.limit(Side::Server, "150mbit", "256kb", "400ms")?;
        Ok(apart)
    }

    fn of(source: &str, mib: u32) -> Result<Self> {
        need_root()?;
        let (cable, folder) = (Cable::new()?, tempfile::tempdir()?);
        let on_process = cable.on(Side::Process);
        let victim = Victim::c_as(&on_process.each_ref().map(String::as_str), source, &[&mib.to_string()])?;
        let mut apart = Self { victim, server: None, folder, cable };
        apart.start_server()?;
        apart.defrost(&["checkpoint", &apart.victim.pid().to_string(), "victim:v", "--store", &Self::store()])?;
        apart.victim.reap()?;
        Ok(apart)
    }

    fn store() -> String {
        format!("grpc://{}:{PORT}", Side::Server.address())
    }

    /// Run `defrost` where the process is.
    fn defrost(&self, args: &[&str]) -> Result<String> {
        let output = defrost_through(&self.cable.on(Side::Process).each_ref().map(String::as_str), args)?;
        ensure!(output.status.success(), "defrost {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn start_server(&mut self) -> Result<()> {
        self.server = None;
        let listen = format!("{}:{PORT}", Side::Server.address());
        let on_server = self.cable.on(Side::Server);
        self.server = Some(Server::start_through(&on_server.each_ref().map(String::as_str), self.folder.path(), &["--listen", &listen])?);
        Ok(())
    }

    fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("a server runs")
    }

    /// Restore, let it check itself, and do `what` meanwhile, early enough that nearly all memory is missing.
    fn meanwhile(&mut self, how: &[&str], what: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.defrost(&[&["restore", "victim:v", "--store", &Self::store(), "--detach"], how].concat())?;
        // The victim's part of it: what a test does with the rest of `self` goes on beside.
        std::fs::write(self.victim.folder().join("go"), "")?;
        ensure!(!self.has_verdict(), "everything was there before anything was done");
        let begun = Instant::now();
        what(self)?;
        let status: Status = serde_json::from_str(&self.defrost(&["status", &self.victim.pid().to_string(), "--json"])?)?;
        self.victim.check("")?;
        let Status { state, missing_bytes, total_bytes, last_error } = status;
        let (missing, total, how) = (missing_bytes >> 20, total_bytes >> 20, how.join(" "));
        println!("{how:>15} verdict OK after {:.1?}; it was {state}, {missing} of {total} MiB missing, {last_error:?}", begun.elapsed());
        self.victim.end()
    }

    fn has_verdict(&self) -> bool {
        self.victim.folder().join("verdict").exists()
    }

    /// Nothing comes for so long: the process waits, whatever it knows of the network.
    fn stays_without_verdict(&self, time: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            ensure!(
                !self.has_verdict(),
                "it came to a verdict without its memory: {}",
                std::fs::read_to_string(self.victim.folder().join("verdict"))?
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// With and without background fill.
const BOTH: [&[&str]; 2] = [&[], &["--no-background"]];

#[test]
fn a_cut_of_seconds_is_waited_out() -> Result<()> {
    let mut apart = Apart::new(MIB)?;
    for how in BOTH {
        for side in [Side::Server, Side::Process] {
            apart.meanwhile(how, |apart| {
                apart.cable.plug(side, false)?;
                apart.stays_without_verdict(Duration::from_secs(4))?;
                apart.cable.plug(side, true)
            })?;
        }
    }
    Ok(())
}

/// The server dies and comes back while the cable is out: the process's end of the connection is open, the other knows nothing of it.
#[test]
fn a_half_open_connection_is_given_up() -> Result<()> {
    let mut apart = Apart::new(MIB)?;
    for how in BOTH {
        apart.meanwhile(how, |apart| {
            apart.cable.plug(Side::Process, false)?;
            apart.server.as_mut().context("a server runs")?.kill();
            apart.stays_without_verdict(Duration::from_secs(1))?;
            apart.start_server()?;
            apart.stays_without_verdict(Duration::from_secs(1))?;
            apart.cable.plug(Side::Process, true)
        })?;
    }
    Ok(())
}

/// Connections stay open and nothing comes: first for less than any deadline, then for longer.
#[test]
fn a_stall_without_a_reset_is_waited_out() -> Result<()> {
    let mut apart = Apart::new(MIB)?;
    for (how, seconds) in [(BOTH[0], 3), (BOTH[1], 3), (BOTH[0], 15), (BOTH[1], 15)] {
        apart.meanwhile(how, |apart| {
            let server = Pid::from_raw(apart.server()?.pid() as i32);
            kill(server, Signal::SIGSTOP)?;
            let stayed = apart.stays_without_verdict(Duration::from_secs(seconds));
            kill(server, Signal::SIGCONT)?;
            stayed
        })?;
    }
    Ok(())
}

/// 1 Mbit/s from the server, for 2 MiB that do not compress: some twenty seconds.
#[test]
fn a_link_of_one_megabit_a_second_brings_everything() -> Result<()> {
    let mut apart = Apart::of("steps", 2)?;
    std::fs::write(apart.victim.folder().join("step.1"), "end")?;
    for how in BOTH {
        apart.cable.limit(Side::Server, "1mbit", "16kb", "400ms")?;
        apart.meanwhile(how, |_| Ok(()))?;
    }
    Ok(())
}

#[test]
fn a_server_that_is_killed_and_started_again_goes_on() -> Result<()> {
    let mut apart = Apart::new(MIB)?;
    for how in BOTH {
        apart.meanwhile(how, |apart| {
            for round in 0..4 {
                std::thread::sleep(Duration::from_millis(20 + 40 * round));
                apart.server.as_mut().context("a server runs")?.kill();
                if round == 0 {
                    apart.stays_without_verdict(Duration::from_secs(2))?;
                }
                apart.start_server()?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Drained, and another process takes over store and address.
#[test]
fn another_server_on_the_same_store_goes_on() -> Result<()> {
    let mut apart = Apart::new(MIB)?;
    for how in BOTH {
        apart.meanwhile(how, |apart| {
            let first = apart.server()?.pid();
            let status = apart.server.as_mut().context("a server runs")?.terminate()?;
            ensure!(status.success(), "the drained server ended with {status}");
            apart.stays_without_verdict(Duration::from_millis(500))?;
            apart.start_server()?;
            ensure!(apart.server()?.pid() != first, "it is the same one");
            Ok(())
        })?;
    }
    Ok(())
}

/// Passes bytes on between whoever connects and a server, and flips bits of them once told to.
struct FlippingProxy {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    upstream: SocketAddr,
    seed: AtomicU64,
    /// One bit of so many bytes on average; 0: none.
    one_in: AtomicU64,
    /// Where in what the server sends on a connection a bit is flipped.
    places: Mutex<Vec<u64>>,
    flipped: AtomicU64,
    /// Connections since bits were last let alone.
    connections: AtomicU64,
    stop: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl FlippingProxy {
    fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let zero = || AtomicU64::new(0);
        let state = Arc::new(State {
            upstream,
            seed: zero(),
            one_in: zero(),
            places: Mutex::default(),
            flipped: zero(),
            connections: zero(),
            stop: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                // Whoever cannot be served is hung up on.
                let _ = State::connect(&shared, client);
            }
        });
        Ok(Self { address, state })
    }

    fn store(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// From now on, on new connections and old ones.
    fn flip(&self, seed: u64, one_in: u64) {
        self.state.seed.store(seed, Ordering::Relaxed);
        self.state.one_in.store(one_in, Ordering::Relaxed);
        if one_in == 0 {
            self.state.connections.store(0, Ordering::Relaxed);
        }
    }

    /// From now on, on each connection, at these places of what comes from the server.
    fn flip_at(&self, places: impl IntoIterator<Item = u64>) {
        *self.state.places.lock().unwrap_or_else(PoisonError::into_inner) = places.into_iter().collect();
    }

    fn flipped(&self) -> u64 {
        self.state.flipped.load(Ordering::Relaxed)
    }
}

impl State {
    fn connect(state: &Arc<Self>, client: TcpStream) -> Result<()> {
        let connection = state.connections.fetch_add(1, Ordering::Relaxed);
        let server = TcpStream::connect(state.upstream)?;
        state.open.lock().unwrap_or_else(PoisonError::into_inner).extend([client.try_clone()?, server.try_clone()?]);
        for (number, (from, to)) in [(client.try_clone()?, server.try_clone()?), (server, client)].into_iter().enumerate() {
            from.set_nodelay(true)?;
            let state = state.clone();
            std::thread::spawn(move || {
                // A broken stream ends both ways, as it would without us.
                let _ = state.pass(&from, &to, connection * 2 + number as u64);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }

    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream, way: u64) -> Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let mut random: Option<fastrand::Rng> = None;
        let mut passed = 0;
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let one_in = self.one_in.load(Ordering::Relaxed);
            if one_in > 0 {
                let random = random.get_or_insert_with(|| fastrand::Rng::with_seed(self.seed.load(Ordering::Relaxed) << 32 | way));
                for byte in &mut buffer[..count] {
                    if random.u64(..one_in) == 0 {
                        *byte ^= 1 << random.u8(..8);
                        self.flipped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            if way % 2 == 1 {
                for place in self.places.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    if let Some(byte) = place.checked_sub(passed).and_then(|at| buffer[..count].get_mut(at as usize)) {
                        *byte ^= 1;
                        self.flipped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            passed += count as u64;
            to.write_all(&buffer[..count])?;
        }
    }
}

impl Drop for FlippingProxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for stream in self.state.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // closed already is as well
        }
        let _ = TcpStream::connect(self.address); // wakes the listener, which then sees that it is over
    }
}

/// Bits are flipped anywhere in the stream, both ways: in frames of pages, in lengths, in HTTP/2 itself, in the image. Rare flips are
/// got over; where every attempt is hit, the process is ended, and whoever asks is told why.
#[test]
fn flipped_bits_never_reach_the_process() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let upstream: SocketAddr = server.store().trim_start_matches("grpc://").parse()?;
    let proxy = FlippingProxy::start(upstream)?;
    let mut victim = Victim::c("memory", &["24"])?;
    checkpoint(&mut victim, "victim:v", &server.store())?;
    let (mut right, mut ended, mut refused) = (0, 0, 0);
    for (round, one_in) in [4_000_000, 1_000_000, 300_000, 100_000, 30_000].into_iter().flat_map(|one_in| [one_in; 2]).enumerate() {
        let how: &[&str] = if round % 2 == 0 { &[] } else { &["--no-background"] };
        let before = proxy.flipped();
        // From the start with the odd ones, once the image is there with the others.
        let from_start = round % 4 >= 2;
        proxy.flip(round as u64, if from_start { one_in } else { 0 });
        let said = defrost(&[&["restore", "victim:v", "--store", &proxy.store(), "--detach"], how].concat())?;
        let told = String::from_utf8_lossy(&said.stderr).into_owned();
        let what = if !said.status.success() {
            ensure!(from_start, "round {round}: nothing was flipped, yet {told}");
            ensure!(said.status.code() == Some(1) && told.lines().count() == 1, "round {round}: {} {told}", said.status);
            victim.left_nothing()?;
            refused += 1;
            format!("refused: {}", told.trim_end())
        } else {
            proxy.flip(round as u64, one_in);
            match outcome(&victim, &proxy).with_context(|| format!("round {round}, one bit of {one_in} bytes, {how:?}"))? {
                None => {
                    right += 1;
                    "right".to_owned()
                }
                Some(why) => {
                    ended += 1;
                    format!("ended: {}", why.trim_end())
                }
            }
        };
        println!("seed {round}, one bit of {one_in} bytes, {how:?}: {} flipped; {what}", proxy.flipped() - before);
        proxy.flip(0, 0);
        victim.end()?;
        eventually("its socket is gone", || victim.no_socket().is_ok())?;
    }
    println!("{right} right, {ended} ended with an error, {refused} not restored, {} bits flipped", proxy.flipped());
    ensure!(right > 0 && proxy.flipped() > 10, "the rates are no longer what they were meant for");
    Ok(())
}

/// Within the second of HTTP/2's frames of 16 KiB and 9 bytes, which on these connections are pieces of the image: its chunk table.
const IN_IMAGE: u64 = 20_000;
const NEXT_FRAME: u64 = (16 << 10) + 9;

/// An image that was damaged on its way is asked for once more; from another server if need be.
#[test]
fn an_image_that_came_wrong_is_fetched_again() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let proxy = FlippingProxy::start(server.store().trim_start_matches("grpc://").parse()?)?;
    let mut victim = Victim::c("memory", &["24"])?;
    checkpoint(&mut victim, "victim:v", &server.store())?;
    let often = || (0..40).map(|frame| IN_IMAGE + frame * NEXT_FRAME);
    let restore = |store: &str| defrost(&["restore", "victim:v", "--store", store, "--detach", "--no-background"]);
    // Twice wrong is wrong.
    proxy.flip_at(often());
    let said = restore(&proxy.store())?;
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    println!("{} flipped: {}", proxy.flipped(), told.trim_end());
    ensure!(said.status.code() == Some(1) && told.lines().count() == 1 && told.contains("checksum"), "{} {told}", said.status);
    ensure!(proxy.flipped() >= 2, "only {} bits were flipped", proxy.flipped());
    victim.left_nothing()?;
    let both = format!("{},{}", proxy.store(), server.store());
    for (store, places) in [(proxy.store(), vec![IN_IMAGE]), (both, often().collect())] {
        let before = proxy.flipped();
        proxy.flip_at(places);
        let said = restore(&store)?;
        ensure!(said.status.success(), "{store}: {}", String::from_utf8_lossy(&said.stderr));
        let flipped = proxy.flipped() - before;
        println!("{store}: {flipped} flipped");
        ensure!(flipped >= 1, "{store}: no bit was flipped");
        proxy.flip_at([]);
        victim.check("").with_context(|| store.clone())?;
        victim.end()?;
        eventually("its socket is gone", || victim.no_socket().is_ok())?;
    }
    Ok(())
}

/// Let the process check itself: `None` if all is right, or why it was ended. One that is only late gets a network that is well again.
fn outcome(victim: &Victim, proxy: &FlippingProxy) -> Result<Option<String>> {
    let (pid, verdict) = (victim.pid().to_string(), victim.folder().join("verdict"));
    std::fs::write(victim.folder().join("go"), "")?;
    let (begun, proc) = (Instant::now(), std::path::PathBuf::from(format!("/proc/{pid}/exe")));
    while !verdict.exists() {
        // A process that has ended has no program any more, reaped or not.
        if std::fs::read_link(&proc).is_err() {
            if verdict.exists() {
                break;
            }
            let output = defrost(&["wait", &pid])?;
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                !output.status.success() && why.contains("was ended: ") && why.lines().count() == 1,
                "it ended, and nobody says why: {why}"
            );
            return Ok(Some(why));
        }
        if begun.elapsed() > PATIENCE / 6 {
            proxy.flip(0, 0);
        }
        ensure!(begun.elapsed() < PATIENCE * 2, "it hangs although the network is well again");
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = std::fs::read_to_string(&verdict)?;
    ensure!(said == "OK\n", "{}", said.trim_end());
    Ok(None)
}
