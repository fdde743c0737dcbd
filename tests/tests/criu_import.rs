//! CRIU's dumps in our stores: real dumps of real processes go in and come out as the same bytes, CRIU restores what came out, pages
//! are stored once whoever dumped them, and a dump that is broken is refused by file and record.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Server, Victim, criu, defrost_fails, defrost_ok, need_root};
use images::criu::Pagemap;
use std::path::Path;

fn import(images: &Path, name: &str, store: &str) -> Result<serde_json::Value> {
    let report = defrost_ok(&["import", "criu", &images.display().to_string(), name, "--store", store, "--json"])?;
    serde_json::from_str(&report).with_context(|| report.clone())
}

fn export(name: &str, to: &Path, store: &str, how: &[&str]) -> Result<()> {
    defrost_ok(&[&["export", "criu", name, &to.display().to_string(), "--store", store], how].concat()).map(drop)
}

fn number(report: &serde_json::Value, field: &str) -> Result<u64> {
    report[field].as_u64().with_context(|| format!("{field} of {report}"))
}

#[test]
fn a_dump_comes_back_byte_for_byte_and_runs() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("store"))?;
    let images = folder.path().join("images");
    let mut victim = criu::tree(8)?;
    criu::dump(&victim, &images, &[])?;
    victim.reap()?;
    let report = import(&images, "tree:1", &server.store())?;
    ensure!(number(&report, "tasks")? == 3 && number(&report, "folders")? == 1, "{report}");
    // The same again: every chunk is there.
    let again = import(&images, "tree:2", &server.store())?;
    ensure!(number(&again, "new_chunks")? == 0 && again["chunks"] == report["chunks"], "{again}");
    defrost_ok(&["verify", "tree:1", "--store", &server.store()])?;
    let said = defrost_ok(&["inspect", "tree:1", "--store", &server.store()])?;
    ensure!(said.contains("dump of CRIU's, 3 tasks"), "{said}");

    let exported = folder.path().join("exported");
    export("tree:1", &exported, &server.store(), &[])?;
    criu::ensure_same(&images, &exported)?;
    std::fs::remove_dir_all(&images)?;
    criu::restore(&exported)?;
    victim.check("")?;
    victim.end()
}

#[test]
fn a_chain_of_parents_comes_back_and_runs() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store").display().to_string();
    let (images, parent) = (folder.path().join("images"), folder.path().join("before"));
    let mut victim = criu::tree(2)?;
    criu::dump(&victim, &images, &[])?;
    victim.reap()?;
    criu::split(&images, &parent)?;
    // The chain itself is one that CRIU takes.
    criu::restore(&images)?;
    victim.check("")?;
    victim.end()?;

    let report = import(&images, "chain", &store)?;
    ensure!(number(&report, "folders")? == 2, "{report}");
    let exported = folder.path().join("exported");
    export("chain", &exported, &store, &[])?;
    criu::ensure_same(&images, &exported)?;
    ensure!(exported.join("parent/inventory.img").is_file(), "the parent is a folder in the folder");
    std::fs::remove_dir_all(&parent)?;
    criu::restore(&exported)?;
    victim.check("")?;
    victim.end()
}

#[test]
fn pages_are_stored_once_whoever_dumped_them() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store").display().to_string();
    let victim = Victim::c("memory", &["32"])?;
    let ours = defrost_ok(&["checkpoint", &victim.pid().to_string(), "ours", "--leave-running", "--store", &store, "--json"])?;
    let ours: serde_json::Value = serde_json::from_str(&ours)?;
    criu::dump(&victim, &folder.path().join("images"), &["--leave-running"])?;
    let report = import(&folder.path().join("images"), "theirs", &store)?;
    let (new, chunks) = (number(&report, "new_chunks")?, number(&report, "chunks")?);
    ensure!(chunks > 500 && new * 20 < chunks, "{new} of {chunks} chunks are new beside a checkpoint of ours: {ours}");
    Ok(())
}

