//! Multicast groups that a socket has joined.
//!
//! No call lists the groups of a socket. /proc/net/igmp and igmp6 list those of all devices; for
//! each of them MCAST_MSFILTER says whether this socket has joined it, and for which sources.

use super::Subject;
use crate::checkpoint::CheckpointError;
use images::manifest::Membership;
use kernel::sockopt;

/// Sizes of `struct group_filter` and of the `sockaddr_storage` in it.
const HEADER_BYTES: usize = 144;
const ADDRESS_BYTES: usize = 128;
/// Offsets in it.
const GROUP_AT: usize = 8;
const MODE_AT: usize = GROUP_AT + ADDRESS_BYTES;
const COUNT_AT: usize = MODE_AT + 4;
/// Most sources of one group that are asked for (net.ipv4.igmp_max_msf is 10).
const SOURCES: usize = 128;
/// MCAST_INCLUDE of include/uapi/linux/in.h.
const INCLUDE: u32 = 1;

/// A group on a device.
struct Candidate {
    index: u32,
    interface: String,
    group: Vec<u8>,
}

/// Groups of an IPv4 or IPv6 socket; the latter has both kinds.
pub(super) fn of_ip(subject: &Subject<'_, '_>) -> Result<Vec<Membership>, CheckpointError> {
    let mut found = Vec::new();
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    for candidate in v4(&text("/proc/net/igmp")) {
        found.extend(membership(subject, libc::IPPROTO_IP, &candidate)?);
    }
    if subject.family == libc::AF_INET6 {
        for candidate in v6(&text("/proc/net/igmp6")) {
            found.extend(membership(subject, libc::IPPROTO_IPV6, &candidate)?);
        }
    }
    Ok(found)
}

fn membership(subject: &Subject<'_, '_>, level: i32, candidate: &Candidate) -> Result<Option<Membership>, CheckpointError> {
    let mut filter = vec![0_u8; HEADER_BYTES + SOURCES * ADDRESS_BYTES];
    filter[..4].copy_from_slice(&candidate.index.to_ne_bytes());
    let at = address_at(&candidate.group);
    let family = if candidate.group.len() == 4 { libc::AF_INET } else { libc::AF_INET6 } as u16;
    filter[GROUP_AT..GROUP_AT + 2].copy_from_slice(&family.to_ne_bytes());
    filter[GROUP_AT + at..GROUP_AT + at + candidate.group.len()].copy_from_slice(&candidate.group);
    filter[COUNT_AT..COUNT_AT + 4].copy_from_slice(&(SOURCES as u32).to_ne_bytes());
    let answer = sockopt::get_with(&subject.lent, level, libc::MCAST_MSFILTER, filter);
    let Some(answer) = answer.map_err(subject.no_answer())? else { return Ok(None) };
    let word = |at: usize| answer.get(at..).and_then(<[u8]>::first_chunk::<4>).copied().map_or(0, u32::from_ne_bytes);
    let count = word(COUNT_AT) as usize;
    if count > SOURCES {
        let what = format!("it takes a multicast group from {count} sources");
        return Err(subject.refuse(&what, "let it leave the group first"));
    }
    let source = |number: usize| {
        let from = HEADER_BYTES + number * ADDRESS_BYTES + at;
        answer.get(from..from + candidate.group.len()).map(<[u8]>::to_vec)
    };
    Ok(Some(Membership {
        interface: candidate.interface.clone(),
        group: candidate.group.clone(),
        include: word(MODE_AT) == INCLUDE,
        sources: (0..count).filter_map(source).collect(),
        kind: 0,
    }))
}

/// Where the address stands in a `sockaddr_in` or `sockaddr_in6`.
fn address_at(group: &[u8]) -> usize {
    if group.len() == 4 { 4 } else { 8 }
}

/// Lines of a device (`2 eth0 : 1 V3`, with tabs), each followed by its groups, which are
/// numbers in the order of bytes of this host.
fn v4(text: &str) -> Vec<Candidate> {
    let (mut found, mut device) = (Vec::new(), None);
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if line.starts_with(|first: char| first.is_ascii_digit()) {
            let name = words.next().unwrap_or_default().trim_end_matches(':').to_owned();
            device = first.parse::<u32>().ok().map(|index| (index, name));
        } else if let (Some((index, name)), Ok(group)) = (&device, u32::from_str_radix(first, 16)) {
            let group = group.to_ne_bytes().to_vec();
            found.push(Candidate { index: *index, interface: name.clone(), group });
        }
    }
    found
}

/// Lines such as `2    eth0            ff020000000000000000000000000001     1 0000000C 0`.
fn v6(text: &str) -> Vec<Candidate> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (index, interface) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        let group = u128::from_str_radix(words.next()?, 16).ok()?.to_be_bytes().to_vec();
        Some(Candidate { index, interface, group })
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    2\teth0:     2      V3\n\
                    \t\t\t\t070707EF     1 0:00000000\t\t0\n";
        let found = v4(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].index, found[1].interface.as_str()), (2, "eth0"));
        assert_eq!(found[1].group, 0x0707_07ef_u32.to_ne_bytes());
        let found = v6("1    lo              ff020000000000000000000000000001     1 0000000C 0\n");
        assert_eq!((found[0].index, found[0].group[0], found[0].group[15]), (1, 0xff, 1));
    }
}
