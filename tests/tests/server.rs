//! What goes wrong with a page server, seen through the command line: it is not there, it is something else, it lies, it dies, its
//! disk is full; and the addresses it may have.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::command::as_nobody;
use defrost_tests::{
    Server, Victim, binary, checkpoint, defrost, defrost_fails, defrost_fails_through, defrost_ok, defrost_tries_through, eventually,
    need_root, restore_with,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use page_server::Config;
use proto::wire;
use proto::wire::snapshots_server::{Snapshots, SnapshotsServer};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use store::{Access, FlakyStore, LocalStore, Plan};
use tempfile::TempDir;
use tonic::{Request, Response, Status, Streaming};

/// How often each kind of death is tried.
const DEATHS: u64 = 12;

/// Holds 48 MiB that do not compress, and counts for ever.
const HOLDER: &str = "import os, time, itertools\nheld = os.urandom(48 << 20)\nfor n in itertools.count():\n    print('count', n, flush=True)\n    time.sleep(0.02)\n";

fn holder() -> Result<Victim> {
    let victim = Victim::python(HOLDER)?;
    victim.wait_for("count", 1)?;
    Ok(victim)
}

/// It runs on as if nothing had been.
fn runs_on(victim: &Victim) -> Result<()> {
    victim.wait_for("count", victim.count("count") + 3)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn files_in(folder: &Path) -> Result<usize> {
    Ok(std::fs::read_dir(folder)?.count())
}

/// Every snapshot that is listed is whole; their names.
fn all_listed_are_whole(store: &str) -> Result<Vec<String>> {
    let listed = defrost_ok(&["list", "--store", store])?;
    let names: Vec<String> = listed.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    for name in &names {
        defrost_ok(&["verify", name, "--store", store])?;
    }
    Ok(names)
}

/// Somebody who takes every connection and is no page server.
fn impostor(says: &'static [u8]) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("grpc://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if says.is_empty() {
                held.push(stream); // listens, never answers
                continue;
            }
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(says);
        }
    });
    Ok(address)
}

/// A server of the future.
struct Newer;

macro_rules! not_asked {
    ($($call:ident($($request:ty)+) -> $answer:ty;)*) => {
        #[tonic::async_trait]
        impl Snapshots for Newer {
            type GetImageStream = tokio_stream::Empty<Result<wire::Piece, Status>>;

            async fn hello(&self, _: Request<wire::HelloRequest>) -> Result<Response<wire::HelloAnswer>, Status> {
                Ok(Response::new(wire::HelloAnswer { version: 99 }))
            }

            $(async fn $call(&self, _: Request<$($request)+>) -> Result<Response<$answer>, Status> {
                Err(Status::internal("it was asked although its version is another"))
            })*
        }
    };
}

not_asked! {
    resolve(wire::NameRequest) -> wire::SnapshotId;
    get_image(wire::SnapshotId) -> Self::GetImageStream;
    get_head(wire::SnapshotId) -> wire::ImageHead;
    get_groups(wire::GroupsRequest) -> wire::Piece;
    find_missing(wire::Digests) -> wire::Digests;
    put_chunks(Streaming<wire::PutBatch>) -> wire::PutAnswer;
    commit(Streaming<wire::CommitPiece>) -> wire::SnapshotId;
    tag(wire::TagRequest) -> wire::SnapshotId;
    list(wire::ListRequest) -> wire::ListAnswer;
    remove(wire::NameRequest) -> wire::RemoveAnswer;
    gc(wire::GcRequest) -> wire::GcAnswer;
    lease(wire::LeaseRequest) -> wire::LeaseAnswer;
    put_working_set(wire::WorkingSet) -> wire::PutWorkingSetAnswer;
    get_working_set(wire::SnapshotId) -> wire::WorkingSetAnswer;
}

