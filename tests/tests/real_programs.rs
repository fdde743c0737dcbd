//! Real programs frozen and brought back lazily: every byte they hold is compared.

use anyhow::Result;
use defrost_tests::redis::Redis;
use defrost_tests::{Server, Victim, checkpoint, need_root, restore, round_trip};

const VALUES: usize = 200_000;

/// Eight threads, each hashing data of its own against the digest it had at first.
const THREADS: &str = r#"
import threading, hashlib
data = [[bytes([t]) * 3000 + str(i).encode() for i in range(4000)] for t in range(8)]
digest = lambda t: hashlib.sha256(b"".join(data[t])).hexdigest()
def work(t):
    want, rounds = digest(t), 0
    while True:
        rounds += 1
        if digest(t) != want:
            print("WRONG", t, flush=True)
        elif rounds % 10 == 0:
            print("right", flush=True)
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
    redis.compare(VALUES)
}

#[test]
fn redis_keeps_every_value_over_grpc_in_three_restores_of_one_snapshot() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut redis = Redis::start(VALUES)?;
    checkpoint(&mut redis.victim, "redis", &server.store())?;
    for _ in 0..3 {
        restore(&redis.victim, "redis", &server.store())?;
        redis.compare(VALUES)?;
        redis.victim.end()?;
    }
    restore(&redis.victim, "redis", &server.store())?;
    redis.compare(VALUES)
}

#[test]
fn python_keeps_eight_busy_threads_through_two_rounds() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut python = Victim::python(THREADS)?;
    python.wait_for("right", 8)?;
    round_trip(&mut python, "python:1", &store)?;
    python.wait_for("right", python.output().lines().count() + 16)?;
    defrost_tests::defrost_ok(&["wait", &python.pid().to_string()])?;
    defrost_tests::defrost_ok(&["checkpoint", &python.pid().to_string(), "python:2", "--store", &store])?;
    restore(&python, "python:2", &store)?;
    python.wait_for("right", python.output().lines().count() + 16)?;
    assert!(!python.output().contains("WRONG"), "{}", python.output());
    Ok(())
}
