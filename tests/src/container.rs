//! A redis-server in a container of runc's, with namespaces of its own; frozen and brought back by runc, which runs the real CRIU.
//!
//! A bundle is what `runc spec` writes with a few words changed, on an overlay over Debian ([`rootfs`]), as container engines do. State,
//! bundle and mount of a container lie in one folder, all cgroups have its name: a container whose test was killed is removed by the
//! next test that makes one.

mod rootfs;

pub use rootfs::rootfs;

use crate::command::{succeeds, through_command};
use crate::netns::Alone;
use crate::{criu, eventually};
use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use restorer::demo::redis::Client;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the names of all of them begin with.
const PREFIX: &str = "defrost-test-";
/// Where redis listens; every container has this port for itself.
const PORT: u16 = 6379;
/// Its namespaces, as /proc calls them.
const NAMESPACES: [&str; 5] = ["pid", "mnt", "net", "uts", "ipc"];

/// A container, and the bundle that it runs or will run in.
#[derive(Debug)]
pub struct Container {
    /// Its name, and its folder's.
    name: String,
    folder: PathBuf,
    network: Alone,
    /// Words in front of runc: on which host.
    on: Vec<String>,
}

impl Container {
    /// Make a bundle on a host, which is words that go in front of a command there.
    pub fn new(on: &[String]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let lower = rootfs()?;
        sweep();
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(&name);
        let container = Self { name, network: Alone::new()?, folder, on: on.to_vec() };
        let folder = &container.folder;
        for made in [folder, &container.root(), &folder.join("upper"), &folder.join("overlay")] {
            std::fs::create_dir(made).with_context(|| format!("make {}", made.display()))?;
        }
        let path = |name: &str| folder.join(name).display().to_string();
        let layers = format!("lowerdir={},upperdir={},workdir={}", lower.display(), path("upper"), path("overlay"));
        mount(Some("overlay"), &container.root(), Some("overlay"), MsFlags::empty(), Some(layers.as_str())).context("mount the overlay")?;
        std::fs::write(folder.join("criu.conf"), "network-lock nftables\n")?;
        container.write_config()?;
        Ok(container)
    }

    fn root(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    /// What `runc spec` says, but redis for a shell, our namespace of the network, and what CRIU needs to know.
    fn write_config(&self) -> Result<()> {
        let mut spec = Command::new("runc");
        spec.arg("spec").current_dir(&self.folder);
        succeeds(spec).context("install runc")?;
        let path = self.folder.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["redis-server", "--save", "", "--appendonly", "no", "--port", PORT.to_string()]);
        config["root"]["readonly"] = json!(false);
        config["hostname"] = json!(self.name);
        config["annotations"] = json!({ "org.criu.config": self.folder.join("criu.conf") });
        let namespaces = config["linux"]["namespaces"].as_array_mut().context("runc spec has namespaces")?;
        let network = namespaces.iter_mut().find(|namespace| namespace["type"] == "network").context("one is the network's")?;
        network["path"] = json!(self.network.path());
        Ok(std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?)
    }

    /// Run runc to its end.
    pub fn runc(&self, args: &[&str]) -> Result<Output> {
        let on: Vec<&str> = self.on.iter().map(String::as_str).collect();
        let mut command = through_command(&on, Path::new("runc"))?;
        command.arg("--root").arg(self.folder.join("state")).arg("--log").arg(self.folder.join("runc.log")).args(args);
        // runc takes the CRIU that it finds first.
        let path = std::env::var("PATH").unwrap_or_default();
        let criu = criu::program()?;
        command.env("PATH", format!("{}:{path}", criu.parent().context("it has a folder")?.display()));
        // The container's own streams, unless runc makes others.
        command.stdin(Stdio::null()).stderr(Stdio::null());
        if args.contains(&"--detach") {
            command.stdout(Stdio::null());
        }
        command.output().context("run runc: install it")
    }

