//! The real `criu restore --lazy-pages` with our daemon in place of `criu lazy-pages`: two processes, a dead one and threads come back and
//! compare all their memory, whether it comes from the images, a chain of parents, or a snapshot over gRPC.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::criu::{self, Dumped, LazyPages};
use defrost_tests::redis::Redis;
use defrost_tests::{Server, Victim, binary, defrost_fails, defrost_ok, eventually, need_root, victims};
use images::criu::Pagemap;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use std::io::{IoSlice, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn memory_comes_from_the_images() -> Result<()> {
    let mut dumped = Dumped::tree(16)?;
    let images = dumped.images();
    // Several times: nothing is used up.
    for _ in 0..3 {
        let daemon = LazyPages::start(&images, &["--images", &images.display().to_string()])?;
        let said = dumped.proves(&images, &images, daemon)?;
        ensure!(LazyPages::number(&said, "spaces")? == 2, "{said}");
        ensure!(LazyPages::number(&said, "demand_faults")? > 0, "nothing was lazy: {said}");
    }
    Ok(())
}

#[test]
fn memory_comes_from_a_chain_of_parents() -> Result<()> {
    let mut dumped = Dumped::tree(8)?;
    let images = dumped.images();
    criu::split(&images, &dumped.path("before"))?;
    let daemon = LazyPages::start(&images, &["--images", &images.display().to_string()])?;
    dumped.proves(&images, &images, daemon).map(drop)
}

#[test]
fn memory_comes_from_a_page_server() -> Result<()> {
    let mut dumped = Dumped::tree(16)?;
    let server = Server::start(&dumped.path("store"))?;
    let lazy = dumped.moved_to(&server.store())?;
    for _ in 0..2 {
        let daemon = LazyPages::start(&lazy, &["--snapshot", "tree", "--store", &server.store()])?;
        let said = dumped.proves(&lazy, &lazy, daemon)?;
        ensure!(LazyPages::number(&said, "demand_faults")? > 0, "nothing was lazy: {said}");
    }
    Ok(())
}

#[test]
fn a_chain_of_parents_comes_from_a_store() -> Result<()> {
    let mut dumped = Dumped::tree(8)?;
    criu::split(&dumped.images(), &dumped.path("before"))?;
    let store = dumped.path("store").display().to_string();
    let lazy = dumped.moved_to(&store)?;
    let daemon = LazyPages::start(&lazy, &["--snapshot", "tree", "--store", &store])?;
    dumped.proves(&lazy, &lazy, daemon).map(drop)
}

/// A program of `tests/victims/`, dumped by CRIU and restored lazily with pages from a page server; it must find itself right.
fn proves(source: &str, args: &[&str]) -> Result<()> {
    need_root()?;
    let mut dumped = Dumped::of(Victim::c(source, args)?)?;
    let server = Server::start(&dumped.path("store"))?;
    let lazy = dumped.moved_to(&server.store())?;
    let daemon = LazyPages::start(&lazy, &["--snapshot", "tree", "--store", &server.store()])?;
    dumped.proves(&lazy, &lazy, daemon).map(drop)
}

victims! {
    memory_of_every_sort_comes_back: "memory", "64";
    forks_share_missing_pages: "fork";
    mappings_move_while_pages_are_missing: "mremap";
    mappings_go_while_pages_are_missing: "munmap";
    pages_are_dropped_while_pages_are_missing: "dontneed";
    protections_change_while_pages_are_missing: "mprotect";
    guards_stay_guards: "guards", "private";
    the_stack_grows_while_pages_are_missing: "stack";
    the_heap_grows_and_shrinks_while_pages_are_missing: "brk";
    more_than_two_gib_go_at_once_while_pages_are_missing: "vast";
}

#[test]
fn redis_answers_with_every_value() -> Result<()> {
    const VALUES: usize = 40_000;
    need_root()?;
    let folder = tempfile::tempdir()?;
    let (images, mut redis) = (folder.path().join("images"), Redis::start(VALUES)?);
    criu::dump(&redis.victim, &images, &[])?;
    redis.victim.reap()?;
    let daemon = LazyPages::start(&images, &["--images", &images.display().to_string()])?;
    criu::restore_with(&images, &images, &["--lazy-pages"])?;
    redis.compare(VALUES)?;
    daemon.has_served()?;
    redis.victim.end()
}

/// A redis that CRIU dumped, restored twice from a page server: what is asked for first comes before all else the second time.
#[test]
fn what_was_touched_first_comes_first_the_next_time() -> Result<()> {
    const VALUES: usize = 120_000;
    need_root()?;
    let folder = tempfile::tempdir()?;
    let (images, lazy) = (folder.path().join("images"), folder.path().join("lazy"));
    let (mut redis, server) = (Redis::start(VALUES)?, Server::start(&folder.path().join("store"))?);
    criu::dump(&redis.victim, &images, &[])?;
    redis.victim.reap()?;
    defrost_ok(&["import", "criu", &images.display().to_string(), "redis", "--store", &server.store()])?;
    defrost_ok(&["export", "criu", "redis", &lazy.display().to_string(), "--lazy", "--store", &server.store()])?;
    std::fs::remove_dir_all(&images)?;
    let mut random = fastrand::Rng::with_seed(5);
    let asked: Vec<usize> = (0..1000).map(|_| random.usize(..VALUES)).collect();
    // Only what is asked for and what `how` says; then all is compared, by a signal or by touching it.
    let mut restore = |how: &[&str], replays: bool| -> Result<(u64, u64)> {
        let daemon = LazyPages::start(&lazy, &[&["--snapshot", "redis", "--store", &server.store(), "--no-background"], how].concat())?;
        criu::restore_with(&lazy, &lazy, &["--lazy-pages"]).with_context(|| daemon.said())?;
        if replays {
            eventually("what is known is there", || daemon.said().contains("what earlier restores touched is there"))?;
        }
        redis.compare_these(&asked)?;
        kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGTERM)?;
        let said = daemon.has_served()?;
        redis.compare(VALUES)?;
        redis.victim.end()?;
        // CRIU itself touches some before the tasks run, and before anything can be brought that is not asked for.
        let before = said.split("demand_faults=").nth(1).and_then(|rest| rest.split(' ').next());
        let before: u64 = before.with_context(|| said.clone())?.parse()?;
        Ok((LazyPages::number(&said, "demand_faults")? - before, LazyPages::number(&said, "replayed_pages")?))
    };
    let known = || -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&defrost_ok(&["inspect", "redis", "--json", "--store", &server.store()])?)?)
    };
    let (cold, _) = restore(&["--record", "off"], false)?;
    ensure!(cold > 300 && known()?["working_set"].is_null(), "{cold} faults: {}", known()?);
    restore(&["--replay"], false)?;
    ensure!(known()?["working_set"]["restores"] == 1, "{}", known()?);
    let (warm, replayed) = restore(&["--replay"], true)?;
    ensure!(warm * 10 <= cold && replayed > 0, "{warm} faults instead of {cold}, {replayed} pages replayed");
    let (again, replayed) = restore(&["--no-replay", "--record", "new"], false)?;
    ensure!(again * 2 > cold && replayed == 0, "{again} faults without replay, {replayed} pages replayed");
    ensure!(known()?["working_set"]["restores"] == 1, "{}", known()?);
    // With everything in the background, and with a task that ends before all is there.
    let daemon = LazyPages::start(&lazy, &["--snapshot", "redis", "--store", &server.store()])?;
    criu::restore_with(&lazy, &lazy, &["--lazy-pages"]).with_context(|| daemon.said())?;
    redis.compare_these(&asked)?;
    let said = daemon.has_served()?;
    ensure!(LazyPages::number(&said, "replayed_pages")? > 0, "{said}");
    redis.compare(VALUES)?;
    redis.victim.end()?;
    let daemon = LazyPages::start(&lazy, &["--snapshot", "redis", "--store", &server.store(), "--no-background", "--replay"])?;
    criu::restore_with(&lazy, &lazy, &["--lazy-pages"]).with_context(|| daemon.said())?;
    redis.compare_these(&asked)?;
    redis.victim.end()?;
    let said = daemon.has_served()?;
    ensure!(LazyPages::number(&said, "bulk_pages")? == 0, "{said}");
    Ok(())
}

