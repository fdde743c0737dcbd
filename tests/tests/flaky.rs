//! A checkpoint whose store fails at every place there is: its disk is full after so many bytes, its server finds nobody or no space,
//! its system calls fail. It ends well, or with one sentence and code 1; the process runs on, and the store opens and has no snapshot
//! by halves.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Victim, binary, defrost_ok, defrost_tries_through, need_root};
use page_server::Config;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use store::{Access, FlakyStore, LocalStore, Plan};
use tempfile::TempDir;

/// Some megabytes that do not compress, and a count that goes on.
const HOLDER: &str = "import os, time, itertools\nheld = os.urandom(4 << 20)\nfor n in itertools.count():\n    print('count', n, flush=True)\n    time.sleep(0.01)\n";

struct Holder(Victim);

impl Holder {
    fn start() -> Result<Self> {
        need_root()?;
        let victim = Victim::python(HOLDER)?;
        victim.wait_for("count", 1)?;
        Ok(Self(victim))
    }

    /// Try to store it; what it said, if it failed.
    fn checkpoint(&self, through: &[&str], name: &str, store: &str) -> Result<Option<String>> {
        let pid = self.0.pid().to_string();
        let tried = defrost_tries_through(through, &["checkpoint", &pid, name, "--store", store, "--leave-running"])?.err();
        if let Some(said) = &tried {
            ensure!(!said.contains("panicked") && said.len() < 1000, "{said}");
        }
        self.0.runs_untouched()?;
        self.0.wait_for("count", self.0.count("count") + 2)?;
        Ok(tried)
    }
}

/// The store opens, for writing too, and what it lists is whole; the names.
fn names_of_whole(store: &Path) -> Result<Vec<String>> {
    let text = store.to_string_lossy().into_owned();
    defrost_ok(&["gc", "--store", &text])?;
    let listed = defrost_ok(&["list", "--store", &text])?;
    let names: Vec<String> = listed.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    names.iter().try_for_each(|name| defrost_ok(&["verify", name, "--store", &text]).map(drop))?;
    Ok(names)
}

/// A file system of so many KiB, gone with its value.
struct Small(TempDir);

impl Small {
    fn mount(kib: u64) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "small"]).arg(folder.path()).status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(Self(folder))
    }

    fn grow(&self) -> Result<()> {
        let status = Command::new("mount").args(["-o", "remount,size=64m"]).arg(self.0.path()).status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        if !unmounted.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("unmount {}: {unmounted:?}", self.0.path().display());
        }
    }
}

#[test]
fn a_disk_that_is_full_after_so_many_bytes() -> Result<()> {
    let holder = Holder::start()?;
    let (mut full, mut fits, mut size_kib) = (0, 0, 4);
    while fits < 2 {
        ensure!(size_kib < 64 << 10, "it never fits");
        let disk = Small::mount(size_kib)?;
        let folder = disk.0.path().join("store");
        let said = holder.checkpoint(&[], "x", &folder.to_string_lossy()).with_context(|| format!("{size_kib} KiB"))?;
        disk.grow()?;
        match said {
            Some(said) => {
                full += 1;
                ensure!(said.contains("the disk is full") && said.contains("free some space"), "{size_kib} KiB: {said}");
                ensure!(names_of_whole(&folder)?.is_empty(), "{size_kib} KiB: half a snapshot");
            }
            None => {
                fits += 1;
                ensure!(names_of_whole(&folder)? == ["x:latest"], "{size_kib} KiB");
            }
        }
        // Finely at first, where the folders and the lock are made; finely again where little is left over for the image.
        size_kib += if size_kib < 40 { 4 } else { 292 };
    }
    println!("{full} sizes were too small");
    ensure!(full >= 15, "only {full} sizes were too small");
    Ok(())
}

