//! Containers, by Debian's runc and the real CRIU: a redis with some 200 MB of values is frozen on one host, and comes back on another,
//! where all its pages come from a page server over gRPC while every value is compared.
//!
//! The hosts are two ends of a cable (`defrost_tests::netns`): server and checkpoint on one, daemons and restores on the other. Each
//! container has pid, mount, network, uts and ipc namespaces of its own (`defrost_tests::container`).

use anyhow::{Context as _, Result, ensure};
use defrost_tests::container::{Container, errors};
use defrost_tests::criu::LazyPages;
use defrost_tests::netns::{Cable, Side};
use defrost_tests::{Server, defrost_through, eventually, need_root};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::TempDir;

/// Where the server listens; the cable has this port for itself.
const PORT: u16 = 7440;
/// Values of 1 KB: 200 MB and what redis needs to find them.
const VALUES: usize = 190_000;

/// A container that was frozen on one host and is in a snapshot there; and the other host, which has the lazy export of it.
struct Apart {
    server: Server,
    folder: TempDir,
    cable: Cable,
    values: usize,
}

/// A page server on its host.
fn server(cable: &Cable, folder: &Path) -> Result<Server> {
    let (on, listen) = (cable.on(Side::Server), format!("{}:{PORT}", Side::Server.address()));
    Server::start_through(&on.each_ref().map(String::as_str), &folder.join("store"), &["--listen", &listen])
}

impl Apart {
    fn new(values: usize) -> Result<Self> {
        need_root()?;
        let (cable, folder) = (Cable::new()?, tempfile::tempdir()?);
        let server = server(&cable, folder.path())?;
        let apart = Self { server, folder, cable, values };
        let original = apart.container(Side::Server)?;
        original.start()?;
        original.is_isolated()?;
        original.redis(|redis| redis.load(0..values, &|_| ()))?;
        let (images, lazy) = (apart.folder.path().join("images"), apart.lazy());
        original.checkpoint(&images)?;
        original.left_nothing()?;
        apart.defrost(Side::Server, &["import", "criu", &images.display().to_string(), "redis:1"])?;
        // From here on nobody has the pages but the server.
        std::fs::remove_dir_all(&images)?;
        apart.defrost(Side::Process, &["export", "criu", "redis:1", &lazy.display().to_string(), "--lazy"])?;
        Ok(apart)
    }

    /// End the server in the middle of whatever it does, and start another over the same store.
    fn replace_server(&mut self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        self.server.kill();
        meanwhile()?;
        self.server = server(&self.cable, self.folder.path())?;
        Ok(())
    }

    fn container(&self, side: Side) -> Result<Container> {
        Container::new(&self.cable.on(side))
    }

    fn lazy(&self) -> PathBuf {
        self.folder.path().join("lazy")
    }

    /// A work folder, which runc and the daemon must agree on.
    fn work(&self, name: &str) -> Result<PathBuf> {
        let work = self.folder.path().join(name);
        std::fs::create_dir(&work)?;
        Ok(work)
    }

