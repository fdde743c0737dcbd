//! Network namespaces, gone with their value: two joined by a pair of virtual interfaces, as two machines are by a cable, or one alone.
//!
//! Names hold the pid of the test that made them; one whose test was killed is removed by the next that makes some. Programs go inside
//! by `nsenter` with the network alone: `ip netns exec` would give them mounts of their own too.

use crate::command::succeeds;
use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the names of all of them begin with.
const PREFIX: &str = "defrost-test-";
/// Where one cannot be made.
const NEEDED: &str = "a network namespace is needed: run as root, with iproute2 installed";
/// Name of the interface on either side.
const WIRE: &str = "wire";

/// An end of the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the page server is.
    Server,
    /// Where the process is restored.
    Process,
}

impl Side {
    /// Its address, the same in every pair: no two can see each other.
    #[must_use]
    pub fn address(self) -> &'static str {
        match self {
            Self::Server => "192.168.77.1",
            Self::Process => "192.168.77.2",
        }
    }
}

/// The two and their cable.
#[derive(Debug)]
pub struct Cable {
    names: [String; 2],
}

/// One that has loopback and nothing else, as a container's without a network.
#[derive(Debug)]
pub struct Alone {
    name: String,
}

impl Alone {
    /// Make it.
    pub fn new() -> Result<Self> {
        let alone = Self { name: format!("{}a", new_name()) };
        ip(&["netns", "add", &alone.name]).context(NEEDED)?;
        ip(&["-n", &alone.name, "link", "set", "lo", "up"])?;
        Ok(alone)
    }

    /// What it is opened by.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// Do something inside, in a thread of its own.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(&self.name, what)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn inside<T: Send>(name: &str, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(path(name))?;
    let enter = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        what()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// A name nobody else has, up to its last letter.
fn new_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    sweep();
    format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Cable {
    /// Make them.
    pub fn new() -> Result<Self> {
        let ours = new_name();
        let cable = Self { names: ["s", "p"].map(|side| format!("{ours}{side}")) };
        let [server, process] = &cable.names;
        for name in &cable.names {
            ip(&["netns", "add", name]).context(NEEDED)?;
        }
        ip(&["-n", server, "link", "add", WIRE, "type", "veth", "peer", "name", WIRE, "netns", process])?;
        for side in [Side::Server, Side::Process] {
            let name = cable.name(side);
            ip(&["-n", name, "address", "add", &format!("{}/24", side.address()), "dev", WIRE])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            cable.plug(side, true)?;
        }
        Ok(cable)
    }

    fn name(&self, side: Side) -> &str {
        &self.names[usize::from(side == Side::Process)]
    }

    /// Words in front of a command that is to run on one side.
    #[must_use]
    pub fn on(&self, side: Side) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net=/run/netns/{}", self.name(side))]
    }

    /// Do something on one side, in a thread of its own: whatever that starts is there too.
    pub fn inside<T: Send>(&self, side: Side, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(self.name(side), what)
    }

    /// Pull an end of the cable, or plug it in again. Either side's being out cuts both ways; nobody is told.
    pub fn plug(&self, side: Side, into: bool) -> Result<()> {
        ip(&["-n", self.name(side), "link", "set", WIRE, if into { "up" } else { "down" }])
    }

    /// Let no more through from one side than this, in the words of `tc`; what waits longer than `latency` is dropped.
    pub fn limit(&self, side: Side, rate: &str, burst: &str, latency: &str) -> Result<()> {
        let mut tc = Command::new("tc");
        let name = self.name(side);
        tc.args(["-n", name, "qdisc", "replace", "dev", WIRE, "root", "tbf", "rate", rate, "burst", burst, "latency", latency]);
        succeeds(tc).context("install iproute2")
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            remove(name);
        }
    }
}

/// Remove what killed tests left.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    if let Err(error) = ip(&["netns", "delete", name]) {
        eprintln!("remove network namespace {name}: {error}");
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(args);
    succeeds(ip).context("install iproute2")
}