#[test]
fn a_server_whose_store_fails_now_and_then() -> Result<()> {
    let holder = Holder::start()?;
    let folder = tempfile::tempdir()?;
    let flaky = Arc::new(FlakyStore::new(LocalStore::open(folder.path(), Access::Write)?, Plan::default()));
    let server = page_server::Server::start(&Config::new("grpc://127.0.0.1:0".parse()?, folder.path().to_owned()), flaky.clone())?;
    let address = server.addresses()[0].to_string();
    let table = [
        ("nobody answers", Plan { unreachable: 0.2, ..Plan::default() }, "page server"),
        ("the disk is full", Plan { full: 0.25, ..Plan::default() }, "the disk is full"),
        ("it is damaged", Plan { damaged: 1.0, ..Plan::default() }, ""), // nothing is read
        ("all of it", Plan { unreachable: 0.1, full: 0.1, late: 0.2, late_by: Duration::from_millis(5), ..Plan::default() }, ""),
    ];
    let mut stored = Vec::new();
    for (what, plan, word) in table {
        let mut failed = 0;
        for seed in 0..10 {
            let name = format!("{}:{seed}", what.replace(' ', "-"));
            // First at any of hundreds of calls, then at one or none.
            let rarely = if seed < 5 { 1.0 } else { 0.01 };
            flaky.set_plan(Plan { seed, unreachable: plan.unreachable * rarely, full: plan.full * rarely, ..plan.clone() });
            let said = holder.checkpoint(&[], &name, &address).with_context(|| name.clone())?;
            flaky.set_plan(Plan::default());
            match said {
                Some(said) => {
                    ensure!(said.contains(word), "{name}: {said}");
                    failed += 1;
                }
                None => stored.push(name),
            }
        }
        println!("{what}: {failed} of 10 failed");
        ensure!(failed > 0 || what == "it is damaged", "{what}: none failed");
    }
    let listed = defrost_ok(&["list", "--store", &address])?;
    for name in &stored {
        ensure!(listed.contains(name.as_str()), "{name} was promised");
        defrost_ok(&["verify", name, "--store", &address])?;
    }
    ensure!(listed.lines().count() == stored.len(), "{listed}");
    server.drain();
    Ok(())
}

/// The calls of the way to a disk, made to fail one after the other by strace. What it interrupts is done again.
#[test]
fn system_calls_of_the_upload_fail_one_after_the_other() -> Result<()> {
    let holder = Holder::start()?;
    binary("defrost")?;
    let table: &[(&str, &str, &[u64])] = &[
        ("write", "ENOSPC", &[1, 2, 3, 4, 5, 6, 7, 8]),
        ("write", "EIO", &[1, 3, 5, 7]),
        ("write", "EINTR", &[1, 2, 3, 4, 5, 6, 7, 8]),
        ("fsync", "EIO", &[1, 2, 3, 4, 5, 6]),
        ("fsync", "ENOSPC", &[1, 2, 3, 4, 5, 6]),
        ("fsync", "EINTR", &[1, 2, 3, 4, 5, 6]),
        ("mkdir", "ENOSPC", &[1, 2, 3, 4, 5]),
        ("rename,renameat,renameat2", "ENOSPC", &[1, 2, 3]),
        ("rename,renameat,renameat2", "EACCES", &[1, 2, 3]),
        ("flock", "EINTR", &[1]),
        ("flock", "ENOLCK", &[1]),
        ("fadvise64", "EIO", &[1]),
    ];
    let (mut failed, mut stored) = (0, 0);
    for (calls, error, times) in table {
        for when in *times {
            let folder = tempfile::tempdir()?;
            let store = folder.path().join("store");
            let inject = format!("inject={calls}:error={error}:when={when}");
            let through = ["strace", "-f", "-qqq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject];
            let said = holder.checkpoint(&through, "x", &store.to_string_lossy()).with_context(|| inject.clone())?;
            println!("{inject}: {}", said.as_deref().unwrap_or("stored").trim_end());
            let whole = if store.exists() { names_of_whole(&store).with_context(|| inject.clone())? } else { Vec::new() };
            match said {
                Some(_) => {
                    failed += 1;
                    ensure!(*error != "EINTR", "{inject}: an interrupted call was not made again");
                    ensure!(whole.is_empty(), "{inject}: it failed, yet {whole:?} is there");
                }
                None => {
                    stored += 1;
                    ensure!(whole == ["x:latest"], "{inject}: {whole:?}");
                }
            }
        }
    }
    println!("{failed} failed, {stored} were stored");
    ensure!(failed >= 10 && stored >= 10, "{failed} failed, {stored} were stored");
    Ok(())
}
