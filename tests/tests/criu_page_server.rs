//! CRIU's page-server protocol, with the real CRIU on the other end: our daemon pulls from its page server and from a frozen process, its
//! daemon pulls from our server; a server that lies ends in no wrong byte; what passed becomes a snapshot.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::criu::{self, Between, Dumped, LazyPages, Live, RoomForPipes, free_port, in_a_namespace};
use defrost_tests::guarded::is_zombie;
use defrost_tests::live_pager::waits_for_pager;
use defrost_tests::redis::Redis;
use defrost_tests::small_disk::SmallDisk;
use defrost_tests::{Server, Victim, binary, defrost_fails, defrost_ok, eventually, need_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// CRIU's page server with what a folder has; it ends with its first client.
fn real_server(images: &Path) -> Result<(LazyPages, String)> {
    let port = free_port()?.to_string();
    let mut command = Command::new(criu::program()?);
    command.args(["page-server", "--lazy-pages", "--address", "127.0.0.1", "--port", &port, "-o", "page-server.log", "-D"]).arg(images);
    Ok((LazyPages::ready(command)?, format!("127.0.0.1:{port}")))
}

/// CRIU's lazy-pages daemon, which pulls from a page server.
fn real_daemon(images: &Path, address: &str) -> Result<LazyPages> {
    let (host, port) = address.rsplit_once(':').context("host and port")?;
    let mut command = Command::new(criu::program()?);
    command.args(["lazy-pages", "--page-server", "--address", host, "--port", port, "-o", "lazy-pages.log", "-D"]).arg(images);
    LazyPages::ready(command)
}

/// Our page server with these pages.
fn our_server(how: &[&str]) -> Result<(LazyPages, String)> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let mut command = Command::new(binary("defrost")?);
    command.args(["pager", "criu-page-server", "--listen", &address]).args(how).env("RUST_LOG", "info");
    Ok((LazyPages::ready(command)?, address))
}

/// Our daemon, which pulls from a page server.
fn our_daemon(images: &Path, address: &str, how: &[&str]) -> Result<LazyPages> {
    let images_text = images.display().to_string();
    LazyPages::start(images, &[&["--images", &images_text, "--page-server", address], how].concat())
}

#[test]
fn our_daemon_pulls_from_the_real_page_server() -> Result<()> {
    let mut dumped = Dumped::tree(16)?;
    let (_room, images) = (RoomForPipes::make()?, dumped.images());
    // A parent's pages are here, and all others there.
    for parents in [false, true] {
        if parents {
            criu::split(&images, &dumped.path("before"))?;
        }
        let (server, address) = real_server(&images)?;
        let said = dumped.proves(&images, &images, our_daemon(&images, &address, &[])?)?;
        ensure!(LazyPages::number(&said, "demand_faults")? > 0, "nothing was lazy: {said}");
        server.has_served().with_context(|| std::fs::read_to_string(images.join("page-server.log")).unwrap_or_default())?;
    }
    Ok(())
}

#[test]
fn redis_answers_with_every_value_from_the_real_page_server() -> Result<()> {
    const VALUES: usize = 40_000;
    need_root()?;
    let (_room, folder) = (RoomForPipes::make()?, tempfile::tempdir()?);
    let (images, mut redis) = (folder.path().join("images"), Redis::start(VALUES)?);
    criu::dump(&redis.victim, &images, &[])?;
    redis.victim.reap()?;
    let (server, address) = real_server(&images)?;
    let daemon = our_daemon(&images, &address, &[])?;
    criu::restore_with(&images, &images, &["--lazy-pages"])?;
    redis.compare(VALUES)?;
    daemon.has_served()?;
    server.has_served()?;
    redis.victim.end()
}

#[test]
fn the_real_daemon_pulls_from_ours() -> Result<()> {
    let mut dumped = Dumped::tree(16)?;
    let images = dumped.images();
    let images_text = images.display().to_string();
    let (server, address) = our_server(&["--images", &images_text])?;
    // One client after the other, and two at a time.
    for _ in 0..2 {
        let idle = TcpStream::connect(&address)?;
        let daemon = real_daemon(&images, &address)?;
        dumped.proves(&images, &images, daemon).with_context(|| server.said())?;
        drop(idle);
    }
    // Not with parents: CRIU's daemon then waits for ever, with its own page server as well.
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGTERM)?;
    let said = server.has_served()?;
    ensure!(said.contains("clients=4"), "{said}");
    Ok(())
}

