//! What a store holds: listed, verified, removed, copied, collected.

use super::{address_of, bar, open, open_named, show};
use crate::cli::{OneSnapshot, StoreArg};
use anyhow::{Context as _, Result};
use images::codec::{Decoder, Verified};
use images::{Image, PageMap};
use pages::SnapshotName;
use serde_json::json;
use store::{Access, Class, CopyReport, sound_chunk};

/// All names.
pub fn list(store: StoreArg, json: bool) -> Result<()> {
    for snapshot in open_named(store, Access::Read)?.list()? {
        let (name, id) = (snapshot.name.to_string(), snapshot.id.to_string());
        let line = json!({ "name": name, "id": id, "chunks": snapshot.chunks, "created_unix_s": snapshot.created_unix_s });
        show(json, &line, &format_args!("{name}  {id}  {} chunks", snapshot.chunks))?;
    }
    Ok(())
}

/// Decode and check every chunk.
pub fn verify(one: OneSnapshot) -> Result<()> {
    let (name, store) = (one.name, open_named(one.store, Access::Read)?);
    let image = Image::parse(&store.image(&store.resolve(&name)?)?).with_context(|| format!("snapshot {name}"))?;
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
    let report = json!({ "name": name.to_string(), "chunks": chunks, "memory_bytes": bytes, "whole": true });
    show(one.json, &report, &format_args!("{name}: {chunks} chunks are whole"))
}

/// Forget a name.
pub fn remove(one: OneSnapshot) -> Result<()> {
    open_named(one.store, Access::Write)?.remove(&one.name)?;
    show(one.json, &json!({ "removed": one.name.to_string() }), &format_args!("{} is removed; gc frees its space", one.name))
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
    let report = open_named(store, Access::Write)?.gc()?;
    let line = json!({ "packs": report.packs, "bytes": report.bytes });
    show(json, &line, &format_args!("freed {} bytes in {} packs", report.bytes, report.packs))
}
