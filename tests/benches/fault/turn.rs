//! One turn of the victim `cold`: where everybody runs, what it is told, and the times that it leaves.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::Victim;
use defrost_tests::placement::{everywhere, only};
use nix::sched::CpuSet;
use pages::PageAddr;

/// The placements, in the order of the tables.
pub const PLACEMENTS: [Placement; 3] = [Placement::Free, Placement::Together, Placement::Apart];

/// A touch that took less did not wait for a page: well above a cache miss, well below a fault's way through user space.
const WAITED_NS: u32 = 1500;

/// Where the program runs, and whoever answers it.
#[derive(Clone, Copy, PartialEq)]
pub enum Placement {
    Free,
    Together,
    Apart,
}

impl Placement {
    /// As rows call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "left to the scheduler",
            Self::Together => "all on one processor",
            Self::Apart => "program and pager apart",
        }
    }

    /// The program's processors.
    pub fn program(self) -> Result<CpuSet> {
        if self == Self::Free { everywhere() } else { only(0) }
    }

    /// Those of whoever answers it.
    pub fn answering(self) -> Result<CpuSet> {
        match self {
            Self::Free => everywhere(),
            Self::Together => only(0),
            Self::Apart => only(1),
        }
    }
}

/// What the victim is told.
#[derive(Clone, Copy)]
pub struct Order {
    /// How many pages it touches; 0: all.
    pub touches: usize,
    /// How long it sleeps before each.
    pub gap_us: u32,
    /// Threads that share them.
    pub threads: usize,
    /// Each thread keeps to a processor of its own.
    pub pinned: bool,
}

/// All of them, one after the other.
pub const BACK_TO_BACK: Order = Order { touches: 0, gap_us: 0, threads: 1, pinned: false };

impl Order {
    /// Let the victim do it, and yield what it measured once it found everything right.
    pub fn given_to(self, victim: &Victim) -> Result<Touches> {
        let Self { touches, gap_us, threads, pinned } = self;
        victim.check(&format!("{touches} {gap_us} {threads} {}\n", u8::from(pinned)))?;
        let bytes = std::fs::read(victim.folder().join("latencies")).context("read the latencies")?;
        let ns: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        ensure!(!ns.is_empty() && !ns.contains(&0), "the victim left {} latencies", ns.len());
        let wall_ns = std::fs::read_to_string(victim.folder().join("wall")).context("read the time of all touches")?.trim().parse()?;
        Ok(Touches { ns, wall_ns })
    }
}

/// What the victim measured.
pub struct Touches {
    ns: Vec<u32>,
    wall_ns: u64,
}

impl Touches {
    /// Percentiles of all touches.
    pub fn all(&self) -> Percentiles {
        Percentiles::of(self.ns.iter().map(|ns| f64::from(*ns) / 1e3).collect())
    }

    /// Percentiles of those that waited for a page; none where none did.
    pub fn waited(&self) -> Option<Percentiles> {
        let us: Vec<f64> = self.ns.iter().filter(|ns| **ns >= WAITED_NS).map(|ns| f64::from(*ns) / 1e3).collect();
        (!us.is_empty()).then(|| Percentiles::of(us))
    }

    /// The share that waited, in percent.
    pub fn share_waited(&self) -> f64 {
        self.ns.iter().filter(|ns| **ns >= WAITED_NS).count() as f64 * 100.0 / self.ns.len() as f64
    }

    /// All threads' time for all touches, for each touch.
    pub fn us_a_touch(&self) -> f64 {
        self.wall_ns as f64 / 1e3 / self.ns.len() as f64
    }
}

/// Sorted microseconds.
pub struct Percentiles(Vec<f64>);

impl Percentiles {
    /// Of some figures, at least one.
    pub fn of(mut us: Vec<f64>) -> Self {
        us.sort_by(f64::total_cmp);
        Self(us)
    }

    /// The value that this share, up to 1, is not above.
    pub fn at(&self, share: f64) -> f64 {
        let at = (self.0.len() as f64 * share) as usize;
        self.0.get(at.min(self.0.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }
}

/// Where the victim's cold memory begins, and its userfaultfd where it has one.
pub fn region(victim: &Victim) -> Result<(PageAddr, Option<i32>)> {
    let text = std::fs::read_to_string(victim.folder().join("region")).context("read where its memory is")?;
    let (at, fd) = text.trim().split_once(' ').context("where its memory is")?;
    let fd: i32 = fd.parse()?;
    Ok((PageAddr::new(at.parse()?).context("a page")?, (fd >= 0).then_some(fd)))
}