#[test]
fn the_real_daemon_pulls_from_a_store() -> Result<()> {
    let mut dumped = Dumped::tree(16)?;
    let store = Server::start(&dumped.path("store"))?;
    let (images, lazy) = (dumped.images(), dumped.path("lazy"));
    defrost_ok(&["import", "criu", &images.display().to_string(), "tree", "--store", &store.store()])?;
    defrost_ok(&["export", "criu", "tree", &lazy.display().to_string(), "--lazy", "--store", &store.store()])?;
    std::fs::remove_dir_all(&images)?;
    let (server, address) = our_server(&["--snapshot", "tree", "--store", &store.store()])?;
    let daemon = real_daemon(&lazy, &address)?;
    dumped.proves(&lazy, &lazy, daemon).with_context(|| server.said())?;
    // And so does ours, which has the same folder without the pages.
    let daemon = our_daemon(&lazy, &address, &[])?;
    dumped.proves(&lazy, &lazy, daemon).map(drop)
}

#[test]
fn a_criu_whose_page_server_is_ours_behaves_as_criu() -> Result<()> {
    let mut dumped = Dumped::tree(4)?;
    let (images, work) = (dumped.images(), dumped.path("work"));
    std::fs::create_dir(&work)?;
    let port = free_port()?.to_string();
    let ours = |args: &[&str]| -> Result<Command> {
        let mut command = Command::new(binary("defrost-criu")?);
        command.args(args).args(["--address", "127.0.0.1", "--port", &port, "-v4"]).arg("-D").arg(&images).arg("-W").arg(&work);
        Ok(command)
    };
    let server = LazyPages::ready(ours(&["page-server", "--lazy-pages", "-o", "server.log"])?)?;
    let daemon = LazyPages::ready(ours(&["lazy-pages", "--page-server", "-o", "lazy.log"])?)?;
    dumped.proves(&images, &work, daemon)?;
    server.has_served()?;
    let log = std::fs::read_to_string(work.join("server.log"))?;
    ensure!(log.contains("session over"), "{log}");
    // In the background as well, and a client that makes no sense is an error of the session.
    let pidfile = dumped.path("pid").display().to_string();
    let begun = ours(&["page-server", "--lazy-pages", "-d", "--pidfile", &pidfile, "-o", "again.log"])?.status()?;
    ensure!(begun.success(), "{begun}");
    let proc = Path::new("/proc").join(std::fs::read_to_string(&pidfile)?.trim());
    TcpStream::connect(format!("127.0.0.1:{port}"))?.write_all(&[0xff; 32])?;
    eventually("the server ends", || !proc.exists())?;
    let log = std::fs::read_to_string(work.join("again.log"))?;
    ensure!(log.contains("command 0xffff"), "{log}");
    Ok(())
}

#[test]
fn whoever_asks_our_server_for_what_there_is_not_is_hung_up_on() -> Result<()> {
    let dumped = Dumped::tree(1)?;
    let pid = u64::from(dumped.victim.pid());
    let (server, address) = our_server(&["--images", &dumped.images().display().to_string()])?;
    let message = |command: u32, pages: u64, at: u64, pid: u64| {
        [&command.to_ne_bytes()[..], &[0; 4], &pages.to_ne_bytes(), &at.to_ne_bytes(), &pid.to_ne_bytes()].concat()
    };
    let cases: [(Vec<u8>, &str); 6] = [
        (message(7, 1, 0x1000, pid), "1 pages at 0x1000"),
        (message(7, 1, 0x1001, pid), "1 pages at 0x1001"),
        (message(7, u64::MAX, 0x1000, 1 << 40), "of task 1099511627776"),
        (message(5, 1, 0x1000, pid), "command 0x5"),
        (message(0x7fff_ffff, 1, 0x1000, pid), "command 0xffff"),
        (vec![7; 20], "in the middle of a message"),
    ];
    for (bytes, what) in &cases {
        let mut stream = TcpStream::connect(&address)?;
        stream.write_all(bytes)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        // Reset is hung up on, too.
        let _ = stream.read_to_end(&mut answer);
        ensure!(answer.is_empty(), "{what}: an answer of {} bytes", answer.len());
        eventually(what, || server.said().contains(what)).with_context(|| server.said())?;
    }
    // And nobody else suffers.
    let mut stream = TcpStream::connect(&address)?;
    stream.write_all(&message(0x1023, 0, 0, 0))?;
    let mut status = [1; 4];
    stream.read_exact(&mut status)?;
    ensure!(status == [0; 4]);
    Ok(())
}

