//! Identity: what the files of a process contain, so that a restore knows them though their times differ.
//!
//! While pages are captured, one thread reads the build id or digests the contents of each file that
//! the manifest names ([`tell`]). Files of more than [`contents::DIGESTED_BYTES`], and what is left
//! once [`BUDGET_BYTES`] were digested, are known by inode, size and time alone.

use crate::contents::{self, Told};
use images::manifest::description::Kind;
use images::manifest::{FileIdentity, LockKind, Manifest, RegularFile};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

/// What is digested of one process: some 100 ms of one processor.
const BUDGET_BYTES: u64 = 256 << 20;

/// What each file contains, by path.
pub fn tell(manifest: &Manifest) -> HashMap<String, Told> {
    let mut left = BUDGET_BYTES;
    let mut told: HashMap<String, Told> = HashMap::new();
    for file in manifest.files.iter().filter(|file| file.locks.iter().any(|lock| lock.kind == LockKind::Lease as i32)) {
        if let Some(Kind::Regular(RegularFile { identity: Some(identity) })) = &file.kind {
            // Another open of the file would break its lease.
            told.insert(identity.path.clone(), Told::default());
        }
    }
    let process = manifest.process.iter().filter_map(|process| process.exe_identity.as_ref());
    let mapped = manifest.regions.iter().filter_map(|region| region.file.as_ref());
    let open = manifest.files.iter().filter_map(|file| match &file.kind {
        Some(Kind::Regular(regular)) => regular.identity.as_ref(),
        _ => None,
    });
    for identity in process.chain(mapped).chain(open) {
        if !told.contains_key(&identity.path) {
            let found = look(identity, left);
            if !found.digest.is_empty() {
                left = left.saturating_sub(identity.size_bytes);
            }
            told.insert(identity.path.clone(), found);
        }
    }
    told
}

/// Look at one file; nothing is told of another one that has the name by now.
fn look(identity: &FileIdentity, left: u64) -> Told {
    let Ok(file) = File::open(&identity.path) else { return Told::default() };
    let same = file.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == (identity.device, identity.inode));
    match same {
        true if identity.size_bytes <= left => Told::of(&file, identity.size_bytes),
        true => Told { build_id: contents::build_id(&file).unwrap_or_default(), digest: Vec::new() },
        false => Told::default(),
    }
}

/// Write it into the manifest.
pub fn note(manifest: &mut Manifest, told: &HashMap<String, Told>) {
    let note = |identity: &mut FileIdentity| {
        if let Some(Told { build_id, digest }) = told.get(&identity.path) {
            (identity.build_id, identity.digest) = (build_id.clone(), digest.clone());
        }
    };
    manifest.process.iter_mut().filter_map(|process| process.exe_identity.as_mut()).for_each(note);
    manifest.regions.iter_mut().filter_map(|region| region.file.as_mut()).for_each(note);
    for file in &mut manifest.files {
        if let Some(Kind::Regular(regular)) = &mut file.kind {
            regular.identity.iter_mut().for_each(note);
        }
    }
}
