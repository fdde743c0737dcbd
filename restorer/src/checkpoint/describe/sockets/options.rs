//! Options and the filter of a socket, by the table in [`kernel::known::socket_options`].

use super::Subject;
use crate::checkpoint::CheckpointError;
use images::manifest::SocketOption;
use kernel::known::socket_options::{Carry, all};
use kernel::sockopt;
use nix::errno::Errno;
use std::collections::HashMap;

/// Values of a fresh socket, by level and name.
pub(crate) type Fresh = HashMap<(i32, i32), Option<Vec<u8>>>;

/// A flag of `SO_TIMESTAMPING`, whose counter no call reads.
const OPT_ID: u32 = 1 << 7;

/// Options of streams that the kernel sets as a connection is made, and a program cannot.
const OF_STREAMS: [(i32, i32); 4] = [
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
];
/// Options that tell of a connection while there is one.
const OF_CONNECTIONS: [(i32, i32); 4] = [
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK),
    (libc::SOL_SOCKET, libc::SO_INCOMING_CPU),
];

/// Options that differ from a fresh socket's; of a connection that is `closed` those that the
/// program set.
pub(super) fn options(subject: &Subject<'_, '_>, closed: bool) -> Result<Vec<SocketOption>, CheckpointError> {
    let sort = (subject.family, subject.kind, subject.protocol);
    let fresh = subject.context.sockets.fresh(sort, || fresh_values(subject))?;
    let locked = subject.number(libc::SOL_SOCKET, libc::SO_BUF_LOCK)?;
    let mut found = Vec::new();
    let stream = subject.kind == libc::SOCK_STREAM;
    for option in all().filter(|option| option.is_read()) {
        let number_of = (option.level, option.name);
        if (stream && OF_STREAMS.contains(&number_of)) || (closed && OF_CONNECTIONS.contains(&number_of)) {
            continue;
        }
        let value = sockopt::get(&subject.lent, option.level, option.name)
            .map_err(|errno| subject.refuse(&format!("{}: {errno}", option.label), "run defrost as root"))?;
        let Some(value) = value else { continue };
        let usual = fresh.get(&(option.level, option.name)).and_then(Option::as_ref);
        let differs = usual != Some(&value);
        let refuse = |advice| Err(subject.refuse(&format!("{} is set", option.label), advice));
        match option.carry {
            // A size that the kernel chose itself goes on being chosen by the kernel.
            Carry::Doubled { lock, .. } if locked & lock == 0 && (closed || !differs) => continue,
            Carry::Doubled { .. } => {}
            _ if !differs => continue,
            Carry::Refused(advice) => return refuse(advice),
            Carry::UpTo(most, advice) if number(&value) > most => return refuse(advice),
            _ => {}
        }
        let counts = option.name == libc::SO_TIMESTAMPING && number(&value) & OPT_ID != 0;
        if option.level == libc::SOL_SOCKET && counts {
            let what = "it numbers its time stamps (SOF_TIMESTAMPING_OPT_ID)";
            return Err(subject.refuse(what, "let it turn SO_TIMESTAMPING off first"));
        }
        found.push(SocketOption { level: option.level as u32, name: option.name as u32, value });
    }
    Ok(found)
}

fn number(value: &[u8]) -> u32 {
    value.first_chunk::<4>().copied().map_or(0, u32::from_ne_bytes)
}

/// What each option of a fresh socket of the same sort says.
fn fresh_values(subject: &Subject<'_, '_>) -> Result<Fresh, CheckpointError> {
    let kind = subject.kind | libc::SOCK_CLOEXEC;
    let made = sockopt::fresh(subject.family, kind, subject.protocol).map_err(subject.no_answer())?;
    let read = |option: &kernel::known::socket_options::SocketOption| {
        let value = sockopt::get(&made, option.level, option.name).ok().flatten();
        ((option.level, option.name), value)
    };
    Ok(all().filter(|option| option.is_read()).map(read).collect())
}

/// The program that filters what comes to it.
pub(super) fn filter(subject: &Subject<'_, '_>) -> Result<Vec<u8>, CheckpointError> {
    match sockopt::filter(&subject.lent) {
        Ok(program) => Ok(program),
        Err(Errno::EACCES) => {
            Err(subject.refuse("an eBPF program filters what comes to it (SO_ATTACH_BPF)", "let it detach the program first"))
        }
        Err(errno) => Err(subject.refuse(&format!("SO_GET_FILTER: {errno}"), super::CLOSE_SOCKET)),
    }
}