#[test]
fn pages_that_cannot_be_read_are_no_zeros() -> Result<()> {
    // Enough that it cannot all be there by the time that its file is cut off.
    let mut dumped = Dumped::tree(64)?;
    let images = dumped.images();
    let name = format!("pagemap-{}.img", dumped.victim.pid());
    let pages_file = Pagemap::parse(&name, &std::fs::read(images.join(&name))?)?.pages_file();
    let file = std::fs::File::options().write(true).open(images.join(pages_file))?;
    let daemon = LazyPages::start(&images, &["--images", &images.display().to_string()])?;
    criu::restore_with(&images, &images, &["--lazy-pages"])?;
    file.set_len(file.metadata()?.len() / 8)?;
    let (status, said) = daemon.ended()?;
    ensure!(status.code() == Some(1) && said.contains("pages-"), "{status}: {said}");
    // What came before is right, and what is missing ends the process.
    let why = dumped.victim.check("").err().context("it found memory that nobody brought")?;
    ensure!(format!("{why:#}").contains("ended without a verdict"), "it read something: {why:#}");
    dumped.victim.end()
}

#[test]
fn a_restore_whose_first_pages_cannot_be_read_leaves_nothing_wrong() -> Result<()> {
    let mut dumped = Dumped::tree(4)?;
    let images = dumped.images();
    let name = format!("pagemap-{}.img", dumped.victim.pid());
    let path = images.join(Pagemap::parse(&name, &std::fs::read(images.join(&name))?)?.pages_file());
    let file = std::fs::File::options().write(true).open(&path)?;
    let daemon = LazyPages::start(&images, &["--images", &images.display().to_string()])?;
    // CRIU finds the pages that it brings itself; the file that the daemon has open is empty.
    let copy = dumped.path("copy");
    std::fs::copy(&path, &copy)?;
    std::fs::rename(&copy, &path)?;
    file.set_len(0)?;
    let restored = criu::restore_with(&images, &images, &["--lazy-pages"]);
    let (status, said) = daemon.ended()?;
    ensure!(status.code() == Some(1) && said.contains("pages-"), "{status}: {said}");
    let why = dumped.victim.check("").err().with_context(|| format!("it found memory that nobody brought: {restored:?}"))?;
    ensure!(format!("{why:#}").contains("ended without a verdict"), "it read something: {why:#}");
    dumped.victim.end()
}

