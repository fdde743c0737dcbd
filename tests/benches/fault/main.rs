//! What a touch of a page costs that is not there yet, as the program sees it.
//!
//! The victim `cold` touches one page of every 64 KiB in random order and takes the time of each touch. Placements: left to the
//! scheduler; everything on one processor; the program on one and whoever answers it on another. Beside ours runs a twin of it over bare
//! TCP ([`twin`]), the same pieces are timed alone ([`split`]), and two threads that touch at once are held against one handler.

mod ours;
mod raw_server;
mod split;
mod tables;
mod turn;
mod twin;

use anyhow::{Context as _, Result};
use clap::Parser;
use defrost_tests::record::{Output, Record};
use defrost_tests::{Server, Victim, binary, defrost_ok, need_root};
use images::codec::{Decoder, Verified};
use raw_server::RawServer;
use std::process::Command;
use std::sync::Arc;
use tables::Tables;
use turn::{BACK_TO_BACK, Order, PLACEMENTS, Placement, region};
use twin::{FromMemory, Frozen, OverTcp};

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MiB of cold memory
    #[arg(long, default_value_t = 512)]
    mib: u32,
    /// Given to the checkpoint, as --level and --chunk-size
    #[arg(long, allow_negative_numbers = true)]
    level: Option<String>,
    #[arg(long)]
    chunk_size: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// The snapshot's name in both stores.
const NAME: &str = "cold";
/// So long a sleep is an idle machine: everybody who takes part has gone to sleep.
const WITH_GAPS: Order = Order { touches: 500, gap_us: 2000, threads: 1, pinned: false };
/// Where --latency low is measured: on one processor nobody spins.
const SPINNING: [Placement; 2] = [Placement::Free, Placement::Apart];
const TWO_THREADS: Order = Order { threads: 2, ..BACK_TO_BACK };

struct Bench {
    victim: Victim,
    embedded: String,
    server: Server,
    frozen: Arc<Frozen>,
    /// The pages that are touched.
    pages: Arc<Vec<u8>>,
    raw: RawServer,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if let [_, verb, store, name] = words.as_slice()
        && verb == raw_server::VERB
    {
        return raw_server::serve(store, name);
    }
    need_root()?;
    nix::sys::prctl::set_child_subreaper(true)?; // who was restored is reaped at once when it ends
    let cli = Cli::parse();
    let folder = tempfile::tempdir()?;
    let mut defrost = Command::new(binary("defrost")?);
    defrost.arg("--version");
    let command = format!("cargo xtask bench fault --rounds {} --mib {}", cli.rounds, cli.mib);
    let mut record = Record::new("Demand faults, as the program sees them", command, folder.path(), &[defrost])?;
    let mut bench = Bench::new(&cli, folder.path())?;
    let mut tables = Tables::default();
    for round in 1..=cli.rounds {
        bench.round(&mut tables).with_context(|| format!("round {round}"))?;
        println!("round {round} of {}:\n{}", cli.rounds, tables.latest());
    }
    record.conditions(&[
        &format!(
            "A program with {} MiB of half compressible memory touches one page of every 64 KiB, {} in all, in random order, one after \
             the other; with gaps {} of them, after a sleep of {} ms each.",
            cli.mib,
            cli.mib * 16,
            WITH_GAPS.touches,
            WITH_GAPS.gap_us / 1000
        ),
        "Each figure is one round's percentile over all touches, or of those that waited where a table says so: with background fill \
         some pages are there before they are touched. A touch waited if it took 1.5 µs or more.",
        "The page server is on the same machine, over loopback; snapshots are in the page cache. Release builds.",
        "Raw TCP is our path with nothing else: a thread reads the fault from the userfaultfd of the same program (blocking), asks a \
         server process for the chunk by its number over one TCP connection, decodes and checks the same frame by the same code, \
         installs the whole chunk. It has no gRPC, no neighbours, no ledger of what is owed, no other threads.",
        "The split: wire, decode and install are timed in the bench's own process, one after the other for 2000 chunks that nobody \
         waits for, on one processor with the server; wake is what a touch of the same round takes beyond them: wake-ups, and for ours \
         all else the pager does.",
        "Two threads: each on a processor of its own with ours, whose page server is left to the scheduler, while the pager has a handler on \
         each processor; left to the scheduler with one handler thread, which copies single pages that are in its memory, with neither \
         network nor decoding: ours brings 16 KiB chunks.",
        "Every touched page's contents were checked.",
    ]);
    record.tables = tables.done();
    record.write(&cli.output.out)
}

