//! Files: those without a name come back with their contents, those that changed are known by what matters, and what cannot come
//! back is refused by name.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Victim, checkpoint, defrost_fails, defrost_ok, need_root, proves, restore, restore_with, victims};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use tempfile::TempDir;

victims! {
    a_deleted_file_comes_back_as_one_inode: "files", "deleted";
    a_file_that_never_had_a_name_comes_back: "files", "tmpfile";
    a_file_is_found_by_its_other_name: "files", "linked";
    a_file_whose_name_another_took_comes_back_beside_it: "files", "replaced";
    names_that_look_like_something_else_are_believed: "files", "names";
    deleted_directories_are_worked_in: "files", "directory";
    memfds_keep_contents_seals_and_modes: "files", "memfds";
    a_deleted_executable_runs_on: "files", "exe";
    a_process_in_a_chroot_stays_there: "files", "root";
}

fn store() -> Result<(TempDir, String)> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    Ok((folder, store))
}

/// A checkpoint of `victim` is refused with these words, on one line; the victim then finds itself right.
fn refused(kind: &str, words: &[&str]) -> Result<()> {
    let (_folder, store) = store()?;
    let victim = Victim::c("files", &[kind])?;
    let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    ensure!(words.iter().all(|word| text.contains(word)), "{text:?} lacks some of {words:?}");
    ensure!(text.trim_end().lines().count() == 1, "{text:?} is more than one line");
    victim.runs_untouched()?;
    victim.check("")
}

/// A restore is refused with these words.
fn not_restored(victim: &Victim, store: &str, words: &[&str]) -> Result<()> {
    let text = defrost_fails(&["restore", "x", "--store", store, "--detach"])?;
    ensure!(words.iter().all(|word| text.contains(word)), "{text:?} lacks some of {words:?}");
    victim.left_nothing()
}

#[test]
fn what_another_process_may_write_is_refused_with_its_pid() -> Result<()> {
    refused("shared memfd", &["fd 3: /memfd:between us is shared with process", "(files)", "end that process first"])?;
    refused("shared deleted", &["is shared with process", "(files)"])
}

#[test]
fn memory_that_no_file_can_hold_is_refused() -> Result<()> {
    refused("huge memfd", &["fd 3: /memfd:huge is hugetlb memory", "transparent huge pages"])?;
    refused("secret", &["fd 3: ", "secretmem", "secret memory"])
}

#[test]
fn a_file_whose_other_name_is_elsewhere_is_refused() -> Result<()> {
    refused("moved link", &["fd 3: ", "/first has lost this name", "link it there again"])
}

#[test]
fn a_name_that_is_not_utf8_is_refused() -> Result<()> {
    refused("not utf-8", &["fd 3: ", "not UTF-8", "rename the file"])
}

#[test]
fn a_deleted_file_is_kept_up_to_a_size() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("files", &["large"])?;
    let pid = victim.pid().to_string();
    let tried = defrost_fails(&["checkpoint", &pid, "x", "--store", &store, "--max-deleted-bytes", "1000000"])?;
    let words = ["large was deleted and has 1228800 bytes, more than 1000000", "raise --max-deleted-bytes"];
    ensure!(words.iter().all(|word| tried.contains(word)), "{tried}");
    victim.runs_untouched()?;
    checkpoint(&mut victim, "x", &store)?;
    restore(&victim, "x", &store)?;
    victim.check("")
}

/// A package was upgraded or a file system copied: other times, other inodes, the same contents.
#[test]
fn the_same_contents_are_the_same_file() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("memory", &["1"])?;
    let mapped = victim.folder().join("mapped");
    checkpoint(&mut victim, "x", &store)?;
    let contents = fs::read(&mapped)?;
    fs::remove_file(&mapped)?;
    fs::write(&mapped, &contents)?;
    restore(&victim, "x", &store)?;
    victim.check("")
}

#[test]
fn logs_that_grew_or_were_rotated_go_on() -> Result<()> {
    let (_folder, store) = store()?;
    for rotated in [false, true] {
        let mut victim = Victim::c("files", &["logs"])?;
        let [appended, tailed] = ["appended", "tailed"].map(|name| victim.folder().join(name));
        checkpoint(&mut victim, "x", &store)?;
        let add = |path: &Path| -> Result<()> { Ok(fs::write(path, fs::read_to_string(path)? + "two\n")?) };
        add(&appended)?;
        add(&tailed)?;
        if rotated {
            for log in [&appended, &tailed] {
                fs::rename(log, log.with_extension("1"))?;
                fs::write(log, "a new log\n")?;
            }
        }
        restore(&victim, "x", &store).with_context(|| format!("rotated: {rotated}"))?;
        victim.check("")?;
        let log = if rotated { appended.with_extension("1") } else { appended.clone() };
        ensure!(fs::read_to_string(&log)? == "one\ntwo\nlast\n", "{:?}", fs::read_to_string(&log));
        ensure!(!rotated || fs::read_to_string(&appended)? == "a new log\n", "the new log was written");
        defrost_ok(&["remove", "x", "--store", &store])?;
    }
    Ok(())
}

