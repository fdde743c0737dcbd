//! What a process shares with another one: memory, descriptors, working directory or signal handlers (CLONE_VM, CLONE_FILES, CLONE_FS,
//! CLONE_SIGHAND between processes, as vfork and some libraries do). kcmp tells by comparing the kernel's own objects.

use nix::errno::Errno;
use nix::unistd::Pid;

/// Kernel objects of a process, by the numbers of include/uapi/linux/kcmp.h.
const OBJECTS: [(i32, &str); 4] = [(1, "memory"), (2, "descriptor table"), (3, "working directory"), (4, "signal handlers")];

/// What processes `a` and `b` have in common; nothing where one of them is gone or not ours to look at.
#[must_use]
pub fn shared(a: Pid, b: Pid) -> Option<&'static str> {
    OBJECTS.iter().find(|(kind, _)| is_same(a, b, *kind) == Ok(true)).map(|(_, name)| *name)
}

fn is_same(a: Pid, b: Pid, kind: i32) -> Result<bool, Errno> {
    // SAFETY: kcmp takes five integers and touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, a.as_raw(), b.as_raw(), kind, 0, 0) };
    Errno::result(answer).map(|order| order == 0)
}