    /// The same, expecting success; yields its standard output.
    fn runc_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.runc(args)?;
        ensure!(output.status.success(), "runc {}: {}: {}", args.join(" "), output.status, self.said());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What runc has said.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.join("runc.log")).unwrap_or_default()
    }

    /// Run it, and wait until redis answers.
    pub fn start(&self) -> Result<()> {
        self.runc_ok(&["run", "--detach", "--bundle", &self.folder.display().to_string(), &self.name])?;
        eventually("redis answers", || self.redis(|redis| redis.ping()).is_ok())
    }

    /// Freeze it; that ends it.
    pub fn checkpoint(&self, images: &Path) -> Result<()> {
        let images_dir = images.display().to_string();
        let log = || errors(&images.join("dump.log"));
        self.runc_ok(&["checkpoint", "--image-path", &images_dir, "--work-path", &images_dir, &self.name]).map(drop).with_context(log)
    }

    /// Bring it back lazily; runc returns once it runs.
    pub fn restore(&self, images: &Path, work: &Path) -> Result<()> {
        self.restored(self.tries_to_restore(images, work)?, work)
    }

    /// The same, however it ends.
    pub fn tries_to_restore(&self, images: &Path, work: &Path) -> Result<Output> {
        self.runc_restore(&["--lazy-pages"], images, work)
    }

    /// Bring it back with all its memory, which `images` have.
    pub fn restore_complete(&self, images: &Path, work: &Path) -> Result<()> {
        self.restored(self.runc_restore(&[], images, work)?, work)
    }

    fn runc_restore(&self, how: &[&str], images: &Path, work: &Path) -> Result<Output> {
        let [bundle, images, work] = [&self.folder, images, work].map(|path| path.display().to_string());
        let paths = ["--bundle", &bundle, "--image-path", &images, "--work-path", &work];
        self.runc(&[&["restore", "--detach"], how, &paths, &[&self.name]].concat())
    }

    fn restored(&self, output: Output, work: &Path) -> Result<()> {
        ensure!(output.status.success(), "runc restore: {}: {}{}", output.status, self.said(), errors(&work.join("restore.log")));
        Ok(())
    }

    /// Talk to redis where the container is.
    pub fn redis<T: Send>(&self, what: impl FnOnce(Client) -> Result<T> + Send) -> Result<T> {
        self.network.inside(|| what(Client::new(PORT)))
    }

    /// Run a program in it.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        self.runc_ok(&[&["exec", self.name.as_str()], words].concat())
    }

    /// Its first process, as the host knows it.
    pub fn pid(&self) -> Result<u32> {
        let state: serde_json::Value = serde_json::from_str(&self.runc_ok(&["state", &self.name])?)?;
        ensure!(state["status"] == "running", "{state}");
        Ok(state["pid"].as_u64().with_context(|| format!("no pid in {state}"))? as u32)
    }

    /// It has namespaces of its own, its name, cgroups with its name, and is the first of its processes.
    pub fn is_isolated(&self) -> Result<()> {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()?));
        for namespace in NAMESPACES {
            let of = |proc: &Path| std::fs::read_link(proc.join("ns").join(namespace));
            ensure!(of(&proc)? != of(Path::new("/proc/self"))?, "its {namespace} namespace is ours");
        }
        let status = std::fs::read_to_string(proc.join("status"))?;
        ensure!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "it is not the first: {status}");
        let cgroups = std::fs::read_to_string(proc.join("cgroup"))?;
        ensure!(cgroups.lines().all(|line| line.ends_with(&self.name)), "it is in another's cgroups: {cgroups}");
        Ok(())
    }

    /// End it: nothing of it is left but its bundle, which can be restored into again.
    pub fn end(&self) -> Result<()> {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()?));
        self.runc_ok(&["delete", "--force", &self.name])?;
        eventually("its first process is gone", || !proc.exists())?;
        self.left_nothing()
    }

    /// No state of runc's, no cgroup.
    pub fn left_nothing(&self) -> Result<()> {
        ensure!(!self.folder.join("state").join(&self.name).exists(), "runc still knows {}", self.name);
        let found = below(Path::new("/sys/fs/cgroup"), &self.name);
        ensure!(found.is_empty(), "cgroups are left: {found:?}");
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Lines of a log of CRIU's that tell of errors.
#[must_use]
pub fn errors(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|line| line.contains("Error")).collect::<Vec<_>>().join("; ")
}

/// Folders of a name below a folder.
fn below(folder: &Path, name: &str) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // A cgroup may go while it is looked at.
    let folders = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    folders.flat_map(|path| if path.ends_with(name) { vec![path] } else { below(&path, name) }).collect()
}

/// Remove what killed tests left.
fn sweep() {
    // Two at once would get in each other's way.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            remove(&entry.path());
        }
    }
}

/// End the container of a folder, and remove the folder with the mount in it.
fn remove(folder: &Path) {
    let name = folder.file_name().unwrap_or_default();
    let mut delete = Command::new("runc");
    delete.arg("--root").arg(folder.join("state")).args(["delete", "--force"]).arg(name);
    let ended = succeeds(delete);
    // Not mounted is as good as unmounted; its contents are Debian's, which nothing may remove.
    let unmounted = umount2(&folder.join("rootfs"), MntFlags::MNT_DETACH).or_else(|errno| match errno {
        nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT => Ok(()),
        other => Err(other),
    });
    let removed = unmounted.map_err(anyhow::Error::from).and_then(|()| Ok(std::fs::remove_dir_all(folder)?));
    for error in [ended, removed].into_iter().filter_map(Result::err) {
        eprintln!("remove container {}: {error:#}", folder.display());
    }
}
