//! A process whose image is too large to wait for: it runs by the head, and the table comes behind it. Its memory is right whatever
//! happens to the table meanwhile, or it is ended and whoever asks is told.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::guarded::Guarded;
use defrost_tests::{Server, Victim, defrost_fails, defrost_ok, defrost_tries_through, eventually, need_root, restore_with};
use images::GROUP_BYTES;
use images::head::{SMALL_BYTES, first_bytes};
use page_server::Config;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{Access, FlakyStore, LocalStore, Plan};
use tempfile::TempDir;

/// Enough chunks of a page that their table takes more than an image's head may.
const MIB: &str = "192";
const CHUNK_SIZE: &str = "4096";
const ONLY_TOUCHED: &[&str] = &["--no-background", "--no-replay"];

/// A victim of so many chunks, each byte of which it checks.
struct Frozen {
    victim: Victim,
    folder: TempDir,
}

impl Frozen {
    fn new() -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        let mut victim = Victim::c("memory", &[MIB])?;
        let (pid, store) = (victim.pid().to_string(), folder.path().to_string_lossy().into_owned());
        defrost_ok(&["checkpoint", &pid, "x", "--store", &store, "--chunk-size", CHUNK_SIZE])?;
        victim.reap()?;
        let frozen = Self { victim, folder };
        let bytes = std::fs::metadata(frozen.file("image")?)?.len();
        ensure!(bytes > SMALL_BYTES, "{bytes} bytes are a small image");
        ensure!(frozen.file("groups")?.exists());
        Ok(frozen)
    }

    fn store(&self) -> String {
        self.folder.path().to_string_lossy().into_owned()
    }

    /// The file of its snapshot that has this ending.
    fn file(&self, extension: &str) -> Result<PathBuf> {
        let mut files = std::fs::read_dir(self.folder.path().join("snapshots"))?.flatten().map(|entry| entry.path());
        files.find(|path| path.extension().is_some_and(|found| found == extension)).with_context(|| format!("no .{extension}"))
    }

    /// A server before a store that fails as planned.
    fn flaky(&self, plan: Plan) -> Result<(Arc<FlakyStore<LocalStore>>, page_server::Server, String)> {
        let flaky = Arc::new(FlakyStore::new(LocalStore::open(self.folder.path(), Access::Read)?, plan));
        let address = format!("unix:{}", self.folder.path().join("flaky").display());
        let server = page_server::Server::start(&Config::new(address.parse()?, self.folder.path().to_owned()), flaky.clone())?;
        Ok((flaky, server, address))
    }

    /// Its restore is refused with all of `words`, or it is ended before it comes to a verdict, and whoever asks is told with these words.
    fn is_never_wrong(&mut self, store: &str, how: &[&str], words: &[&str]) -> Result<()> {
        let told = match defrost_tries_through(&[], &[&["restore", "x", "--detach", "--store", store], how].concat())? {
            Err(told) => {
                self.victim.left_nothing()?;
                told
            }
            Ok(_) => {
                let text = self.victim.check("").err().map(|error| format!("{error:#}")).context("it found itself right")?;
                ensure!(text.contains("ended without a verdict"), "{text}");
                let told = defrost_fails(&["wait", &self.victim.pid().to_string()])?;
                self.victim.end()?;
                told
            }
        };
        ensure!(words.iter().all(|word| told.contains(word)), "{how:?}: {told:?} lacks some of {words:?}");
        Ok(())
    }
}

/// Turn a bit in each group of an image behind its head.
fn spoil(path: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut beginning = vec![0; GROUP_BYTES];
    file.read_exact_at(&mut beginning, 0)?;
    let (head, end) = (first_bytes(&beginning), file.metadata()?.len());
    ensure!(head < end, "all of it is head");
    for at in (head + 77..end).step_by(GROUP_BYTES) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 1], at)?;
    }
    Ok(())
}

#[test]
fn memory_is_right_however_it_comes() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let server = Server::start(frozen.folder.path())?;
    for store in [frozen.store(), server.store()] {
        for how in [ONLY_TOUCHED, if store == server.store() { &[] } else { &["--eager"] }] {
            restore_with(&frozen.victim, "x", &store, how).with_context(|| format!("{store} {how:?}"))?;
            frozen.victim.check("").with_context(|| format!("{store} {how:?}"))?;
            frozen.victim.end()?;
        }
    }
    defrost_ok(&["verify", "x", "--store", &server.store()])?;
    Ok(())
}

