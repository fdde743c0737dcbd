//! Services as people run them: frozen under load, brought back lazily over gRPC, and everything that they hold compared.
//!
//! Redis, node and Python's threads are in `real_programs`, programs of a whole screen in `terminals`. Debian has no .NET.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Server, Victim, binaries, checkpoint, defrost_ok, eventually, need_root, restore};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A page server over a store of its own.
fn served() -> Result<(TempDir, Server)> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    Ok((folder, server))
}

/// Frozen and brought back twice, the second time from what was brought back; `goes_on` finds it right each time.
fn twice(victim: &mut Victim, mut goes_on: impl FnMut(&Victim) -> Result<()>) -> Result<()> {
    let (_folder, server) = served()?;
    goes_on(victim).context("before")?;
    checkpoint(victim, "service:1", &server.store())?;
    restore(victim, "service:1", &server.store())?;
    goes_on(victim).context("brought back")?;
    let pid = victim.pid().to_string();
    defrost_ok(&["wait", &pid])?;
    defrost_ok(&["checkpoint", &pid, "service:2", "--store", &server.store()])?;
    victim.end()?;
    restore(victim, "service:2", &server.store())?;
    goes_on(victim).context("brought back again")
}

/// It says `right` three times more, and has never said `WRONG`.
fn says_right(victim: &Victim) -> Result<()> {
    victim.wait_for("right", victim.count("right") + 3)?;
    ensure!(victim.count("WRONG") == 0, "{}", victim.output());
    Ok(())
}

/// Run a program to its end; yields what it says.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Scheduled work at fixed times of CLOCK_MONOTONIC, a pool of parked threads, a heap that is summed and renewed.
const TICK: &str = r#"
import java.util.concurrent.*;
public class Tick {
    public static void main(String[] a) throws Exception {
        long[][] heap = new long[256][32768];
        for (int i = 0; i < heap.length; i++) for (int j = 0; j < heap[i].length; j++) heap[i][j] = i * 31L + j;
        long wanted = sum(heap);
        var pool = Executors.newFixedThreadPool(50);
        var latch = new CountDownLatch(1);
        for (int i = 0; i < 50; i++) pool.submit(() -> { latch.await(); return 0; });
        int[] n = {0};
        Executors.newSingleThreadScheduledExecutor().scheduleAtFixedRate(() -> {
            heap[n[0]++ % heap.length] = heap[n[0] % heap.length].clone();
            for (int j = 0; j < 32768; j++) heap[(n[0] - 1) % heap.length][j] = (n[0] - 1) % heap.length * 31L + j;
            System.out.println(sum(heap) == wanted && Thread.activeCount() > 50 ? "right" : "WRONG");
        }, 0, 100, TimeUnit.MILLISECONDS);
    }
    static long sum(long[][] heap) {
        long sum = 0;
        for (long[] row : heap) for (long v : row) sum = sum * 31 + v;
        return sum;
    }
}
"#;

fn jvm(collector: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("Tick.java"), TICK)?;
    output(Command::new("javac").arg("Tick.java").current_dir(folder.path()))?;
    let mut java = Victim::start_prepared(folder, "/usr/bin/java", &[collector, "-Xmx256m", "Tick"])?;
    twice(&mut java, says_right)
}

#[test]
fn a_jvm_with_g1_goes_on() -> Result<()> {
    jvm("-XX:+UseG1GC")
}

#[test]
fn a_jvm_with_zgc_goes_on() -> Result<()> {
    jvm("-XX:+UseZGC")
}

/// Threads that sum, handlers of signals of its own, and one on an alternate stack.
const SIGNALS: &str = r#"
import faulthandler, hashlib, os, signal, threading, time
faulthandler.enable()
faulthandler.register(signal.SIGUSR2)
got = []
for number in signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM:
    signal.signal(number, lambda number, frame: got.append(number))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
data = [os.urandom(1 << 20) for _ in range(8)]
wanted = [hashlib.sha256(one).digest() for one in data]
sums = [0] * 8
def work(t):
    while True:
        if hashlib.sha256(data[t]).digest() != wanted[t]: print("WRONG", t, flush=True)
        sums[t] += 1
[threading.Thread(target=work, args=(t,), daemon=True).start() for t in range(8)]
while True:
    done = list(sums)
    time.sleep(0.2)
    while got and got[0] == signal.SIGALRM: got.pop(0)
    for number in [n for n in got if n != signal.SIGALRM]:
        print("signal", number, flush=True)
        got.remove(number)
    print("right" if all(a > b for a, b in zip(sums, done)) else "late", flush=True)
"#;

