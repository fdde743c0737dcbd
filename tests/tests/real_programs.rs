//! Real programs frozen and brought back lazily: every byte they hold is compared.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::redis::Redis;
use defrost_tests::{Server, Victim, checkpoint, defrost_ok, need_root, restore, restore_with};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// Values that redis holds; `DEFROST_REDIS_VALUES` makes it another number.
fn values() -> usize {
    std::env::var("DEFROST_REDIS_VALUES").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000)
}

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

/// Objects, strings and buffers of node's, digested again and again; the digest is also served to whoever asks on the port given.
const NODE: &str = r#"
const crypto = require('crypto'), http = require('http');
const data = Array.from({length: 20000}, (_, i) => ({
    name: 'item-' + i,
    bytes: crypto.createHash('sha512').update('seed ' + i).digest(),
    numbers: Array.from({length: 50}, (_, k) => i * k),
}));
function digest() {
    const sum = crypto.createHash('sha256');
    for (const item of data) sum.update(item.name).update(item.bytes).update(JSON.stringify(item.numbers));
    return sum.digest('hex');
}
const wanted = digest();
setInterval(() => console.log(digest() === wanted ? 'right' : 'WRONG'), 50);
http.createServer((_, answer) => answer.end(digest() === wanted ? 'right' : 'WRONG')).listen(0, '127.0.0.1', function () {
    console.log('port ' + this.address().port);
});
"#;

#[test]
fn redis_keeps_every_value_in_an_embedded_store() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut redis = Redis::start(values())?;
    checkpoint(&mut redis.victim, "redis", &store)?;
    restore(&redis.victim, "redis", &store)?;
    redis.compare(values())?;
    redis.victim.end()?;
    restore_with(&redis.victim, "redis", &store, &["--eager"])?;
    redis.compare(values())
}

#[test]
fn redis_keeps_every_value_over_grpc_in_ten_restores_of_one_snapshot() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut redis = Redis::start(values())?;
    checkpoint(&mut redis.victim, "redis", &server.store())?;
    for _ in 0..RESTORES {
        restore(&redis.victim, "redis", &server.store())?;
        redis.compare(values())?;
        redis.victim.end()?;
    }
    Ok(())
}

#[test]
fn redis_goes_through_checkpoint_and_restore_twice_and_takes_writes_in_between() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut redis = Redis::start(values() / 2)?;
    checkpoint(&mut redis.victim, "redis:1", &server.store())?;
    restore(&redis.victim, "redis:1", &server.store())?;
    redis.compare(values() / 2)?;
    redis.load(values() / 2..values())?;
    let pid = redis.victim.pid().to_string();
    defrost_ok(&["wait", &pid])?;
    defrost_ok(&["checkpoint", &pid, "redis:2", "--store", &server.store()])?;
    redis.victim.end()?;
    restore(&redis.victim, "redis:2", &server.store())?;
    redis.compare(values())
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

#[test]
fn node_keeps_its_objects_and_answers_on_its_port() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut node = Victim::start("/usr/bin/node", &["-e", NODE])?;
    node.wait_for("right", 1)?;
    let output = node.output();
    let port = output.lines().find_map(|line| line.strip_prefix("port ")?.parse::<u16>().ok()).context("its port")?;
    checkpoint(&mut node, "node", &server.store())?;
    for _ in 0..2 {
        restore(&node, "node", &server.store())?;
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.ends_with("\r\n\r\nright"), "{answer}");
        node.wait_for("right", node.count("right") + 2)?;
        ensure!(node.count("WRONG") == 0, "{}", node.output());
        node.end()?;
    }
    Ok(())
}