#[test]
fn a_file_that_it_edits_and_others_changed_is_taken_on_request() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("files", &["edited"])?;
    let edited = victim.folder().join("edited");
    let path = edited.to_string_lossy().into_owned();
    checkpoint(&mut victim, "x", &store)?;
    fs::write(&edited, "two\n")?;
    not_restored(&victim, &store, &[&path, "was modified since the checkpoint: it has other contents", "--accept-changed", "--replace"])?;
    fs::write(&edited, "one\ntwo\n")?;
    not_restored(&victim, &store, &[&path, "has 8 bytes instead of 4"])?;
    let unknown = defrost_fails(&["restore", "x", "--store", &store, "--detach", "--accept-changed", "/nowhere"])?;
    ensure!(unknown.contains(&path) || unknown.contains("has no file /nowhere"), "{unknown}");
    restore_with(&victim, "x", &store, &["--accept-changed", &path])?;
    victim.check("")?;
    victim.end()?;
    let other = victim.folder().join("other");
    fs::rename(&edited, &other)?;
    fs::write(&edited, "not this one")?;
    restore_with(&victim, "x", &store, &["--replace", &format!("{path}={}", other.display())])?;
    let opened = fs::read_link(format!("/proc/{}/fd/3", victim.pid()))?;
    ensure!(opened == other, "fd 3 leads to {}", opened.display());
    victim.check("")
}

#[test]
fn posix_shared_memory_lives_on_or_is_made_again() -> Result<()> {
    let (_folder, store) = store()?;
    for gone in [false, true] {
        let mut victim = Victim::c("files", &["shm"])?;
        let path = format!("/dev/shm/defrost-victim-{}", victim.pid());
        checkpoint(&mut victim, "x", &store)?;
        let before = fs::metadata(&path)?.ino();
        if gone {
            fs::remove_file(&path)?;
        }
        restore(&victim, "x", &store).with_context(|| format!("gone: {gone}"))?;
        ensure!(gone || fs::metadata(&path)?.ino() == before, "it was made again though it was there");
        victim.check("")?;
        defrost_ok(&["remove", "x", "--store", &store])?;
    }
    Ok(())
}

/// A restore that fails takes back what it made.
#[test]
fn a_failed_restore_leaves_no_shared_memory() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("files", &["shm"])?;
    let path = format!("/dev/shm/defrost-victim-{}", victim.pid());
    checkpoint(&mut victim, "x", &store)?;
    fs::remove_file(&path)?;
    let nowhere = victim.folder().join("none/pid").to_string_lossy().into_owned();
    let text = defrost_fails(&["restore", "x", "--store", &store, "--detach", "--pid-file", &nowhere])?;
    ensure!(text.contains("none/pid"), "{text}");
    ensure!(!Path::new(&path).exists(), "{path} is left behind");
    restore(&victim, "x", &store)?;
    victim.check("")
}

/// Another file was mounted over a name: what is open is not what the name leads to.
#[test]
fn a_file_that_a_mount_hides_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let victim = Victim::c("files", &["edited"])?;
    let [edited, over] = ["edited", "over"].map(|name| victim.folder().join(name));
    fs::write(&over, "over")?;
    let mount = Mount::over(&over, &edited)?;
    let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store]);
    drop(mount);
    let text = text?;
    ensure!(text.contains("/edited is hidden") && text.contains("unmount"), "{text}");
    victim.runs_untouched()?;
    victim.check("")
}

/// A bind mount that goes with its value.
struct Mount(std::path::PathBuf);

impl Mount {
    fn over(from: &Path, to: &Path) -> Result<Self> {
        nix::mount::mount(Some(from), to, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)?;
        Ok(Self(to.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(errno) = nix::mount::umount(&self.0) {
            eprintln!("unmount {}: {errno}", self.0.display());
        }
    }
}

/// An upgraded library and a rotated log, in a real program.
#[test]
fn a_python_program_with_a_deleted_library_goes_on() -> Result<()> {
    let (_folder, store) = store()?;
    let text = "import ctypes, os, shutil, tempfile, time\n\
                shutil.copy('/lib/x86_64-linux-gnu/libz.so.1', './libz.so.1')\n\
                z = ctypes.CDLL('./libz.so.1')\n\
                shutil.copy('/lib/x86_64-linux-gnu/libz.so.1', './new')\n\
                os.rename('./new', './libz.so.1')\n\
                log = tempfile.TemporaryFile()\n\
                log.write(b'x' * 100000)\n\
                while True:\n    log.write(b'line\\n'); log.flush(); print('crc', z.crc32(0, b'hello', 5), log.tell(), flush=True); time.sleep(0.1)\n";
    let mut victim = Victim::python(text)?;
    victim.wait_for("crc 907060870", 2)?;
    checkpoint(&mut victim, "x", &store)?;
    let said = victim.count("crc 907060870");
    restore(&victim, "x", &store)?;
    victim.wait_for("crc 907060870", said + 2)?;
    let positions: Vec<u64> = victim.output().lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok()).collect();
    ensure!(positions.windows(2).all(|pair| pair[1] == pair[0] + 5), "{positions:?}");
    Ok(())
}
