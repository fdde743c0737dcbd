//! The twin of our demand path with nothing but what it cannot do without: a thread that reads faults from a userfaultfd, asks for the
//! chunk over bare TCP, decodes and checks it by the same code, and installs it. The victim is the same program, its memory empty.

use crate::raw_server::RawClient;
use crate::turn::{Order, Placement, Touches, region};
use anyhow::{Context as _, Result, bail};
use defrost_tests::Victim;
use defrost_tests::placement::{place, place_me};
use images::codec::{Decoder, Verified};
use images::{Image, PageMap};
use kernel::handoff::{pidfd_getfd, pidfd_open};
use kernel::uffd::{Event, Filled, Uffd};
use nix::unistd::Pid;
use pages::{ChunkId, PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::sync::Arc;
use store::{Access, Store};

/// Pages from one touched page to the next, as in `victims/cold.c`.
const APART: u64 = 16;

/// The snapshot of the victim.
pub struct Frozen {
    image: Image,
    map: PageMap,
    /// Where its cold memory was.
    region: PageRange,
}

impl Frozen {
    pub fn open(store: &dyn Store, name: &str, start: PageAddr, mib: u32) -> Result<Self> {
        let image = Image::parse(&store.image(&store.resolve(&name.parse()?)?)?)?;
        let map = PageMap::new(&image);
        let region = PageRange::with_len(start, u64::from(mib) * 256).context("its region is one")?;
        Ok(Self { image, map, region })
    }

    /// Pages that are touched.
    pub fn places(&self) -> u64 {
        self.region.pages() / APART
    }

    /// The page that is touched at a place.
    pub fn page(&self, place: u64) -> PageAddr {
        PageAddr::from_number(self.region.start().number() + place * APART)
    }

    /// The chunk of a page: its number, its digest and its pages.
    pub fn chunk(&self, page: PageAddr) -> Result<(u32, ChunkId, PageRange)> {
        let (index, range) = self.map.chunk_of(page).with_context(|| format!("page {page} has contents"))?;
        Ok((index, self.image.table.get(index).context("a chunk of the table")?, range))
    }

    /// The touched pages alone, one after the other.
    pub fn touched_pages(&self, store: &dyn Store) -> Result<Vec<u8>> {
        let (mut decoder, mut raw, mut all) = (Decoder::new(), Verified::default(), Vec::new());
        for place in 0..self.places() {
            let page = self.page(place);
            let (_, id, range) = self.chunk(page)?;
            decoder.decode(&id, &store.frame(&id)?, range.bytes() as usize, &mut raw)?;
            let from = (page.addr() - range.start().addr()) as usize;
            all.extend(raw.get(from..from + PAGE_SIZE_BYTES as usize).context("a page of the chunk")?);
        }
        Ok(all)
    }
}

/// Opens the frozen victim's store; what is read is in the page cache.
pub fn open(store: &str) -> Result<Arc<dyn Store>> {
    Ok(store::open(store, Access::Read)?)
}

/// Where contents come from.
pub trait Bring: Send {
    /// Pages to be installed because `page` was touched, addresses as in the snapshot.
    fn bring(&mut self, page: PageAddr) -> Result<(PageRange, &[u8])>;
}

/// The whole path.
pub struct OverTcp {
    pub frozen: Arc<Frozen>,
    pub client: RawClient,
    pub decoder: Decoder,
    pub chunk: Verified,
}

impl Bring for OverTcp {
    fn bring(&mut self, page: PageAddr) -> Result<(PageRange, &[u8])> {
        let (index, id, range) = self.frozen.chunk(page)?;
        self.decoder.decode(&id, self.client.frame(index)?, range.bytes() as usize, &mut self.chunk)?;
        Ok((range, &self.chunk))
    }
}

/// Pages that are there, each alone.
pub struct FromMemory {
    pub frozen: Arc<Frozen>,
    pub pages: Arc<Vec<u8>>,
}

impl Bring for FromMemory {
    fn bring(&mut self, page: PageAddr) -> Result<(PageRange, &[u8])> {
        let place = (page.number() - self.frozen.region.start().number()) / APART;
        let at = (place * PAGE_SIZE_BYTES) as usize;
        let bytes = self.pages.get(at..at + PAGE_SIZE_BYTES as usize).context("a page that is touched")?;
        Ok((PageRange::with_len(page, 1).context("a page")?, bytes))
    }
}

/// A victim whose memory is empty and ours to fill.
pub struct Watched {
    pub victim: Victim,
    uffd: Uffd,
    /// Where its memory is.
    region: PageRange,
    frozen: Arc<Frozen>,
}

impl Watched {
    pub fn start(frozen: &Arc<Frozen>) -> Result<Self> {
        let mib = frozen.region.pages() / 256;
        let victim = Victim::c("cold", &[&mib.to_string(), "watched"])?;
        let (start, fd) = region(&victim)?;
        let fd = pidfd_getfd(&pidfd_open(Pid::from_raw(victim.pid() as i32))?, fd.context("it watches its memory")?)?;
        let region = PageRange::with_len(start, frozen.region.pages()).context("its region is one")?;
        Ok(Self { victim, uffd: Uffd::adopt(fd), region, frozen: frozen.clone() })
    }

    /// Install pages of the snapshot, as far as they are of the cold memory.
    pub fn install(&self, range: PageRange, bytes: &[u8]) -> Result<()> {
        let inside = range.intersect(&self.frozen.region).context("pages of its memory")?;
        let bytes = &bytes[(inside.start().addr() - range.start().addr()) as usize..][..inside.bytes() as usize];
        let at = inside.start().number() - self.frozen.region.start().number() + self.region.start().number();
        let at = PageAddr::from_number(at);
        match self.uffd.copy(at, bytes) {
            Filled::Done => Ok(self.uffd.wake(PageRange::with_len(at, inside.pages()).context("where they are now")?)?),
            other => bail!("pages cannot be installed: {other:?}"),
        }
    }

    /// Answer so many touches, each of which is one fault.
    fn answer(&self, touches: u64, bring: &mut dyn Bring) -> Result<()> {
        let (mut events, mut answered) = (Vec::new(), 0);
        while answered < touches {
            self.uffd.read_events(&mut events)?;
            for event in events.drain(..) {
                let Event::Fault { page, .. } = event else { bail!("its memory changed: {event:?}") };
                let page = page.number() - self.region.start().number() + self.frozen.region.start().number();
                let (range, bytes) = bring.bring(PageAddr::from_number(page))?;
                self.install(range, bytes)?;
                answered += 1;
            }
        }
        Ok(())
    }
}

/// One turn of it: a thread of ours answers, placed like the pager.
pub fn touch(frozen: &Arc<Frozen>, placement: Placement, order: Order, mut bring: Box<dyn Bring>) -> Result<Touches> {
    let watched = Arc::new(Watched::start(frozen)?);
    place(watched.victim.pid(), &placement.program()?)?;
    let touches = if order.touches == 0 { frozen.places() } else { order.touches as u64 };
    let (answering, set) = (watched.clone(), placement.answering()?);
    // Not of a scope: where the victim fails it waits for ever, and this program ends.
    let handler = std::thread::spawn(move || {
        place_me(&set)?;
        answering.answer(touches, bring.as_mut())
    });
    let found = order.given_to(&watched.victim);
    if found.is_ok() || handler.is_finished() {
        handler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("answer its touches")?;
    }
    found
}