#[test]
fn whoever_is_no_page_server_is_told_apart_in_one_sentence() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let newer = format!("grpc://{}", listener.local_addr()?);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    runtime.spawn(tonic::transport::Server::builder().add_service(SnapshotsServer::new(Newer)).serve_with_incoming(incoming));
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        format!("grpc://{}", listener.local_addr()?)
    };
    for (address, word) in [
        (nobody, "refused"),
        (impostor(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")?, "does not speak gRPC"),
        (impostor(&[0x17, 0xe1, 0x52, 0x00, 0xff, 0x80, 0x33, 0x07, 0xaa, 0x01, 0x9c, 0x44])?, "does not speak gRPC"),
        (impostor(b"")?, "has said nothing"),
        (newer, "speaks version 99 of the protocol, this defrost 1"),
        ("unix:///nonexistent/defrost.sock".to_owned(), "No such file"),
        ("grpc://nonsense".to_owned(), "is no server address"),
    ] {
        let said = defrost_fails(&["list", "--store", &address])?;
        assert!(said.contains(word) && said.contains(&address.replace("unix://", "unix:")), "{address}: {said}");
    }
    Ok(())
}

#[test]
fn a_server_that_begins_to_lie_ends_the_process_before_it_reads_a_wrong_byte() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let mut victim = Victim::c("memory", &["16"])?;
    checkpoint(&mut victim, "victim:v", &text(folder.path()))?;
    let lying = Arc::new(FlakyStore::new(LocalStore::open(folder.path(), Access::Read)?, Plan { seed: 11, ..Plan::default() }));
    let server = page_server::Server::start(&Config::new("grpc://127.0.0.1:0".parse()?, folder.path().to_owned()), lying.clone())?;
    let address = server.addresses()[0].to_string();
    restore_with(&victim, "victim:v", &address, &["--no-background"])?;
    let mut wait = Command::new(binary("defrost")?);
    let waiting = wait.args(["wait", &victim.pid().to_string()]).stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // Once the pager has taken its question it reads, and whatever happens then it must be told.
    let reads = format!("/proc/{}/wchan", waiting.id());
    eventually("it waits", || std::fs::read_to_string(&reads).is_ok_and(|place| place.contains("unix_stream")))?;
    lying.set_plan(Plan { wrong_frame: 1.0, ..Plan::default() });
    let verdict = victim.check("").expect_err("it read what the server made up");
    assert!(verdict.to_string().contains("ended without a verdict"), "{verdict:#}");
    let waiting = waiting.wait_with_output()?;
    let said = String::from_utf8_lossy(&waiting.stderr).into_owned();
    assert_eq!(waiting.status.code(), Some(1), "{said}");
    assert!(said.contains("was ended: chunk ") && said.lines().count() == 1, "{said}");
    assert!(lying.failures() >= 2, "it was asked twice");
    server.drain();
    Ok(())
}

#[test]
fn a_restore_gets_over_a_server_that_fails_and_lies_now_and_then() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let mut victim = Victim::c("memory", &["16"])?;
    checkpoint(&mut victim, "victim:v", &text(folder.path()))?;
    let seed = 12;
    println!("seed {seed}");
    let flaky = Arc::new(FlakyStore::new(LocalStore::open(folder.path(), Access::Read)?, Plan { seed, ..Plan::default() }));
    let server = page_server::Server::start(&Config::new("grpc://127.0.0.1:0".parse()?, folder.path().to_owned()), flaky.clone())?;
    restore_with(&victim, "victim:v", &server.addresses()[0].to_string(), &["--no-background"])?;
    // The same chunk is not wrong twice, which would be fatal.
    let late_by = Duration::from_millis(2);
    flaky.set_plan(Plan { unreachable: 0.1, damaged: 0.1, wrong_frame: 0.1, recovers: true, late: 0.1, late_by, ..Plan::default() });
    victim.check("")?;
    assert!(flaky.failures() > 10, "only {} failures", flaky.failures());
    server.drain();
    Ok(())
}

