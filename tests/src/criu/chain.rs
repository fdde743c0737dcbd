//! A chain of parents out of one dump.
//!
//! CRIU makes such chains with pre-dumps, for which it needs a kernel with soft-dirty tracking; so that chains are tested on every
//! kernel, a dump is taken apart as if part of its pages had been dumped earlier. CRIU itself restores from what is made here.

use anyhow::{Context as _, Result};
use images::criu::{Entry, Pagemap};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::path::Path;

/// Pages of an entry that stay, go to the parent, stay, and so on.
const STRIPE_PAGES: u64 = 5;

/// Move stripes of every task's pages in `images` to the folder `parent`, which is made and which `images` then leads to.
pub fn split(images: &Path, parent: &Path) -> Result<()> {
    std::fs::create_dir(parent)?;
    std::fs::copy(images.join("inventory.img"), parent.join("inventory.img"))?;
    for entry in images.read_dir()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("pagemap-") || name.starts_with("pagemap-shmem") {
            continue;
        }
        let whole = Pagemap::parse(&name, &std::fs::read(images.join(&name))?)?;
        let pages_file = whole.pages_file();
        let contents = std::fs::read(images.join(&pages_file))?;
        let mut next = contents.as_slice();
        let (mut own, mut below) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for entry in whole.entries {
            let (mut at, end) = (entry.range.start().number(), entry.range.end().number());
            let mut stays = true;
            while at < end {
                let pages = STRIPE_PAGES.min(end - at);
                let range = PageRange::with_len(PageAddr::from_number(at), pages).context("is part of a range")?;
                let bytes = if entry.present { pages * PAGE_SIZE_BYTES } else { 0 };
                let (stripe, rest) = next.split_at(bytes as usize);
                let goes = entry.present && !stays;
                if goes {
                    own.0.push(Entry { range, in_parent: true, present: false, ..entry });
                    below.0.push(Entry { range, ..entry });
                    below.1.extend_from_slice(stripe);
                } else {
                    own.0.push(Entry { range, ..entry });
                    own.1.extend_from_slice(stripe);
                }
                (next, at, stays) = (rest, at + pages, !stays);
            }
        }
        for (folder, (entries, contents)) in [(images, own), (parent, below)] {
            std::fs::write(folder.join(&name), Pagemap { pages_id: whole.pages_id, entries }.encode())?;
            std::fs::write(folder.join(&pages_file), contents)?;
        }
    }
    std::os::unix::fs::symlink(parent, images.join("parent")).context("link to the parent")
}
