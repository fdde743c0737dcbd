//! Real programs frozen and brought back lazily: every byte they hold is compared.

use anyhow::Result;
use defrost_tests::redis::Redis;
use defrost_tests::{Server, Victim, checkpoint, defrost_ok, need_root, restore, restore_with};

const VALUES: usize = 200_000;
/// Restores of one snapshot in a row.
const RESTORES: usize = 10;

/// Eight threads, each hashing dictionaries of its own against the digest they had at first.
const THREADS: &str = r#"
import threading, hashlib
data = [[{"thread": t, "item": i, "name": "item-%08d" % i, "bytes": bytes([t]) * (i % 97)} for i in range(20000)] for t in range(8)]
def digest(t):
    sum = hashlib.sha256()
    for item in data[t]:
        sum.update(repr(sorted(item.items())).encode())
    return sum.hexdigest()
wanted = [digest(t) for t in range(8)]
def work(t):
    while True:
        print("right" if digest(t) == wanted[t] else "WRONG", t, flush=True)
threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
[t.start() for t in threads]
"#;

#[test]
fn redis_keeps_every_value_in_an_embedded_store() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut redis = Redis::start(VALUES)?;
    checkpoint(&mut redis.victim, "redis", &store)?;
    restore(&redis.victim, "redis", &store)?;
    redis.compare(VALUES)?;
    redis.victim.end()?;
    restore_with(&redis.victim, "redis", &store, &["--eager"])?;
    redis.compare(VALUES)
}

#[test]
fn redis_keeps_every_value_over_grpc_in_ten_restores_of_one_snapshot() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut redis = Redis::start(VALUES)?;
    checkpoint(&mut redis.victim, "redis", &server.store())?;
    for _ in 0..RESTORES {
        restore(&redis.victim, "redis", &server.store())?;
        redis.compare(VALUES)?;
        redis.victim.end()?;
    }
    Ok(())
}

#[test]
fn redis_goes_through_checkpoint_and_restore_twice_and_takes_writes_in_between() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut redis = Redis::start(VALUES / 2)?;
    checkpoint(&mut redis.victim, "redis:1", &server.store())?;
    restore(&redis.victim, "redis:1", &server.store())?;
    redis.compare(VALUES / 2)?;
    redis.load(VALUES / 2..VALUES)?;
    let pid = redis.victim.pid().to_string();
    defrost_ok(&["wait", &pid])?;
    defrost_ok(&["checkpoint", &pid, "redis:2", "--store", &server.store()])?;
    redis.victim.end()?;
    restore(&redis.victim, "redis:2", &server.store())?;
    redis.compare(VALUES)
}

#[test]
fn python_keeps_eight_busy_threads_through_two_rounds() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut python = Victim::python(THREADS)?;
    let goes_on =
        |python: &Victim| (0..8).try_for_each(|t| python.wait_for(&format!("right {t}"), python.count(&format!("right {t}")) + 2));
    goes_on(&python)?;
    checkpoint(&mut python, "python:1", &server.store())?;
    restore(&python, "python:1", &server.store())?;
    goes_on(&python)?;
    let pid = python.pid().to_string();
    defrost_ok(&["wait", &pid])?;
    defrost_ok(&["checkpoint", &pid, "python:2", "--store", &server.store()])?;
    python.end()?;
    restore(&python, "python:2", &server.store())?;
    goes_on(&python)?;
    assert_eq!(python.count("WRONG"), 0, "{}", python.output());
    Ok(())
}
