//! Options of the process's sockets for the time of a look: a thread of the process sets them, and sets them back.
//!
//! A socket's options belong to the program, and this process may be killed in the middle of a look. So the calls that set them back lie
//! in the process before the first option is set, and its thread makes them whether this process is there or not
//! ([`kernel::remote::Borrowed::call_around`]).
//!
//! A socket that is itself in flight has no number in the process: this process sets its options, and a helper process sets them back if
//! this one is killed ([`OptionKeeper`], with its known hole).

use super::super::files::Number;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::ask::{Asker, LentOption, Session};
use crate::checkpoint::freeze::Frozen;
use kernel::option_keeper::OptionKeeper;
use kernel::sockopt;
use std::os::fd::OwnedFd;

/// Borrows a thread when the first socket is looked into.
pub(in super::super) struct Lender<'f> {
    asker: &'f Asker<'f>,
    frozen: &'f Frozen,
    session: Option<Session<'f>>,
}

impl<'f> Lender<'f> {
    /// For the sockets of `frozen`.
    pub(in super::super) fn new(asker: &'f Asker<'f>, frozen: &'f Frozen) -> Self {
        Self { asker, frozen, session: None }
    }

    /// Run `look` with `options` of `socket` set, which is descriptor `number` of the process.
    pub(super) fn with_options<T>(
        &mut self,
        socket: &OwnedFd,
        number: Number,
        options: &[LentOption],
        look: impl FnOnce() -> Result<T, String>,
    ) -> Result<Result<T, String>, CheckpointError> {
        let Some(fd) = number.own() else {
            let set = |value: fn(&LentOption) -> i32| {
                options.iter().try_for_each(|option| sockopt::set(socket, option.level, option.name, &value(option).to_ne_bytes()))
            };
            let before: Vec<(i32, i32, i32)> = options.iter().map(|option| (option.level, option.name, option.before)).collect();
            let _keeper = match OptionKeeper::start(socket, &before) {
                Ok(keeper) => keeper,
                Err(errno) => return Ok(Err(format!("no process can be made that sets its options back: {errno}"))),
            };
            let found = set(|option| option.now).map_err(|errno| errno.to_string()).and_then(|()| look());
            return Ok(set(|option| option.before).map_err(|errno| errno.to_string()).and(found));
        };
        let session = match &mut self.session {
            Some(session) => session,
            none => {
                let first = self.frozen.threads().first().ok_or(CheckpointError::Vanished(self.frozen.proc().pid))?;
                none.insert(self.asker.borrow(first, None)?)
            }
        };
        session.with_options(fd, options, look)
    }

    /// The thread has its own state again.
    pub(in super::super) fn end(self) -> Result<(), CheckpointError> {
        self.session.map_or(Ok(()), Session::end)
    }
}
