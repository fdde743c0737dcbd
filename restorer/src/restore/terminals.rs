//! Terminals that the process takes over from us while we are in the foreground: set as it had them,
//! and as they were once it is done.
//!
//! What is set belongs to the terminal, so it is lent as a whole: [`Terminals::lend`] before the
//! process runs and when it goes on in the foreground, [`Terminals::take_back`] when it stops or ends.
//! Each keeps what it finds, so that the process finds its own settings again.
//!
//! The window is set to the size that the process knew: it draws as it did. Whoever changes the
//! window's size later changes it for good, as a window's size belongs to the user.

pub(super) mod controlling;

use super::error::RestoreError;
use images::manifest::description::Kind;
use images::manifest::{Manifest, Terminal, TerminalSettings};
use kernel::terminal::{self, LOCKS_BYTES, SETTINGS_BYTES, WindowSize};
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::stat::Mode;
use nix::unistd::{getpgrp, tcgetpgrp};
use std::os::fd::{AsFd as _, OwnedFd};

/// All that [`terminal`] reads and sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    termios: [u8; SETTINGS_BYTES],
    locks: [u8; LOCKS_BYTES],
    window: WindowSize,
    exclusive: bool,
}

/// One terminal of ours that stands in for the process's.
#[derive(Debug)]
struct Lent {
    terminal: OwnedFd,
    /// What is to be set next: the process's while we have it, ours while the process has it.
    other: Settings,
    is_lent: bool,
    /// The size that we last gave its window. Another one is its user's, and stays.
    sized: Option<WindowSize>,
    is_resized: bool,
}

/// Every terminal that the process has from us.
#[derive(Debug)]
pub struct Terminals(Vec<Lent>);

impl Terminals {
    /// Those of ours that stand in for `manifest`'s; none where our streams are no terminals.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        let mut all: Vec<Lent> = Vec::new();
        let terminals = manifest.files.iter().filter_map(|file| match &file.kind {
            Some(Kind::Terminal(terminal)) if !terminal.gone => Some((terminal, terminal.settings.as_ref()?)),
            _ => None,
        });
        for (described, settings) in terminals {
            let Some(ours) = ours(described) else { continue };
            let Some(wanted) = Settings::of(settings) else { continue };
            let is_same = |lent: &Lent| terminal::device(&lent.terminal) == terminal::device(&ours);
            if terminal::settings(&ours).is_ok() && !all.iter().any(is_same) {
                all.push(Lent { terminal: ours, other: wanted, is_lent: false, sized: None, is_resized: false });
            }
        }
        Self(all)
    }

    /// Set them as the process had them; those in whose background we are stay as they are.
    pub fn lend(&mut self) -> Result<(), RestoreError> {
        for lent in self.0.iter_mut().filter(|lent| !lent.is_lent) {
            if tcgetpgrp(&lent.terminal).is_ok_and(|group| group != getpgrp()) {
                continue;
            }
            let failed = |errno| RestoreError::Outside { what: "set its terminal as it was".to_owned(), why: format!("{errno}") };
            let ours = Settings::read(&lent.terminal).map_err(failed)?;
            let wanted = lent.exchange(ours);
            if let Err(errno) = wanted.set(&lent.terminal, &ours) {
                self.take_back();
                return Err(failed(errno));
            }
        }
        Ok(())
    }

    /// Set them as they were before.
    pub fn take_back(&mut self) {
        for lent in self.0.iter_mut().filter(|lent| lent.is_lent) {
            // A terminal that is gone has nothing to be put back.
            let Ok(theirs) = Settings::read(&lent.terminal) else { continue };
            let ours = lent.exchange(theirs);
            let _ = ours.set(&lent.terminal, &theirs);
        }
    }
}

impl Lent {
    /// Keep what is set now; yields what is to be set instead.
    fn exchange(&mut self, now: Settings) -> Settings {
        self.is_lent = !self.is_lent;
        self.is_resized |= self.sized.is_some_and(|sized| sized != now.window);
        let mut next = std::mem::replace(&mut self.other, now);
        if self.is_resized {
            next.window = now.window;
        }
        self.sized = Some(next.window);
        next
    }
}

impl Drop for Terminals {
    fn drop(&mut self) {
        self.take_back();
    }
}

/// Our own terminal in place of the process's.
fn ours(terminal: &Terminal) -> Option<OwnedFd> {
    if terminal.controlling {
        return open("/dev/tty", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty()).ok();
    }
    let stream = match terminal.fd {
        0 => std::io::stdin().as_fd().try_clone_to_owned(),
        1 => std::io::stdout().as_fd().try_clone_to_owned(),
        _ => std::io::stderr().as_fd().try_clone_to_owned(),
    };
    stream.ok()
}

impl Settings {
    fn of(settings: &TerminalSettings) -> Option<Self> {
        let size = |of: u32| u16::try_from(of).ok();
        let locks = settings.locks.as_slice();
        Some(Self {
            termios: settings.termios.as_slice().try_into().ok()?,
            locks: if locks.is_empty() { [0; LOCKS_BYTES] } else { locks.try_into().ok()? },
            window: WindowSize {
                rows: size(settings.rows)?,
                columns: size(settings.columns)?,
                x_pixels: size(settings.x_pixels)?,
                y_pixels: size(settings.y_pixels)?,
            },
            exclusive: settings.exclusive,
        })
    }

    fn read(of: &OwnedFd) -> nix::Result<Self> {
        Ok(Self {
            termios: terminal::settings(of)?,
            locks: terminal::locks(of)?,
            window: terminal::window(of)?,
            exclusive: terminal::is_exclusive(of)?,
        })
    }

    /// Set what differs from `now`. Locked settings can only be changed while they are not locked.
    fn set(&self, of: &OwnedFd, now: &Self) -> nix::Result<()> {
        const NO_LOCKS: [u8; LOCKS_BYTES] = [0; LOCKS_BYTES];
        unstopped(|| {
            if now.locks != NO_LOCKS {
                terminal::set_locks(of, &NO_LOCKS)?;
            }
            if self.window != now.window {
                terminal::set_window(of, self.window)?;
            }
            if self.termios != now.termios {
                terminal::set_settings(of, &self.termios)?;
            }
            if self.locks != NO_LOCKS {
                terminal::set_locks(of, &self.locks)?;
            }
            if self.exclusive != now.exclusive {
                terminal::set_exclusive(of, self.exclusive)?;
            }
            Ok(())
        })
    }
}

/// Setting a terminal from its background stops whoever does not block SIGTTOU.
fn unstopped<T>(set: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::from(Signal::SIGTTOU)), Some(&mut before))?;
    let done = set();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    done
}
