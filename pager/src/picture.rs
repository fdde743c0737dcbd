//! A restore as a picture: which memory came how and when, when threads stood still, and totals; as JSON for a page or a script. Pure.
//!
//! What is drawn is the address space as it was at the checkpoint. Chunks that lie side by side and came the same way at about the same
//! time are one [`Run`], so that a picture is as large as what happened is varied; where that is more than [`MAX_RUNS`], neighbouring
//! chunks are taken together until it is not, and the picture says so ([`Picture::unit_bytes`]). Totals are exact either way.

use crate::history::{History, How};
use crate::status::Status;
use crate::timeline::Stall;
use images::manifest::{Backing, MemoryMap, Region};
use images::{Image, PageMap};
use pages::{PAGE_SIZE_BYTES, PageRange};
use serde::{Deserialize, Serialize};

/// Runs in a picture at most: about a megabyte of JSON.
const MAX_RUNS: usize = 20_000;
/// What comes within such a part of the time is drawn as come at once.
const SLOTS: u64 = 256;

/// See above.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Picture {
    /// Where the restore stands.
    pub status: Status,
    /// When this pager began, in milliseconds since 1970; all times below count from then.
    pub begun_unix_ms: u64,
    /// When the picture was taken, in microseconds.
    pub taken_us: u64,
    /// When the process began to run, if it does.
    pub ran_us: Option<u64>,
    /// When everything was there, if it is.
    pub resident_us: Option<u64>,
    /// What one colour stands for at least: a chunk, or several.
    pub unit_bytes: u64,
    /// Memory that the restore itself wrote before the process ran; not part of the total.
    pub written_bytes: u64,
    /// How much came how; together the total.
    pub shares: Vec<Share>,
    /// The address space, ascending.
    pub regions: Vec<Drawn>,
    /// Faults that were answered; of many, a sample and the longest.
    pub stalls: Vec<Stall>,
    /// How many there were.
    pub stalls_seen: u64,
}

/// How much came one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The way.
    pub how: How,
    /// So much.
    pub bytes: u64,
}

/// A region of the address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    /// Its first address.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
    /// What is mapped: a path, or a name in brackets.
    pub name: String,
    /// As in /proc/PID/maps: `rw-p`.
    pub prot: String,
    /// Its contents may come after the process runs.
    pub lazy: bool,
    /// Its contents, ascending; what lies between had none.
    pub runs: Vec<Run>,
}

/// Pages that came the same way at about the same time; as JSON, a list of these five.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run(
    /// Pages in front of it in its region.
    pub u64,
    /// How many pages.
    pub u64,
    /// How they came.
    pub How,
    /// When the first of them did, in microseconds.
    pub u64,
    /// When the last of them did.
    pub u64,
);

/// What was seen of the memory.
pub(crate) struct Seen<'a> {
    pub image: &'a Image,
    pub map: &'a PageMap,
    pub history: &'a History,
    /// What is still to come, by origin, ascending.
    pub owed: &'a [PageRange],
    /// Pages that come lazily.
    pub total_pages: u64,
}

