//! The twin's server: the frames of one snapshot over bare TCP. A request is a chunk's number, an answer the length of its frame and the
//! frame, all numbers 32-bit words, little-endian. A process of its own, as a page server is: this bench's program, started again.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::placement::place;
use nix::sched::CpuSet;
use nix::sys::signal::Signal;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use store::Access;

/// How this program is told to be the server.
pub const VERB: &str = "raw-server";
/// Chunks that are read from the store at once.
const RUN: usize = 256;

/// Serve the snapshot `name` of a store to one client after the other.
pub fn serve(store: &str, name: &str) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let store = store::open(store, Access::Read)?;
    let (_, table) = images::parse_table(&store.image(&store.resolve(&name.parse()?)?)?)?;
    let mut answers = Vec::with_capacity(table.len());
    for run in table.chunks(RUN) {
        let frames = store.frames(run)?;
        answers.extend(frames.iter().map(|frame| [&(frame.len() as u32).to_le_bytes()[..], frame].concat()));
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    loop {
        let (mut client, _) = listener.accept()?;
        client.set_nodelay(true)?;
        let mut wanted = [0; 4];
        // A client that hangs up has what it wanted.
        while client.read_exact(&mut wanted).is_ok() {
            client.write_all(answers.get(u32::from_le_bytes(wanted) as usize).context("a chunk that there is")?)?;
        }
    }
}

/// The server as its starter has it, ended with this value.
pub struct RawServer {
    child: Child,
    address: String,
}

impl RawServer {
    pub fn start(store: &str, name: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args([VERB, store, name]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let said = child.stdout.take().context("its output is piped")?;
        BufReader::new(said).read_line(&mut line)?;
        let server = Self { child, address: line.trim().to_owned() };
        ensure!(!server.address.is_empty(), "the raw server ended instead of being ready");
        Ok(server)
    }

    pub fn place(&self, set: &CpuSet) -> Result<()> {
        place(self.child.id(), set)
    }

    pub fn connect(&self) -> Result<RawClient> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_nodelay(true)?;
        Ok(RawClient { stream, answer: vec![0; 64 << 10] })
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already is as well
        let _ = self.child.wait();
    }
}

/// A connection to it.
pub struct RawClient {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl RawClient {
    /// The frame of a chunk; it comes by one read where it comes in one piece.
    pub fn frame(&mut self, chunk: u32) -> Result<&[u8]> {
        self.stream.write_all(&chunk.to_le_bytes())?;
        let (mut came, mut wanted) = (0, 4);
        while came < wanted {
            let count = self.stream.read(&mut self.answer[came..])?;
            ensure!(count > 0, "the raw server hung up");
            came += count;
            if let Some(length) = self.answer[..came].first_chunk::<4>() {
                wanted = 4 + u32::from_le_bytes(*length) as usize;
                self.answer.resize(self.answer.len().max(wanted), 0);
            }
        }
        Ok(&self.answer[4..wanted])
    }
}
