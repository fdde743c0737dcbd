//! Sockets as the child makes them by injected calls, each under the credentials of its maker.

use super::super::builder::{Builder, Step};
use super::super::error::outside;
use super::super::reach::Reach;
use super::super::threads::guise;
use super::{Wanted, text};
use images::manifest::{ClosedConnection, PeerCredentials, Socket};
use kernel::file_user::FileUser;
use kernel::sockopt;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::collections::HashMap;
use std::os::fd::{OwnedFd, RawFd};

/// SECBIT_NO_SETUID_FIXUP: another user id leaves the capabilities alone.
const NO_SETUID_FIXUP: u64 = 1 << 2;
/// "Leave it as it is" to setresuid.
const SAME: u64 = u32::MAX as u64;

/// A socket of the child's, lent to this process.
pub(super) struct Newborn {
    pub(super) socket: OwnedFd,
    /// Where what waits in it is written: the other end of a pair.
    pub(super) other: Option<OwnedFd>,
}

/// Whom the child is to the kernel at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    uid: u32,
    gid: u32,
    /// `None`: those of the restorer.
    groups: Option<Vec<u32>>,
}

struct Maker<'b, 't> {
    b: &'b mut Builder<'t>,
    home: Identity,
    now: Identity,
}

impl Maker<'_, '_> {
    /// Go on as `wanted`.
    fn become_one(&mut self, wanted: &Identity) -> Step<()> {
        if self.now == *wanted {
            return Ok(());
        }
        let b = &mut *self.b;
        let what = "credentials of a socket";
        if self.now == self.home {
            b.prctl(what, libc::PR_SET_SECUREBITS, [NO_SETUID_FIXUP, 0, 0, 0])?;
        }
        if let Some(groups) = wanted.groups.as_ref().filter(|_| self.now.groups != wanted.groups) {
            let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
            let at = b.put(&bytes)?;
            b.later(what, libc::SYS_setgroups, [groups.len() as u64, at, 0, 0, 0, 0])?;
        }
        b.later(what, libc::SYS_setresgid, [SAME, u64::from(wanted.gid), SAME, 0, 0, 0])?;
        b.later(what, libc::SYS_setresuid, [SAME, u64::from(wanted.uid), SAME, 0, 0, 0])?;
        self.now = wanted.clone();
        Ok(())
    }

    fn go_home(mut self) -> Step<()> {
        if self.now == self.home {
            return Ok(());
        }
        let home = self.home.clone();
        self.become_one(&home)?;
        // Groups that were changed are set once more, with the process's own credentials.
        self.b.prctl("credentials of a socket", libc::PR_SET_SECUREBITS, [0; 4])
    }

    fn of_owner(&self, wanted: &Wanted<'_>) -> Identity {
        let owner = wanted.socket.owner.as_ref();
        Identity {
            uid: owner.map_or(self.home.uid, |owner| owner.uid),
            gid: owner.map_or(self.home.gid, |owner| owner.gid),
            groups: self.now.groups.clone(),
        }
    }

    fn of_peer(&self, wanted: &Wanted<'_>) -> Identity {
        let Some(PeerCredentials { uid, gid, groups, .. }) = &wanted.socket.credentials else {
            return self.of_owner(wanted);
        };
        Identity { uid: *uid, gid: *gid, groups: Some(groups.clone()) }
    }
}

fn maker<'b, 't>(b: &'b mut Builder<'t>) -> Maker<'b, 't> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let home = Identity { uid, gid, groups: None };
    Maker { b, now: home.clone(), home }
}