#[test]
fn a_criu_whose_daemon_is_ours_restores() -> Result<()> {
    let mut dumped = Dumped::tree(4)?;
    let (images, work) = (dumped.images(), dumped.path("work"));
    std::fs::create_dir(&work)?;
    let ours = |args: &[&str]| -> Result<std::process::Output> {
        let mut command = Command::new(binary("defrost-criu")?);
        command.args(args).arg("-D").arg(&images).arg("-W").arg(&work).env("DEFROST_CRIU", criu::program()?);
        Ok(command.stdin(Stdio::null()).output()?)
    };
    let pidfile = dumped.path("pid").display().to_string();
    let daemon = ours(&["lazy-pages", "-d", "-v4", "-o", "lazy.log", "--pidfile", &pidfile])?;
    ensure!(daemon.status.success(), "{daemon:?}");
    criu::pids_are_free(&images)?;
    let restored = ours(&["restore", "--lazy-pages", "--restore-detached", "-o", "restore.log"])?;
    ensure!(restored.status.success(), "{restored:?}");
    dumped.victim.check("")?;
    let proc = Path::new("/proc").join(std::fs::read_to_string(&pidfile)?.trim());
    eventually("the daemon ends", || !proc.exists())?;
    let log = std::fs::read_to_string(work.join("lazy.log"))?;
    ensure!(log.contains("all memory is there") && !log.contains("Error ("), "{log}");
    // Lines have CRIU's form: whoever looks for its errors finds ours.
    ensure!(log.lines().all(|line| line.starts_with("(00.") || line.starts_with("(0")), "{log}");
    std::fs::write(images.join("pstree.img"), b"no image")?;
    let refused = ours(&["lazy-pages", "-o", "refused.log"])?;
    let log = std::fs::read_to_string(work.join("refused.log"))?;
    ensure!(!refused.status.success() && log.contains("Error (") && log.contains("pstree.img"), "{refused:?} {log}");
    // What we do not have is an error.
    for unknown in [["lazy-pages", "-v4"], ["page-server", "--lazy-pages"]] {
        let unknown = ours(&[&unknown[..], &["--tls"]].concat())?;
        ensure!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("--tls"), "{unknown:?}");
    }
    dumped.victim.end()
}

