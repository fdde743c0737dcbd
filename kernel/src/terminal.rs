//! Terminals: their settings, window size and locks, by ioctl_tty(2); all of them through any descriptor.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

/// `struct termios2` of include/uapi/asm-generic/termbits.h: modes, line discipline, characters and both speeds.
pub const SETTINGS_BYTES: usize = 44;
/// `struct termios`, in which locks are told: no speeds.
pub const LOCKS_BYTES: usize = 36;
/// The usual line discipline, N_TTY.
pub const PLAIN_DISCIPLINE: i32 = 0;

/// include/uapi/linux/kd.h.
const KDGETMODE: libc::Ioctl = 0x4b3b;
const KDGKBMODE: libc::Ioctl = 0x4b44;

/// What an open file is, as the kernel's terminal layer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A terminal, by its device number as field 7 of /proc/PID/stat has it; a pty's master says its slave's.
    Terminal(u32),
    /// A terminal that was hung up: it reads as at its end, and takes nothing.
    HungUp,
    /// No terminal.
    Other,
}

/// `struct winsize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WindowSize {
    /// Lines of text.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
    /// Width in pixels, 0 where nobody said.
    pub x_pixels: u16,
    /// Height in pixels.
    pub y_pixels: u16,
}

/// An ioctl by which the kernel writes `bytes` bytes at most.
fn read<const BYTES: usize>(terminal: impl AsFd, request: libc::Ioctl) -> Result<[u8; BYTES], Errno> {
    let mut buffer = [0_u8; BYTES];
    // SAFETY: callers below pass requests that write no more than the structure whose size they name.
    let answer = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), request, buffer.as_mut_ptr()) };
    Errno::result(answer).map(|_| buffer)
}

/// An ioctl by which the kernel reads a structure.
fn write(terminal: impl AsFd, request: libc::Ioctl, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: callers below pass as many bytes as the request's structure has.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), request, bytes.as_ptr()) }).map(drop)
}

/// What is behind a descriptor.
pub fn device(file: impl AsFd) -> Result<Device, Errno> {
    match read::<4>(file, libc::TIOCGDEV) {
        Ok(bytes) => Ok(Device::Terminal(u32::from_ne_bytes(bytes))),
        Err(Errno::EIO) => Ok(Device::HungUp),
        Err(Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS | Errno::EBADF) => Ok(Device::Other),
        Err(errno) => Err(errno),
    }
}

/// Whether it is the master of a pty: only these know packet mode.
#[must_use]
pub fn is_master(terminal: impl AsFd) -> bool {
    read::<4>(terminal, libc::TIOCGPKT).is_ok()
}

/// Modes, characters, speeds: a `struct termios2`.
pub fn settings(terminal: impl AsFd) -> Result<[u8; SETTINGS_BYTES], Errno> {
    read(terminal, libc::TCGETS2)
}

/// Set them at once: what was written is not waited for, what was typed is kept.
pub fn set_settings(terminal: impl AsFd, settings: &[u8; SETTINGS_BYTES]) -> Result<(), Errno> {
    write(terminal, libc::TCSETS2, settings)
}

/// Which settings nobody may change: a `struct termios` of masks.
pub fn locks(terminal: impl AsFd) -> Result<[u8; LOCKS_BYTES], Errno> {
    // The kernel may know a longer structure than it writes here.
    read::<{ SETTINGS_BYTES + 16 }>(terminal, libc::TIOCGLCKTRMIOS).map(|bytes| std::array::from_fn(|at| bytes[at]))
}

/// Set them, which takes CAP_SYS_ADMIN.
pub fn set_locks(terminal: impl AsFd, locks: &[u8; LOCKS_BYTES]) -> Result<(), Errno> {
    let mut bytes = [0; SETTINGS_BYTES + 16];
    bytes[..LOCKS_BYTES].copy_from_slice(locks);
    write(terminal, libc::TIOCSLCKTRMIOS, &bytes)
}

/// How large its window is.
pub fn window(terminal: impl AsFd) -> Result<WindowSize, Errno> {
    let bytes: [u8; 8] = read(terminal, libc::TIOCGWINSZ)?;
    let word = |at: usize| u16::from_ne_bytes([bytes[2 * at], bytes[2 * at + 1]]);
    Ok(WindowSize { rows: word(0), columns: word(1), x_pixels: word(2), y_pixels: word(3) })
}

/// Say how large it is; where that is news, its foreground group gets SIGWINCH.
pub fn set_window(terminal: impl AsFd, size: WindowSize) -> Result<(), Errno> {
    let words = [size.rows, size.columns, size.x_pixels, size.y_pixels];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    write(terminal, libc::TIOCSWINSZ, &bytes)
}

/// Its line discipline's number.
pub fn discipline(terminal: impl AsFd) -> Result<i32, Errno> {
    read(terminal, libc::TIOCGETD).map(i32::from_ne_bytes)
}

/// Whether only root may open it now.
pub fn is_exclusive(terminal: impl AsFd) -> Result<bool, Errno> {
    read::<4>(terminal, libc::TIOCGEXCL).map(|bytes| i32::from_ne_bytes(bytes) != 0)
}

/// Let only root open it from now on, or everybody again.
pub fn set_exclusive(terminal: impl AsFd, exclusive: bool) -> Result<(), Errno> {
    let request = if exclusive { libc::TIOCEXCL } else { libc::TIOCNXCL };
    write(terminal, request, &[])
}

/// Modes of screen and keyboard, where it is a virtual console.
#[must_use]
pub fn console_modes(terminal: impl AsFd) -> Option<(i32, i32)> {
    let ask = |request| read::<4>(terminal.as_fd(), request).ok().map(i32::from_ne_bytes);
    Some((ask(KDGETMODE)?, ask(KDGKBMODE)?))
}

/// The other side of a pty whose master this is, opened with O_* `flags`.
pub fn peer(master: impl AsFd, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: an integer in, a descriptor out.
    let fd = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    Errno::result(fd).map(crate::handoff::own)
}
