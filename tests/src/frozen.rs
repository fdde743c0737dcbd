//! One redis-server frozen by both programs, and its lazy restores timed: what benches beside CRIU share.
//!
//! It is started, frozen and restored in the network namespace of the calling thread; page servers are on a [`Host`], which may be
//! another. The clock runs from the start of the restore's command until nothing is owed any more: CRIU's daemon ends, or
//! `defrost wait` does.

use crate::criu::{RoomForPipes, free_port};
use crate::live_pager::{gone, pager_of};
use crate::netns::{Cable, Side};
use crate::record::Record;
use crate::redis::Redis;
use crate::watched::Running;
use crate::{Server, binary, defrost_ok, eventually};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use images::{Image, PageMap};
use pages::ChunkId;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use store::Access;

/// Our snapshot of it.
pub const NAME: &str = "redis:ours";
/// Where page servers listen behind a cable; every cable has these ports for itself.
const PORTS: [u16; 2] = [7440, 7441];

/// A redis-server that both programs have frozen at the same state.
#[derive(Debug)]
pub struct Frozen {
    /// It, wherever it runs.
    pub redis: Redis,
    /// CRIU's images.
    pub images: PathBuf,
    /// Our store.
    pub store: PathBuf,
    criu: PathBuf,
}

/// A chunk of our snapshot.
#[derive(Debug)]
pub struct Chunk {
    /// Its digest.
    pub id: ChunkId,
    /// What is stored of it.
    pub frame: Bytes,
    /// How many bytes it has.
    pub raw_bytes: usize,
}

/// Chunks read from the store at once.
const RUN: usize = 64;

/// Where page servers run.
#[derive(Debug)]
pub struct Host {
    /// The words that start a program there.
    through: Vec<String>,
    address: &'static str,
    /// None: whichever are free.
    ports: Option<[u16; 2]>,
}

impl Host {
    /// On loopback.
    #[must_use]
    pub fn here() -> Self {
        Self { through: Vec::new(), address: "127.0.0.1", ports: None }
    }

    /// On the other end of a cable.
    #[must_use]
    pub fn across(cable: &Cable) -> Self {
        Self { through: cable.on(Side::Server).to_vec(), address: Side::Server.address(), ports: Some(PORTS) }
    }
}

/// A record of a bench that has both programs in it.
pub fn record(title: &str, command: String, criu: &Path, folder: &Path) -> Result<Record> {
    let version = |program: &Path| {
        let mut command = Command::new(program);
        command.arg("--version");
        command
    };
    Record::new(title, command, folder, &[version(&binary("defrost")?), version(criu), version(Path::new("/usr/bin/redis-server"))])
}

impl Frozen {
    /// Load one with so many values and freeze it with both; all they leave is below `folder`.
    pub fn start(criu: &Path, values: usize, folder: &Path) -> Result<Self> {
        println!("loading redis-server with {values} values");
        let redis = Redis::start(values)?;
        let (images, store) = (folder.join("images"), folder.join("store"));
        let mut frozen = Self { redis, images, store, criu: criu.to_owned() };
        let pid = frozen.redis.victim.pid().to_string();
        defrost_ok(&["checkpoint", &pid, NAME, "--leave-running", "--store", &frozen.store.to_string_lossy()])?;
        std::fs::create_dir(&frozen.images)?;
        let mut dump = frozen.criu("dump", &frozen.images);
        dump.args(["--tree", &pid]);
        Running::start(dump)?.ended()?;
        frozen.redis.victim.end()?;
        Ok(frozen)
    }

    /// An action of CRIU's in a folder of images.
    fn criu(&self, action: &str, images: &Path) -> Command {
        let mut command = Command::new(&self.criu);
        command.args([action, "--log-file", &format!("{action}.log"), "--images-dir"]).arg(images);
        command
    }

    /// Start CRIU's daemon.
    pub fn crius_daemon(&self, how: &[&str]) -> Result<Running> {
        let mut command = self.criu("lazy-pages", &self.images);
        command.args(["--status-fd", "1"]).args(how);
        daemon(command)
    }