#[test]
fn a_daemon_in_the_background_serves_as_well() -> Result<()> {
    let mut dumped = Dumped::tree(4)?;
    let (images, work, pidfile) = (dumped.images(), dumped.path("work"), dumped.path("pid"));
    std::fs::create_dir(&work)?;
    criu::in_background(&work, &["--images", &images.display().to_string(), "--pidfile", &pidfile.display().to_string()])?;
    let pid = std::fs::read_to_string(&pidfile)?;
    criu::restore_with(&images, &work, &["--lazy-pages"])?;
    dumped.victim.check("")?;
    let proc = Path::new("/proc").join(pid.trim());
    eventually("the daemon ends", || !proc.exists())?;
    dumped.victim.end()
}

type Behaviour<'a> = &'a dyn Fn(UnixStream) -> Result<()>;

/// What the daemon says at its end to a restore that behaves like this.
fn told(images: &Path, how: impl FnOnce(UnixStream) -> Result<()>) -> Result<String> {
    let daemon = LazyPages::start(images, &["--images", &images.display().to_string()])?;
    how(UnixStream::connect(images.join("lazy-pages.socket"))?)?;
    let (status, said) = daemon.ended()?;
    ensure!(status.code() == Some(1), "{status}: {said}");
    Ok(said.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn a_restore_that_makes_no_sense_is_refused() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let images = folder.path().join("images");
    let victim = Victim::c("memory", &["1"])?;
    criu::dump(&victim, &images, &["--leave-running"])?;
    let pid = victim.pid() as i32;
    let cases: [(&str, Behaviour<'_>); 5] = [
        ("hung up before it was finished", &|_| Ok(())),
        ("task 4194305, which these images do not have", &|line| {
            // A dead one, so that no userfaultfd is wanted.
            Ok((&line).write_all(&(-4_194_305_i32).to_ne_bytes())?)
        }),
        ("no userfaultfd for task", &|line| {
            (&line).write_all(&pid.to_ne_bytes())?;
            send_descriptor(&line, &std::fs::File::open("/dev/null")?)
        }),
        ("no userfaultfd for task", &|line| Ok((&line).write_all(&pid.to_ne_bytes())?)),
        ("0x1234 where it should have said that it is finished", &|line| {
            (&line).write_all(&(-pid).to_ne_bytes())?;
            Ok((&line).write_all(&0x1234_u32.to_ne_bytes())?)
        }),
    ];
    for (what, how) in cases {
        let said = told(&images, how)?;
        ensure!(said.contains(what), "not {what:?}: {said}");
    }
    // One restore is served, and nobody else finds anybody listening.
    let daemon = LazyPages::start(&images, &["--images", &images.display().to_string()])?;
    let first = UnixStream::connect(images.join("lazy-pages.socket"))?;
    eventually("nobody listens any more", || UnixStream::connect(images.join("lazy-pages.socket")).is_err())?;
    drop(first);
    ensure!(!daemon.ended()?.0.success());
    Ok(())
}

#[test]
fn a_daemon_that_cannot_serve_says_why() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let (images, store) = (folder.path().join("images"), folder.path().join("store").display().to_string());
    let victim = Victim::c("memory", &["1"])?;
    let pid = victim.pid().to_string();
    criu::dump(&victim, &images, &["--leave-running"])?;
    defrost_ok(&["checkpoint", &pid, "ours", "--leave-running", "--store", &store])?;
    let images = images.display().to_string();
    let cases: [(&[&str], &str); 5] = [
        (&["--images", "/nowhere/at-all"], "/nowhere/at-all"),
        (&["--images", &images, "--work-dir", "/nowhere/at-all"], "--work-dir /nowhere/at-all"),
        (&["--images", &images, "--status-fd", "77"], "no such descriptor"),
        (&["--work-dir", &images, "--snapshot", "ours", "--store", &store], "defrost restore ours"),
        (&["--images", &images, "--daemon", "--snapshot", "nobody", "--store", &store], "nobody"),
    ];
    for (how, what) in cases {
        let said = defrost_fails(&[&["pager", "criu"], how].concat())?;
        ensure!(said.contains(what), "not {what:?}: {said}");
    }
    Ok(())
}

/// A descriptor, with the one byte that CRIU sends along.
fn send_descriptor(line: &UnixStream, fd: &impl AsRawFd) -> Result<()> {
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(line.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::empty(), None)?;
    Ok(())
}