/// Have the child make all of them, at the places that are held for them.
pub(super) fn make(b: &mut Builder<'_>, all: &[Wanted<'_>], pidfd: &OwnedFd) -> Step<Vec<Newborn>> {
    let mut maker = maker(b);
    let mut firsts: HashMap<u64, usize> = HashMap::new();
    let mut made: Vec<Newborn> = Vec::with_capacity(all.len());
    let mut seconds: HashMap<u64, u64> = HashMap::new();
    for (index, wanted) in all.iter().enumerate() {
        let what = format!("socket at fd {}", wanted.fd);
        let pair = wanted.socket.pair;
        let unix = wanted.is_unix();
        let alone = unix && wanted.closed() != ClosedConnection::None;
        let mut other = None;
        let number = if let Some(second) = seconds.remove(&pair).filter(|_| pair != 0) {
            second
        } else if pair != 0 || alone {
            maker.become_one(&maker.of_peer(wanted))?;
            let [first, second] = pair_of(&mut maker, wanted, &what)?;
            if alone {
                other = Some(lend(pidfd, second as RawFd)?);
                maker.b.later(&what, libc::SYS_close, [second, 0, 0, 0, 0, 0])?;
            } else {
                seconds.insert(pair, second);
                firsts.insert(pair, index);
            }
            first
        } else {
            maker.become_one(&maker.of_owner(wanted))?;
            let kind = u64::from(wanted.socket.r#type) | libc::SOCK_CLOEXEC as u64;
            // A packet socket gets its protocol with its address, once its filter is set.
            let packet = wanted.socket.family as i32 == libc::AF_PACKET;
            let protocol = if packet { 0 } else { u64::from(wanted.socket.protocol) };
            let family = u64::from(wanted.socket.family);
            maker.b.call(&what, libc::SYS_socket, [family, kind, protocol, 0, 0, 0])?
        };
        let place = wanted.place as u64;
        let cloexec = libc::O_CLOEXEC as u64;
        maker.b.call(&what, libc::SYS_dup3, [number, place, cloexec, 0, 0, 0])?;
        maker.b.later(&what, libc::SYS_close, [number, 0, 0, 0, 0, 0])?;
        made.push(Newborn { socket: lend(pidfd, wanted.place)?, other });
        if let Some(first) = firsts.get(&pair).filter(|first| **first != index) {
            let clone = |of: &Newborn| of.socket.try_clone().map_err(outside("lend a socket"));
            let (one, two) = (clone(&made[*first])?, clone(&made[index])?);
            made[*first].other = Some(two);
            made[index].other = Some(one);
        }
    }
    maker.go_home()?;
    Ok(made)
}

fn pair_of(maker: &mut Maker<'_, '_>, wanted: &Wanted<'_>, what: &str) -> Step<[u64; 2]> {
    let kind = u64::from(wanted.socket.r#type) | libc::SOCK_CLOEXEC as u64;
    let at = maker.b.put(&[0; 8])?;
    let family = u64::from(wanted.socket.family);
    maker.b.call(what, libc::SYS_socketpair, [family, kind, 0, at, 0, 0])?;
    let mut numbers = [0; 8];
    maker.b.read_back(at, &mut numbers)?;
    let [first, second] = [0, 4].map(|at| {
        let number = numbers[at..].first_chunk::<4>().copied().unwrap_or_default();
        u64::from(u32::from_ne_bytes(number))
    });
    Ok([first, second])
}

fn lend(pidfd: &OwnedFd, number: RawFd) -> Step<OwnedFd> {
    kernel::handoff::pidfd_getfd(pidfd, number).map_err(outside("fetch a socket of the child"))
}

/// Have the child listen: clients see who did.
pub(super) fn listen(b: &mut Builder<'_>, all: &[Wanted<'_>]) -> Step<()> {
    let mut maker = maker(b);
    for wanted in all.iter().filter(|wanted| wanted.is_unix() && wanted.socket.listening) {
        maker.become_one(&maker.of_peer(wanted))?;
        // As long as those that wait call, there is room for them.
        let backlog = wanted.socket.backlog.max(wanted.socket.waiting.len() as u32);
        let args = [wanted.place as u64, u64::from(backlog), 0, 0, 0, 0];
        maker.b.later(&format!("listen at fd {}", wanted.fd), libc::SYS_listen, args)?;
    }
    maker.go_home()
}

/// Have the child connect to a socket of another process, which may ask who did.
pub(super) fn connect(b: &mut Builder<'_>, wanted: &Wanted<'_>, newborn: &Newborn, reach: &Reach) -> Step<()> {
    let name = &wanted.socket.peer;
    // As itself, it may connect only where it might before.
    connect_to(b, wanted, newborn, name, reach.user(reach.first()))?.map_err(|errno| {
        let at = String::from_utf8_lossy(name).replace('\0', "@");
        wanted.failed(format!("connect to {at}: {errno}: start the service that listens there"))
    })
}

fn connect_to(
    b: &mut Builder<'_>,
    wanted: &Wanted<'_>,
    newborn: &Newborn,
    name: &[u8],
    user: Option<&FileUser>,
) -> Step<Result<(), Errno>> {
    // A listener without room is an error, not a wait.
    fcntl(&newborn.socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(text("set its flags")).map_err(|why| wanted.failed(why))?;
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend(name);
    if name.first() != Some(&0) {
        address.push(0);
    }
    let mut maker = maker(b);
    maker.become_one(&maker.of_owner(wanted))?;
    let at = maker.b.put(&address)?;
    let args = [wanted.place as u64, at, address.len() as u64, 0, 0, 0];
    if let Some(user) = user {
        guise::put_down(maker.b, user.capabilities)?;
    }
    let answer = maker.b.try_call("connect a socket", libc::SYS_connect, args)?;
    if user.is_some() {
        guise::take_up(maker.b)?;
    }
    maker.go_home()?;
    Ok(answer.map(drop))
}

/// Have the child connect those sockets to its own listeners that wait there to be accepted.
pub(super) fn call(b: &mut Builder<'_>, all: &[(Wanted<'_>, &Newborn)]) -> Step<()> {
    let at: HashMap<u32, usize> = all.iter().enumerate().map(|(at, (wanted, _))| (wanted.file, at)).collect();
    for (listener, _) in all.iter().filter(|(wanted, _)| !wanted.socket.waiting.is_empty()) {
        let Socket { address, waiting, backlog, .. } = listener.socket;
        // The file may have another path by now, or none: the socket itself leads to it.
        let file = match address.first() {
            Some(0) => None,
            _ => Some(b.call("find a socket's file", libc::SYS_ioctl, [listener.place as u64, sockopt::SIOCUNIXFILE, 0, 0, 0, 0])?),
        };
        let name = file.map_or_else(|| address.clone(), |file| format!("/proc/self/fd/{file}").into_bytes());
        for (wanted, newborn) in waiting.iter().filter_map(|file| all.get(*at.get(file)?)) {
            connect_to(b, wanted, newborn, &name, None)?
                .map_err(|errno| wanted.failed(format!("connect to the process's own listener at fd {}: {errno}", listener.fd)))?;
        }
        if let Some(file) = file {
            b.later("close a socket's file", libc::SYS_close, [file, 0, 0, 0, 0, 0])?;
        }
        if (*backlog as usize) < waiting.len() {
            let mut maker = maker(b);
            maker.become_one(&maker.of_peer(listener))?;
            maker.b.later("listen", libc::SYS_listen, [listener.place as u64, u64::from(*backlog), 0, 0, 0, 0])?;
            maker.go_home()?;
        }
    }
    Ok(())
}
