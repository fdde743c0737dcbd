//! Keyrings of a thread (keyrings(7)): those that hold keys are refused, as keys cannot be read back.
//!
//! A session keyring that is empty, or holds nothing but the user's own keyring, is made again.
//! Asking for the session keyring of a thread that has none installs the user's session keyring,
//! which the kernel searches for such a thread anyway.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::ask::Session;
use crate::checkpoint::proc::Proc;
use images::manifest::SessionKeyring;
use nix::errno::Errno;

/// include/uapi/linux/keyctl.h.
const KEYCTL_GET_KEYRING_ID: u64 = 0;
const KEYCTL_READ: u64 = 11;
const KEYCTL_SET_REQKEY_KEYRING: u64 = 14;
/// KEY_REQKEY_DEFL_NO_CHANGE: yields what is set.
const NO_CHANGE: u64 = u64::MAX;
/// Keys that a listing holds.
const LISTED: usize = 16;

/// KEY_SPEC_*.
#[derive(Clone, Copy)]
enum Special {
    Thread = -1,
    Process = -2,
    Session = -3,
    User = -4,
}

/// What a thread has.
#[derive(Debug, Default)]
pub struct Keyrings {
    /// The session keyring; `None` in a kernel without keys.
    pub session: Option<SessionKeyring>,
    /// KEY_REQKEY_DEFL_*.
    pub request_key_keyring: u32,
}

/// Ask thread `tid`; `leader` is what its leader has.
pub fn of_thread(proc: Proc, tid: u32, session: &mut Session<'_>, leader: Option<&Keyrings>) -> Result<Keyrings, CheckpointError> {
    if leader.is_some_and(|leader| leader.session.is_none()) {
        return Ok(Keyrings::default());
    }
    for (which, name) in [(Special::Thread, "a keyring of its own"), (Special::Process, "a process keyring")] {
        if id(session, which)?.is_ok() {
            return Err(proc.refuse(format!("thread {tid} has {name}, whose keys cannot be read"), "let it keep its keys elsewhere"));
        }
    }
    let serial = match id(session, Special::Session)? {
        Ok(serial) => serial,
        Err(Errno::ENOSYS) => return Ok(Keyrings::default()),
        Err(errno) => {
            return Err(proc.refuse(format!("its session keyring cannot be read ({errno})"), "let it join another (keyctl session)"));
        }
    };
    let links_user = match leader.and_then(|leader| leader.session.as_ref()) {
        Some(of_leader) if of_leader.serial == serial => of_leader.links_user,
        Some(_) => return Err(proc.refuse(format!("thread {tid} has a session keyring of its own"), "let its threads share one")),
        None => links_user(proc, session, serial)?,
    };
    let wanted = session.may_call("keyrings", libc::SYS_keyctl, [KEYCTL_SET_REQKEY_KEYRING, NO_CHANGE, 0, 0, 0, 0])?;
    Ok(Keyrings { session: Some(SessionKeyring { serial, links_user }), request_key_keyring: wanted.unwrap_or(0) as u32 })
}

fn id(session: &mut Session<'_>, which: Special) -> Result<Result<i32, Errno>, CheckpointError> {
    let answer = session.may_call("keyrings", libc::SYS_keyctl, [KEYCTL_GET_KEYRING_ID, which as i64 as u64, 0, 0, 0, 0])?;
    Ok(answer.map(|serial| serial as i32))
}

/// Whether the keyring `serial` holds the user's keyring; a refusal where it holds anything else.
fn links_user(proc: Proc, session: &mut Session<'_>, serial: i32) -> Result<bool, CheckpointError> {
    let at = session.scratch_at();
    let bytes = LISTED * size_of::<i32>();
    let read = session.may_call("keyrings", libc::SYS_keyctl, [KEYCTL_READ, serial as u64, at, bytes as u64, 0, 0])?;
    // One that may not be read is not the process's own: the login's, say, which the restorer has as well or has not.
    let Ok(length) = read else { return Ok(false) };
    let listed: [u8; LISTED * size_of::<i32>()] = session.scratch()?;
    let keys: Vec<i32> = listed.chunks_exact(4).take(length as usize / 4).map(|key| key.try_into().map_or(0, i32::from_ne_bytes)).collect();
    let user = id(session, Special::User)?.unwrap_or(0);
    if length as usize > bytes || keys.iter().any(|key| *key != user) {
        let object = format!("its session keyring {serial} holds keys, which cannot be read");
        return Err(proc.refuse(object, "start it with an empty one (keyctl session - COMMAND)"));
    }
    Ok(!keys.is_empty())
}