#[test]
fn background_fill_gets_over_the_same() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let mut victim = Victim::c("memory", &["192"])?;
    checkpoint(&mut victim, "victim:v", &text(folder.path()))?;
    let seed = 13;
    println!("seed {seed}");
    // Late at first, so that much is still to come when it begins to fail.
    let late = Plan { seed, late: 1.0, late_by: Duration::from_millis(20), ..Plan::default() };
    let flaky = Arc::new(FlakyStore::new(LocalStore::open(folder.path(), Access::Read)?, late));
    let server = page_server::Server::start(&Config::new("grpc://127.0.0.1:0".parse()?, folder.path().to_owned()), flaky.clone())?;
    restore_with(&victim, "victim:v", &server.addresses()[0].to_string(), &[])?;
    let before = flaky.failures();
    flaky.set_plan(Plan { unreachable: 0.2, damaged: 0.05, wrong_frame: 0.1, recovers: true, ..Plan::default() });
    defrost_ok(&["wait", &victim.pid().to_string()])?;
    assert!(flaky.failures() > before, "it was all there before");
    victim.check("")?;
    server.drain();
    Ok(())
}

/// A small file system of its own; goes with its value.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn new(mib: u64) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(format!("size={mib}m").as_str()))?;
        Ok(Self(folder))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.0.path().display());
        }
    }
}

#[test]
fn a_full_disk_fails_the_checkpoint_and_nothing_else() -> Result<()> {
    need_root()?;
    let disk = Tmpfs::new(96)?;
    let folder = disk.0.path().join("store");
    std::fs::create_dir(&folder)?;
    let ballast = disk.0.path().join("ballast");
    let victim = holder()?;
    let pid = victim.pid().to_string();
    for embedded in [true, false] {
        std::fs::write(&ballast, vec![1; 70 << 20])?;
        let server = if embedded { None } else { Some(Server::start(&folder)?) };
        let store = server.as_ref().map_or_else(|| text(&folder), Server::store);
        let said = defrost_fails(&["checkpoint", &pid, "full", "--store", &store, "--leave-running"])?;
        assert!(said.contains("disk is full"), "{said}");
        runs_on(&victim)?;
        assert_eq!(files_in(&folder.join("tmp"))?, 0, "something was left");
        assert_eq!(all_listed_are_whole(&store)?.len(), 0);
        std::fs::remove_file(&ballast)?;
        defrost_ok(&["checkpoint", &pid, "fits", "--store", &store, "--leave-running"])?;
        assert_eq!(all_listed_are_whole(&store)?, ["fits:latest"]);
        runs_on(&victim)?;
        defrost_ok(&["remove", "fits", "--store", &store])?;
        defrost_ok(&["gc", "--store", &store])?;
        assert_eq!(files_in(&folder.join("packs"))? + files_in(&folder.join("snapshots"))?, 0);
    }
    Ok(())
}

#[test]
fn a_server_killed_during_an_upload_leaves_no_half_snapshot() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let victim = holder()?;
    let pid = victim.pid().to_string();
    let mut expected = Vec::new();
    for seed in 0..DEATHS {
        let after = Duration::from_micros(fastrand::Rng::with_seed(seed).u64(..400_000));
        let mut server = Server::start(folder.path())?;
        let (name, store) = (format!("killed:{seed}"), server.store());
        let output = std::thread::scope(|scope| {
            let checkpoint = scope.spawn(|| defrost(&["checkpoint", &pid, &name, "--store", &store, "--leave-running"]));
            std::thread::sleep(after);
            server.kill();
            checkpoint.join().expect("no panic")
        })?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("seed {seed}, after {after:?}: {} {said}", output.status);
        if output.status.success() {
            expected.push(name);
        } else {
            ensure!(output.status.code() == Some(1) && said.lines().count() == 1, "seed {seed}: {} {said}", output.status);
        }
        runs_on(&victim).with_context(|| format!("seed {seed}"))?;
        let server = Server::start(folder.path()).with_context(|| format!("seed {seed}"))?;
        let whole = all_listed_are_whole(&server.store()).with_context(|| format!("seed {seed}"))?;
        assert!(expected.iter().all(|name| whole.contains(name)), "seed {seed}: {expected:?} were promised, {whole:?} are there");
        assert_eq!(files_in(&folder.path().join("tmp"))?, 0, "seed {seed}");
        // New chunks each time, so that there is something to upload.
        for name in whole {
            defrost_ok(&["remove", &name, "--store", &server.store()])?;
        }
        defrost_ok(&["gc", "--store", &server.store()])?;
        expected.clear();
    }
    Ok(())
}

