//! Memory of your own that a snapshot fills when it is touched: `cargo run -p defrost-pager --example lazy_memory -- STORE NAME`
//! prints the digest of the first region of a snapshot, with pages coming in the order they are read and others behind them.
use images::chunk_id;
use kernel::lazy_memory::LazyMemory;
use pager::frontend::{Arrival, Failure, FrontEnd, Mapped, Places, Recall, Snapshot, serve};
use pages::PageRange;
use std::collections::VecDeque;
use store::Access;
extern crate defrost_pager as pager;

/// All that happens is known beforehand.
struct Script(VecDeque<Arrival>);

impl FrontEnd for Script {
    fn next(&mut self) -> Result<Option<Arrival>, Failure> {
        Ok(self.0.pop_front())
    }
}

/// The contents of a snapshot's first region.
pub fn contents(store: &str, name: &str) -> Result<Vec<u8>, Failure> {
    let store = store::open(store, Access::Read)?;
    let snapshot = Snapshot::open(&name.parse()?, store.as_ref())?;
    let region = snapshot.image().manifest.regions.first().ok_or("the snapshot has no memory")?;
    let region = PageRange::from_addrs(region.start, region.end).ok_or("its first region is no pages")?;

    // Map as much memory as it has, and say which of its pages go where.
    let (memory, uffd) = LazyMemory::map(region.pages())?;
    let mapped = vec![Mapped { at: memory.range(), from: region.start() }];
    let script = Script(VecDeque::from([Arrival::Memory(snapshot.memory(0, uffd, &mapped)), Arrival::Complete]));

    // One store for pages that somebody waits for, one for all others. With a server, give each a connection of its own.
    let places = Places::new(mapped.into_iter().map(|mapped| (0, mapped)));
    let sources = snapshot.sources(places, store.clone(), store, Recall::NONE);
    let serving = std::thread::spawn(move || serve(script, sources));

    // From here on it is memory like any other.
    let mut bytes = vec![0; region.bytes() as usize];
    memory.read(0, &mut bytes);
    eprintln!("{:?}", serving.join().map_err(|_| "the pager panicked")??);
    Ok(bytes)
}

#[allow(dead_code, reason = "a test calls what it calls")]
fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [store, name] = words.as_slice() else { return Err("name a store and a snapshot".into()) };
    println!("{}", chunk_id(&contents(store, name)?));
    Ok(())
}
