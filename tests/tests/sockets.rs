//! Sockets of every family: as they were, or refused by name with the process left running.
//!
//! The programs are in victims/sockets/victim.py, one function for each test; they compare what
//! they see before and after.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Server, Victim, defrost_fails, defrost_ok, eventually, need_root, restore_with};
use kernel::known::socket_options::{SocketOption, all};
use nix::errno::Errno;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

/// The program, which a victim runs from its own folder.
const PROGRAM: &str = include_str!("../victims/sockets/victim.py");

/// A victim that has made the sockets of `case`, with files that it finds there.
fn victim_with(case: &str, files: &[(&str, &str)]) -> Result<Victim> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("victim.py");
    std::fs::write(&script, PROGRAM)?;
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text)?;
    }
    let victim = Victim::in_folder(folder, "/usr/bin/python3", &[&script.to_string_lossy(), case])?;
    let (ready, verdict) = (victim.folder().join("ready"), victim.folder().join("verdict"));
    eventually("the victim is ready", || ready.exists() || verdict.exists()).with_context(|| victim.output())?;
    ensure!(!verdict.exists(), "{case} before: {}", std::fs::read_to_string(verdict)?);
    Ok(victim)
}

fn victim(case: &str) -> Result<Victim> {
    victim_with(case, &[])
}

/// Checkpoint with these options, and restore twice: the victim finds itself right each time.
fn there_and_back(mut victim: Victim, how: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let (pid, store) = (victim.pid().to_string(), server.store());
    defrost_ok(&[&["checkpoint", &pid, "victim:v", "--store", &store][..], how].concat())?;
    victim.reap()?;
    restore_with(&victim, "victim:v", &store, &["--no-background"])?;
    victim.check("").context("first restore")?;
    victim.end()?;
    restore_with(&victim, "victim:v", &store, &[])?;
    victim.check("").context("second restore")
}

/// A checkpoint is refused with these words, and the victim runs on.
fn refused(victim: &Victim, how: &[&str], words: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let pid = victim.pid().to_string();
    let args = [&["checkpoint", &pid, "x", "--store", &store][..], how].concat();
    let text = defrost_fails(&args)?;
    ensure!(words.iter().all(|word| text.contains(word)), "{text:?} lacks some of {words:?}");
    ensure!(text.trim_end().lines().count() == 1, "{text:?} is not one line");
    ensure!(defrost_ok(&["list", "--store", &store])?.is_empty(), "it left a snapshot");
    victim.runs_untouched()
}

#[test]
fn socket_files_keep_owner_mode_list_place_and_name() -> Result<()> {
    there_and_back(victim("files")?, &[])
}

#[test]
fn pairs_keep_messages_senders_and_credentials() -> Result<()> {
    there_and_back(victim("pairs")?, &[])
}

#[test]
fn descriptors_in_flight_arrive() -> Result<()> {
    there_and_back(victim("in_flight")?, &[])
}

#[test]
fn many_descriptors_in_flight_arrive_with_their_bytes() -> Result<()> {
    there_and_back(victim("in_flight_many")?, &[])
}

#[test]
fn every_kind_of_descriptor_arrives_with_its_locks_and_watches() -> Result<()> {
    there_and_back(victim("in_flight_kinds")?, &[])
}

/// A look at a message without bytes hides it from the next look.
#[test]
fn messages_without_bytes_are_not_lost_by_a_second_checkpoint() -> Result<()> {
    let victim = victim("pairs")?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    defrost_ok(&["checkpoint", &victim.pid().to_string(), "first", "--store", &store, "--leave-running"])?;
    refused(&victim, &[], &["messages without bytes wait in it", "let it read what waits there first"])?;
    victim.check("")
}

/// The same for datagrams that were sent to a name.
#[test]
fn datagrams_without_bytes_are_not_lost_by_a_second_checkpoint() -> Result<()> {
    let victim = victim("datagrams")?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    defrost_ok(&["checkpoint", &victim.pid().to_string(), "first", "--store", &store, "--leave-running"])?;
    refused(&victim, &[], &["more messages that this socket sent wait than a look shows", "let them be read first"])?;
    victim.check("")
}

