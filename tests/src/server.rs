//! A page server over a loopback socket, ended with its value.

use crate::binary;
use crate::command::through_command;
use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};

/// A page server at an address of its own.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Start one over the store in the folder `store`, on a free port.
    pub fn start(store: &Path) -> Result<Self> {
        Self::start_with(store, &["--listen", "127.0.0.1:0"])
    }

    /// Start one with more to say about how.
    pub fn start_with(store: &Path, how: &[&str]) -> Result<Self> {
        Self::start_through(&[], store, how)
    }

    /// The same through a program that prepares for it and then becomes it, as `nsenter` does: into a network of the test's own, where it
    /// may listen on plain TCP outside of loopback.
    pub fn start_through(through: &[&str], store: &Path, how: &[&str]) -> Result<Self> {
        let mut command = through_command(through, &binary("defrost-page-server")?)?;
        command.args(how).arg("--store").arg(store).stdin(Stdio::null()).stdout(Stdio::piped());
        command.env("RUST_LOG", "warn").args((!through.is_empty()).then_some("--insecure-listen"));
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output is piped")?).read_line(&mut line)?;
        let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        let server = Self { child, address };
        ensure!(line.contains(" ready on "), "the server said {line:?} instead of being ready");
        Ok(server)
    }

    /// Its address, as `--store` takes it.
    #[must_use]
    pub fn store(&self) -> String {
        let whole = self.address.contains("://") || self.address.starts_with("unix:");
        if whole { self.address.clone() } else { format!("grpc://{}", self.address) }
    }

    /// Ask it to end, and wait until it has.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), nix::sys::signal::Signal::SIGTERM)?;
        let mut ended = None;
        crate::eventually("the server ends", || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        })?;
        ended.context("it has ended")
    }

    /// Another at its address, once it has ended.
    pub fn again(&self, store: &Path) -> Result<Self> {
        let address = self.address.rsplit("://").next().unwrap_or_default();
        Self::start_with(store, &["--listen", address]).context("start the server again")
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// End it at once, in the middle of whatever it does.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // ended already is as well
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