#[test]
fn a_damaged_table_ends_the_process_and_is_named() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let image = frozen.file("image")?;
    spoil(&image)?;
    let store = frozen.store();
    let server = Server::start(frozen.folder.path())?;
    let served = server.store();
    let server_words = served.trim_start_matches("grpc://");
    for (store, how, words) in [(&store, &[][..], ".image"), (&store, ONLY_TOUCHED, ".image"), (&served, ONLY_TOUCHED, server_words)] {
        frozen.is_never_wrong(store, how, &["is damaged", "checksum does not fit", words])?;
    }
    // Before a process is made, all of it or its head is looked at.
    let told = defrost_fails(&["verify", "x", "--store", &store])?;
    ensure!(told.contains(&*image.to_string_lossy()), "{told}");
    let file = OpenOptions::new().write(true).open(&image)?;
    file.write_all_at(&[0xff; 8], 60)?;
    for store in [&store, &served] {
        let told = defrost_fails(&["restore", "x", "--detach", "--store", store])?;
        ensure!(told.contains(".image") && told.contains("checksum does not fit"), "{told}");
        frozen.victim.left_nothing()?;
    }
    Ok(())
}

/// What comes wrong once is asked for again; all of it at once and each part by itself.
#[test]
fn a_server_that_lies_now_and_then_harms_nobody() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let (flaky, _server, address) = frozen.flaky(Plan::default())?;
    for (how, plan) in [
        (ONLY_TOUCHED, Plan { seed: 3, wrong_groups: 0.1, unreachable: 0.02, ..Plan::default() }),
        (&[][..], Plan { seed: 4, wrong_groups: 0.1, unreachable: 0.02, ..Plan::default() }),
    ] {
        restore_with(&frozen.victim, "x", &address, how)?;
        flaky.set_plan(plan);
        match frozen.victim.check("") {
            Ok(()) => {}
            // One group in a hundred is wrong twice: then it must not run on.
            Err(error) => {
                ensure!(format!("{error:#}").contains("ended without a verdict"), "{error:#}");
                let told = defrost_fails(&["wait", &frozen.victim.pid().to_string()])?;
                ensure!(told.contains("image's table is damaged"), "{told}");
            }
        }
        flaky.set_plan(Plan::default());
        frozen.victim.end()?;
    }
    ensure!(flaky.failures() > 0);
    // Always: nothing runs, or nothing goes on.
    flaky.set_plan(Plan { wrong_groups: 1.0, ..Plan::default() });
    frozen.is_never_wrong(&address, ONLY_TOUCHED, &["image's table is damaged"])
}

/// The server dies when only the head was asked for, and another takes its place: the process waits meanwhile.
#[test]
fn a_table_that_does_not_come_is_waited_for() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let address = format!("unix:{}", frozen.folder.path().join("socket").display());
    let mut server = Server::start_with(frozen.folder.path(), &["--listen", &address])?;
    let guarded = Guarded::restore(&frozen.victim, "x", &address, ONLY_TOUCHED)?;
    server.kill();
    frozen.victim.go()?;
    eventually("it waits", || guarded.status().is_ok_and(|status| status.state == "waiting"))?;
    let _server = server.again(frozen.folder.path())?;
    frozen.victim.check("")?;
    frozen.victim.end()?;
    guarded.left_nothing()
}

/// Whoever takes over asks for the head anew.
#[test]
fn a_pager_that_takes_over_has_no_table_and_gets_it() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let server = Server::start(frozen.folder.path())?;
    for store in [frozen.store(), server.store()] {
        let guarded = Guarded::restore(&frozen.victim, "x", &store, ONLY_TOUCHED)?;
        let pager = guarded.status()?.pager_pid.context("somebody serves it")?;
        ensure!(guarded.kill_one(pager)?);
        frozen.victim.check("")?;
        ensure!(guarded.status()?.adopted == 1);
        frozen.victim.end()?;
        guarded.left_nothing()?;
    }
    Ok(())
}
