//! Descriptors in flight: what was sent over unix sockets (SCM_RIGHTS) and not received yet.
//!
//! A look at a queue (MSG_PEEK) installs duplicates in this process. Each is compared with all
//! descriptions that are known ([`Twins`]); one that the process has no descriptor of any more is
//! described through the duplicate, which stays open for as long. A socket that was sent has a queue
//! itself, which is looked into as well, until nothing new comes up.

use super::super::files::{Context, Number, Open};
use super::super::twins::Twins;
use super::{Lender, SocketTables, inode_of, peek_queue};
use crate::checkpoint::CheckpointError;
use images::manifest::PeerCredentials;
use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// A message, or a run of bytes of a stream, that waits in a socket.
#[derive(Debug)]
pub(in crate::checkpoint::describe) struct Queued {
    pub(in crate::checkpoint::describe) bytes: Vec<u8>,
    /// What it says of who sent it.
    pub(in crate::checkpoint::describe) sender: Option<PeerCredentials>,
    /// Name of the socket that sent it, as the image has unix names; empty: it has none.
    pub(in crate::checkpoint::describe) from: Vec<u8>,
    /// Descriptions that come with it, by their numbers among all.
    pub(in crate::checkpoint::describe) files: Vec<u32>,
}

/// What waits in each unix socket, by its inode, or why that cannot be told.
pub(in crate::checkpoint::describe) type Queues = HashMap<u32, Result<Vec<Queued>, String>>;

/// Everything that was found.
pub(in crate::checkpoint::describe) struct Found {
    pub(in crate::checkpoint::describe) queues: Queues,
    /// One for each description that has no descriptor, in the order of their numbers.
    pub(in crate::checkpoint::describe) open: Vec<Open>,
    /// What leads to them.
    pub(in crate::checkpoint::describe) duplicates: Vec<OwnedFd>,
}

/// Look into all unix sockets among `known`, which are all descriptions that the process has
/// descriptors of, as `twins` knows them.
pub(in crate::checkpoint::describe) fn find(
    context: &Context<'_>,
    known: &[&Open],
    twins: &mut Twins,
    mut lender: Lender<'_>,
) -> Result<Found, CheckpointError> {
    let found = find_all(context, known, twins, &mut lender);
    let ended = lender.end(); // also after an error: the process runs on as it was
    let found = found?; // the first error is the cause of others
    ended.map(|()| found)
}

fn find_all(context: &Context<'_>, known: &[&Open], twins: &mut Twins, lender: &mut Lender<'_>) -> Result<Found, CheckpointError> {
    // Without leave for more, a queue with too many is refused.
    let _ = kernel::descriptions::raise_descriptor_limit();
    let mut found = Found { queues: Queues::new(), open: Vec::new(), duplicates: Vec::new() };
    let standard: Vec<u32> = known.iter().filter(|open| open.number.is_standard()).filter_map(|open| inode_of(&open.link)).collect();
    let mut next = 0;
    while next < known.len() + found.open.len() {
        let open = known.get(next).copied().unwrap_or_else(|| &found.open[next - known.len()]);
        next += 1;
        let Some(inode) = inode_of(&open.link) else { continue };
        let within = open.number.outermost();
        if open.is_path_only() || is_outside(context, &context.sockets, inode, &standard) {
            continue;
        }
        let lent = match open.number {
            Number::Own(_) => context.lend(open.number)?,
            Number::InFlight { at, .. } => found.duplicates[at].try_clone().map_err(|error| too_many(context, within, &error))?,
        };
        let Some(messages) = peek_queue(context, (&lent, open.number), inode, lender)? else { continue };
        let queued = match messages {
            Ok(messages) => {
                let mut queued = Vec::with_capacity(messages.len());
                for message in messages {
                    let mut files = Vec::with_capacity(message.rights.len());
                    for duplicate in message.rights {
                        files.push(found.number_of(context, known.len(), duplicate, within, twins)?);
                    }
                    queued.push(Queued { bytes: message.bytes, sender: message.sender, from: message.from, files });
                }
                Ok(queued)
            }
            Err(why) => Err(why),
        };
        found.queues.insert(inode, queued);
    }
    Ok(found)
}

/// A standard stream that leads to another process, which will be reattached: what waits there is
/// not the process's.
fn is_outside(context: &Context<'_>, tables: &SocketTables, inode: u32, standard: &[u32]) -> bool {
    let peer = || tables.peer_of(inode).filter(|peer| *peer != 0);
    standard.contains(&inode) && peer().is_some_and(|peer| !context.has_socket(peer))
}

fn too_many(context: &Context<'_>, within: u32, error: &std::io::Error) -> CheckpointError {
    context.proc.refuse(format!("fd {within}: descriptors in flight in it: {error}"), "raise ulimit -n")
}

impl Found {
    /// The number of the description behind `duplicate`, of which `known` have descriptors.
    fn number_of(
        &mut self,
        context: &Context<'_>,
        known: usize,
        duplicate: OwnedFd,
        within: u32,
        twins: &mut Twins,
    ) -> Result<u32, CheckpointError> {
        let number = Number::InFlight { at: self.duplicates.len(), duplicate: duplicate.as_raw_fd() as u32, within };
        let link = context.proc.link(&number.handle())?;
        if let Some(file) = twins.find_or_add(&link, number.for_kcmp(context.proc), known + self.open.len()) {
            return Ok(file as u32);
        }
        let info = context.proc.text(&number.fdinfo())?;
        self.open.push(Open { number, link, info });
        self.duplicates.push(duplicate);
        Ok((known + self.open.len() - 1) as u32)
    }
}
