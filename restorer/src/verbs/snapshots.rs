//! What a store holds: listed, verified, removed, copied, collected.

use super::{address_of, bar, open, open_named, show};
use crate::cli::{OneSnapshot, StoreArg, VerifyArgs};
use anyhow::{Context as _, Result};
use images::codec::{Decoder, Verified};
use images::{Image, PageMap};
use pages::{SnapshotName, SnapshotRef};
use serde_json::json;
use store::{Access, Class, CopyReport, GcReport, RepairReport, SnapshotInfo, sound_chunk};

/// All names; those of snapshots that cannot be restored are marked.
pub fn list(store: StoreArg, json: bool) -> Result<()> {
    for snapshot in open_named(store, Access::Read)?.list()? {
        let SnapshotInfo { name, id, created_unix_s, chunks, damage, leases } = snapshot;
        let (name, id) = (name.to_string(), id.to_string());
        let mut line = json!({ "name": name, "id": id, "chunks": chunks, "created_unix_s": created_unix_s, "leases": leases });
        let mut words = match leases {
            0 => format!("{name}  {id}  {chunks} chunks"),
            live => format!("{name}  {id}  {chunks} chunks, {live} live restores"),
        };
        if let Some(damage) = damage {
            words = format!("{name}  {id}  DAMAGED: {damage}");
            line["damage"] = damage.into();
        }
        show(json, &line, &words)?;
    }
    Ok(())
}

/// Decode and check every chunk; mend first what is damaged, if so told.
pub fn verify(VerifyArgs { one, repair, from }: VerifyArgs) -> Result<()> {
    let SnapshotRef { name, digest } = one.name;
    let mut mended = RepairReport::default();
    let address = address_of(one.store.store)?;
    if repair {
        let (store, from) = (open(&address, Access::Write, Class::Bulk)?, open(&address_of(from)?, Access::Read, Class::Bulk)?);
        store::resolve_as(store.as_ref(), &name, digest)?;
        let bar = bar(0, "{bar:40} {pos}/{len} chunks mended");
        mended = store::repair(store.as_ref(), from.as_ref(), &name, &|done, of| {
            bar.set_length(of);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
    }
    let store = open(&address, Access::Read, Class::Bulk)?;
    let id = store::resolve_as(store.as_ref(), &name, digest)?;
    let image = Image::parse(&store.image(&id)?).with_context(|| format!("snapshot {name}"))?;
    let map = PageMap::new(&image);
    let (mut decoder, mut chunk) = (Decoder::new(), Verified::default());
    let bar = bar(image.table.len() as u64, "{bar:40} {pos}/{len} chunks verified");
    let mut bytes = 0;
    for (index, id) in image.table.iter().enumerate() {
        let pages = map.pages_of(index as u32).with_context(|| format!("snapshot {name}: chunk {id} has no pages"))?;
        sound_chunk(store.as_ref(), &id, pages.bytes() as usize, &mut decoder, &mut chunk)
            .with_context(|| format!("snapshot {name}: chunk {id} at {pages}"))?;
        bytes += pages.bytes();
        bar.inc(1);
    }
    bar.finish_and_clear();
    let chunks = image.table.len();
    let RepairReport { chunks: mended, image } = mended;
    let report = json!({ "name": name.to_string(), "id": id.to_string(), "chunks": chunks, "memory_bytes": bytes, "whole": true,
        "mended_chunks": mended, "mended_image": image });
    let how = match (repair, image) {
        (false, _) => String::new(),
        (true, false) => format!(", {mended} of them mended"),
        (true, true) => format!(", {mended} of them and the image mended"),
    };
    show(one.json, &report, &format_args!("{name}: {chunks} chunks are whole{how}"))
}

/// Forget a name.
pub fn remove(one: OneSnapshot) -> Result<()> {
    let (SnapshotRef { name, digest }, store) = (one.name, open_named(one.store, Access::Write)?);
    if digest.is_some() {
        store::resolve_as(store.as_ref(), &name, digest)?;
    }
    // A name that cannot be read is removed all the same.
    let live = store.resolve(&name).and_then(|id| store.leases(&id)).unwrap_or_default();
    store.remove(&name)?;
    let words = match live {
        0 => format!("{name} is removed; gc frees its space"),
        live => format!("{name} is removed; {live} live restores still need it: gc frees its space once they have all of it or have ended"),
    };
    show(one.json, &json!({ "removed": name.to_string(), "live_restores": live }), &words)
}

/// Copy a snapshot between stores.
pub fn copy(name: &SnapshotName, from: String, to: String, json: bool) -> Result<()> {
    let from = open(&address_of(Some(from))?, Access::Read, Class::Bulk)?;
    let to = open(&address_of(Some(to))?, Access::Write, Class::Bulk)?;
    let bar = bar(0, "{bar:40} {pos}/{len} chunks copied");
    let report = store::copy(from.as_ref(), to.as_ref(), name, &|done, of| {
        bar.set_length(of);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report?;
    let CopyReport { chunks, copied, bytes } = report;
    let line = json!({ "name": name.to_string(), "chunks": chunks, "copied": copied, "bytes": bytes });
    show(json, &line, &format_args!("{name}: {copied} of {chunks} chunks copied ({bytes} bytes), the others were there"))
}

/// Free what nothing needs.
pub fn gc(store: StoreArg, json: bool) -> Result<()> {
    let GcReport { packs, bytes, kept_packs, kept_bytes, unreadable } = open_named(store, Access::Write)?.gc()?;
    let line = json!({ "packs": packs, "bytes": bytes, "kept_packs": kept_packs, "kept_bytes": kept_bytes, "unreadable": unreadable });
    let mut words = format!("freed {bytes} bytes in {packs} packs");
    if kept_packs > 0 {
        let why = "an upload that is not committed relies on them: collect again in 10 minutes";
        words += &format!("; {kept_bytes} bytes in {kept_packs} packs stay, as {why}");
    }
    if unreadable > 0 {
        words += &format!("; no image was collected, as {unreadable} names cannot be read: `defrost list` marks them, remove them first");
    }
    show(json, &line, &words)
}