impl Seen<'_> {
    /// How much came how.
    pub(crate) fn shares(&self) -> Vec<Share> {
        let missing: u64 = self.owed.iter().map(PageRange::bytes).sum();
        let mut shares: Vec<Share> = How::NOTED.iter().map(|how| Share { how: *how, bytes: self.history.bytes(*how) }).collect();
        let known: u64 = shares.iter().map(|share| share.bytes).sum();
        let earlier = (self.total_pages * PAGE_SIZE_BYTES).saturating_sub(known + missing);
        shares.extend([Share { how: How::Earlier, bytes: earlier }, Share { how: How::Missing, bytes: missing }]);
        shares
    }

    /// The address space, and what one colour stands for.
    pub(crate) fn regions(&self) -> (Vec<Drawn>, u64) {
        self.regions_within(MAX_RUNS)
    }

    fn regions_within(&self, max_runs: usize) -> (Vec<Drawn>, u64) {
        let chunk_pages = self.map.chunk_size_bytes() / PAGE_SIZE_BYTES;
        let mut unit_pages = None;
        loop {
            let regions = self.drawn(unit_pages);
            let unit = unit_pages.unwrap_or(chunk_pages);
            let runs: usize = regions.iter().map(|region| region.runs.len()).sum();
            // One run in each region is the least there can be.
            if runs <= max_runs || runs <= regions.len() {
                return (regions, unit * PAGE_SIZE_BYTES);
            }
            unit_pages = Some(unit * 4);
        }
    }

    fn drawn(&self, unit_pages: Option<u64>) -> Vec<Drawn> {
        let slot_us = self.history.last_us() / SLOTS + 1;
        let extents: Vec<PageRange> = self.map.extents().collect();
        let mm = self.image.manifest.process.as_ref().and_then(|process| process.mm.as_ref());
        let drawn = |region: &Region| {
            let range = PageRange::from_addrs(region.start, region.end)?;
            let mut runs = Runs { unit_pages, slot_us, first: range.start().number(), open: None, runs: Vec::new() };
            let first = extents.partition_point(|extent| extent.end() <= range.start());
            let contents = extents[first..].iter().map_while(|extent| extent.intersect(&range));
            contents.for_each(|contents| self.pieces(contents, region.lazy, &mut |piece| runs.add(piece)));
            let (start, end, lazy) = (region.start, region.end, region.lazy);
            Some(Drawn { start, end, name: name(region, mm), prot: prot(region), lazy, runs: runs.end() })
        };
        self.image.manifest.regions.iter().filter_map(drawn).collect()
    }

    /// Contents of one region, chunk by chunk, apart where some of a chunk is missing.
    fn pieces(&self, contents: PageRange, lazy: bool, add: &mut dyn FnMut(Piece)) {
        if !lazy {
            return add(Piece { pages: contents, how: How::Eager, us: 0 });
        }
        let mut owed = self.owed[self.owed.partition_point(|owed| owed.end() <= contents.start())..].iter().peekable();
        let mut cursor = contents.start();
        while cursor < contents.end() {
            let Some((index, chunk)) = self.map.chunk_of(cursor) else { return };
            while owed.next_if(|owed| owed.end() <= cursor).is_some() {}
            let end = chunk.end().min(contents.end());
            let (how, us, end) = match owed.peek() {
                Some(owed) if owed.contains(cursor) => (How::Missing, 0, end.min(owed.end())),
                next => {
                    let (how, us) = self.history.of(index).unwrap_or((How::Earlier, 0));
                    (how, us, next.map_or(end, |owed| end.min(owed.start())))
                }
            };
            let Some(pages) = PageRange::new(cursor, end) else { return };
            add(Piece { pages, how, us });
            cursor = end;
        }
    }
}

/// Pages of one chunk that came together.
#[derive(Clone, Copy)]
struct Piece {
    pages: PageRange,
    how: How,
    us: u64,
}

/// What a unit has of a piece: pages, way and time.
type Part = (u64, How, u64);

/// Runs of a region in the making.
struct Runs {
    /// Pages that are taken together, if they are.
    unit_pages: Option<u64>,
    slot_us: u64,
    /// The region's first page.
    first: u64,
    /// The unit that is being filled: its number and its pieces.
    open: Option<(u64, Vec<Part>)>,
    runs: Vec<Run>,
}

impl Runs {
    fn add(&mut self, piece: Piece) {
        let (mut at, end) = (piece.pages.start().number() - self.first, piece.pages.end().number() - self.first);
        let Some(unit_pages) = self.unit_pages else { return self.push(at, end - at, piece.how, piece.us, piece.us) };
        while at < end {
            let unit = at / unit_pages;
            let upto = end.min((unit + 1) * unit_pages);
            if self.open.as_ref().is_none_or(|(open, _)| *open != unit) {
                self.close();
            }
            self.open.get_or_insert_with(|| (unit, Vec::new())).1.push((upto - at, piece.how, piece.us));
            at = upto;
        }
    }

    /// The unit is as most of its pages are.
    fn close(&mut self) {
        let (Some((unit, pieces)), Some(unit_pages)) = (self.open.take(), self.unit_pages) else { return };
        let pages_of = |how: How| pieces.iter().filter(|piece| piece.1 == how).map(|piece| piece.0).sum::<u64>();
        let Some(how) = pieces.iter().map(|piece| piece.1).max_by_key(|how| pages_of(*how)) else { return };
        let times = || pieces.iter().filter(|piece| piece.1 == how).map(|piece| piece.2);
        let (from, to) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
        let pages = pieces.iter().map(|piece| piece.0).sum();
        self.push(unit * unit_pages, pages, how, from, to);
    }