/// A victim alive while its double is restored: what it says counts for the double, as it is frozen or dead itself.
fn double_proves(victim: &Victim) -> Result<()> {
    std::fs::write(victim.folder().join("go"), "")?;
    let verdict = victim.folder().join("verdict");
    eventually("the double comes to a verdict", || verdict.exists()).with_context(|| victim.output())?;
    let verdict = std::fs::read_to_string(verdict)?;
    ensure!(verdict == "OK\n", "{verdict}");
    Ok(())
}

#[test]
fn a_frozen_process_gives_its_memory_away_and_goes() -> Result<()> {
    need_root()?;
    let (mut victim, folder) = (criu::tree(16)?, tempfile::tempdir()?);
    let path = |name: &str| folder.path().join(name);
    let (images, work, store) = (path("images"), path("work"), path("store").display().to_string());
    std::fs::create_dir(&work)?;
    let live = Live::dump(&victim, &images)?;
    let (images_text, work_text) = (images.display().to_string(), work.display().to_string());
    let keep = ["--page-server", &live.address, "--keep-as", "tree:1", "--store", &store];
    let daemon = LazyPages::start(&work, &[&["--images", &images_text], &keep[..]].concat())?;
    let namespace = in_a_namespace(&images, &work).with_context(|| daemon.said())?;
    // The original is let go though its double has touched next to nothing.
    live.dump.has_served().with_context(|| daemon.said())?;
    victim.reap()?;
    double_proves(&victim).with_context(|| daemon.said())?;
    let said = daemon.has_served()?;
    for what in ["is let go", "tree:1 is ", "all memory is there"] {
        ensure!(said.contains(what), "not {what:?}: {said}");
    }
    drop(namespace);
    ensure!(std::fs::read_dir(&work)?.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with(".defrost")), "{work_text}");
    victim.end()?;
    // The snapshot is a dump like any other: complete with CRIU alone, and lazy.
    let (complete, lazy) = (path("complete"), path("lazy"));
    defrost_ok(&["verify", "tree:1", "--store", &store])?;
    defrost_ok(&["export", "criu", "tree:1", &complete.display().to_string(), "--store", &store])?;
    criu::restore(&complete)?;
    victim.check("")?;
    victim.end()?;
    defrost_ok(&["export", "criu", "tree:1", &lazy.display().to_string(), "--lazy", "--store", &store])?;
    let daemon = LazyPages::start(&lazy, &["--snapshot", "tree:1", "--store", &store])?;
    let mut again = Dumped { victim, folder };
    again.proves(&lazy, &lazy, daemon).map(drop)
}

#[test]
fn a_frozen_process_goes_without_a_snapshot_too() -> Result<()> {
    need_root()?;
    let (mut victim, folder) = (criu::tree(8)?, tempfile::tempdir()?);
    let images = folder.path().join("images");
    let live = Live::dump(&victim, &images)?;
    let daemon = our_daemon(&images, &live.address, &[])?;
    let _namespace = in_a_namespace(&images, &images).with_context(|| daemon.said())?;
    double_proves(&victim).with_context(|| daemon.said())?;
    daemon.has_served()?;
    live.dump.has_served()?;
    victim.reap()
}