impl Bench {
    fn new(cli: &Cli, folder: &std::path::Path) -> Result<Self> {
        let server = Server::start(&folder.join("served"))?;
        let embedded = folder.join("embedded").to_string_lossy().into_owned();
        let mut victim = Victim::c("cold", &[&cli.mib.to_string()])?;
        let pid = victim.pid().to_string();
        for store in [&server.store(), &embedded] {
            let mut args = vec!["checkpoint", &pid, NAME, "--leave-running", "--store", store];
            for (name, value) in [("--level", &cli.level), ("--chunk-size", &cli.chunk_size)] {
                args.extend(value.iter().flat_map(|value| [name, value]));
            }
            defrost_ok(&args)?;
        }
        let (start, _) = region(&victim)?;
        victim.end()?;
        let store = twin::open(&embedded)?;
        let frozen = Arc::new(Frozen::open(store.as_ref(), NAME, start, cli.mib)?);
        let pages = Arc::new(frozen.touched_pages(store.as_ref())?);
        let raw = RawServer::start(&embedded, NAME)?;
        Ok(Self { victim, embedded, server, frozen, pages, raw })
    }

    fn round(&mut self, tables: &mut Tables) -> Result<()> {
        for placement in PLACEMENTS {
            for (what, served) in [(tables::EMBEDDED, false), (tables::SERVED, true)] {
                for background in [false, true] {
                    let touches = self.ours(served, background, placement, BACK_TO_BACK)?;
                    tables.touched(what, placement, background, &touches);
                }
            }
            let touches = self.raw(placement, BACK_TO_BACK)?;
            tables.touched(tables::RAW, placement, false, &touches);
        }
        for (what, served) in [(tables::EMBEDDED_SPINNING, false), (tables::SERVED_SPINNING, true)] {
            for placement in SPINNING {
                tables.touched(what, placement, false, &self.ours_spinning(served, placement, BACK_TO_BACK)?);
                tables.with_gaps(what, placement, &self.ours_spinning(served, placement, WITH_GAPS)?);
            }
        }
        tables.with_gaps(tables::EMBEDDED, Placement::Apart, &self.ours(false, false, Placement::Apart, WITH_GAPS)?);
        tables.with_gaps(tables::SERVED, Placement::Free, &self.ours(true, false, Placement::Free, WITH_GAPS)?);
        tables.with_gaps(tables::EMBEDDED, Placement::Free, &self.ours(false, false, Placement::Free, WITH_GAPS)?);
        for placement in [Placement::Together, Placement::Apart] {
            tables.with_gaps(tables::SERVED, placement, &self.ours(true, false, placement, WITH_GAPS)?);
            tables.with_gaps(tables::RAW, placement, &self.raw(placement, WITH_GAPS)?);
        }
        let raw = split::over_tcp(&self.frozen, &self.raw).context("the pieces over TCP")?;
        tables.split(tables::RAW, &raw);
        let ours = split::over_grpc(&self.frozen, &self.server).context("the pieces over gRPC")?;
        tables.split(tables::SERVED, &ours);
        let pinned = Order { pinned: true, ..TWO_THREADS };
        for (what, served) in [(tables::EMBEDDED, false), (tables::SERVED, true)] {
            tables.at_once(what, &self.ours(served, false, Placement::Free, pinned)?);
        }
        let bring = FromMemory { frozen: self.frozen.clone(), pages: self.pages.clone() };
        tables.at_once(tables::HANDLER, &twin::touch(&self.frozen, Placement::Free, TWO_THREADS, Box::new(bring))?);
        Ok(())
    }

    fn ours(&mut self, served: bool, background: bool, placement: Placement, order: Order) -> Result<turn::Touches> {
        let store = if served { self.server.store() } else { self.embedded.clone() };
        ours::touch(&mut self.victim, &store, background, placement, &self.server, &[], order).context("ours")
    }

    fn ours_spinning(&mut self, served: bool, placement: Placement, order: Order) -> Result<turn::Touches> {
        let store = if served { self.server.store() } else { self.embedded.clone() };
        ours::touch(&mut self.victim, &store, false, placement, &self.server, &["--latency", "low"], order).context("ours, spinning")
    }

    fn raw(&self, placement: Placement, order: Order) -> Result<turn::Touches> {
        self.raw.place(&placement.answering()?)?;
        let (frozen, client) = (self.frozen.clone(), self.raw.connect()?);
        let bring = OverTcp { frozen, client, decoder: Decoder::new(), chunk: Verified::default() };
        twin::touch(&self.frozen, placement, order, Box::new(bring)).context("the twin over TCP")
    }
}