    fn defrost(&self, side: Side, args: &[&str]) -> Result<()> {
        let through = self.cable.on(side);
        let store = self.server.store();
        let output = defrost_through(&through.each_ref().map(String::as_str), &[args, &["--store", &store]].concat())?;
        ensure!(output.status.success(), "defrost {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn daemon(&self, work: &Path) -> Result<LazyPages> {
        let through = self.cable.on(Side::Process);
        let how = ["--snapshot", "redis:1", "--store", &self.server.store()];
        LazyPages::start_through(&through.each_ref().map(String::as_str), work, &how)
    }

    /// Bring it back on the other host in the bundle of `container`, and compare all values while they arrive.
    fn comes_back(&self, container: &Container, name: &str) -> Result<()> {
        let work = self.work(name)?;
        let daemon = self.daemon(&work)?;
        let begun = Instant::now();
        container.restore(&self.lazy(), &work).with_context(|| daemon.said())?;
        let runs = begun.elapsed();
        self.compare(container).with_context(|| daemon.said())?;
        let compared = begun.elapsed();
        let said = daemon.has_served()?;
        let [faults, bulk] = ["demand_faults", "bulk_pages"].map(|field| LazyPages::number(&said, field));
        let (faults, bulk) = (faults?, bulk?);
        println!("{name}: runs after {runs:.2?}, compared after {compared:.2?}; {faults} faults, {bulk} pages behind them");
        ensure!(faults > 0, "nothing was lazy: {said}");
        container.is_isolated()
    }

    fn compare(&self, container: &Container) -> Result<()> {
        container.redis(|redis| redis.compare(self.values, &|_| ()))
    }
}

#[test]
fn ten_restores_of_one_snapshot_one_after_the_other() -> Result<()> {
    let apart = Apart::new(VALUES)?;
    let container = apart.container(Side::Process)?;
    for n in 0..10 {
        apart.comes_back(&container, &format!("restore-{n}"))?;
        // It lives: what is written now was not in the snapshot, and must not be in the next restore.
        ensure!(container.exec(&["redis-cli", "incr", "restores"])?.trim() == "1", "an earlier restore is in this one");
        container.end()?;
    }
    Ok(())
}

#[test]
fn eight_containers_of_one_snapshot_side_by_side() -> Result<()> {
    const CONTAINERS: usize = 8;
    let apart = Apart::new(VALUES)?;
    let containers: Vec<Container> = (0..CONTAINERS).map(|_| apart.container(Side::Process)).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let apart = &apart;
        let restore = |(n, container)| scope.spawn(move || apart.comes_back(container, &format!("beside-{n}")));
        let restores: Vec<_> = containers.iter().enumerate().map(restore).collect();
        restores.into_iter().try_for_each(|restore| restore.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    // All run at once, and none sees what another writes.
    for (n, container) in containers.iter().enumerate() {
        container.exec(&["redis-cli", "set", "who", &n.to_string()])?;
        container.redis(|redis| redis.load(n..n + 1, &|_| ()))?;
    }
    for (n, container) in containers.iter().enumerate() {
        ensure!(container.exec(&["redis-cli", "get", "who"])?.trim() == n.to_string(), "container {n} has another's value");
        apart.compare(container)?;
        container.end()?;
    }
    Ok(())
}

#[test]
fn a_container_answers_while_its_memory_is_elsewhere_and_waits_for_a_server() -> Result<()> {
    const FEW: usize = 40_000;
    let mut apart = Apart::new(FEW)?;
    // Some seconds for all of it.
    apart.cable.limit(Side::Server, "25mbit", "256kb", "400ms")?;
    let (container, work) = (apart.container(Side::Process)?, apart.work("work")?);
    let daemon = apart.daemon(&work)?;
    container.restore(&apart.lazy(), &work).with_context(|| daemon.said())?;
    container.redis(|redis| redis.get(FEW / 2))?;
    let all_there = || daemon.said().contains("all memory is there");
    // What docs/containers.md shows as progress.
    eventually("progress is told", || daemon.said().contains("memory is coming missing_bytes="))?;
    apart.replace_server(|| {
        eventually("it is told that it waits", || daemon.said().contains("the store does not answer"))?;
        ensure!(!all_there(), "it came from nowhere");
        container.is_isolated()
    })?;
    apart.compare(&container).with_context(|| daemon.said())?;
    daemon.has_served()?;
    container.end()
}

#[test]
fn a_restore_without_a_daemon_in_its_work_folder_fails() -> Result<()> {
    let apart = Apart::new(1000)?;
    let container = apart.container(Side::Process)?;
    let (work, elsewhere) = (apart.work("work")?, apart.work("elsewhere")?);
    let daemon = apart.daemon(&elsewhere)?;
    // What docs/containers.md says that it says.
    let output = container.tries_to_restore(&apart.lazy(), &work)?;
    ensure!(!output.status.success() && container.said().contains("criu failed: type RESTORE"), "{output:?}: {}", container.said());
    let why = errors(&work.join("restore.log"));
    ensure!(why.contains("connect to lazy-pages.socket failed: No such file or directory"), "{why}");
    container.left_nothing()?;
    // Ours waits meanwhile, and tells where.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid() as i32), nix::sys::signal::Signal::SIGTERM)?;
    let (status, said) = daemon.ended()?;
    let socket = elsewhere.canonicalize()?.join("lazy-pages.socket").display().to_string();
    ensure!(status.code() == Some(1) && said.lines().all(|line| line.contains(&socket)), "{status}, without {socket}: {said}");
    // A daemon that was there and is no more.
    let gone = container.tries_to_restore(&apart.lazy(), &elsewhere)?;
    let why = errors(&elsewhere.join("restore.log"));
    ensure!(!gone.status.success() && why.contains("connect to lazy-pages.socket failed: Connection refused"), "{why}");
    // Nothing of this stands in the way of one that is done right.
    apart.comes_back(&container, "right")?;
    container.end()
}

#[test]
fn an_export_keeps_what_runc_needs_and_waits_for_nobody() -> Result<()> {
    let apart = Apart::new(1000)?;
    let streams = std::fs::read_to_string(apart.lazy().join("descriptors.json"))?;
    ensure!(streams.contains("/dev/null"), "runc's own file is not as it was: {streams}");
    // Complete, it needs no daemon.
    let complete = apart.folder.path().join("complete");
    apart.defrost(Side::Process, &["export", "criu", "redis:1", &complete.display().to_string()])?;
    let (container, work) = (apart.container(Side::Process)?, apart.work("eager")?);
    container.restore_complete(&complete, &work)?;
    apart.compare(&container)?;
    container.end()?;
    eventually("nothing of it is left", || container.left_nothing().is_ok())
}