/// A checkpoint is killed while it looks into a socket: the process sets its options back by itself.
#[test]
fn a_look_that_is_killed_leaves_the_options_of_a_socket() -> Result<()> {
    const ROUNDS: usize = 9;
    const IN_FLIGHT_ROUNDS: usize = 8;
    let victim = victim("looked_at")?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let pid = nix::unistd::Pid::from_raw(victim.pid() as i32);
    let pidfd = kernel::handoff::pidfd_open(pid)?;
    let numbers = std::fs::read_to_string(victim.folder().join("sockets"))?;
    let sockets: Result<Vec<_>, _> = numbers.lines().map(|fd| Ok(kernel::handoff::pidfd_getfd(&pidfd, fd.parse()?)?)).collect();
    let sockets: Vec<std::os::fd::OwnedFd> = sockets.map_err(|error: anyhow::Error| error)?;
    let option = |socket, name| kernel::sockopt::number(socket, nix::libc::SOL_SOCKET, name).map(|value| value as i32);
    let options = || -> Result<Vec<(i32, i32)>> {
        sockets.iter().map(|socket| Ok((option(socket, nix::libc::SO_PASSCRED)?, option(socket, nix::libc::SO_PEEK_OFF)?))).collect()
    };
    let before = options()?;
    let mut in_time = 0;
    for round in 0..ROUNDS + IN_FLIGHT_ROUNDS {
        let name = format!("x:{round}");
        let mut command = std::process::Command::new(defrost_tests::binary("defrost")?);
        command.args(["checkpoint", &pid.to_string(), &name, "--store", &store, "--leave-running"]);
        let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
        // In the last rounds some time after: the socket that is in flight is looked into last.
        let (socket, late) = if round < ROUNDS { (&sockets[round % sockets.len()], 0) } else { (&sockets[sockets.len() - 1], 1) };
        while child.try_wait()?.is_none() {
            if option(socket, nix::libc::SO_PASSCRED)? != 0 {
                std::thread::sleep(std::time::Duration::from_micros(200 * (round as u64 / 3)));
                eventually("it looks elsewhere", || late == 0 || options().is_ok_and(|now| now == before))?;
                std::thread::sleep(std::time::Duration::from_micros(late * 300 * round.saturating_sub(ROUNDS) as u64));
                in_time += usize::from(child.try_wait()?.is_none() && options()? != before);
                child.kill()?;
            }
        }
        eventually("the options are as before", || options().is_ok_and(|now| now == before)).with_context(|| format!("{:?}", options()))?;
        victim.runs_untouched()?;
    }
    ensure!(in_time > ROUNDS / 4, "only {in_time} of {ROUNDS} checkpoints were killed during a look");
    victim.check("")
}

#[test]
fn unread_datagrams_of_its_own_sockets_come_back() -> Result<()> {
    there_and_back(victim("datagrams")?, &[])
}

#[test]
fn connections_of_the_process_with_itself_wait_again() -> Result<()> {
    there_and_back(victim("callers")?, &[])
}

/// A connection of another process waits: it is named.
#[test]
fn unix_connections_of_others_that_wait_are_refused() -> Result<()> {
    let victim = victim("listens")?;
    let _caller = std::os::unix::net::UnixStream::connect(victim.folder().join("listens"))?;
    let whose = format!("a connection of process {} ", std::process::id());
    refused(&victim, &[], &[&whose, "waits to be accepted", "let it accept"])?;
    victim.check("")
}

#[test]
fn tcp_and_udp_keep_addresses_and_states() -> Result<()> {
    there_and_back(victim("ip")?, &[])
}

#[test]
fn raw_netlink_packet_and_udp_lite_sockets_come_back() -> Result<()> {
    there_and_back(victim("families")?, &[])
}

#[test]
fn multicast_groups_are_joined_again() -> Result<()> {
    there_and_back(victim("multicast")?, &[])
}

