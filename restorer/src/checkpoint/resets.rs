//! Connections that `--tcp-close` gives up: reset once the process has ended.
//!
//! A connection that merely closes would keep its port for up to a minute, in which a restore
//! could not listen there, and would leave the peer to find out by itself.
//!
//! This process holds them beyond the end of the process, and sets nothing of them before: a checkpoint
//! that is killed on the way leaves a living process its sockets as they were.

use super::proc::Proc;
use images::manifest::description::Kind;
use images::manifest::{ClosedConnection, Manifest, Socket};
use kernel::sockopt;
use std::os::fd::OwnedFd;

/// Connections of a process that is about to be ended.
#[derive(Debug)]
pub struct GivenUp(Vec<OwnedFd>);

impl GivenUp {
    /// Hold those of `proc`. Whatever fails here: the connections are closed all the same.
    pub fn hold(proc: Proc, manifest: &Manifest) -> Self {
        let Ok(pidfd) = proc.pidfd() else { return Self(Vec::new()) };
        let is_one = |file: u32| match manifest.files.get(file as usize).and_then(|file| file.kind.as_ref()) {
            Some(Kind::Socket(socket)) => is_connection(socket),
            _ => false,
        };
        let connections = manifest.descriptors.iter().filter(|descriptor| is_one(descriptor.file));
        Self(connections.filter_map(|descriptor| kernel::handoff::pidfd_getfd(&pidfd, descriptor.fd as i32).ok()).collect())
    }

    /// Reset them; the process has ended.
    pub fn reset(self) {
        let at_once = [1_i32, 0].map(i32::to_ne_bytes).concat();
        for connection in self.0 {
            let _ = sockopt::set(&connection, libc::SOL_SOCKET, libc::SO_LINGER, &at_once); // it closes all the same
        }
    }
}

fn is_connection(socket: &Socket) -> bool {
    socket.closed() != ClosedConnection::None && socket.family as i32 != libc::AF_UNIX
}
