//! Stores and names that are not what they should be: the object is named, nothing is half done, and no process reads a wrong byte.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::command::as_nobody;
use defrost_tests::small_disk::SmallDisk;
use defrost_tests::{
    Server, Victim, checkpoint, defrost, defrost_fails, defrost_fails_through, defrost_ok, defrost_tries_through, eventually, need_root,
    restore,
};
use images::Image;
use images::manifest::description::Kind;
use images::manifest::{Description, SignalFd, Thread};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A victim whose memory, each byte of which it checks, is in the store of a folder.
struct Frozen {
    victim: Victim,
    folder: TempDir,
}

impl Frozen {
    fn new() -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        let mut victim = Victim::c("memory", &["8"])?;
        checkpoint(&mut victim, "whole", &folder.path().join("whole").to_string_lossy())?;
        Ok(Self { victim, folder })
    }

    /// A copy of the store, under a name of its own.
    fn copy(&self, name: &str) -> Result<PathBuf> {
        let copy = self.folder.path().join(name);
        let status = Command::new("cp").args(["-a"]).arg(self.folder.path().join("whole")).arg(&copy).status()?;
        ensure!(status.success(), "cp: {status}");
        Ok(copy)
    }

    /// Restore from a damaged store: refused with all of `words`, or the process is ended before it reads a wrong byte and whoever
    /// asks is told with these words.
    fn is_never_wrong(&mut self, store: &str, how: &[&str], words: &[&str]) -> Result<bool> {
        let all_said = |text: &str| ensure_words(text, words);
        match defrost_tries_through(&[], &[&["restore", "whole", "--store", store, "--detach"], how].concat())? {
            Err(text) => {
                self.victim.left_nothing()?;
                all_said(&text)?;
                Ok(false)
            }
            Ok(_) => {
                let pid = self.victim.pid().to_string();
                let outcome = self.victim.check("");
                let text = outcome.err().map(|error| format!("{error:#}")).context("it found itself right")?;
                ensure!(text.contains("ended without a verdict"), "{text}");
                let told = defrost_fails(&["wait", &pid])?;
                ensure!(told.contains(&format!("process {pid} was ended: ")), "{told}");
                all_said(&told)?;
                self.victim.end()?;
                Ok(true)
            }
        }
    }
}

fn ensure_words(text: &str, words: &[&str]) -> Result<()> {
    ensure!(words.iter().all(|word| text.contains(word)), "{text:?} lacks some of {words:?}");
    Ok(())
}

/// The files of a folder of the store.
fn files(store: &Path, folder: &str) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(store.join(folder))?.flatten().map(|entry| entry.path()).collect())
}

fn flip(path: &Path, from_end: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let at = file.metadata()?.len() - from_end;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    Ok(())
}

fn cut(path: &Path, bytes: u64) -> Result<()> {
    Ok(OpenOptions::new().write(true).open(path)?.set_len(bytes)?)
}

fn len(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.len())
}

type Damage = fn(&Path) -> Result<()>;