    fn push(&mut self, at: u64, pages: u64, how: How, from_us: u64, to_us: u64) {
        match self.runs.last_mut() {
            Some(last) if last.0 + last.1 == at && last.2 == how && last.3 / self.slot_us == from_us / self.slot_us => {
                last.1 += pages;
                (last.3, last.4) = (last.3.min(from_us), last.4.max(to_us));
            }
            _ => self.runs.push(Run(at, pages, how, from_us, to_us)),
        }
    }

    fn end(mut self) -> Vec<Run> {
        self.close();
        self.runs
    }
}

/// What is mapped, as /proc/PID/maps would say.
fn name(region: &Region, mm: Option<&MemoryMap>) -> String {
    let is = |what: fn(&Region, &MemoryMap) -> bool| mm.is_some_and(|mm| what(region, mm));
    match &region.file {
        Some(file) => file.path.clone(),
        None if region.name.is_empty() && is(|region, mm| region.start < mm.brk && mm.start_brk < region.end) => "[heap]".to_owned(),
        None if region.name.is_empty() && is(|region, mm| (region.start..region.end).contains(&mm.start_stack)) => "[stack]".to_owned(),
        None if region.name.is_empty() => String::new(),
        None if region.name.starts_with('[') => region.name.clone(),
        None => format!("[anon:{}]", region.name),
    }
}

