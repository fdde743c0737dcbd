//! Any bytes as the files of a dump and its parent: an error, or a dump whose pages all lie somewhere, once each, and which an image
//! keeps as it is.
#![cfg_attr(fuzzing, no_main)]

use images::criu::{Body, Dump, Folder, Layout, Origin, Pagemap};
use libfuzzer_sys::fuzz_target;

/// Names, and the magic numbers without which a fuzzer would not get behind the first check.
const NAMES: [(&str, &[u32]); 8] = [
    ("inventory.img", &[0x5831_3116]),
    ("pstree.img", &[COMMON, 0x5027_3030]),
    ("mm-1.img", &[COMMON, 0x5749_2820]),
    ("pagemap-1.img", &[COMMON, PAGEMAP]),
    ("mm-2.img", &[COMMON, 0x5749_2820]),
    ("pagemap-2.img", &[COMMON, PAGEMAP]),
    ("pagemap-shmem-1.img", &[COMMON, PAGEMAP]),
    ("stats-dump", &[]),
];
const COMMON: u32 = 0x5456_4319;
const PAGEMAP: u32 = 0x5608_4025;

/// Files out of bytes: which name (a bit more: in the parent), how long, contents.
fn folders(mut bytes: &[u8]) -> Vec<Folder> {
    let mut folders = vec![Folder::new(), Folder::new()];
    // Something to begin with: what is made of the bytes takes its place.
    folders[0].insert("inventory.img".to_owned(), described(NAMES[0].1, &[2, 0, 0, 0, 8, 2]));
    folders[0].insert("pstree.img".to_owned(), described(NAMES[1].1, &[2, 0, 0, 0, 8, 1, 2, 0, 0, 0, 8, 2]));
    while let [which, length, rest @ ..] = bytes {
        let (contents, behind) = rest.split_at((*length as usize).min(rest.len()));
        let (name, magics) = NAMES[usize::from(which & 7)];
        folders[usize::from(which >> 3 & 1)].insert(name.to_owned(), described(magics, contents));
        bytes = behind;
    }
    for folder in &mut folders {
        let fitting: Vec<(String, u64)> = folder
            .iter()
            .filter_map(|(name, body)| match body {
                Body::Described(bytes) if name.starts_with("pagemap-") => Pagemap::parse(name, bytes).ok(),
                _ => None,
            })
            .map(|pagemap| (pagemap.pages_file(), pagemap.present().map(|run| run.bytes()).sum()))
            .collect();
        folder.extend(fitting.into_iter().map(|(name, size_bytes)| (name, Body::Stored { size_bytes })));
    }
    if folders[1].is_empty() {
        folders.pop();
    }
    folders
}

fn described(magics: &[u32], contents: &[u8]) -> Body {
    let magics = magics.iter().flat_map(|magic| magic.to_le_bytes());
    Body::Described(magics.chain(contents.iter().copied()).collect::<Vec<u8>>().into())
}

fuzz_target!(|bytes: &[u8]| {
    for (name, _) in NAMES {
        let _ = Pagemap::parse(name, bytes);
    }
    let Ok(dump) = Dump::new(folders(bytes)) else { return };
    assert_eq!(Dump::of(&dump.keep()).as_ref(), Ok(&dump));
    let Ok(layout) = Layout::new(&dump) else { return };
    for (name, pagemap) in dump.pagemaps(0) {
        let again = Pagemap::parse(name, &pagemap.encode());
        assert_eq!(again.as_ref(), Ok(pagemap));
        let mut end = 0;
        for piece in dump.pieces(name) {
            assert!(piece.range.start().number() >= end && !piece.range.is_empty());
            end = piece.range.end().number();
            if let Origin::File { folder, page } = piece.origin {
                let file = dump.pages_file(folder, name).expect("there is a file");
                let placed = layout.file(folder, &file).expect("is laid out");
                for page in [page, page + piece.range.pages() - 1] {
                    let at = placed.find(page).expect("is laid out").start();
                    let (first, run) = placed.run_at(at).expect("is in a run");
                    assert_eq!(first + (at.number() - run.start().number()), page);
                }
            }
        }
    }
    for pid in dump.tasks() {
        let Some(memory) = dump.memory(*pid).expect("was checked") else { continue };
        for piece in &memory.lazy {
            let inside = memory.mappings.iter().filter(|mapping| mapping.intersect(&piece.range) == Some(piece.range)).count();
            assert_eq!(inside, 1);
        }
    }
});