#[test]
fn a_damaged_store_is_told_by_its_object_and_never_restored_wrong() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let damages: &[(&str, &str, Damage, &[&str])] = &[
        ("bit-of-frame", "packs", |file| flip(file, len(file)? / 2), &["stored frame", "checksum does not fit"]),
        ("bit-of-index", "packs", |file| flip(file, 100), &["/packs/", ".pack", "pack's index", "checksum does not fit"]),
        ("bit-of-footer", "packs", |file| flip(file, 3), &["/packs/", ".pack", "the pack is damaged"]),
        ("bit-of-magic", "packs", |file| flip(file, len(file)?), &["/packs/", ".pack", "magic number"]),
        ("half-a-pack", "packs", |file| cut(file, len(file)? / 2), &["/packs/", ".pack", "it ends in the middle"]),
        ("empty-pack", "packs", |file| cut(file, 0), &["/packs/", ".pack", "truncated"]),
        ("no-pack", "packs", |file| Ok(fs::remove_file(file)?), &["chunk ", "missing from the store"]),
        ("bit-of-manifest", "snapshots", |file| flip(file, len(file)? - 200), &["/snapshots/", ".image", "checksum does not fit"]),
        ("bit-of-table", "snapshots", |file| flip(file, 5), &["/snapshots/", ".image", "checksum does not fit"]),
        ("bit-of-header", "snapshots", |file| flip(file, len(file)? - 30), &["/snapshots/", ".image", "checksum does not fit"]),
        ("half-an-image", "snapshots", |file| cut(file, len(file)? / 2), &["/snapshots/", ".image", "truncated"]),
        ("empty-image", "snapshots", |file| cut(file, 0), &["/snapshots/", ".image", "truncated"]),
        ("no-image", "snapshots", |file| Ok(fs::remove_file(file)?), &["image of snapshot", "is missing from the store"]),
        ("bit-of-ref", "refs", |file| flip(file, 5), &["/refs/whole:latest"]),
        ("half-a-ref", "refs", |file| cut(file, 20), &["/refs/whole:latest"]),
        ("empty-ref", "refs", |file| cut(file, 0), &["/refs/whole:latest"]),
        ("not-a-ref", "refs", |file| Ok(fs::write(file, [0xff, 0xfe, 0])?), &["/refs/whole:latest"]),
        ("no-ref", "refs", |file| Ok(fs::remove_file(file)?), &["snapshot whole:latest is not in the store", "defrost list"]),
    ];
    let mut ended = 0;
    for (name, folder, damage, words) in damages {
        let store = frozen.copy(name)?;
        files(&store, folder)?.iter().try_for_each(|file| damage(file)).with_context(|| name.to_string())?;
        let store = store.to_string_lossy().into_owned();
        let text = defrost_fails(&["verify", "whole", "--store", &store]).with_context(|| name.to_string())?;
        ensure_words(&text, words).with_context(|| format!("verify, {name}"))?;
        for how in [&[][..], &["--no-background"], &["--eager"]] {
            let late = frozen.is_never_wrong(&store, how, words).with_context(|| format!("restore {how:?}, {name}"))?;
            ensure!(!late || how != ["--eager"], "{name}: an eager restore let the process run");
            ended += u32::from(late);
        }
    }
    println!("{ended} restores began and were ended");
    // The store all copies were made from is whole: nothing above was refused for another reason.
    restore(&frozen.victim, "whole", &frozen.folder.path().join("whole").to_string_lossy())?;
    frozen.victim.check("")
}

/// The same frame damaged on the disk of a page server, under its feet.
#[test]
fn a_damaged_frame_is_told_through_a_page_server() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let store = frozen.copy("served")?;
    let server = Server::start(&store)?;
    files(&store, "packs")?.iter().try_for_each(|file| flip(file, len(file)? / 2))?;
    let text = defrost_fails(&["verify", "whole", "--store", &server.store()])?;
    ensure_words(&text, &["checksum does not fit"])?;
    for how in [&[][..], &["--no-background"], &["--eager"]] {
        frozen.is_never_wrong(&server.store(), how, &["checksum does not fit"]).with_context(|| format!("{how:?}"))?;
    }
    Ok(())
}

/// A checkpoint relies on nothing that is stored and wrong: what it leaves out because it is there already is read and checked, in a
/// directory and by a page server, also where the damage came while the server ran. Before, it ended the process, which was lost.
#[test]
fn a_checkpoint_relies_on_no_damaged_chunk() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let whole = frozen.folder.path().join("whole").to_string_lossy().into_owned();
    let mut last = None;
    for (name, damage) in [("flips", None), ("served", None), ("cut", Some(100)), ("served-cut", Some(100))] {
        restore(&frozen.victim, "whole", &whole)?;
        defrost_ok(&["wait", &frozen.victim.pid().to_string()])?;
        let store = frozen.copy(name)?;
        let server = if name.starts_with("served") { Some(Server::start(&store)?) } else { None };
        let address = server.as_ref().map_or_else(|| store.to_string_lossy().into_owned(), Server::store);
        for pack in files(&store, "packs")? {
            match damage {
                Some(bytes) => cut(&pack, bytes)?,
                None => (len(&pack)? / 10..len(&pack)?).step_by(5000).try_for_each(|from_end| flip(&pack, from_end))?,
            }
        }
        checkpoint(&mut frozen.victim, "again", &address).with_context(|| name.to_string())?;
        defrost_ok(&["verify", "again", "--store", &address]).with_context(|| name.to_string())?;
        last = Some((server, address));
    }
    let (_server, address) = last.context("four rounds")?;
    restore(&frozen.victim, "again", &address)?;
    frozen.victim.check("")
}

