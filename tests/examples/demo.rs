//! The whole story on this machine: a redis-server frozen, stored on a page server, ended, restored lazily, and compared.

use anyhow::Result;
use defrost_tests::redis::Redis;
use defrost_tests::{Server, checkpoint, defrost_ok, need_root, restore};
use std::time::Instant;

const VALUES: usize = 700_000;

fn main() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    println!("page server at {}", server.store());
    println!("loading redis-server with {VALUES} values …");
    let mut redis = Redis::start(VALUES)?;
    let begun = Instant::now();
    checkpoint(&mut redis.victim, "demo", &server.store())?;
    println!("frozen, stored and ended in {:.2?}", begun.elapsed());
    let begun = Instant::now();
    restore(&redis.victim, "demo", &server.store())?;
    redis.compare(1)?;
    println!("restored; the first value was right {:.1?} after the command began", begun.elapsed());
    let pid = redis.victim.pid().to_string();
    print!("{}", defrost_ok(&["status", &pid])?);
    defrost_ok(&["wait", &pid])?;
    println!("all memory is there {:.2?} after the command began", begun.elapsed());
    redis.compare(VALUES)?;
    println!("contents identical: all {VALUES} values compared");
    Ok(())
}
