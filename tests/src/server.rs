//! A page server over a loopback socket, ended with its value.

use crate::binary;
use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A page server on a port of its own.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Start one over the store in the folder `store`.
    pub fn start(store: &Path) -> Result<Self> {
        let mut command = Command::new(binary("defrost-page-server")?);
        command.args(["--listen", "127.0.0.1:0", "--store"]).arg(store).stdin(Stdio::null()).stdout(Stdio::piped());
        command.env("RUST_LOG", "warn");
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
        format!("grpc://{}", self.address)
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