#[test]
fn a_store_that_fails_harms_nobody() -> Result<()> {
    need_root()?;
    let (mut victim, folder) = (criu::tree(8)?, tempfile::tempdir()?);
    let path = |name: &str| folder.path().join(name);
    let images = path("images");
    let server = Server::start(&path("store"))?;
    let live = Live::dump(&victim, &images)?;
    let daemon = our_daemon(&images, &live.address, &["--keep-as", "tree", "--store", &server.store()])?;
    // It was there when we began.
    drop(server);
    let namespace = in_a_namespace(&images, &images).with_context(|| daemon.said())?;
    double_proves(&victim).with_context(|| daemon.said())?;
    live.dump.has_served()?;
    victim.reap()?;
    let (status, said) = daemon.ended()?;
    ensure!(status.code() == Some(1), "{status}: {said}");
    // It says where the dump is, and that can be imported.
    let kept = said.split("the whole dump is in ").nth(1).and_then(|rest| rest.split(':').next()).context(said.clone())?;
    let store = path("other").display().to_string();
    defrost_ok(&["import", "criu", kept, "tree", "--store", &store])?;
    drop(namespace);
    victim.end()?;
    let complete = path("complete");
    defrost_ok(&["export", "criu", "tree", &complete.display().to_string(), "--store", &store])?;
    criu::restore(&complete)?;
    victim.check("")?;
    victim.end()
}

#[test]
fn a_full_disk_harms_nobody() -> Result<()> {
    need_root()?;
    let (mut victim, folder) = (criu::tree(16)?, tempfile::tempdir()?);
    let (images, store) = (folder.path().join("images"), folder.path().join("store").display().to_string());
    let work = folder.path().join("work");
    std::fs::create_dir(&work)?;
    let work = SmallDisk::mount(&work, "16m")?;
    let live = Live::dump(&victim, &images)?;
    let images_text = images.display().to_string();
    let keep = ["--images", &images_text, "--page-server", &live.address, "--keep-as", "tree", "--store", &store];
    let daemon = LazyPages::start(work.path(), &keep)?;
    let _namespace = in_a_namespace(&images, work.path()).with_context(|| daemon.said())?;
    double_proves(&victim).with_context(|| daemon.said())?;
    let (status, said) = daemon.ended()?;
    ensure!(status.code() == Some(1) && said.contains("all memory is there") && said.contains("free some space there"), "{status}: {said}");
    // What could not be kept all came, and the original knows.
    live.dump.has_served()?;
    victim.reap()?;
    ensure!(defrost_ok(&["list", "--store", &store])?.trim().is_empty());
    Ok(())
}

#[test]
fn a_frozen_process_goes_on_where_nothing_came_of_its_restore() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let victim = criu::tree(8)?;
    type Failure<'a> = (&'a str, &'a dyn Fn(&Path, &LazyPages) -> Result<()>);
    let failures: [Failure<'_>; 2] = [
        ("hung up before it was finished", &|images, _| {
            drop(UnixStream::connect(images.join("lazy-pages.socket"))?);
            Ok(())
        }),
        ("ended by a signal", &|_, daemon| Ok(kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGTERM)?)),
    ];
    let store = folder.path().join("store").display().to_string();
    for (number, (what, fails)) in failures.iter().enumerate() {
        for keep in [&[][..], &["--keep-as", "tree", "--store", &store]] {
            let images = folder.path().join(format!("images-{number}-{}", keep.len()));
            let live = Live::dump(&victim, &images)?;
            let daemon = our_daemon(&images, &live.address, keep)?;
            fails(&images, &daemon)?;
            let (status, said) = daemon.ended()?;
            ensure!(status.code() == Some(1) && said.contains(what), "{status}: {said}");
            let (status, _) = live.dump.ended()?;
            ensure!(!status.success(), "CRIU believes that all went well");
        }
    }
    victim.check("")
}

type Lie = fn(&mut Vec<u8>, &mut Vec<u8>) -> bool;

