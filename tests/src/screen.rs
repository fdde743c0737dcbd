//! Terminals of their own for programs under test: what is typed there, what is shown, how it is set.

use crate::eventually;
use anyhow::{Context as _, Result};
use kernel::terminal::{self, SETTINGS_BYTES, WindowSize};
use nix::pty::openpty;
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

/// Everything that was read from a stream so far.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    /// Read `stream` to its end.
    pub fn listen(mut stream: impl Read + Send + 'static) -> Self {
        let heard = Self::default();
        let into = heard.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                into.0.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..count]);
            }
        });
        heard
    }

    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// How many lines end with this: a terminal shows Ctrl-C (as ^C) in front of the answer.
    #[must_use]
    pub fn count(&self, line: &str) -> usize {
        self.text().lines().filter(|heard| heard.trim_end().ends_with(line)).count()
    }

    /// Wait until a line ends with this.
    pub fn wait_for(&self, line: &str) -> Result<()> {
        eventually(line, || self.count(line) > 0).with_context(|| format!("heard so far: {}", self.text()))
    }

    /// Wait until this text stands anywhere in it.
    pub fn wait_for_text(&self, text: &str) -> Result<()> {
        eventually(text, || self.text().contains(text)).with_context(|| format!("seen so far: {:?}", self.text()))
    }
}

/// A program in a session of its own, on a terminal of its own; ended with its value.
#[derive(Debug)]
pub struct Shell {
    /// The program.
    pub child: Child,
    keyboard: File,
    /// What the terminal has shown.
    pub screen: Heard,
    /// The terminal's name.
    pub name: String,
}

impl Shell {
    /// An interactive shell.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_with(folder, &["bash", "--noprofile", "--norc", "-i"])
    }

    /// Any program.
    pub fn start_with(folder: &Path, words: &[&str]) -> Result<Self> {
        Self::start_sized(folder, WindowSize::default(), words)
    }

    /// Any program, in a window of this size.
    pub fn start_sized(folder: &Path, size: WindowSize, words: &[&str]) -> Result<Self> {
        let pty = openpty(None, None)?;
        let (keyboard, side) = (File::from(pty.master), pty.slave);
        terminal::set_window(&side, size)?;
        let name = nix::unistd::ttyname(&side)?.to_string_lossy().into_owned();
        // No descriptor of ours may leak into what the shell starts.
        let closing = "import os, sys; os.closerange(3, 65536); os.execvp(sys.argv[1], sys.argv[1:])";
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-I", "-S", "-c", closing, "setsid", "--ctty"]).args(words);
        command.current_dir(folder).env("PS1", "").env_remove("PROMPT_COMMAND");
        command.env("TERM", if size == WindowSize::default() { "dumb" } else { "xterm" });
        let child = command.stdin(side.try_clone()?).stdout(side.try_clone()?).stderr(side).spawn()?;
        let screen = Heard::listen(keyboard.try_clone()?);
        Ok(Self { child, keyboard, screen, name })
    }

    /// Press keys.
    pub fn types(&mut self, text: &str) -> Result<()> {
        Ok(self.keyboard.write_all(text.as_bytes())?)
    }

    /// How the terminal is set, through its other side.
    pub fn settings(&self) -> Result<[u8; SETTINGS_BYTES]> {
        Ok(terminal::settings(&self.keyboard)?)
    }

    /// How large its window is.
    pub fn window(&self) -> Result<WindowSize> {
        Ok(terminal::window(&self.keyboard)?)
    }

    /// Its user changes the window's size.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        Ok(terminal::set_window(&self.keyboard, size)?)
    }

    /// Wait until the program has ended, and how.
    pub fn code(&mut self) -> Result<Option<i32>> {
        let mut status = None;
        eventually("the program ends", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })
        .with_context(|| self.screen.text())?;
        Ok(status.context("eventually() says so")?.code())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already is as well
        let _ = self.child.wait();
    }
}
