//! Dumps put together byte by byte here, without the code under test: each page is found where the model put it, older spellings mean
//! the same, and whatever is wrong is refused with the file and the record.

extern crate defrost_images as images;

use bytes::Bytes;
use images::criu::{Body, Dump, DumpError, Folder, Layout, Origin, Pagemap};
use pages::{PAGE_SIZE_BYTES, PageAddr};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A field of a protobuf message: a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field that has bytes.
fn nested(field: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn file(magics: &[u32], records: &[Vec<u8>]) -> Body {
    let mut out: Vec<u8> = magics.iter().flat_map(|magic| magic.to_le_bytes()).collect();
    for record in records {
        out.extend((record.len() as u32).to_le_bytes());
        out.extend(record);
    }
    Body::Described(Bytes::from(out))
}

const COMMON: u32 = 0x5456_4319;

fn inventory(version: u64) -> Body {
    file(&[0x5831_3116], &[[number(1, version), number(2, 1)].concat()])
}

fn tree(pids: &[u64]) -> Body {
    let record = |pid: &u64| [number(1, *pid), number(2, 0), number(5, *pid)].concat();
    file(&[COMMON, 0x5027_3030], &pids.iter().map(record).collect::<Vec<_>>())
}

fn mm(mappings: &[(u64, u64, u64, u64)]) -> Body {
    let one = |(start, end, flags, status): &(u64, u64, u64, u64)| {
        nested(14, &[number(1, *start), number(2, *end), number(6, *flags), number(7, *status)].concat())
    };
    file(&[COMMON, 0x5749_2820], &[[number(1, 0x40_0000)].into_iter().chain(mappings.iter().map(one)).collect::<Vec<_>>().concat()])
}

fn pagemap(pages_id: u64, entries: &[Vec<u8>]) -> Body {
    let records: Vec<Vec<u8>> = std::iter::once(number(1, pages_id)).chain(entries.iter().cloned()).collect();
    file(&[COMMON, 0x5608_4025], &records)
}

fn entry(page: u64, flags: u64, pages: u64) -> Vec<u8> {
    [number(1, page * PAGE_SIZE_BYTES), number(2, 0), number(4, flags), number(5, pages)].concat()
}

const ANON: (u64, u64) = (0x22, 0x201);

/// A task with one lazy mapping of pages 0x1000 to 0x2000.
fn folder(entries: &[Vec<u8>], pages: u64) -> Folder {
    Folder::from([
        ("inventory.img".to_owned(), inventory(2)),
        ("pstree.img".to_owned(), tree(&[7])),
        ("mm-7.img".to_owned(), mm(&[(0x100_0000, 0x200_0000, ANON.0, ANON.1)])),
        ("pagemap-7.img".to_owned(), pagemap(3, entries)),
        ("pages-3.img".to_owned(), Body::Stored { size_bytes: pages * PAGE_SIZE_BYTES }),
    ])
}

fn refused(folders: Vec<Folder>) -> DumpError {
    Dump::new(folders).expect_err("is wrong")
}

#[test]
fn older_entries_mean_the_same() {
    let short = |page: u64, pages: u64, in_parent: Option<u64>| {
        [number(1, page * PAGE_SIZE_BYTES), number(2, pages), in_parent.map_or_else(Vec::new, |yes| number(3, yes))].concat()
    };
    let old = folder(&[short(0x1000, 4, None), short(0x1004, 2, Some(1)), short(0x1008, 1, Some(0))], 5);
    let new = folder(&[entry(0x1000, 4, 4), entry(0x1004, 1, 2), entry(0x1008, 4, 1)], 5);
    let parent = || folder(&[entry(0x1004, 4, 9)], 9);
    let (old, new) = (Dump::new(vec![old, parent()]), Dump::new(vec![new, parent()]));
    let pieces = |dump: Result<Dump, DumpError>| dump.map(|dump| dump.pieces("pagemap-7.img").to_vec());
    assert_eq!(pieces(old), pieces(new));
}

#[test]
fn a_dead_task_has_no_memory() {
    let mut files = folder(&[entry(0x1000, 6, 4)], 4);
    files.insert("pstree.img".to_owned(), tree(&[7, 8]));
    let dump = Dump::new(vec![files]).expect("is whole");
    assert_eq!(dump.tasks(), [7, 8]);
    assert_eq!(dump.memory(8), Ok(None));
    assert_eq!(dump.memory(7).expect("is whole").expect("has memory").lazy.len(), 1);
}

#[test]
fn lazy_pages_are_cut_at_mappings() {
    let mut files = folder(&[entry(0x1ffe, 6, 4)], 4);
    let vsyscall = (0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000, 0x22, 0x204);
    files.insert("mm-7.img".to_owned(), mm(&[(0x100_0000, 0x200_0000, 0x22, 0x201), (0x200_0000, 0x200_3000, 0x22, 0x201), vsyscall]));
    let memory = Dump::new(vec![files]).expect("is whole").memory(7).expect("is whole").expect("has memory");
    let parts: Vec<_> = memory.lazy.iter().map(|piece| (piece.range.start().number(), piece.range.pages(), piece.origin)).collect();
    assert_eq!(parts, [(0x1ffe, 2, Origin::File { folder: 0, page: 0 }), (0x2000, 2, Origin::File { folder: 0, page: 2 })]);
    assert_eq!(memory.mappings.len(), 2);
}

/// CRIU 4.2 writes guards (MADV_GUARD_INSTALL) as mappings behind the others, which overlap them.
#[test]
fn guards_are_no_mappings() {
    let mut files = folder(&[entry(0x1000, 6, 4)], 4);
    let mappings = [(0x100_0000, 0x200_0000, 0x22, 0x201), (0x200_0000, 0x200_3000, 0x22, 0x201)];
    let guards = [(0x100_8000, 0x100_9000, 0x22, 0x1_0000), (0x101_0000, 0x101_4000, 0x22, 0x1_0001)];
    files.insert("mm-7.img".to_owned(), mm(&[mappings.as_slice(), guards.as_slice()].concat()));
    let memory = Dump::new(vec![files]).expect("is whole").memory(7).expect("is whole").expect("has memory");
    let ranges: Vec<_> = memory.mappings.iter().map(|range| (range.start().addr(), range.end().addr())).collect();
    assert_eq!(ranges, mappings.map(|(start, end, ..)| (start, end)));
    assert_eq!(memory.lazy.len(), 1);
}

#[test]
fn what_is_wrong_is_named() {
    let with = |name: &str, body: Body| {
        let mut files = folder(&[entry(0x1000, 6, 4)], 4);
        files.insert(name.to_owned(), body);
        vec![files]
    };
    let without = |name: &str| {
        let mut files = folder(&[entry(0x1000, 6, 4)], 4);
        files.remove(name);
        vec![files]
    };
    let entries = |entries: &[Vec<u8>], pages: u64| vec![folder(entries, pages)];
    let below = |entries: &[Vec<u8>], parent: &[Vec<u8>], pages: u64| vec![folder(entries, 0), folder(parent, pages)];
    let whole = |bytes: &[u8]| Body::Described(Bytes::copy_from_slice(bytes));
    let Body::Described(map) = pagemap(3, &[entry(0x1000, 6, 4)]) else { unreachable!("it is described") };
    let endless = [map.as_ref(), &[0xff, 0xff, 0xff, 0x7f]].concat();
    let table: Vec<(&str, Option<u64>, Vec<Folder>)> = vec![
        ("inventory.img", None, Vec::new()),
        ("inventory.img", None, without("inventory.img")),
        ("inventory.img", None, with("inventory.img", whole(b"nonsense"))),
        ("inventory.img", Some(0), with("inventory.img", inventory(1))),
        ("inventory.img", Some(1), with("inventory.img", file(&[0x5831_3116], &[number(1, 2), number(1, 2)]))),
        ("pstree.img", None, without("pstree.img")),
        ("pstree.img", None, with("pstree.img", tree(&[]))),
        ("pstree.img", Some(1), with("pstree.img", tree(&[7, 7]))),
        ("pstree.img", Some(0), with("pstree.img", tree(&[0]))),
        ("mm-7.img", Some(0), with("mm-7.img", mm(&[(0x1000, 0x3000, 0x22, 0), (0x2000, 0x4000, 0x22, 0)]))),
        ("mm-7.img", Some(0), with("mm-7.img", mm(&[(0x1001, 0x3000, 0x22, 0)]))),
        ("mm-7.img", None, with("mm-7.img", whole(b""))),
        ("mm-7.img", None, with("mm-7.img", Body::Stored { size_bytes: 9 })),
        ("pagemap-7.img", None, with("mm-7.img", mm(&[(0x100_0000, 0x200_0000, 0x2022, 0x201)]))),
        ("pagemap-7.img", None, with("mm-7.img", mm(&[(0x100_0000, 0x100_2000, 0x22, 0x201)]))),
        ("pagemap-7.img", None, with("pagemap-7.img", whole(&map[..6]))),
        ("pagemap-7.img", Some(1), with("pagemap-7.img", whole(&map[..map.len() - 1]))),
        ("pagemap-7.img", Some(2), with("pagemap-7.img", whole(&endless))),
        ("pagemap-7.img", Some(0), with("pagemap-7.img", file(&[COMMON, 0x5608_4025], &[Vec::new()]))),
        ("pagemap-7.img", None, with("pagemap-7.img", file(&[COMMON, 0x5608_4025], &[]))),
        ("pagemap-8.img", Some(0), with("pagemap-8.img", pagemap(3, &[entry(0x1000, 4, 4)]))),
        ("pagemap-7.img", Some(2), entries(&[entry(0x1000, 4, 4), entry(0x1003, 4, 1)], 5)),
        ("pagemap-7.img", Some(1), entries(&[entry(0x1000, 4, 0)], 0)),
        ("pagemap-7.img", Some(1), entries(&[entry(0x1000, 12, 1)], 1)),
        ("pagemap-7.img", Some(1), entries(&[entry(0x1000, 5, 1)], 1)),
        ("pagemap-7.img", Some(1), entries(&[entry(1 << 44, 4, 1)], 1)),
        ("pagemap-7.img", Some(1), entries(&[entry(0x1000, 4, u64::MAX / 4096)], 1)),
        ("pagemap-7.img", Some(1), entries(&[[number(1, 0x100_0001), number(4, 4), number(5, 1)].concat()], 1)),
        ("pages-3.img", None, entries(&[entry(0x1000, 4, 4)], 3)),
        ("pages-3.img", None, entries(&[entry(0x1000, 4, 4)], 5)),
        ("pages-3.img", None, without("pages-3.img")),
        ("pages-3.img", None, with("pages-3.img", whole(b"something"))),
        ("pagemap-7.img", Some(1), entries(&[entry(0x1000, 1, 4)], 0)),
        ("pagemap-7.img", Some(1), below(&[entry(0x1000, 1, 4)], &[entry(0x1000, 4, 3)], 3)),
        ("pagemap-7.img", Some(1), below(&[entry(0x1000, 1, 4)], &[entry(0x1001, 4, 3)], 3)),
        ("parent/pagemap-7.img", Some(1), below(&[entry(0x1000, 1, 1)], &[entry(0x1000, 1, 3)], 0)),
        ("parent/pages-3.img", None, below(&[entry(0x1000, 1, 1)], &[entry(0x1000, 4, 3)], 2)),
        ("parent", None, std::iter::repeat_with(|| folder(&[entry(0x1000, 4, 4)], 4)).take(300).collect()),
    ];
    for (n, (file, record, folders)) in table.into_iter().enumerate() {
        let error = refused(folders);
        assert_eq!((error.file.as_str(), error.record), (file, record), "case {n}: {error}");
    }
}

#[test]
fn every_truncation_is_refused_or_harmless() {
    let Body::Described(map) = pagemap(3, &[entry(0x1000, 6, 4), entry(0x1010, 6, 4)]) else { unreachable!("it is described") };
    for cut in 0..map.len() {
        let mut files = folder(&[], 8);
        files.insert("pagemap-7.img".to_owned(), Body::Described(map.slice(..cut)));
        assert!(Dump::new(vec![files]).is_err(), "cut at {cut}");
    }
}

/// What the model says of a page, the dump's folder first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Absent,
    Parent { lazy: bool },
    Here { lazy: bool },
    Zeros,
    Source,
}