#[test]
fn a_checkpoint_killed_at_any_moment_leaves_the_process_and_the_store_alone() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let (mut victim, mut died) = (holder()?, 0);
    for seed in 0..DEATHS {
        let after = Duration::from_micros(fastrand::Rng::with_seed(100 + seed).u64(..400_000));
        let mut command = Command::new(binary("defrost")?);
        command.args(["checkpoint", &victim.pid().to_string(), &format!("killed:{seed}"), "--store", &server.store(), "--leave-running"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(after);
        child.kill()?;
        println!("seed {seed}, after {after:?}: {}", child.wait()?);
        // While calls are injected (some milliseconds) its registers are not its own, and it dies with its tracer rather than run on
        // with ours: the one other outcome there may be.
        let exe = format!("/proc/{}/exe", victim.pid());
        match runs_on(&victim) {
            Ok(()) => {}
            // It may have been dying while we looked.
            Err(_) if !Path::new(&exe).exists() => {
                died += 1;
                victim = holder()?;
            }
            Err(error) => return Err(error.context(format!("seed {seed}, killed after {after:?}"))),
        }
        for name in all_listed_are_whole(&server.store()).with_context(|| format!("seed {seed}"))? {
            defrost_ok(&["remove", &name, "--store", &server.store()])?;
        }
        // The server learns of the death a moment later.
        eventually("the server drops the upload", || files_in(&folder.path().join("tmp")).is_ok_and(|files| files == 0))?;
        defrost_ok(&["gc", "--store", &server.store()])?;
    }
    println!("{died} of {DEATHS} died with their tracer");
    ensure!(died <= DEATHS / 4, "{died} of {DEATHS} processes died with the checkpoint");
    Ok(())
}

#[test]
fn two_processes_are_stored_at_once() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let victims = [holder()?, holder()?];
    std::thread::scope(|scope| {
        let checkpoints: Vec<_> = (0..4)
            .map(|n| {
                let (pid, store) = (victims[n % 2].pid().to_string(), server.store());
                scope.spawn(move || -> Result<()> {
                    for round in n / 2 * 3..n / 2 * 3 + 3 {
                        // Two of one process take turns: only one may trace it.
                        let name = format!("victim-{}:{round}", n % 2);
                        let mut said = String::new();
                        eventually("the checkpoint gets its turn", || {
                            let output = defrost(&["checkpoint", &pid, &name, "--store", &store, "--leave-running"]);
                            said =
                                output.as_ref().map_or_else(|error| error.to_string(), |o| String::from_utf8_lossy(&o.stderr).into_owned());
                            output.is_ok_and(|output| output.status.success())
                        })
                        .context(said)?;
                    }
                    Ok(())
                })
            })
            .collect();
        checkpoints.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    assert_eq!(all_listed_are_whole(&server.store())?.len(), 12);
    victims.iter().try_for_each(runs_on)
}

/// A page server that must not start; what it says.
fn must_not_start(args: &[&str], code: i32) -> Result<String> {
    let output = Command::new(binary("defrost-page-server")?).args(args).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code), "{args:?}: {} {said}", output.status);
    ensure!(output.stdout.is_empty(), "it said that it is ready");
    Ok(said)
}