#[test]
fn python_with_threads_and_signal_handlers_goes_on() -> Result<()> {
    python_goes_on(SIGNALS)
}

/// As most are: without an alternate stack, which faulthandler sets.
#[test]
fn python_without_an_alternate_stack_goes_on() -> Result<()> {
    python_goes_on(&SIGNALS.replace("faulthandler.enable()\nfaulthandler.register(signal.SIGUSR2)\n", TRACE))
}

/// What stands in for faulthandler: the same words, from a handler in Python.
const TRACE: &str = "signal.signal(signal.SIGUSR2, lambda number, frame: print('Current thread', flush=True))\n";

fn python_goes_on(text: &str) -> Result<()> {
    let mut python = Victim::python(text)?;
    python.wait_for("right", 1)?;
    twice(&mut python, |python| {
        for signal in [Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGHUP] {
            let line = format!("signal {}", signal as i32);
            let before = python.count(&line);
            kill(Pid::from_raw(python.pid() as i32), signal)?;
            python.wait_for(&line, before + 1)?;
        }
        let before = python.count("Current thread");
        kill(Pid::from_raw(python.pid() as i32), Signal::SIGUSR2)?;
        python.wait_for("Current thread", before + 1)?;
        says_right(python)
    })
}

/// A database of many pages, in a journal that each connection holds locks of.
const WAL: &str = r#"
import sqlite3, time
db = sqlite3.connect("wal.db", isolation_level=None)
db.execute("pragma journal_mode=wal")
db.execute("create table t(n integer, text)")
n = 0
while True:
    db.execute("begin")
    db.executemany("insert into t values(?, ?)", ((i, "row %d" % i) for i in range(n, n + 100)))
    db.execute("commit")
    n += 100
    right = db.execute("select count(*), sum(n) from t").fetchone() == (n, n * (n - 1) // 2)
    right = right and db.execute("pragma quick_check").fetchone() == ("ok",)
    right = right and db.execute("select count(*) from t where text != 'row ' || n").fetchone() == (0,)
    print("right" if right else "WRONG", flush=True)
    time.sleep(0.02)
"#;

#[test]
fn sqlite_in_wal_mode_goes_on() -> Result<()> {
    let mut python = Victim::python(WAL)?;
    twice(&mut python, says_right)?;
    // Another process finds the same, and the locks held.
    let count = output(Command::new("/usr/bin/python3").current_dir(python.folder()).args([
        "-c",
        "import sqlite3; print(sqlite3.connect('wal.db', timeout=20).execute('select count(*) % 100 from t').fetchone()[0])",
    ]))?;
    ensure!(count.trim() == "0", "{count}");
    Ok(())
}

#[test]
fn tail_follows_its_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let followed = folder.path().join("followed");
    std::fs::write(&followed, "line 1\n")?;
    let mut tail = Victim::start("/usr/bin/tail", &["-f", &followed.to_string_lossy()])?;
    let mut lines = 1;
    twice(&mut tail, |tail| {
        tail.wait_for("line", lines)?;
        for _ in 0..100 {
            lines += 1;
            writeln!(std::fs::File::options().append(true).open(&followed)?, "line {lines}")?;
        }
        tail.wait_for("line", lines)?;
        ensure!(tail.output() == std::fs::read_to_string(&followed)?, "{}", tail.output());
        Ok(())
    })
}

/// A ticker, goroutines that wait, a heap of maps, random bytes and a listener.
const GO: &str = r#"
package main

import (
	"crypto/rand"
	"fmt"
	"net"
	"time"
)

func main() {
	m := map[int][]byte{}
	for i := 0; i < 100000; i++ {
		m[i] = []byte(fmt.Sprint("value ", i))
	}
	listener, _ := net.Listen("tcp", "127.0.0.1:0")
	fmt.Println("port", listener.Addr().(*net.TCPAddr).Port)
	go func() {
		for {
			connection, _ := listener.Accept()
			fmt.Fprintln(connection, "hello")
			connection.Close()
		}
	}()
	for i := 0; i < 1000; i++ {
		go func() { select {} }()
	}
	seen := map[string]bool{}
	for range time.Tick(100 * time.Millisecond) {
		right := true
		for i := range m {
			right = right && string(m[i]) == fmt.Sprint("value ", i)
		}
		b := make([]byte, 16)
		rand.Read(b)
		right = right && !seen[string(b)]
		seen[string(b)] = true
		if right {
			fmt.Println("right")
		} else {
			fmt.Println("WRONG")
		}
	}
}
"#;