impl Is {
    fn flags(self) -> Option<u64> {
        Some(match self {
            Self::Absent => return None,
            Self::Parent { lazy } => 1 | (u64::from(lazy) << 1),
            Self::Here { lazy } => 4 | (u64::from(lazy) << 1),
            Self::Zeros => 0,
            Self::Source => 2,
        })
    }
}

fn is() -> impl Strategy<Value = Is> {
    prop_oneof![
        1 => Just(Is::Absent),
        3 => any::<bool>().prop_map(|lazy| Is::Parent { lazy }),
        3 => any::<bool>().prop_map(|lazy| Is::Here { lazy }),
        1 => Just(Is::Zeros),
        1 => Just(Is::Source),
    ]
}

/// The folder of a row of pages; runs of equal ones become one entry where `joined` says so.
fn row(pages: &[Is], joined: u64) -> (Folder, u64) {
    let (mut entries, mut present): (Vec<(u64, u64, u64)>, u64) = (Vec::new(), 0);
    for (at, is) in (0x1000..).zip(pages) {
        let Some(flags) = is.flags() else { continue };
        present += flags >> 2;
        match entries.last_mut() {
            Some((start, same, count)) if *same == flags && *start + *count == at && joined >> (at % 64) & 1 == 1 => *count += 1,
            _ => entries.push((at, flags, 1)),
        }
    }
    let entries: Vec<Vec<u8>> = entries.into_iter().map(|(at, flags, pages)| entry(at, flags, pages)).collect();
    (folder(&entries, present), present)
}