#[test]
fn a_server_that_cannot_start_says_why_in_one_sentence() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let (store, other) = (text(folder.path()), tempfile::tempdir()?);
    let at = server.store().replace("grpc://", "");
    let file = other.path().join("file");
    std::fs::write(&file, "listen = ['127.0.0.1:0']\nnonsense = true\n")?;
    let odd = text(&other.path().join("odd\n\u{1b}[31m"));
    std::fs::create_dir(&odd)?;
    for (args, words) in [
        (vec!["--listen", "127.0.0.1:0", "--store", &store], vec!["in use by process ".to_owned() + &server.pid().to_string()]),
        (vec!["--listen", &at, "--store", &text(&other.path().join("a"))], vec![at.clone(), "in use".to_owned()]),
        (vec!["--listen", "127.0.0.1:0", "--store", &text(&file)], vec![text(&file), "choose another store".to_owned()]),
        (vec!["--config", &text(&file)], vec![text(&file), "line 2".to_owned(), "nonsense".to_owned()]),
        (vec!["--config", "/nonexistent"], vec!["/nonexistent".to_owned(), "No such file".to_owned()]),
        (vec!["--config", &text(other.path())], vec![text(other.path()) + ": Is a directory (os error 21)\n"]),
        (vec!["--config", &odd], vec!["odd\\n\\u{1b}[31m: Is a directory".to_owned()]),
        (vec!["--listen", "grpcs://127.0.0.1:0"], vec!["needs a certificate".to_owned()]),
        (vec!["--listen", "nonsense"], vec!["nonsense".to_owned(), "is no server address".to_owned()]),
    ] {
        let said = must_not_start(&args, 1)?;
        assert!(words.iter().all(|word| said.contains(word)) && said.lines().count() == 1, "{args:?}: {said}");
    }
    must_not_start(&["--nonsense"], 2)?;
    must_not_start(&["--tls-cert", "/x"], 2)?;
    Ok(())
}

#[test]
fn a_server_drains_during_a_restore_which_goes_on_with_the_next_one() -> Result<()> {
    need_root()?;
    let (folder, sockets) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let listen = format!("unix:{}", sockets.path().join("server.sock").display());
    let mut server = Server::start_with(folder.path(), &["--listen", &listen])?;
    let mut victim = Victim::c("memory", &["64"])?;
    checkpoint(&mut victim, "victim:v", &server.store())?;
    for round in 0..4 {
        let how: &[&str] = if round % 2 == 0 { &[] } else { &["--no-background"] };
        restore_with(&victim, "victim:v", &server.store(), how)?;
        std::thread::sleep(Duration::from_millis(round * 15));
        let status = server.terminate()?;
        assert_eq!(status.code(), Some(0), "round {round}");
        assert!(!sockets.path().join("server.sock").exists(), "its socket file is left");
        server = Server::start_with(folder.path(), &["--listen", &listen])?;
        victim.check("").with_context(|| format!("round {round}"))?;
        victim.end()?;
    }
    // A socket file that a killed server left is taken over.
    server.kill();
    assert!(sockets.path().join("server.sock").exists());
    let server = Server::start_with(folder.path(), &["--listen", &listen])?;
    assert_eq!(all_listed_are_whole(&server.store())?, ["victim:v"]);
    let other = tempfile::tempdir()?;
    let said = must_not_start(&["--listen", &listen, "--store", &text(other.path())], 1)?;
    assert!(said.contains("another server listens there"), "{said}");
    Ok(())
}

