//! How others ask a pager: one unix socket a restore, one line each way.
//!
//! The socket is PID.sock in the runtime directory (/run/defrost for root, else $XDG_RUNTIME_DIR/defrost). `status` answers at once,
//! `wait` when everything is there or never will be; the answer is a [`Status`] as JSON. A socket nobody listens on is swept.

use crate::pager::Shared;
use crate::status::Status;
use std::io::{BufRead as _, BufReader, Error, ErrorKind, Result, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

/// Where sockets are.
#[must_use]
pub fn runtime_dir() -> PathBuf {
    let user = || std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("defrost"));
    if nix::unistd::geteuid().is_root() { "/run/defrost".into() } else { user().unwrap_or_else(|| "/tmp/defrost".into()) }
}

fn socket_path(pid: u32) -> PathBuf {
    runtime_dir().join(format!("{pid}.sock"))
}

/// Listens for as long as it lives; the socket goes with it.
#[derive(Debug)]
pub(crate) struct Listening {
    path: PathBuf,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // gone already is as well
    }
}

/// Begin to answer for `shared`.
pub(crate) fn listen(shared: Arc<Shared>) -> Result<Listening> {
    let path = socket_path(shared.pid());
    std::fs::create_dir_all(runtime_dir())?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = shared.clone();
            std::thread::spawn(move || {
                // A caller that hangs up has its reason.
                let _ = serve(stream, &shared);
            });
        }
    });
    Ok(Listening { path })
}

fn serve(stream: UnixStream, shared: &Shared) -> Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    if line.trim() == "wait" {
        shared.wait_settled();
    }
    let answer = serde_json::to_string(&shared.status()).map_err(Error::from)?;
    writeln!(&stream, "{answer}")
}

fn ask(pid: u32, what: &str) -> Result<Status> {
    let stream = UnixStream::connect(socket_path(pid))?;
    writeln!(&stream, "{what}")?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// The status of one restore; `NotFound` where there is none.
pub fn status(pid: u32) -> Result<Status> {
    ask(pid, "status")
}

/// Wait until a restore is resident or failed; `NotFound` where there is none.
pub fn wait(pid: u32) -> Result<Status> {
    ask(pid, "wait")
}

/// All live restores, by pid.
pub fn list() -> Vec<Status> {
    let Ok(entries) = std::fs::read_dir(runtime_dir()) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let pid = entry.path().file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        match pid.map(status) {
            Some(Ok(status)) => found.push(status),
            Some(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                let _ = std::fs::remove_file(entry.path()); // its pager died; another may sweep it first
            }
            _ => {}
        }
    }
    found.sort_by_key(|status| status.pid);
    found
}
