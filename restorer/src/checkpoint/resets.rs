//! Connections that `--tcp-close` gives up: reset as the process ends.
//!
//! A connection that merely closes would keep its port for up to a minute, in which a restore
//! could not listen there, and would leave the peer to find out by itself.

use super::proc::Proc;
use images::manifest::description::Kind;
use images::manifest::{ClosedConnection, Manifest, Socket};
use kernel::sockopt;

/// Have the connections of a process, which is about to be ended, be reset when it closes them.
pub fn reset_at_end(proc: Proc, manifest: &Manifest) {
    // Whatever fails here: the connections are closed all the same.
    let Ok(pidfd) = proc.pidfd() else { return };
    let at_once = [1_i32, 0].map(i32::to_ne_bytes).concat();
    for descriptor in &manifest.descriptors {
        let file = manifest.files.get(descriptor.file as usize);
        let Some(Kind::Socket(socket)) = file.and_then(|file| file.kind.as_ref()) else { continue };
        if is_connection(socket)
            && let Ok(lent) = kernel::handoff::pidfd_getfd(&pidfd, descriptor.fd as i32)
        {
            let _ = sockopt::set(&lent, libc::SOL_SOCKET, libc::SO_LINGER, &at_once);
        }
    }
}

fn is_connection(socket: &Socket) -> bool {
    socket.closed() != ClosedConnection::None && socket.family as i32 != libc::AF_UNIX
}