#[test]
fn every_option_of_the_table_comes_back() -> Result<()> {
    let known: Vec<&SocketOption> = all().filter(|option| option.is_set()).collect();
    let line = |o: &&SocketOption| format!("{} {} {}\n", o.level, o.name, o.label);
    let table: String = known.iter().map(line).collect();
    let victim = victim_with("options", &[("options", &table)])?;
    let changed = std::fs::read_to_string(victim.folder().join("changed"))?;
    let changed: Vec<&str> = changed.lines().collect();
    // Those that this host, or a socket without a connection, does not let a program change.
    let left: Vec<&str> = known.iter().map(|o| o.label).filter(|label| !changed.contains(label)).collect();
    for name in [
        "SO_MARK",
        "SO_TIMESTAMPNS_OLD",
        "SO_BUSY_POLL",
        "SO_ZEROCOPY",
        "SO_MAX_PACING_RATE",
        "SO_RXQ_OVFL",
        "SO_LOCK_FILTER",
        "SO_PASSPIDFD",
        "SO_BUF_LOCK",
        "SO_TXTIME",
        "TCP_MAXSEG",
        "TCP_CORK",
        "TCP_SYNCNT",
        "TCP_CONGESTION",
        "TCP_WINDOW_CLAMP",
        "IP_RECVERR",
        "IP_MTU_DISCOVER",
        "IP_TRANSPARENT",
        "IP_MULTICAST_TTL",
        "IP_LOCAL_PORT_RANGE",
        "IPV6_UNICAST_HOPS",
        "IPV6_HOPOPTS",
        "UDP_GRO",
        "UDP_SEGMENT",
    ] {
        ensure!(changed.contains(&name), "{name} was not changed; these were not: {left:?}");
    }
    ensure!(changed.len() >= 110, "{} options were changed; not {left:?}", changed.len());
    // Raw and packet sockets hear what other programs do on this host.
    there_and_back(victim, &["--drop-unread"])
}

/// What the running kernel answers is in the table: a new kernel's option fails this test.
#[test]
fn the_table_has_every_option_that_this_kernel_tells() -> Result<()> {
    need_root()?;
    const SORTS: [(i32, i32, i32); 12] = [
        (libc_inet(4), 1, 6),
        (libc_inet(6), 1, 6),
        (libc_inet(4), 1, 262),
        (libc_inet(4), 2, 17),
        (libc_inet(6), 2, 17),
        (libc_inet(4), 2, 136),
        (libc_inet(4), 3, 1),
        (libc_inet(6), 3, 58),
        (1, 1, 0),
        (1, 2, 0),
        (16, 3, 0),
        (17, 3, 0),
    ];
    let mut unknown = Vec::new();
    for (family, kind, protocol) in SORTS {
        let made = match kernel::sockopt::fresh(family, kind, protocol) {
            // This kernel was built without them.
            Err(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => continue,
            other => other?,
        };
        for level in [0, 1, 6, 17, 41, 58, 136, 255, 263, 270, 284] {
            // Some change what they tell as they are asked: those in the table are left alone.
            for name in (0..400).filter(|name| SocketOption::find(level, *name).is_none()) {
                if let Ok(Some(_)) = kernel::sockopt::get(&made, level, name) {
                    unknown.push(format!("level {level} option {name} of family {family}"));
                }
            }
        }
    }
    ensure!(unknown.is_empty(), "not in the table: {unknown:?}");
    Ok(())
}

/// AF_INET and AF_INET6.
const fn libc_inet(version: u32) -> i32 {
    if version == 4 { 2 } else { 10 }
}

/// A file that another program put where the socket's was is never touched.
#[test]
fn a_file_of_another_program_stays() -> Result<()> {
    let mut victim = victim("files")?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    defrost_ok(&["checkpoint", &victim.pid().to_string(), "v", "--store", &store])?;
    victim.reap()?;
    let path = victim.folder().join("one");
    let restore = ["restore", "v", "--store", &store, "--detach"];
    let is_in_the_way = |what: &str| -> Result<()> {
        let before = std::fs::symlink_metadata(&path)?;
        let text = defrost_fails(&restore)?;
        ensure!(text.contains("is not the one that the process left"), "{what}: {text}");
        let after = std::fs::symlink_metadata(&path)?;
        ensure!(before.ino() == after.ino() && before.mode() == after.mode(), "{what} was changed");
        let left = std::fs::read_dir(victim.folder())?.flatten();
        let hidden = |name: std::ffi::OsString| name.to_string_lossy().starts_with(".defrost");
        ensure!(!left.into_iter().any(|entry| hidden(entry.file_name())), "{what}: litter");
        victim.left_nothing()
    };
    std::fs::remove_file(&path)?;
    std::fs::write(&path, "precious")?;
    is_in_the_way("a regular file")?;
    ensure!(std::fs::read_to_string(&path)? == "precious", "its contents were changed");
    std::fs::remove_file(&path)?;
    let living = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))?;
    is_in_the_way("a socket that another process listens at")?;
    drop(living);
    is_in_the_way("a socket that another process left")?;
    std::fs::remove_file(&path)?;
    defrost_ok(&restore)?;
    victim.check("")
}

