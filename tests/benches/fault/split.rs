//! Where the time of a touch goes: the pieces of both ways, one after the other on one processor, with nobody waiting for them.
//!
//! What is left of a touch when these are taken off are its wake-ups, and whatever else whoever answers does.

use crate::raw_server::{RawClient, RawServer};
use crate::turn::Percentiles;
use crate::twin::{Frozen, Watched};
use anyhow::Result;
use bytes::Bytes;
use defrost_tests::Server;
use defrost_tests::placement::{only, place, place_me};
use images::codec::{Decoder, Verified};
use pages::ChunkId;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Class, Options, RemoteStore, Store as _};

/// Chunks that are brought.
const CHUNKS: u64 = 2000;

/// Medians in microseconds.
pub struct Pieces {
    pub wire: f64,
    pub decode: f64,
    pub install: f64,
}

impl Pieces {
    pub fn sum(&self) -> f64 {
        self.wire + self.decode + self.install
    }
}

/// Whoever gets frames.
trait Ask {
    fn frame(&mut self, chunk: u32, id: &ChunkId) -> Result<&[u8]>;
}

impl Ask for RawClient {
    fn frame(&mut self, chunk: u32, _: &ChunkId) -> Result<&[u8]> {
        self.frame(chunk)
    }
}

/// A store, and the frame that it yielded last.
impl Ask for (RemoteStore, Bytes) {
    fn frame(&mut self, _: u32, id: &ChunkId) -> Result<&[u8]> {
        self.1 = self.0.frame(id)?;
        Ok(&self.1)
    }
}

/// Ask the page server over a demand connection, as a pager does.
pub fn over_grpc(frozen: &Arc<Frozen>, server: &Server) -> Result<Pieces> {
    place(server.pid(), &only(0)?)?;
    let (address, options) = (server.store().parse()?, Options { class: Class::Demand, ..Options::default() });
    alone(frozen, move || Ok((RemoteStore::open_with(&address, &options)?, Bytes::new())))
}

/// Ask the twin's server.
pub fn over_tcp(frozen: &Arc<Frozen>, server: &RawServer) -> Result<Pieces> {
    server.place(&only(0)?)?;
    let client = server.connect()?;
    alone(frozen, move || Ok(client))
}

/// On a thread of its own, which keeps to one processor, as do threads that it starts.
fn alone<A: Ask>(frozen: &Arc<Frozen>, open: impl FnOnce() -> Result<A> + Send + 'static) -> Result<Pieces> {
    let (frozen, watched) = (frozen.clone(), Watched::start(frozen)?);
    let thread = std::thread::spawn(move || {
        place_me(&only(0)?)?;
        pieces(&frozen, &watched, &mut open()?)
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pieces(frozen: &Frozen, watched: &Watched, asked: &mut dyn Ask) -> Result<Pieces> {
    let (mut decoder, mut chunk) = (Decoder::new(), Verified::default());
    let (mut wire, mut decode, mut install) = (Vec::new(), Vec::new(), Vec::new());
    let us = |took: Duration| took.as_secs_f64() * 1e6;
    // Scattered like the touches, each once.
    let mut places: Vec<u64> = (0..frozen.places()).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut places);
    for place in places.into_iter().take(CHUNKS as usize) {
        let (index, id, range) = frozen.chunk(frozen.page(place))?;
        let begun = Instant::now();
        let frame = asked.frame(index, &id)?;
        let came = Instant::now();
        decoder.decode(&id, frame, range.bytes() as usize, &mut chunk)?;
        let decoded = Instant::now();
        watched.install(range, &chunk)?;
        install.push(us(decoded.elapsed()));
        wire.push(us(came - begun));
        decode.push(us(decoded - came));
    }
    let median = |figures| Percentiles::of(figures).at(0.5);
    Ok(Pieces { wire: median(wire), decode: median(decode), install: median(install) })
}
