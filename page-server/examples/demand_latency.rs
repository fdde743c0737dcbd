//! How long a demand request takes, alone and while a bulk client reads all it can: `demand_latency ADDRESS [REQUESTS]`.
//!
//! Uploads chunks of 4, 16 and 64 KiB of random bytes to the server at ADDRESS and asks for one after the other, as a pager's fault
//! loop does; prints the median, the 99th percentile, and what bulk got meanwhile. Nothing is committed: `defrost gc` frees it all.
//! docs/decisions/0004 has figures.

use anyhow::{Context as _, Result};
use pages::ChunkId;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use store::{Class, Options, RemoteStore, Store};

const SIZES_KIB: [usize; 3] = [4, 16, 64];
/// Chunks of each size.
const CHUNKS: usize = 512;
/// Bulk clients, as when several processes are restored at once, and requests that each keeps under way.
const CLIENTS: usize = 3;
const UNDER_WAY: usize = 2;
/// Chunks of a bulk request: 1 MiB of 16 KiB frames.
const RUN: usize = 64;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let address = args.next().context("demand_latency ADDRESS [REQUESTS]")?.parse()?;
    let requests: usize = args.next().map_or(Ok(2000), |text| text.parse())?;
    let demand = RemoteStore::open_with(&address, &Options { class: Class::Demand, ca_pem: None })?;
    let connect = || RemoteStore::open_with(&address, &Options { class: Class::Bulk, ca_pem: None });
    let clients = (0..CLIENTS).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut stored = Vec::new();
    for kib in SIZES_KIB {
        let mut upload = clients[0].upload()?;
        let mut ids = Vec::new();
        for _ in 0..CHUNKS {
            let raw: Vec<u8> = (0..kib * 1024).map(|_| random.u8(..)).collect();
            let id = images::chunk_id(&raw);
            upload.put(id, images::codec::Encoder::new(1).encode(&raw)?)?;
            ids.push(id);
        }
        upload.finish()?;
        stored.push(ids);
    }
    println!("| frames | alone p50 / p99 | under bulk p50 / p99 | bulk |");
    println!("|---|---|---|---|");
    for (kib, ids) in SIZES_KIB.iter().zip(&stored) {
        let alone = measure(&demand, ids, requests)?;
        let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
        let runs = &stored[1];
        let (under, rate) = std::thread::scope(|scope| {
            for thread in 0..CLIENTS * UNDER_WAY {
                let (bulk, stop, bytes) = (&clients[thread % CLIENTS], &stop, &bytes);
                scope.spawn(move || {
                    for run in runs.chunks(RUN).cycle().skip(thread).take_while(|_| !stop.load(Ordering::Relaxed)) {
                        let Ok(frames) = bulk.frames(run) else { break };
                        bytes.fetch_add(frames.iter().map(|frame| frame.len() as u64).sum(), Ordering::Relaxed);
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(200));
            let (begun, before) = (Instant::now(), bytes.load(Ordering::Relaxed));
            let under = measure(&demand, ids, requests);
            let rate = (bytes.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64() / 1e9;
            stop.store(true, Ordering::Relaxed);
            (under, rate)
        });
        let under = under?;
        println!("| {kib} KiB | {} / {} µs | {} / {} µs | {rate:.2} GB/s |", alone.0, alone.1, under.0, under.1);
    }
    Ok(())
}

/// Median and 99th percentile of requests one after the other, in microseconds.
fn measure(demand: &RemoteStore, ids: &[ChunkId], requests: usize) -> Result<(u128, u128)> {
    let mut us = Vec::with_capacity(requests);
    for id in ids.iter().cycle().take(requests + 50) {
        let begun = Instant::now();
        demand.frame(id)?;
        us.push(begun.elapsed().as_micros());
    }
    let mut us = us.split_off(50); // the first warm up
    us.sort_unstable();
    Ok((us[us.len() / 2], us[us.len() * 99 / 100]))
}