#[test]
fn connections_come_back_closed_where_that_is_allowed() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let server = std::thread::spawn(move || -> Result<Vec<std::net::TcpStream>> {
        let mut kept = Vec::new();
        for _ in 0..4 {
            let (mut stream, _) = listener.accept()?;
            let mut word = [0; 4];
            stream.read_exact(&mut word)?;
            match &word {
                b"ends" => stream.shutdown(std::net::Shutdown::Write)?,
                b"says" => stream.write_all(b"unread")?,
                _ => {}
            }
            kept.push(stream);
        }
        Ok(kept)
    });
    need_root()?;
    // Its own listener's port is in a file, once it is there.
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("victim.py");
    std::fs::write(&script, PROGRAM)?;
    std::fs::write(folder.path().join("port"), &port)?;
    let args = [&*script.to_string_lossy(), "closing"];
    let victim = Victim::in_folder(folder, "/usr/bin/python3", &args)?;
    let own = victim.folder().join("server");
    eventually("it listens", || own.exists()).with_context(|| victim.output())?;
    let own: u16 = std::fs::read_to_string(own)?.parse()?;
    let _client = std::net::TcpStream::connect(("127.0.0.1", own))?;
    let (ready, verdict) = (victim.folder().join("ready"), victim.folder().join("verdict"));
    eventually("the victim is ready", || ready.exists() || verdict.exists())?;
    ensure!(!verdict.exists(), "before: {}", std::fs::read_to_string(verdict)?);
    let _kept = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let me = format!("process {}", std::process::id());
    refused(&victim, &[], &["an established TCP connection from 127.0.0.1:", &me, "--tcp-close"])?;
    there_and_back(victim, &["--tcp-close"])
}

/// A service on a unix socket, as syslog is.
fn service(folder: &Path) -> Result<(UnixDatagram, UnixListener)> {
    let (log, bus) = (folder.join("log"), folder.join("bus"));
    Ok((UnixDatagram::bind(log)?, UnixListener::bind(bus)?))
}

#[test]
fn unix_sockets_connect_to_their_service_again_where_that_is_allowed() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let (log, bus) = service(folder.path())?;
    let at = folder.path().to_string_lossy().into_owned();
    let mut victim = victim_with("service", &[("service", &at)])?;
    let (first, _) = bus.accept()?;
    let me = format!("process {}", std::process::id());
    refused(&victim, &[], &["a unix socket connected to", &me, "--unix-reconnect", &at])?;
    let store = folder.path().join("store").to_string_lossy().into_owned();
    let pid = victim.pid().to_string();
    defrost_ok(&["checkpoint", &pid, "v", "--store", &store, "--unix-reconnect"])?;
    victim.reap()?;
    drop(first);
    defrost_ok(&["restore", "v", "--store", &store, "--detach"])?;
    let (mut second, _) = bus.accept()?;
    let peer = nix::sys::socket::getsockopt(&second, nix::sys::socket::sockopt::PeerCredentials)?;
    ensure!(peer.pid().to_string() == pid, "the service sees process {}", peer.pid());
    victim.check("")?;
    let mut said = [0; 5];
    second.read_exact(&mut said)?;
    ensure!(&said == b"again", "{said:?}");
    let length = log.recv(&mut said)?;
    ensure!(&said[..length] == b"line", "{said:?}");
    Ok(())
}

