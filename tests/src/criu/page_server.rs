//! Page servers: CRIU's own, the frozen process itself, and one that is not to be trusted between a client and a good one.

use super::{LazyPages, program};
use crate::{PATIENCE, Victim, eventually};
use anyhow::{Context as _, Result, ensure};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A port of loopback that was free just now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What CRIU's page server needs where it may not exceed limits: it keeps all pages in pipes, and wants one of 4 MiB to answer from.
const PIPES: [(&str, &str); 2] = [("/proc/sys/fs/pipe-user-pages-soft", "0"), ("/proc/sys/fs/pipe-max-size", "4194304")];

/// While there is one, CRIU's page server has the pipes that it needs.
#[derive(Debug)]
pub struct RoomForPipes;

/// How many there are, and what was before.
static ROOM: Mutex<(usize, [String; 2])> = Mutex::new((0, [String::new(), String::new()]));

impl RoomForPipes {
    /// Make it.
    pub fn make() -> Result<Self> {
        let mut room = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
        if room.0 == 0 {
            for ((path, enough), before) in PIPES.iter().zip(&mut room.1) {
                *before = std::fs::read_to_string(path).context(*path)?.trim().to_owned();
                std::fs::write(path, enough).context(*path)?;
            }
        }
        room.0 += 1;
        Ok(Self)
    }
}

impl Drop for RoomForPipes {
    fn drop(&mut self) {
        let mut room = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
        room.0 -= 1;
        if room.0 > 0 {
            return;
        }
        for ((path, _), before) in PIPES.iter().zip(&room.1) {
            if let Err(error) = std::fs::write(path, before) {
                eprintln!("{path} was {before}: {error}");
            }
        }
    }
}

/// A victim that is frozen by `criu dump --lazy-pages`, which serves its memory.
#[derive(Debug)]
pub struct Live {
    /// The dump, which goes on until it has given all away.
    pub dump: LazyPages,
    /// Where it serves.
    pub address: String,
    _room: RoomForPipes,
}

impl Live {
    /// Freeze it, and write all else to the folder `images`, which is made.
    pub fn dump(victim: &Victim, images: &Path) -> Result<Self> {
        std::fs::create_dir_all(images)?;
        let (room, port) = (RoomForPipes::make()?, free_port()?.to_string());
        let mut command = Command::new(program()?);
        command.args(["dump", "--lazy-pages", "--address", "127.0.0.1", "--port", &port, "--tree", &victim.pid().to_string()]);
        command.args(["--log-file", "dump.log", "-v4", "--images-dir"]).arg(images);
        let dump = LazyPages::ready(command)?.with_log(images.join("dump.log"));
        Ok(Self { dump, address: format!("127.0.0.1:{port}"), _room: room })
    }
}

/// A pid namespace in which CRIU has restored something.
#[derive(Debug)]
pub struct Namespace(Child);

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its init goes with it, and with that everybody else.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Restore lazily where the pids are free, though the original still has them.
pub fn in_a_namespace(images: &Path, work: &Path) -> Result<Namespace> {
    let (status, criu) = (images.join("restored"), program()?);
    let script = "\"$1\" restore --lazy-pages --restore-detached -o restore.log -D \"$2\" -W \"$3\"; echo $? > \"$4.partial\"; \
                  mv \"$4.partial\" \"$4\"; exec sleep 1000";
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh"]);
    command.arg(criu).arg(images).arg(work).arg(&status);
    let namespace = Namespace(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    eventually("CRIU restores", || status.exists())?;
    let code = std::fs::read_to_string(&status)?;
    let log = || std::fs::read_to_string(work.join("restore.log")).unwrap_or_default();
    ensure!(code.trim() == "0", "CRIU's restore ended with {code}: {}", log());
    Ok(namespace)
}

/// What may be done to an answer: its 32 bytes, and the contents behind. False: hang up after it.
pub type Lie = Box<dyn FnMut(&mut Vec<u8>, &mut Vec<u8>) -> bool + Send>;

/// Somebody between a client and a page server, who passes everything on, and may change it, or hold it back.
#[derive(Debug)]
pub struct Between {
    /// Where clients connect.
    pub address: String,
    held: Arc<AtomicBool>,
}

impl Between {
    /// Before the server at `server`, for one client.
    pub fn start(server: &str, mut lie: Lie) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (server, held) = (server.to_owned(), Arc::new(AtomicBool::new(false)));
        let between = Self { address: listener.local_addr()?.to_string(), held: held.clone() };
        let run = move || -> Result<()> {
            let (mut client, _) = listener.accept()?;
            drop(listener);
            let mut server = TcpStream::connect(server)?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            loop {
                let (mut asked, mut head) = ([0; 32], vec![0; 32]);
                client.read_exact(&mut asked)?;
                server.write_all(&asked)?;
                if u32::from_ne_bytes([asked[0], asked[1], asked[2], asked[3]]) != 7 {
                    head.truncate(4);
                    server.read_exact(&mut head)?;
                    client.write_all(&head)?;
                    continue;
                }
                server.read_exact(&mut head)?;
                let pages = u64::from_ne_bytes(head[8..16].try_into()?);
                let mut contents = vec![0; pages as usize * 4096];
                server.read_exact(&mut contents)?;
                let begun = std::time::Instant::now();
                while held.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let goes_on = lie(&mut head, &mut contents);
                client.write_all(&head)?;
                client.write_all(&contents)?;
                if !goes_on {
                    return Ok(());
                }
            }
        };
        std::thread::spawn(run); // its end is that of either connection
        Ok(between)
    }

    /// Nothing passes.
    pub fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// It does again.
    pub fn release(&self) {
        self.held.store(false, Ordering::Relaxed);
    }
}
