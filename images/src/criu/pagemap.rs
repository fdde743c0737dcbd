//! pagemap-*.img: which pages there are, and which of them the pages file has.
//!
//! The pages file is nothing but pages, one behind the other: those of the entries that are present, in their order.

use super::error::DumpError;
use super::records::{self, Kind, Records};
use super::wire::{PagemapEntry, PagemapHead};
use crate::PAGES_END;
use pages::{PageAddr, PageRange};

const IN_PARENT: u32 = 1;
const LAZY: u32 = 2;
const PRESENT: u32 = 4;

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where; in shared memory, counted from its start.
    pub range: PageRange,
    /// The parent has it.
    pub in_parent: bool,
    /// A lazy restore leaves it to the lazy-pages daemon.
    pub lazy: bool,
    /// The pages file has it. Neither there nor in the parent, it is at its source if lazy, and zeros if not.
    pub present: bool,
}

/// One such file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pagemap {
    /// Its pages file is `pages-ID.img`.
    pub pages_id: u32,
    /// Ascending, not overlapping.
    pub entries: Vec<Entry>,
}

impl Pagemap {
    /// Read `file`.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, DumpError> {
        let mut records = Records::open(file, Kind::Pagemap, bytes)?;
        let head: PagemapHead = records.message()?.ok_or_else(|| DumpError::file(file, "it has no record"))?;
        let pages_id = head.pages_id.ok_or_else(|| DumpError::record(file, 0, "it names no pages file"))?;
        let (mut entries, mut end) = (Vec::new(), PageAddr::from_number(0));
        while let Some(entry) = records.message::<PagemapEntry>()? {
            let wrong = |what: &str| DumpError::record(file, records.last(), what);
            let entry = checked(&entry).map_err(wrong)?;
            if entry.range.start() < end {
                return Err(wrong("its pages do not lie behind those of the record before"));
            }
            end = entry.range.end();
            entries.push(entry);
        }
        Ok(Self { pages_id, entries })
    }

    /// The bytes of a file that says this.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = records::head(Kind::Pagemap);
        records::append(&mut out, &PagemapHead { pages_id: Some(self.pages_id) });
        for Entry { range, in_parent, lazy, present } in &self.entries {
            let bits = [(*in_parent, IN_PARENT), (*lazy, LAZY), (*present, PRESENT)];
            let flags = bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
            // CRIU 4 writes the short count as well, as 0.
            let short_pages = Some(0);
            let (vaddr, pages) = (Some(range.start().addr()), Some(range.pages()));
            records::append(&mut out, &PagemapEntry { vaddr, short_pages, in_parent: None, flags: Some(flags), pages });
        }
        out
    }

    /// The same where the pages file has the lazy pages as well, which were at their source.
    #[must_use]
    pub fn with_lazy(&self) -> Self {
        let entry = |entry: &Entry| Entry { present: entry.present || (entry.lazy && !entry.in_parent), ..*entry };
        Self { pages_id: self.pages_id, entries: self.entries.iter().map(entry).collect() }
    }

    /// Name of the file that has its pages.
    #[must_use]
    pub fn pages_file(&self) -> String {
        format!("pages-{}.img", self.pages_id)
    }

    /// Runs of pages in the pages file, in its order.
    pub fn present(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.entries.iter().filter(|entry| entry.present).map(|entry| entry.range)
    }
}

fn checked(entry: &PagemapEntry) -> Result<Entry, &'static str> {
    let start = entry.vaddr.and_then(PageAddr::new).ok_or("its address is absent or not that of a page")?;
    let pages = entry.pages.or(entry.short_pages.map(u64::from)).unwrap_or(0);
    let range = PageRange::with_len(start, pages).filter(|range| !range.is_empty() && range.end().number() <= PAGES_END);
    let range = range.ok_or("it has no pages, or pages beyond user space")?;
    // Older images say less: what is not in the parent is there.
    let flags = entry.flags.unwrap_or(if entry.in_parent.unwrap_or(false) { IN_PARENT } else { PRESENT });
    if flags & !(IN_PARENT | LAZY | PRESENT) != 0 {
        return Err("its flags are not all known here");
    }
    let (in_parent, present) = (flags & IN_PARENT != 0, flags & PRESENT != 0);
    if in_parent && present {
        return Err("its pages are said to be here and in the parent");
    }
    Ok(Entry { range, in_parent, lazy: flags & LAZY != 0, present })
}
