//! Users, groups and capabilities of a thread: last of what calls set, as they may take away what the rest needs.

use crate::restore::builder::{Builder, Step};
use images::manifest::Credentials;

/// Make the thread what it was.
pub(super) fn become_user(b: &mut Builder<'_>, c: &Credentials, what: &str) -> Step<()> {
    let call = |b: &mut Builder<'_>, number, args: [u32; 3]| {
        b.later(what, number, [u64::from(args[0]), u64::from(args[1]), u64::from(args[2]), 0, 0, 0])
    };
    // Changing users must not touch capabilities: they are set one by one below.
    const NO_SETUID_FIXUP: u64 = 1 << 2;
    b.prctl(what, libc::PR_SET_SECUREBITS, [NO_SETUID_FIXUP, 0, 0, 0])?;
    let groups: Vec<u8> = c.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
    let at = b.put(&groups)?;
    b.later(what, libc::SYS_setgroups, [c.groups.len() as u64, at, 0, 0, 0, 0])?;
    call(b, libc::SYS_setresgid, [c.rgid, c.egid, c.sgid])?;
    call(b, libc::SYS_setfsgid, [c.fsgid, 0, 0])?;
    call(b, libc::SYS_setresuid, [c.ruid, c.euid, c.suid])?;
    call(b, libc::SYS_setfsuid, [c.fsuid, 0, 0])?;
    for capability in (0..=last_capability()).filter(|bit| c.cap_bounding & (1 << bit) == 0) {
        b.prctl(what, libc::PR_CAPBSET_DROP, [capability, 0, 0, 0])?;
    }
    b.prctl(what, libc::PR_SET_SECUREBITS, [u64::from(c.securebits), 0, 0, 0])?;
    const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let halves = |shift: u32| [c.cap_effective, c.cap_permitted, c.cap_inheritable].map(|set| (set >> shift) as u32);
    let data = [CAPABILITY_VERSION_3, 0].into_iter().chain(halves(0)).chain(halves(32));
    let bytes: Vec<u8> = data.flat_map(u32::to_ne_bytes).collect();
    let at = b.put(&bytes)?;
    b.later(what, libc::SYS_capset, [at, at + 8, 0, 0, 0, 0])?;
    for capability in (0..64_u64).filter(|bit| c.cap_ambient & (1 << bit) != 0) {
        b.prctl(what, libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_RAISE as u64, capability, 0, 0])?;
    }
    Ok(())
}

/// The last capability that this kernel knows.
fn last_capability() -> u64 {
    // Linux 5.9 and later know CAP_CHECKPOINT_RESTORE, which is 40.
    let told = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
    told.filter(|last| *last < 64).unwrap_or(40)
}