/// As a service of systemd's has journald: its output is a connected stream.
#[test]
fn standard_streams_to_a_service_are_reattached() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let (_log, bus) = service(folder.path())?;
    let at = folder.path().to_string_lossy().into_owned();
    let mut victim = victim_with("streams", &[("service", &at)])?;
    let (_first, _) = bus.accept()?;
    let store = folder.path().join("store").to_string_lossy().into_owned();
    defrost_ok(&["checkpoint", &victim.pid().to_string(), "v", "--store", &store])?;
    victim.reap()?;
    // Detached, they lead to /dev/null.
    defrost_ok(&["restore", "v", "--store", &store, "--detach"])?;
    victim.check("null")?;
    victim.end()?;
    // Otherwise to those of the restorer.
    let (mut here, there) = std::os::unix::net::UnixStream::pair()?;
    let mut command = std::process::Command::new(defrost_tests::binary("defrost")?);
    command.args(["restore", "v", "--store", &store]);
    command.stdin(std::process::Stdio::null()).stdout(std::os::fd::OwnedFd::from(there));
    let mut restorer = command.spawn()?;
    drop(command);
    let proc = std::path::PathBuf::from(format!("/proc/{}", victim.pid()));
    eventually("it is restored", || proc.exists())?;
    let answered = victim.check("ours");
    restorer.wait()?;
    answered?;
    let mut said = String::new();
    here.read_to_string(&mut said)?;
    ensure!(said.contains("to the restorer"), "{said:?}");
    Ok(())
}

/// Tests named for what they prove: a case of the victim, and words of the refusal.
macro_rules! refusals {
    ($($name:ident: $case:literal, $($word:literal),+;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            let victim = victim($case)?;
            refused(&victim, &[], &[$($word),+])?;
            victim.check("")
        })*
    };
}

refusals! {
    unread_datagrams_are_not_lost:
        "unread_udp", "messages that came to it wait unread", "--drop-unread";
    unread_netlink_messages_are_not_lost: "unread_netlink", "wait unread", "--drop-unread";
    unread_unix_datagrams_are_not_lost:
        "unread_unix", "a message of gone waits in it, which is no socket of the process", "let it read";
    unix_connections_that_wait_are_refused:
        "waiting_unix", "a connection that its maker has closed waits to be accepted", "let it accept";
    bytes_of_unix_connections_that_wait_are_refused:
        "waiting_data", "waits to be accepted has bytes or descriptors in it", "let it accept";
    tcp_connections_that_wait_are_refused:
        "waiting_tcp", "1 connections wait to be accepted", "--tcp-close";
    corked_data_is_refused: "corked", "data that it has not sent waits in it";
    a_pending_error_is_refused:
        "error", "an error or a message of its error queue waits", "SO_ERROR";
    an_ebpf_filter_is_refused: "ebpf", "an eBPF program filters what comes to it", "let it detach";
    tcp_signatures_are_refused: "md5", "TCP_MD5SIG", "let it close";
    urgent_data_is_refused: "urgent", "urgent data waits in it";
    a_vsock_socket_is_refused: "vsock", "a vsock socket", "let it close";
    an_unknown_netlink_protocol_is_refused:
        "netfilter", "a netlink socket of protocol 12", "let it close";
    a_packet_ring_is_refused: "ring", "a packet socket with a ring", "let it close";
    a_packet_fanout_is_refused: "fanout", "PACKET_FANOUT is set", "let it leave";
}

#[test]
fn unread_datagrams_are_dropped_where_that_is_allowed() -> Result<()> {
    let victim = victim("dropped")?;
    there_and_back(victim, &["--drop-unread"])
}
