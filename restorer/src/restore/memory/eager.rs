//! Contents that cannot come lazily: objects, changed pages of private file mappings, locked memory, arguments and environment.
//!
//! They are fetched and decoded on a thread of their own from the moment the image is known, while the pager is started and the child is
//! made; [`Eager::fill`] takes up those of objects, [`Eager::write`] the rest where the child has its memory.

use super::super::builder::Step;
use super::super::error::{RestoreError, not_started, outside};
use super::objects::Objects;
use images::codec::{Decoder, Verified};
use images::manifest::{Extent, Manifest};
use images::{Image, PageMap, region_at};
use kernel::memory::ProcessMemory;
use pages::{ChunkId, PAGE_SIZE_BYTES, PageAddr, PageRange, VirtAddr};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope};
use store::{Store, Unsound, bring_table, sound_frame};

/// Raw bytes asked for in one request, but for its last chunk: most processes' eager pages come in one, and no restore holds many
/// frames at once.
const RUN_BYTES: u64 = 4 << 20;
/// Chunks that may wait to be written: 1 MiB of those of the usual size.
const WAITING: usize = 64;

type Written = Step<(PageRange, Verified)>;

/// What is on its way.
#[derive(Debug)]
pub struct Eager {
    came: Receiver<Written>,
    /// The first that is no object's.
    first: Option<(PageRange, Verified)>,
}

impl Eager {
    /// Fetch all of it.
    pub fn fetch<'scope>(scope: &'scope Scope<'scope, '_>, image: &'scope Image, store: &'scope dyn Store) -> Step<Self> {
        let (send, receive) = sync_channel(WAITING);
        let fetching = Builder::new().name("eager".to_owned()).spawn_scoped(scope, move || {
            if let Err(error) = fetch_all(image, store, &send) {
                let _ = send.send(Err(error)); // a restore that failed elsewhere does not listen
            }
        });
        fetching.map_err(|error| not_started("a thread", image.manifest.process.as_ref().map_or(0, |process| process.pid), error))?;
        Ok(Self { came: receive, first: None })
    }

    /// Write what objects hold, which comes first.
    pub fn fill(&mut self, manifest: &Manifest, objects: &Objects) -> Step<()> {
        for came in &self.came {
            let (range, bytes) = came?;
            if range.start().addr() < images::OBJECTS_START {
                self.first = Some((range, bytes));
                break;
            }
            objects.write(manifest, range, &bytes)?;
        }
        Ok(())
    }

    /// Write the rest, as it comes.
    pub fn write(self, memory: &ProcessMemory) -> Step<()> {
        self.first.into_iter().map(Ok).chain(self.came).try_for_each(|came| {
            let (range, bytes) = came?;
            memory.write(VirtAddr(range.start().addr()), &bytes).map_err(outside(format!("write {range}")))
        })
    }
}

fn fetch_all(image: &Image, store: &dyn Store, send: &SyncSender<Written>) -> Step<()> {
    let (map, mut run, mut run_bytes) = (PageMap::new(image), Vec::new(), 0);
    for (start, end) in extents(&image.manifest) {
        let mut page = start;
        while page < end {
            let Some((chunk, range)) = map.chunk_of(PageAddr::from_number(page)) else { break };
            if image.table.get(chunk).is_none() {
                bring_table(store, &image.table, &(chunk..chunk + 1))?;
            }
            run.push((image.table.at(chunk), range));
            run_bytes += range.bytes();
            if run_bytes >= RUN_BYTES {
                fetch_run(&run, store, send)?;
                (run, run_bytes) = (Vec::new(), 0);
            }
            page = range.end().number();
        }
    }
    fetch_run(&run, store, send)
}

/// Fetch chunks in one request and pass them on, in this order.
fn fetch_run(run: &[(ChunkId, PageRange)], store: &dyn Store, send: &SyncSender<Written>) -> Step<()> {
    if run.is_empty() {
        return Ok(());
    }
    let mut decoder = Decoder::new();
    let ids: Vec<ChunkId> = run.iter().map(|(id, _)| *id).collect();
    for ((id, range), frame) in run.iter().zip(store.frames(&ids)?) {
        let mut bytes = Verified::default();
        sound_frame(store, id, frame, range.bytes() as usize, &mut decoder, &mut bytes).map_err(|unsound| match unsound {
            Unsound::Store(error) => error.into(),
            Unsound::Wrong(error) => RestoreError::Chunk { chunk: id.to_string(), why: error.to_string() },
        })?;
        if send.send(Ok((*range, bytes))).is_err() {
            break; // the restore failed elsewhere
        }
    }
    Ok(())
}

/// Page numbers of what must be there before the process runs, those of objects first.
fn extents(manifest: &Manifest) -> Vec<(u64, u64)> {
    let lazy = |start: u64| region_at(&manifest.regions, start).is_some_and(|region| region.lazy);
    let eager = manifest.extents.iter().filter(|extent| !lazy(extent.start));
    let (objects, memory): (Vec<&Extent>, Vec<&Extent>) = eager.partition(|extent| extent.start >= images::OBJECTS_START);
    objects.into_iter().chain(memory).map(number).chain(arguments(manifest)).collect()
}

/// Of arguments and environment: /proc/PID/cmdline reads them in a way that cannot wait for a pager.
pub(in crate::restore) fn arguments(manifest: &Manifest) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mm = manifest.process.as_ref().and_then(|process| process.mm.as_ref());
    let (first, last) = mm.map_or((0, 0), |mm| (mm.arg_start / PAGE_SIZE_BYTES, mm.env_end.div_ceil(PAGE_SIZE_BYTES)));
    let within = move |(start, end): (u64, u64)| (start.max(first), end.min(last));
    manifest.extents.iter().map(number).map(within).filter(|(start, end)| start < end)
}

fn number(extent: &Extent) -> (u64, u64) {
    (extent.start / PAGE_SIZE_BYTES, extent.start / PAGE_SIZE_BYTES + extent.pages)
}