/// `remove` and `gc` under a restore that has brought nothing yet: it holds a lease, so that all its pages still come, from a directory and
/// through a server, also to a pager that takes over; and once it has them, its space is freed.
#[test]
fn a_live_restore_keeps_its_snapshot() -> Result<()> {
    for served in [false, true] {
        let frozen = Frozen::new()?;
        let store = frozen.copy("leased")?;
        let server = if served { Some(Server::start(&store)?) } else { None };
        let address = server.as_ref().map_or_else(|| store.to_string_lossy().into_owned(), Server::store);
        let leased = |live: &str| Ok::<_, anyhow::Error>(defrost_ok(&["list", "--json", "--store", &address])?.contains(live));
        defrost_ok(&["restore", "whole", "--store", &address, "--detach", "--no-background"])?;
        eventually("the restore has a lease", || leased("\"leases\":1").unwrap_or_default())?;
        let said = defrost_ok(&["remove", "whole", "--store", &address])?;
        ensure_words(&said, &["1 live restores still need it"])?;
        defrost_ok(&["gc", "--store", &address])?;
        ensure!(!files(&store, "packs")?.is_empty(), "its packs are gone");
        // Another pager opens the store anew.
        let pid = frozen.victim.pid().to_string();
        let status = defrost_ok(&["status", &pid, "--json"])?;
        let pager = status.split("\"pager_pid\":").nth(1).and_then(|rest| rest.split([',', '}']).next());
        let pager = pager.with_context(|| status.clone())?.trim().parse()?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pager), nix::sys::signal::Signal::SIGKILL)?;
        frozen.victim.check("").with_context(|| format!("through a server: {served}"))?;
        eventually("the lease is given back", || files(&store, "leases").is_ok_and(|leases| leases.is_empty()))?;
        defrost_ok(&["gc", "--store", &address])?;
        ensure!(files(&store, "packs")?.is_empty() && files(&store, "snapshots")?.is_empty(), "its space is not freed");
    }
    Ok(())
}

/// `remove` and `gc` between the first read of a restore and anything that follows: strace holds it up where it opens the image.
#[test]
fn a_restore_keeps_its_snapshot_from_its_first_read_on() -> Result<()> {
    let frozen = Frozen::new()?;
    let store = frozen.copy("raced")?;
    let address = store.to_string_lossy().into_owned();
    let image = files(&store, "snapshots")?.into_iter().find(|file| file.extension().is_some_and(|kind| kind == "image"));
    let image = image.context("no image")?.to_string_lossy().into_owned();
    let log = store.with_extension("log");
    let mut restore = Command::new("strace")
        .args(["-qqq", "-P", &image, "-e", "trace=openat", "-e", "inject=openat:delay_exit=1500000:when=1", "-o"])
        .arg(&log)
        .arg(defrost_tests::binary("defrost")?)
        .args(["restore", "whole", "--store", &address, "--detach", "--no-background", "--no-replay"])
        .spawn()
        .context("start strace: install its package")?;
    // strace writes the line as the call begins.
    let begun = || fs::read_to_string(&log).is_ok_and(|text| text.contains("openat"));
    let seen = eventually("the restore reads the image", begun);
    let collected = seen.and_then(|()| {
        defrost_ok(&["remove", "whole", "--store", &address])?;
        defrost_ok(&["gc", "--store", &address])
    });
    ensure!(restore.wait()?.success(), "the restore failed");
    collected?;
    frozen.victim.check("")?;
    eventually("the lease is given back", || files(&store, "leases").is_ok_and(|leases| leases.is_empty()))
}

/// Who changed what is in the server's log at its default level.
#[test]
fn a_server_logs_who_committed_tagged_removed_and_collected() -> Result<()> {
    let frozen = Frozen::new()?;
    let folder = tempfile::tempdir()?;
    let (log, socket) = (folder.path().join("log"), folder.path().join("socket"));
    let mut server = Command::new(defrost_tests::binary("defrost-page-server")?)
        .args(["--listen", "127.0.0.1:0", "--listen"])
        .arg(format!("unix:{}", socket.display()))
        .arg("--store")
        .arg(folder.path().join("store"))
        .env_remove("RUST_LOG")
        .stdout(std::process::Stdio::null())
        .stderr(fs::File::create(&log)?)
        .spawn()?;
    let told = || -> Result<()> {
        eventually("it listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
        ensure!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket)?.permissions()) & 0o777 == 0o600, "others may connect");
        let (whole, address) = (frozen.folder.path().join("whole").to_string_lossy().into_owned(), format!("unix:{}", socket.display()));
        defrost_ok(&["copy", "whole", "--from", &whole, "--to", &address])?;
        defrost_ok(&["remove", "whole", "--store", &address])?;
        defrost_ok(&["gc", "--store", &address])?;
        let said = fs::read_to_string(&log)?;
        for what in ["committed", "removed", "collected"] {
            let line = said.lines().find(|line| line.contains(what)).with_context(|| format!("{what} is not in {said}"))?;
            ensure_words(line, &["uid 0, pid "])?;
        }
        Ok(())
    };
    let outcome = told();
    server.kill()?;
    server.wait()?;
    outcome
}