#[test]
fn a_server_that_hangs_is_waited_for() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("memory", &["16"])?;
    checkpoint(&mut victim, "victim:v", &server.store())?;
    restore_with(&victim, "victim:v", &server.store(), &["--no-background"])?;
    let (pid, of_server) = (victim.pid().to_string(), Pid::from_raw(server.pid() as i32));
    kill(of_server, Signal::SIGSTOP)?;
    std::thread::scope(|scope| {
        let check = scope.spawn(|| victim.check(""));
        let waits = eventually("it is said to wait", || {
            defrost_ok(&["status", &pid, "--json"])
                .is_ok_and(|status| status.contains("\"waiting\"") && status.contains("did not answer in time"))
        });
        kill(of_server, Signal::SIGCONT)?;
        waits?;
        check.join().expect("no panic")
    })
}

/// Run `defrost` trusting the authority in the file `ca` alone.
fn trusting(ca: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("defrost")?);
    Ok(command.args(args).env("DEFROST_TLS_CA", ca).stdin(Stdio::null()).output()?)
}

/// Every local user can connect to loopback: others than root and those allowed get one sentence, and remove nothing.
#[test]
fn other_local_users_are_refused_over_loopback() -> Result<()> {
    need_root()?;
    let (folder, bin) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let nobody = as_nobody(bin.path())?;
    let nobody = nobody.each_ref().map(String::as_str);
    let mut server = Server::start(folder.path())?;
    let mut victim = Victim::c("memory", &["1"])?;
    checkpoint(&mut victim, "it", &server.store())?;
    for verb in [&["list"][..], &["remove", "it"], &["gc"], &["verify", "it"], &["inspect", "it"]] {
        let said = defrost_fails_through(&nobody, &[verb, &["--store", &server.store()]].concat())?;
        assert!(said.contains("user 65534 may not use this server over loopback") && said.trim().lines().count() == 1, "{verb:?}: {said}");
    }
    assert!(defrost_ok(&["list", "--store", &server.store()])?.contains("it:latest"), "it is gone");
    server.terminate()?;
    let allowing = Server::start_with(folder.path(), &["--listen", "127.0.0.1:0", "--allow-user", "65534"])?;
    let listed = defrost_tries_through(&nobody, &["list", "--store", &allowing.store()])?;
    assert!(listed.as_ref().is_ok_and(|said| said.contains("it:latest")), "{listed:?}");
    Ok(())
}

#[test]
fn a_process_goes_out_and_back_over_tls() -> Result<()> {
    need_root()?;
    let (folder, keys) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    let (cert, key) = (keys.path().join("cert.pem"), keys.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let config = keys.path().join("server.toml");
    std::fs::write(&config, format!("listen = ['grpcs://127.0.0.1:0']\n[tls]\ncert = {cert:?}\nkey = {key:?}\n"))?;
    let server = Server::start_with(folder.path(), &["--config", &text(&config)])?;
    let store = server.store();
    assert!(store.starts_with("grpcs://"), "{store}");
    let mut victim = Victim::c("memory", &["16"])?;
    let ok = |output: Output| -> Result<()> {
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    ok(trusting(&cert, &["checkpoint", &victim.pid().to_string(), "victim:v", "--store", &store])?)?;
    victim.reap()?;
    ok(trusting(&cert, &["restore", "victim:v", "--store", &store, "--detach"])?)?;
    victim.check("")?;
    // A path that is relative to where the command runs; its daemon runs elsewhere.
    victim.end()?;
    let mut relative = Command::new(binary("defrost")?);
    relative.args(["restore", "victim:v", "--store", &store, "--detach"]).current_dir(keys.path()).env("DEFROST_TLS_CA", "cert.pem");
    ok(relative.stdin(Stdio::null()).output()?)?;
    victim.check("")?;
    // Whoever does not know the authority, or does not speak TLS, is told so within the deadline.
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let other = keys.path().join("other.pem");
    std::fs::write(&other, stranger.cert.pem())?;
    let output = trusting(&other, &["list", "--store", &store])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("certificate") && said.lines().count() == 1, "{said}");
    let said = defrost_fails(&["list", "--store", &store.replace("grpcs://", "grpc://")])?;
    assert!(said.contains("does not speak gRPC"), "{said}");
    Ok(())
}