proptest! {
    #[test]
    fn every_page_is_where_the_model_put_it(mut rows in prop::collection::vec(prop::collection::vec(is(), 90), 1..5), joined in any::<u64>()) {
        // What is left to a parent is there: from the last row up.
        for depth in (0..rows.len()).rev() {
            for page in 0..90 {
                let below = rows.get(depth + 1).map_or(Is::Absent, |row| row[page]);
                if matches!(rows[depth][page], Is::Parent { .. }) && below == Is::Absent {
                    rows[depth][page] = Is::Here { lazy: false };
                }
            }
        }
        let folders: Vec<Folder> = rows.iter().map(|pages| row(pages, joined).0).collect();
        let dump = Dump::new(folders).expect("is whole");
        let mut found = BTreeMap::new();
        for piece in dump.pieces("pagemap-7.img") {
            for n in 0..piece.range.pages() {
                let origin = match piece.origin {
                    Origin::File { folder, page } => Origin::File { folder, page: page + n },
                    other => other,
                };
                prop_assert!(found.insert(piece.range.start().number() + n, (piece.lazy, origin)).is_none());
            }
        }
        let layout = Layout::new(&dump).expect("is small");
        for page in 0..90 {
            let top = rows[0][page].flags();
            let mut depth = 0;
            while matches!(rows[depth][page], Is::Parent { .. }) {
                depth += 1;
            }
            let nth = rows[depth][..page].iter().filter(|is| matches!(is, Is::Here { .. })).count() as u64;
            let origin = match rows[depth][page] {
                Is::Here { .. } => Origin::File { folder: depth, page: nth },
                Is::Zeros => Origin::Zeros,
                _ => Origin::Source,
            };
            let expected = top.map(|flags| (flags & 2 != 0, origin));
            prop_assert_eq!(found.get(&(0x1000 + page as u64)).copied(), expected, "page {}", page);
            if let Some((_, Origin::File { folder, page: nth })) = expected {
                let placed = layout.file(folder, "pages-3.img").expect("is laid out");
                let at = placed.find(nth).expect("is laid out").start();
                prop_assert_eq!(at.number() % 256, page as u64); // 0x1000 is a multiple
                let (first, run) = placed.run_at(at).expect("is in a run");
                prop_assert_eq!(first + (at.number() - run.start().number()), nth);
                prop_assert_eq!(layout.file_at(at), Some(placed));
            }
        }
        let kept = Dump::of(&dump.keep());
        prop_assert_eq!(kept.as_ref(), Ok(&dump));
        for (name, pagemap) in dump.pagemaps(0) {
            let again = Pagemap::parse(name, &pagemap.encode());
            prop_assert_eq!(again.as_ref(), Ok(pagemap));
        }
    }
}

#[test]
fn a_lazy_pagemap_keeps_what_a_restore_cannot_wait_for() {
    let own = [entry(0x1000, 6, 2), entry(0x1002, 1, 2), entry(0x1004, 3, 1), entry(0x1010, 4, 1)];
    let dump = Dump::new(vec![folder(&own, 3), folder(&[entry(0x1000, 4, 5)], 5)]).expect("is whole");
    let (pagemap, eager) = dump.without_lazy("pagemap-7.img").expect("is whole");
    let entries: Vec<_> = pagemap.entries.iter().map(|e| (e.range.start().number(), e.range.pages(), e.lazy, e.present)).collect();
    assert_eq!(entries, [(0x1000, 2, true, false), (0x1002, 2, false, true), (0x1004, 1, true, false), (0x1010, 1, false, true)]);
    let origins: Vec<_> = eager.iter().map(|piece| piece.origin).collect();
    assert_eq!(origins, [Origin::File { folder: 1, page: 2 }, Origin::File { folder: 0, page: 2 }]);
    assert_eq!(PageAddr::from_number(0x1000).addr(), 0x100_0000);
}