/// A pack is cut under a running server, which goes on, answers what is whole and names what is not; so does one that is started over
/// it. The snapshot is mended from another store.
#[test]
fn damage_under_a_server_is_local_and_is_mended() -> Result<()> {
    let frozen = Frozen::new()?;
    let whole = frozen.folder.path().join("whole").to_string_lossy().into_owned();
    let store = frozen.folder.path().join("served");
    let server = Server::start(&store)?;
    let other = Victim::c("refused", &["nothing"])?;
    let pid = other.pid().to_string();
    defrost_ok(&["checkpoint", &pid, "other", "--leave-running", "--store", &server.store()])?;
    defrost_ok(&["copy", "whole", "--from", &whole, "--to", &server.store()])?; // what it has for itself lies in a pack of its own
    let damaged = files(&store, "packs")?.into_iter().max_by_key(|pack| len(pack).unwrap_or_default()).context("a pack")?;
    let check = |server: &Server| -> Result<()> {
        ensure_words(&defrost_fails(&["verify", "whole", "--store", &server.store()])?, &[".pack", "it ends in the middle"])?;
        defrost_ok(&["verify", "other", "--store", &server.store()])?;
        let list = defrost_ok(&["list", "--store", &server.store()])?;
        let (other, whole) = list.trim().split_once('\n').context("two lines")?;
        ensure!(!other.contains("DAMAGED") && whole.contains("whole:latest") && whole.contains("DAMAGED: "), "{list}");
        defrost_ok(&["gc", "--store", &server.store()]).map(drop)
    };
    cut(&damaged, len(&damaged)? / 2)?;
    check(&server).context("cut while it ran")?;
    drop(server);
    let server = Server::start(&store)?;
    check(&server).context("cut before it started")?;
    let mended = defrost_ok(&["verify", "whole", "--repair", "--from", &whole, "--store", &server.store()])?;
    ensure_words(&mended, &["chunks are whole", "mended"])?;
    ensure!(!defrost_ok(&["list", "--store", &server.store()])?.contains("DAMAGED"), "it is still marked");
    // An image that is gone, or cut, is mended as well.
    let id = defrost_ok(&["list", "--store", &whole])?.split_whitespace().nth(1).context("a digest")?.to_owned();
    let image = store.join(format!("snapshots/{id}.image"));
    for damage in [|image: &Path| Ok(fs::remove_file(image)?), |image: &Path| cut(image, 100)] as [Damage; 2] {
        damage(&image)?;
        ensure!(defrost_ok(&["list", "--store", &server.store()])?.contains("DAMAGED"), "a damaged image is not marked");
        defrost_ok(&["verify", "whole", "--repair", "--from", &whole, "--store", &server.store()])?;
    }
    // A name that was given to another snapshot is noticed by whoever knows the digest.
    defrost_ok(&["verify", &format!("whole@{id}"), "--store", &server.store()])?;
    for verb in ["verify", "restore", "inspect", "remove"] {
        let told = defrost_fails(&[verb, &format!("other@{id}"), "--store", &server.store()])?;
        ensure_words(&told, &["snapshot other:latest has digest ", &id, "given to another snapshot"])?;
    }
    other.check("")
}

#[test]
fn names_in_use_and_unknown_names_are_refused() -> Result<()> {
    let frozen = Frozen::new()?;
    let store = frozen.folder.path().join("whole").to_string_lossy().into_owned();
    let victim = Victim::c("refused", &["nothing"])?;
    let taken = defrost_fails(&["checkpoint", &victim.pid().to_string(), "whole", "--store", &store])?;
    assert!(taken.contains("snapshot whole:latest exists already") && taken.contains("defrost remove whole"), "{taken}");
    victim.runs_untouched()?;
    for verb in ["restore", "verify", "remove"] {
        let absent = defrost_fails(&[verb, "nothing:x", "--store", &store])?;
        assert!(absent.contains("snapshot nothing:x is not in the store") && absent.contains("defrost list"), "{absent}");
    }
    assert_eq!(defrost_ok(&["list", "--store", &store])?.lines().count(), 1);
    victim.check("")
}

