//! Terminals: which of the standard streams is the same one, how it is set, or that it is gone.
//!
//! Two descriptors lead to one terminal if the kernel says the same device of both, whatever they
//! were opened by (/dev/tty, /dev/pts/N, a name in another folder). What is set belongs to the
//! terminal, not to a descriptor; it is written with each, so that each description is whole.
//!
//! Known holes: what was typed and not yet read stays in the old terminal, for whoever reads there
//! next; modem lines of a serial port are its own.

use super::{Context, Number};
use crate::checkpoint::CheckpointError;
use crate::process::stat::Stat;
use images::manifest::description::Kind;
use images::manifest::{Terminal, TerminalSettings};
use kernel::terminal::{self, Device, PLAIN_DISCIPLINE};
use std::os::fd::OwnedFd;

/// Screen in text mode; keyboard modes K_XLATE and K_UNICODE (include/uapi/linux/kd.h).
const TEXT_SCREEN: i32 = 0;
const TEXT_KEYBOARD: [i32; 2] = [1, 3];

/// What to say of the character device at `fd` if it is a terminal.
pub(super) fn terminal(context: &Context<'_>, fd: Number, link: &str) -> Result<Option<Kind>, CheckpointError> {
    let proc = context.proc;
    let refuse = |what: &str, advice| Err(proc.refuse(format!("fd {fd}: {link}{what}"), advice));
    let lent = context.lend(fd)?;
    let device = match look(context, fd, &lent)? {
        Device::Other => return Ok(None),
        Device::HungUp => return Ok(Some(Kind::Terminal(Terminal { gone: true, ..Terminal::default() }))),
        Device::Terminal(device) => device,
    };
    if terminal::is_master(&lent) {
        return refuse(" is the master of a pseudoterminal", "let it close its terminal first");
    }
    let mut stream = None;
    for other in context.standard_streams() {
        if look(context, other.number, &context.lend(other.number)?)? == Device::Terminal(device) {
            stream = other.number.own();
            break;
        }
    }
    let stat = Stat::parse(&proc.text("stat")?).ok_or_else(|| proc.malformed("stat"))?;
    let controlling = stream.is_none() && stat.field(7) as u32 == device;
    if stream.is_none() && !controlling {
        return refuse(" is a terminal that is neither a standard stream nor its controlling terminal", "let it close this one");
    }
    let settings = settings(&lent).map_err(|errno| proc.refuse(format!("fd {fd}: {link}: {errno}"), "run defrost as root"))?;
    if terminal::discipline(&lent).unwrap_or(PLAIN_DISCIPLINE) != PLAIN_DISCIPLINE {
        return refuse(" has a line discipline of its own", "let it set the usual one (N_TTY) first");
    }
    if let Some((screen, keyboard)) = terminal::console_modes(&lent)
        && (screen != TEXT_SCREEN || !TEXT_KEYBOARD.contains(&keyboard))
    {
        return refuse(" is a console in graphics or raw keyboard mode", "let it leave that mode first");
    }
    let fd = stream.unwrap_or(0);
    Ok(Some(Kind::Terminal(Terminal { fd, gone: false, controlling, settings: Some(settings) })))
}

fn look(context: &Context<'_>, fd: Number, lent: &OwnedFd) -> Result<Device, CheckpointError> {
    terminal::device(lent).map_err(|errno| context.proc.refuse(format!("fd {fd}: {errno}"), "let it close this one"))
}

fn settings(of: &OwnedFd) -> nix::Result<TerminalSettings> {
    let window = terminal::window(of)?;
    let locks = terminal::locks(of)?;
    Ok(TerminalSettings {
        termios: terminal::settings(of)?.to_vec(),
        locks: if locks.iter().any(|byte| *byte != 0) { locks.to_vec() } else { Vec::new() },
        rows: window.rows.into(),
        columns: window.columns.into(),
        x_pixels: window.x_pixels.into(),
        y_pixels: window.y_pixels.into(),
        exclusive: terminal::is_exclusive(of)?,
    })
}
