//! Limits of a host that are too low: named before a process is ended, by a dry run, and by a restore before it makes anything.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Ended, Victim, defrost_through, eventually, need_root};
use std::fs;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Listens with a backlog of 200, has five unread datagrams, 3 MiB without a name, and two inotify instances.
const PROGRAM: &str = r#"
import ctypes, os, socket, time
listener = socket.socket(socket.AF_UNIX); listener.bind("listens"); listener.listen(200)
named, other = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
named.bind("named"); other.bind("other")
for n in range(5):
    other.sendto(b"%d" % n, "named")
memory = os.memfd_create("memory"); os.write(memory, bytes(3 << 20))
watches = [ctypes.CDLL(None).inotify_init1(0) for _ in range(2)]
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
got = [named.recv(9) for _ in range(5)]
os.lseek(memory, 0, 0)
text = "OK\n" if got == [b"%d" % n for n in range(5)] and len(os.read(memory, 9 << 20)) == 3 << 20 else repr(got)
with open("verdict.partial", "w") as verdict:
    verdict.write(text)
os.rename("verdict.partial", "verdict")
time.sleep(1000)
"#;

const BACKLOG: (&str, &str) = ("core/somaxconn", "net.core.somaxconn is 16, and the socket at fd");
const QUEUE: (&str, &str) = ("unix/max_dgram_qlen", "net.unix.max_dgram_qlen is 2, and the socket at fd");

/// A process in a network namespace of its own.
struct Crowded {
    victim: Victim,
    folder: TempDir,
}

impl Crowded {
    fn start() -> Result<Self> {
        need_root()?;
        let own = tempfile::tempdir()?;
        let script = own.path().join("victim.py");
        fs::write(&script, PROGRAM)?;
        let victim = Victim::in_folder(own, "unshare", &["--net", "/usr/bin/python3", &script.to_string_lossy()])?;
        eventually("the victim is ready", || victim.folder().join("ready").exists()).with_context(|| victim.output())?;
        Ok(Self { victim, folder: tempfile::tempdir()? })
    }

    /// A file that leads to the namespace, for as long as the keeper lives.
    fn keep_namespace(&self) -> Result<Keeper> {
        let through = format!("--net=/proc/{}/ns/net", self.victim.pid());
        let keeper = Keeper(Ended(Command::new("nsenter").args([&through, "sleep", "1000"]).spawn()?));
        // Until it is there, what is set through it would be the host's.
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        eventually("it is in the namespace", || namespace(keeper.0.id()).is_some_and(|there| Some(there) == namespace(self.victim.pid())))?;
        Ok(keeper)
    }

    fn defrost(&self, keeper: &Keeper, limit: &[&str], args: &[&str]) -> Result<(bool, String)> {
        let through = keeper.through();
        let through = [&["nsenter", through.as_str()], limit].concat();
        let store = self.folder.path().to_string_lossy().into_owned();
        let Output { status, stdout, stderr } = defrost_through(&through, &[args, &["--store", &store]].concat())?;
        let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
        Ok((status.success(), text))
    }
}

/// A process that keeps a namespace there; ended with its value.
struct Keeper(Ended);

impl Keeper {
    fn through(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.0.id())
    }

    fn set(&self, sysctl: &str, value: &str) -> Result<()> {
        let script = format!("echo {value} > /proc/sys/net/{sysctl}");
        let status = Command::new("nsenter").args([&self.through(), "sh", "-c", &script]).status()?;
        ensure!(status.success(), "{sysctl} cannot be set");
        Ok(())
    }
}

#[test]
fn limits_of_sockets_and_files_are_named_before_anything_is_changed() -> Result<()> {
    let mut crowded = Crowded::start()?;
    let keeper = crowded.keep_namespace()?;
    let pid = crowded.victim.pid().to_string();
    for ((sysctl, words), low, enough) in [(BACKLOG, "16", "4096"), (QUEUE, "2", "64")] {
        keeper.set(sysctl, low)?;
        let (ended, text) = crowded.defrost(&keeper, &[], &["checkpoint", &pid, "crowded"])?;
        ensure!(!ended && text.contains(words) && text.contains("raise it"), "{text:?} lacks {words:?}");
        crowded.victim.runs_untouched()?;
        keeper.set(sysctl, enough)?;
    }
    let (ended, text) = crowded.defrost(&keeper, &[], &["checkpoint", &pid, "crowded"])?;
    ensure!(ended, "{text:?}");
    crowded.victim.reap()?;
    keeper.set(BACKLOG.0, "16")?;
    keeper.set(QUEUE.0, "2")?;
    let (ended, text) = crowded.defrost(&keeper, &["prlimit", "--fsize=1048576"], &["restore", "crowded", "--dry-run"])?;
    for words in [BACKLOG.1, QUEUE.1, "\"memory\" of the process has 3145728 bytes", "files of this user's may have 1048576"] {
        ensure!(!ended && text.contains(words), "{text:?} lacks {words:?}");
    }
    let (ended, text) = crowded.defrost(&keeper, &[], &["restore", "crowded", "--detach"])?;
    ensure!(!ended && text.contains(BACKLOG.1), "{text:?}");
    crowded.victim.is_ended()?;
    keeper.set(BACKLOG.0, "200")?;
    keeper.set(QUEUE.0, "4")?;
    let (ended, text) = crowded.defrost(&keeper, &[], &["restore", "crowded", "--detach"])?;
    ensure!(ended, "{text:?}");
    crowded.victim.check("")?;
    crowded.victim.end()
}