#[test]
fn go_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("ticker.go"), GO)?;
    let cache = binaries()?.join("go-cache");
    output(Command::new("go").args(["build", "ticker.go"]).current_dir(folder.path()).env("GOCACHE", cache).env("GOFLAGS", "-mod=mod"))?;
    let program = folder.path().join("ticker").to_string_lossy().into_owned();
    let mut go = Victim::start_prepared(folder, &program, &[])?;
    twice(&mut go, |go| {
        says_right(go)?;
        let output = go.output();
        let port: u16 = output.lines().find_map(|line| line.strip_prefix("port ")?.parse().ok()).context("its port")?;
        let mut line = String::new();
        BufReader::new(TcpStream::connect(("127.0.0.1", port))?).read_line(&mut line)?;
        ensure!(line == "hello\n", "{line}");
        Ok(())
    })
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Fetch a file over HTTP.
fn get(port: u16, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").context("a header")?;
    Ok(answer.split_off(body + 4))
}

/// As systemd starts a service: another user, nothing to read, standard output and error a socket to the journal.
#[test]
fn nginx_without_a_master_goes_on() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let (port, root) = (free_port()?, folder.path().display().to_string());
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].iter().map(|name| format!("{name}_temp_path {root}/{name};\n")).collect();
    let config = format!(
        "daemon off; master_process off; pid {root}/pid; error_log stderr notice;\nevents {{}}\n\
         http {{ access_log {root}/access.log;\n{temporary}server {{ listen 127.0.0.1:{port}; root {root}/www; }} }}\n"
    );
    std::fs::write(folder.path().join("nginx.conf"), config)?;
    std::fs::create_dir(folder.path().join("www"))?;
    let contents: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1 << 20).collect();
    std::fs::write(folder.path().join("www/file"), &contents)?;
    let (journal, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    let streams = [Stdio::null(), theirs.try_clone()?.into(), theirs.into()];
    let config = format!("{root}/nginx.conf");
    let user = ["--reuid=www-data", "--regid=www-data", "--clear-groups"];
    let nginx = [&user[..], &["/usr/sbin/nginx", "-e", "stderr", "-c", &config]].concat();
    let mut nginx = Victim::start_with_streams(streams, "/usr/bin/setpriv", &nginx)?;
    eventually("nginx answers", || get(port, "/file").is_ok())?;
    twice(&mut nginx, |_| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let contents = contents.clone();
                std::thread::spawn(move || (0..25).all(|_| get(port, "/file").is_ok_and(|found| found == contents)))
            })
            .collect();
        ensure!(clients.into_iter().all(|client| client.join().unwrap_or(false)), "an answer was wrong");
        Ok(())
    })?;
    drop(journal);
    Ok(())
}

/// Ask a MariaDB server.
fn sql(folder: &Path, statement: &str) -> Result<String> {
    let mut client = Command::new("/usr/bin/mariadb");
    client.arg("--no-defaults").arg("--socket").arg(folder.join("socket")).args([
        "--user=root",
        "--batch",
        "--skip-column-names",
        "-e",
        statement,
    ]);
    output(&mut client)
}

/// With its own asynchronous I/O off: that is io_uring, which is refused by name.
#[test]
fn mariadb_keeps_its_tables() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let data = format!("--datadir={}", folder.path().join("data").display());
    output(Command::new("/usr/bin/mariadb-install-db").args([
        "--no-defaults",
        &data,
        "--user=root",
        "--auth-root-authentication-method=normal",
    ]))?;
    let socket = format!("--socket={}", folder.path().join("socket").display());
    let args = ["--no-defaults", &data, &socket, "--user=root", "--skip-networking", "--innodb-use-native-aio=0"];
    let mut server = Victim::start_prepared(folder, "/usr/sbin/mariadbd", &args)?;
    eventually("mariadbd answers", || sql(server.folder(), "select 1").is_ok()).with_context(|| server.output())?;
    sql(server.folder(), "create database d; create table d.t (n int primary key, text varchar(40)) engine=innodb")?;
    let mut rows = 0_u32;
    twice(&mut server, |server| {
        let (from, to) = (rows + 1, rows + 20_000);
        sql(server.folder(), &format!("use d; insert into t select seq, md5(seq) from seq_{from}_to_{to}"))?;
        rows = to;
        let found = sql(server.folder(), "select count(*), sum(n), sum(crc32(text) != crc32(md5(n))) from d.t; check table d.t")?;
        let wanted = format!("{rows}\t{}\t0\nd.t\tcheck\tstatus\tOK\n", u64::from(rows) * u64::from(rows + 1) / 2);
        ensure!(found == wanted, "{found:?} instead of {wanted:?}");
        Ok(())
    })
}