fn prot(region: &Region) -> String {
    let shared = [Backing::FileShared as i32, Backing::SharedAnonymous as i32, Backing::KeptShared as i32].contains(&region.backing);
    let shared = shared || region.object != 0;
    let bit = |bit: i32, letter| if region.prot & bit as u32 == 0 { '-' } else { letter };
    use nix::libc::{PROT_EXEC, PROT_READ, PROT_WRITE};
    [bit(PROT_READ, 'r'), bit(PROT_WRITE, 'w'), bit(PROT_EXEC, 'x'), if shared { 's' } else { 'p' }].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::manifest::{Extent, Manifest};
    use pages::{ChunkId, PageAddr, SnapshotId};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    /// A lazy region of 256 pages at page 16, of which 40 have contents from page 16 and 100 from page 100 on, and one that is not.
    fn image() -> Image {
        let extent = |start: u64, pages, first_chunk| Extent { start: start << 12, pages, first_chunk };
        let region = |start: u64, end: u64, lazy| Region { start: start << 12, end: end << 12, lazy, prot: 3, ..Region::default() };
        let extents = vec![extent(16, 40, 0), extent(100, 100, 10), extent(300, 4, 35)];
        let regions = vec![region(16, 272, true), region(290, 310, false)];
        let manifest = Manifest { chunk_size_bytes: 4 << 12, extents, regions, ..Manifest::default() };
        Image { id: SnapshotId([0; 32]), manifest, table: std::iter::repeat_n(ChunkId([0; 32]), 36).collect() }
    }

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::from_addrs(start << 12, end << 12).expect("in order")
    }

    struct Scene {
        image: Image,
        map: Arc<PageMap>,
        history: History,
        begun: Instant,
        owed: Vec<PageRange>,
    }

    impl Scene {
        fn new(owed: Vec<PageRange>) -> Self {
            let (image, begun) = (image(), Instant::now());
            let map = Arc::new(PageMap::new(&image));
            Self { history: History::new(map.clone(), begun), map, image, begun, owed }
        }

        fn note(&mut self, how: How, pages: PageRange, ms: u64) {
            self.history.note(how, (pages.start(), pages.pages()), pages.pages(), self.begun + Duration::from_millis(ms));
        }

        fn seen(&self) -> Seen<'_> {
            Seen { image: &self.image, map: &self.map, history: &self.history, owed: &self.owed, total_pages: 140 }
        }
    }

    #[test]
    fn every_page_is_drawn_once_and_shares_are_the_total() {
        let mut scene = Scene::new(vec![range(30, 33), range(150, 200)]);
        scene.note(How::Demand, range(16, 20), 1);
        scene.note(How::Bulk, range(20, 28), 2);
        scene.note(How::Bulk, range(33, 40), 1000);
        scene.note(How::Removed, range(100, 120), 3);
        let (regions, unit_bytes) = scene.seen().regions();
        assert_eq!((regions.len(), unit_bytes), (2, 4 << 12));
        let runs = &regions[0].runs;
        assert_eq!(runs[0], Run(0, 4, How::Demand, 1000, 1000));
        assert_eq!(runs[1], Run(4, 8, How::Bulk, 2000, 2000));
        assert_eq!(runs[2], Run(12, 2, How::Earlier, 0, 0));
        assert_eq!(runs[3], Run(14, 3, How::Missing, 0, 0));
        assert!(runs.contains(&Run(17, 7, How::Bulk, 1_000_000, 1_000_000)), "{runs:?}");
        assert_eq!(runs.iter().map(|run| run.1).sum::<u64>(), 140);
        assert!(runs.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{runs:?}");
        assert_eq!((regions[1].lazy, &regions[1].runs[..], &*regions[1].prot), (false, &[Run(10, 4, How::Eager, 0, 0)][..], "rw-p"));
        let shares = scene.seen().shares();
        assert_eq!(shares.iter().map(|share| share.bytes).sum::<u64>(), 140 << 12);
        let of = |how| shares.iter().find(|share| share.how == how).map(|share| share.bytes >> 12);
        assert_eq!((of(How::Missing), of(How::Earlier), of(How::Bulk)), (Some(53), Some(140 - 53 - 4 - 15 - 20), Some(15)));
    }

    #[test]
    fn times_that_differ_show_and_the_same_ones_are_one() {
        let mut scene = Scene::new(Vec::new());
        (0..35).for_each(|chunk| {
            let pages = scene.map.pages_of(chunk).expect("there are as many");
            scene.note(How::Bulk, pages, u64::from(chunk) * 10);
        });
        assert_eq!(scene.seen().regions().0[0].runs.len(), 35);
        let mut scene = Scene::new(Vec::new());
        scene.note(How::Bulk, range(16, 56), 7);
        scene.note(How::Bulk, range(100, 200), 7);
        assert_eq!(scene.seen().regions().0[0].runs.len(), 2);
    }

    #[test]
    fn too_varied_a_picture_is_drawn_coarser() {
        let mut scene = Scene::new(Vec::new());
        (0..35).for_each(|chunk| {
            let pages = scene.map.pages_of(chunk).expect("there are as many");
            scene.note(if chunk % 4 == 1 { How::Demand } else { How::Replay }, pages, u64::from(chunk));
        });
        let (fine, unit_bytes) = scene.seen().regions();
        assert_eq!((fine[0].runs.len(), unit_bytes), (35, 4 << 12));
        let (coarse, unit_bytes) = scene.seen().regions_within(20);
        assert_eq!(unit_bytes, 16 << 12);
        let runs = &coarse[0].runs;
        assert!(runs.len() <= 20 && runs.iter().filter(|run| run.1 == 16).all(|run| run.2 == How::Replay), "{runs:?}");
        assert_eq!(runs.iter().map(|run| run.1).sum::<u64>(), 140);
        assert_eq!((runs[0].3, runs[0].4), (0, 3000), "the times of what it shows");
        // However few are allowed, it comes to an end.
        assert_eq!(scene.seen().regions_within(0).0[0].runs.len(), 1);
    }

    #[test]
    fn names_say_what_is_mapped() {
        let file = images::manifest::FileIdentity { path: "/tmp/</script>".to_owned(), ..Default::default() };
        let region = Region { file: Some(file), backing: Backing::FileShared as i32, prot: 5, ..Region::default() };
        assert_eq!((&*name(&region, None), &*prot(&region)), ("/tmp/</script>", "r-xs"));
        let mm = MemoryMap { start_brk: 0x3000, brk: 0x5000, start_stack: 0x8800, ..MemoryMap::default() };
        let named = |start, end, own: &str| name(&Region { start, end, name: own.to_owned(), ..Region::default() }, Some(&mm));
        assert_eq!(named(0x3000, 0x5000, "heap of mine"), "[anon:heap of mine]");
        assert_eq!((&*named(0x3000, 0x5000, ""), &*named(0x8000, 0x9000, ""), &*named(0x5000, 0x6000, "")), ("[heap]", "[stack]", ""));
        assert_eq!(PageAddr::from_number(1).addr(), PAGE_SIZE_BYTES);
    }
}