#[test]
fn a_page_server_that_lies_ends_in_no_wrong_byte() -> Result<()> {
    let mut dumped = Dumped::tree(8)?;
    let images = dumped.images();
    let images_text = images.display().to_string();
    let lies: [(&str, Lie); 8] = [
        ("where", |head, _| {
            head[17] ^= 0x10;
            true
        }),
        ("of task", |head, _| {
            head[24] ^= 1;
            true
        }),
        ("where at most", |head, contents| {
            // No request is for 255 pages or more.
            head[8] += 1;
            contents.extend_from_slice(&[0; 4096]);
            true
        }),
        ("0 pages", |head, contents| {
            head[8..16].fill(0);
            contents.clear();
            true
        }),
        ("command 0x7", |head, _| {
            head[0] = 7;
            true
        }),
        ("with flags 0x2", |head, _| {
            head[2] = 2;
            true
        }),
        ("ended the connection", |_, contents| {
            contents.truncate(contents.len() / 2);
            false
        }),
        ("ended the connection", |head, contents| {
            head.clear();
            contents.clear();
            false
        }),
    ];
    for (what, lie) in lies {
        // The first answers are right: it is late that something goes wrong.
        for after in [0, 40] {
            let mut passed = 0;
            let (_server, address) = our_server(&["--images", &images_text])?;
            let between = Between::start(
                &address,
                Box::new(move |head, contents| {
                    passed += 1;
                    if passed <= after { true } else { lie(head, contents) }
                }),
            )?;
            let daemon = our_daemon(&images, &between.address, &[])?;
            // CRIU wants it as it was; the one before may have said why it died.
            std::fs::File::create(dumped.victim.folder().join("output"))?;
            let restored = criu::restore_with(&images, &images, &["--lazy-pages"]);
            let (status, said) = daemon.ended()?;
            ensure!(status.code() == Some(1) && said.contains(what), "not {what:?}: {status}: {said} {restored:?}");
            let why = dumped.victim.check("").err().with_context(|| format!("it found memory that nobody brought: {restored:?}"))?;
            ensure!(format!("{why:#}").contains("ended without a verdict"), "it read something: {why:#}");
            dumped.victim.end()?;
        }
    }
    Ok(())
}

/// Not all is there yet when a restore has ended.
fn slowly(_: &mut Vec<u8>, _: &mut Vec<u8>) -> bool {
    std::thread::sleep(Duration::from_millis(10));
    true
}

#[test]
fn a_signal_waits_until_nobody_depends_on_us() -> Result<()> {
    let mut dumped = Dumped::tree(16)?;
    let images = dumped.images();
    let (_server, address) = our_server(&["--images", &images.display().to_string()])?;
    let between = Between::start(&address, Box::new(slowly))?;
    let mut daemon = our_daemon(&images, &between.address, &[])?;
    criu::restore_with(&images, &images, &["--lazy-pages"]).with_context(|| daemon.said())?;
    between.hold();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(Pid::from_raw(daemon.pid() as i32), signal)?;
    }
    std::thread::sleep(Duration::from_millis(200));
    ensure!(!daemon.has_ended()?, "it left them alone: {}", daemon.said());
    between.release();
    dumped.victim.check("").with_context(|| daemon.said())?;
    let said = daemon.has_served()?;
    ensure!(said.contains("all memory is there"), "{said}");
    dumped.victim.end()
}

#[test]
fn a_daemon_whose_tasks_ended_early_ends() -> Result<()> {
    let mut dumped = Dumped::tree(8)?;
    let images = dumped.images();
    let (_server, address) = our_server(&["--images", &images.display().to_string()])?;
    let between = Between::start(&address, Box::new(slowly))?;
    let daemon = our_daemon(&images, &between.address, &[])?;
    criu::restore_with(&images, &images, &["--lazy-pages"]).with_context(|| daemon.said())?;
    between.hold();
    dumped.victim.end()?;
    // What is on its way belongs to nobody any more, and nobody is left who would ask.
    between.release();
    let said = daemon.has_served()?;
    ensure!(said.contains("all memory is there"), "{said}");
    Ok(())
}