#[test]
fn what_is_no_store_is_refused() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    fs::write(&file, "no store")?;
    let victim = Victim::c("refused", &["nothing"])?;
    let pid = victim.pid().to_string();
    for (store, word) in
        [(folder.path().join("missing"), "there is no store"), (folder.path().to_owned(), "there is no store"), (file.clone(), "/file")]
    {
        let store = store.to_string_lossy().into_owned();
        for command in [&["list"][..], &["restore", "x"], &["verify", "x"]] {
            let text = defrost_fails(&[command, &["--store", &store]].concat())?;
            ensure_words(&text, &[&store, word])?;
        }
        assert!(!Path::new(&store).join("packs").exists(), "reading made a store");
    }
    let text = defrost_fails(&["checkpoint", &pid, "x", "--store", &file.to_string_lossy()])?;
    ensure_words(&text, &["/file/"])?;
    for (store, word) in [("grpc://127.0.0.1:1", "check the address"), ("ftp://somewhere", "ftp://somewhere"), ("grpc://", "grpc://")] {
        for command in [&["list"][..], &["restore", "x"], &["checkpoint", &pid, "x"]] {
            ensure_words(&defrost_fails(&[command, &["--store", store]].concat())?, &[word])?;
        }
    }
    victim.runs_untouched()?;
    victim.check("")
}