    /// CRIU's restore from `images` with a daemon that is up. `meanwhile` is done while memory comes; yields what that did, and when
    /// all of it was there.
    pub fn with_daemon<T>(&self, daemon: Running, images: &Path, meanwhile: impl FnOnce(&Running) -> Result<T>) -> Result<(T, Duration)> {
        let mut command = self.criu("restore", images);
        command.args(["--restore-detached", "--lazy-pages"]);
        let running = Running::start(command)?;
        let (begun, did) = (running.begun(), meanwhile(&running)?);
        running.ended()?;
        Ok((did, daemon.ended()?.at.duration_since(begun)))
    }

    /// CRIU's restore with its daemon and its page server.
    pub fn criu_remote<T>(&self, host: &Host, meanwhile: impl FnOnce(&Running) -> Result<T>) -> Result<(T, Duration)> {
        let port = host.ports.map_or_else(free_port, |[_, port]| Ok(port))?.to_string();
        let _room = RoomForPipes::make()?;
        let server = self.criu("page-server", &self.images);
        let mut through = Command::new(host.through.first().map_or(server.get_program(), AsRef::as_ref));
        if let Some(others) = host.through.get(1..) {
            through.args(others).arg(server.get_program());
        }
        through.args(server.get_args()).args(["--lazy-pages", "--status-fd", "1", "--address", host.address, "--port", &port]);
        let _server = daemon(through)?;
        let daemon = self.crius_daemon(&["--page-server", "--address", host.address, "--port", &port])?;
        self.with_daemon(daemon, &self.images, meanwhile)
    }

    /// Our page server over our store.
    pub fn server(&self, host: &Host) -> Result<Server> {
        let listen = format!("{}:{}", host.address, host.ports.map_or(0, |[port, _]| port));
        let through: Vec<&str> = host.through.iter().map(String::as_str).collect();
        Server::start_through(&through, &self.store, &["--listen", &listen])
    }

    /// Our restore from a store.
    pub fn native<T>(&self, store: &str, how: &[&str], meanwhile: impl FnOnce(&Running) -> Result<T>) -> Result<(T, Duration)> {
        let mut command = Command::new(binary("defrost")?);
        command.args(["restore", NAME, "--detach", "--store", store]).args(how);
        let running = Running::start(command)?;
        let (begun, did) = (running.begun(), meanwhile(&running)?);
        running.ended()?;
        defrost_ok(&["wait", &self.redis.victim.pid().to_string()])?;
        Ok((did, begun.elapsed()))
    }

    /// All chunks of our snapshot, in the order of addresses; their frames are in memory, not in a mapped file.
    pub fn chunks(&self) -> Result<Vec<Chunk>> {
        let store = store::open(&self.store.to_string_lossy(), Access::Read)?;
        let image = Image::parse(&store.image(&store.resolve(&NAME.parse()?)?)?)?;
        let (map, mut chunks) = (PageMap::new(&image), Vec::with_capacity(image.table.len()));
        for ids in image.table.to_vec().chunks(RUN) {
            for (id, frame) in ids.iter().zip(store.frames(ids)?) {
                let range = map.pages_of(chunks.len() as u32).context("a chunk has pages")?;
                chunks.push(Chunk { id: *id, frame: Bytes::copy_from_slice(&frame), raw_bytes: range.bytes() as usize });
            }
        }
        Ok(chunks)
    }

    /// End what was restored; its pid is free, and its pager gone: it has left its record.
    pub fn end(&mut self) -> Result<()> {
        let pager = pager_of(self.redis.victim.pid()).ok(); // CRIU's has ended
        self.redis.victim.end()?;
        pager.map_or(Ok(()), gone)
    }
}

/// Start a daemon that writes one byte to descriptor 1 once it listens.
pub fn daemon(command: Command) -> Result<Running> {
    let running = Running::start(command)?;
    eventually("the daemon is ready", || running.has_ended() || running.has_spoken().unwrap_or(true))?;
    Ok(running)
}