/// The connection is lost while one task waits for a page and another is forking: the child has nothing that nobody brought.
#[test]
fn a_child_that_is_just_forked_reads_no_zeros_when_the_server_is_lost() -> Result<()> {
    need_root()?;
    let mut dumped = Dumped::of(Victim::c("steps", &["64"])?)?;
    let images = dumped.images();
    let (_server, address) = our_server(&["--images", &images.display().to_string()])?;
    let lost = Arc::new(AtomicBool::new(false));
    let is_lost = lost.clone();
    let between = Between::start(&address, Box::new(move |head, contents| slowly(head, contents) && !is_lost.load(Ordering::Relaxed)))?;
    let daemon = our_daemon(&images, &between.address, &[])?;
    criu::restore_with(&images, &images, &["--lazy-pages"]).with_context(|| daemon.said())?;
    let folder = dumped.victim.folder().to_owned();
    dumped.victim.publish("go", "")?;
    dumped.victim.publish("step.1", "fork")?;
    eventually("it has forked", || folder.join("done.1").exists()).with_context(|| daemon.said())?;
    let child: u32 = std::fs::read_to_string(folder.join("done.1"))?.trim().parse()?;
    between.hold();
    dumped.victim.publish("child", "")?;
    eventually("the child waits for a page", || waits_for_pager(child)).with_context(|| daemon.said())?;
    dumped.victim.publish("step.2", "fork")?;
    let parent = dumped.victim.pid();
    eventually("its parent waits, in a fork", || waits_for_pager(parent)).with_context(|| daemon.said())?;
    lost.store(true, Ordering::Relaxed);
    between.release();
    let (status, said) = daemon.ended()?;
    ensure!(status.code() == Some(1) && said.contains("ended the connection"), "{status}: {said}");
    // What misses memory ends by a bus error; who had found something wrong would have said so.
    eventually("the child ends", || !Path::new(&format!("/proc/{child}")).exists() || is_zombie(child))?;
    std::thread::sleep(Duration::from_millis(200));
    let verdict = std::fs::read_to_string(folder.join("verdict"));
    ensure!(verdict.is_err(), "somebody read what is not his: {verdict:?}");
    dumped.victim.end()
}

#[test]
fn a_daemon_without_a_page_server_says_why() -> Result<()> {
    let dumped = Dumped::tree(1)?;
    let (images, store) = (dumped.images().display().to_string(), dumped.path("store").display().to_string());
    let nobody = format!("127.0.0.1:{}", free_port()?);
    defrost_ok(&["import", "criu", &images, "taken", "--store", &store])?;
    let cases: [(&[&str], &str); 8] = [
        (&["criu", "--images", &images, "--page-server", &nobody], &nobody),
        (&["criu", "--images", &images, "--page-server", "no-address"], "no-address"),
        (&["criu", "--images", &images, "--page-server", &nobody, "--keep-as", "taken", "--store", &store], "taken"),
        (&["criu-page-server", "--images", "/nowhere/at-all"], "/nowhere/at-all"),
        (&["criu-page-server", "--images", &images, "--listen", "192.0.2.1:1", "--insecure-listen"], "192.0.2.1:1: Cannot assign"),
        // Others could read the process's memory there.
        (&["criu-page-server", "--images", &images, "--listen", "192.0.2.1:1"], "--insecure-listen"),
        (&["criu-page-server", "--images", &images, "--listen", "0.0.0.0:0"], "--insecure-listen"),
        (&["criu-page-server", "--images", &images, "--listen", "[::]:0"], "--insecure-listen"),
    ];
    for (how, what) in cases {
        let said = defrost_fails(&[&["pager"], how].concat())?;
        ensure!(said.contains(what), "not {what:?}: {said}");
    }
    Ok(())
}

/// More clients than there are places connect and say nothing, or half a request: one that asks is served all the same, and half a request
/// is not waited for.
#[test]
fn silent_clients_shut_out_nobody() -> Result<()> {
    let mut dumped = Dumped::tree(16)?;
    let images = dumped.images();
    let (server, address) = our_server(&["--images", &images.display().to_string()])?;
    let mut silent: Vec<TcpStream> = (0..80).map(|_| TcpStream::connect(&address)).collect::<Result<_, _>>()?;
    for stream in silent.iter_mut().skip(70) {
        stream.write_all(b"half")?;
    }
    let daemon = our_daemon(&images, &address, &[])?;
    dumped.proves(&images, &images, daemon).with_context(|| server.said())?;
    let last = silent.last_mut().context("80 of them")?;
    last.set_read_timeout(Some(Duration::from_secs(60)))?;
    ensure!(last.read(&mut [0; 1]).unwrap_or(0) == 0, "half a request is still waited for");
    Ok(())
}