#[test]
fn a_store_of_another_user_is_refused() -> Result<()> {
    let frozen = Frozen::new()?;
    let (whole, bin) = (frozen.folder.path().join("whole"), frozen.folder.path().join("bin"));
    fs::create_dir(&bin)?;
    let nobody = as_nobody(&bin)?;
    fs::set_permissions(frozen.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::set_permissions(&whole, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let store = whole.to_string_lossy().into_owned();
    for command in [&["list"][..], &["restore", "whole"], &["checkpoint", "1", "x"]] {
        let text = defrost_fails_through(&nobody.each_ref().map(String::as_str), &[command, &["--store", &store]].concat())?;
        ensure_words(&text, &[&store, "ermission denied", "choose another store"])?;
    }
    Ok(())
}

/// In a mount namespace of its own the store is mounted read-only: it is read as ever, and not written.
#[test]
fn a_read_only_store_is_read_and_not_written() -> Result<()> {
    let frozen = Frozen::new()?;
    let store = frozen.folder.path().join("whole").to_string_lossy().into_owned();
    let script = format!("mount --bind {store} {store} && mount -o remount,bind,ro {store} && exec \"$0\" \"$@\"");
    let read_only = ["unshare", "--mount", "sh", "-c", &script];
    for command in [&["checkpoint", "1", "x"][..], &["remove", "whole"], &["gc"]] {
        let text = defrost_fails_through(&read_only, &[command, &["--store", &store]].concat())?;
        ensure_words(&text, &[&store, "ead-only file system"])?;
    }
    for command in [&["list"][..], &["inspect", "whole"], &["verify", "whole"], &["restore", "whole", "--detach"]] {
        let text = defrost_tries_through(&read_only, &[command, &["--store", &store]].concat())?;
        ensure!(text.is_ok(), "{command:?}: {text:?}");
    }
    frozen.victim.check("")
}

#[test]
fn a_full_disk_is_told_and_the_process_runs_on() -> Result<()> {
    need_root()?;
    let victim = Victim::c("memory", &["8"])?;
    let folder = tempfile::tempdir()?;
    let tiny = SmallDisk::mount(folder.path(), "512k")?;
    let store = tiny.path().join("store").to_string_lossy().into_owned();
    let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    ensure_words(&text, &[&store, "the disk is full", "free some space"])?;
    assert!(files(Path::new(&store), "packs")?.is_empty() && files(Path::new(&store), "refs")?.is_empty(), "something was stored");
    victim.runs_untouched()?;
    victim.check("")
}

/// One writer at a time: a second is told who the first is, readers are not in the way.
#[test]
fn a_store_that_a_server_writes_to_is_busy() -> Result<()> {
    let frozen = Frozen::new()?;
    let store = frozen.folder.path().join("whole");
    let server = Server::start(&store)?;
    let store = store.to_string_lossy().into_owned();
    let text = defrost_fails(&["checkpoint", &std::process::id().to_string(), "x", "--store", &store])?;
    ensure_words(&text, &[&store, &format!("is in use by process {}", server.pid()), "stop it first"])?;
    let list = defrost_ok(&["list", "--store", &store])?;
    assert!(list.contains("whole:latest"), "{list}");
    Ok(())
}

/// The process was ended because of its store, long before anybody asked: whoever asks is still told why, for a while.
#[test]
fn why_a_process_was_ended_is_told_afterwards_and_its_socket_goes() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let store = frozen.copy("damaged")?;
    // It runs before the damage is done: each page that it touches afterwards is wrong.
    defrost_ok(&["restore", "whole", "--store", &store.to_string_lossy(), "--detach", "--no-background"])?;
    for pack in files(&store, "packs")? {
        (len(&pack)? / 10..len(&pack)?).step_by(64).try_for_each(|from_end| flip(&pack, from_end))?;
    }
    let text = frozen.victim.check("").err().map(|error| format!("{error:#}")).context("it found itself right")?;
    ensure_words(&text, &["ended without a verdict"])?;
    let pid = frozen.victim.pid().to_string();
    let told = defrost(&["status", &pid, "--json"])?;
    let status = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure_words(&status, &["\"state\":\"failed\"", "checksum does not fit"])?;
    let text = defrost_fails(&["wait", &pid])?;
    ensure_words(&text, &[&format!("process {pid} was ended: "), "checksum does not fit"])?;
    frozen.victim.end()?;
    // The next restore of the same pid is not told of the last one's end.
    restore(&frozen.victim, "whole", &frozen.folder.path().join("whole").to_string_lossy())?;
    frozen.victim.check("")?;
    eventually("its socket is gone", || frozen.victim.no_socket().is_ok())
}

/// In protobuf an empty message is two bytes, decoded it is hundreds: an image that would take many times its length is refused
/// before that is allocated, and what may be decoded takes memory in proportion to its length.
#[test]
fn an_image_takes_memory_in_proportion_to_its_length() -> Result<()> {
    const IMAGE_BYTES: usize = 6 << 20;
    const MEMORY_BYTES: usize = 256 << 20; // decoded without a limit, each of these takes 1 GiB and more
    let mut frozen = Frozen::new()?;
    let folder = frozen.folder.path().join("whole").to_string_lossy().into_owned();
    let store = store::open(&folder, store::Access::Write)?;
    let image = Image::parse(&store.image(&store.resolve(&"whole".parse()?)?)?)?;
    let table = image.table.to_vec();
    let described = |offset: u64, length: usize| {
        let signals = Description { offset, kind: Some(Kind::Signalfd(SignalFd::default())), ..Description::default() };
        let mut manifest = image.manifest.clone();
        manifest.files.extend(std::iter::repeat_n(signals, IMAGE_BYTES / length));
        Image::encode(&manifest, &table)
    };
    let mut threads = image.manifest.clone();
    threads.threads.extend(std::iter::repeat_n(Thread::default(), IMAGE_BYTES / 2));
    let images = [("threads", Image::encode(&threads, &table)), ("files", described(0, 5)), ("plausible", described(u64::MAX, 16))];
    for (name, image) in images {
        store.commit(image, &name.parse()?)?;
    }
    drop(store);
    let limited = ["prlimit".to_owned(), format!("--data={MEMORY_BYTES}")];
    let limited = limited.each_ref().map(String::as_str);
    for (name, verb) in ["threads", "files"].into_iter().flat_map(|name| ["inspect", "verify", "restore"].map(|verb| (name, verb))) {
        let text = defrost_fails_through(&limited, &[verb, name, "--store", &folder])?;
        ensure_words(&text, &["would take", "bytes of memory"])?;
    }
    for command in [&["list"][..], &["inspect", "plausible"], &["verify", "plausible"]] {
        let text = defrost_tries_through(&limited, &[command, &["--store", &folder]].concat())?;
        ensure!(text.is_ok(), "{command:?}: {:?}", text.err());
    }
    restore(&frozen.victim, "whole", &folder)?;
    frozen.victim.check("")?;
    frozen.victim.end()
}