#[test]
fn a_broken_dump_is_refused_by_file_and_record() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store").display().to_string();
    let whole = folder.path().join("whole");
    let victim = Victim::c("memory", &["1"])?;
    criu::dump(&victim, &whole, &["--leave-running"])?;
    let (pid, mut at) = (victim.pid(), 0);
    let pagemap = format!("pagemap-{pid}.img");
    let pages = Pagemap::parse(&pagemap, &std::fs::read(whole.join(&pagemap))?)?.pages_file();
    let mut refused = |what: &[&str], change: &dyn Fn(&Path) -> Result<()>| -> Result<()> {
        at += 1;
        let images = folder.path().join(format!("broken-{at}"));
        std::fs::create_dir(&images)?;
        for (name, bytes) in criu::files(&whole)? {
            std::fs::write(images.join(name), bytes)?;
        }
        change(&images)?;
        let said = defrost_fails(&["import", "criu", &images.display().to_string(), "broken", "--store", &store])?;
        for what in what {
            ensure!(said.contains(what), "it does not name {what:?}: {said}");
        }
        Ok(())
    };
    let shortened = |path: &Path, by: u64| -> Result<()> {
        let file = std::fs::File::options().write(true).open(path)?;
        Ok(file.set_len(file.metadata()?.len() - by)?)
    };
    refused(&["inventory.img", "is missing"], &|dir| Ok(std::fs::remove_file(dir.join("inventory.img"))?))?;
    refused(&["inventory.img", "magic number"], &|dir| Ok(std::fs::write(dir.join("inventory.img"), b"{\"magic\": \"none\"}")?))?;
    refused(&["pstree.img", "record 0"], &|dir| shortened(&dir.join("pstree.img"), 1))?;
    refused(&[&pagemap, "record "], &|dir| shortened(&dir.join(&pagemap), 3))?;
    refused(&[&pages, &pagemap, "tells of"], &|dir| shortened(&dir.join(&pages), 4096))?;
    refused(&[&pages, "is missing"], &|dir| Ok(std::fs::remove_file(dir.join(&pages))?))?;
    refused(&["its own parent"], &|dir| Ok(std::os::unix::fs::symlink(".", dir.join("parent"))?))?;
    refused(&["parent", "No such file"], &|dir| Ok(std::os::unix::fs::symlink("/nowhere/at-all", dir.join("parent"))?))?;
    refused(&["secret", "something else than a file"], &|dir| Ok(std::os::unix::fs::symlink("/etc/passwd", dir.join("secret"))?))?;
    refused(&["pipe", "something else than a file"], &|dir| Ok(nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU)?))?;
    // A record in the middle that runs over those before it.
    refused(&[&pagemap, "record 2", "behind those of the record before"], &|dir| {
        let mut map = Pagemap::parse(&pagemap, &std::fs::read(dir.join(&pagemap))?)?;
        map.entries.swap(0, 1);
        Ok(std::fs::write(dir.join(&pagemap), map.encode())?)
    })?;
    refused(&[&pagemap, "record 1", "left to the parent"], &|dir| {
        let mut map = Pagemap::parse(&pagemap, &std::fs::read(dir.join(&pagemap))?)?;
        let first = map.entries.first_mut().context("it has pages")?;
        (first.in_parent, first.present) = (true, false);
        let bytes = first.range.bytes();
        shortened(&dir.join(&pages), bytes)?;
        Ok(std::fs::write(dir.join(&pagemap), map.encode())?)
    })?;
    let said = defrost_fails(&["import", "criu", "/nowhere/at-all", "broken", "--store", &store])?;
    ensure!(said.contains("/nowhere/at-all"), "{said}");
    ensure!(defrost_ok(&["list", "--store", &store])?.is_empty(), "nothing may be stored");
    Ok(())
}

#[test]
fn what_cannot_be_exported_is_refused() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store").display().to_string();
    let victim = Victim::c("memory", &["1"])?;
    let pid = victim.pid().to_string();
    defrost_ok(&["checkpoint", &pid, "ours", "--leave-running", "--store", &store])?;
    criu::dump(&victim, &folder.path().join("images"), &["--leave-running"])?;
    import(&folder.path().join("images"), "theirs", &store)?;
    let to = folder.path().join("to").display().to_string();
    let said = defrost_fails(&["export", "criu", "ours", &to, "--store", &store])?;
    ensure!(said.contains("defrost restore ours"), "{said}");
    let said = defrost_fails(&["restore", "theirs", "--detach", "--store", &store])?;
    ensure!(said.contains("defrost export criu"), "{said}");
    let said = defrost_fails(&["export", "criu", "nobody", &to, "--store", &store])?;
    ensure!(said.contains("nobody"), "{said}");
    let said = defrost_fails(&["import", "criu", &folder.path().join("images").display().to_string(), "ours", "--store", &store])?;
    ensure!(said.contains("exists already"), "{said}");
    // Nothing is left of an export that failed, and nothing is written over.
    ensure!(!Path::new(&to).exists(), "{to} is left behind");
    std::fs::create_dir(&to)?;
    std::fs::write(Path::new(&to).join("mine"), "mine")?;
    let said = defrost_fails(&["export", "criu", "theirs", &to, "--store", &store])?;
    ensure!(said.contains("is there already"), "{said}");
    std::fs::remove_file(Path::new(&to).join("mine"))?;
    export("theirs", Path::new(&to), &store, &[])?;
    let names: Vec<_> = folder.path().read_dir()?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(names.len() == 3, "something is left beside: {names:?}");
    Ok(())
}
