//! The 32 bytes that every message begins with.

use pages::{PageAddr, PageRange};

/// Pages follow, if the flags say so: the answer to GET.
pub const ADD_F: u16 = 6;
/// Asks for pages.
pub const GET: u16 = 7;
/// Asks for the end of the session: all that was asked for is here.
pub const CLOSE: u16 = 0x1023;
/// The same, where the connection cannot be closed.
pub const FORCE_CLOSE: u16 = 0x1024;
/// No command of CRIU's, and none it is likely to get: its server gives up, which is what we want of it.
pub const NONSENSE: u16 = 0x7fff;
/// Flag of ADD_F: contents follow.
const PRESENT: u16 = 4;
/// Length of a message without contents.
pub const MESSAGE_BYTES: usize = 32;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub command: u16,
    /// More of that.
    pub flags: u16,
    /// How many pages.
    pub pages: u64,
    /// The first one's address.
    pub address: u64,
    /// The task's pid, as it sees itself.
    pub pid: u64,
}

impl Message {
    /// One that has nothing but a command.
    pub fn bare(command: u16) -> Self {
        Self { command, flags: 0, pages: 0, address: 0, pid: 0 }
    }

    /// Asks for pages of a task.
    pub fn get(pid: u32, range: PageRange) -> Self {
        Self { command: GET, flags: 0, pages: range.pages(), address: range.start().addr(), pid: pid.into() }
    }

    /// Tells that they follow.
    pub fn add(pid: u32, range: PageRange) -> Self {
        Self { command: ADD_F, flags: PRESENT, ..Self::get(pid, range) }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; MESSAGE_BYTES] {
        let mut bytes = [0; MESSAGE_BYTES];
        let command = u32::from(self.command) | u32::from(self.flags) << 16;
        bytes[..4].copy_from_slice(&command.to_ne_bytes());
        for (at, number) in [(8, self.pages), (16, self.address), (24, self.pid)] {
            bytes[at..at + 8].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    /// What bytes say; any do.
    pub fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Self {
        let number = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let command = number(0) as u32; // the other half is padding
        Self { command: command as u16, flags: (command >> 16) as u16, pages: number(8), address: number(16), pid: number(24) }
    }

    /// The pages that the answer to a GET of `asked` brings: those at its beginning, at least one. The error says what is wrong.
    pub fn answers(&self, pid: u32, asked: PageRange) -> Result<PageRange, String> {
        let Self { command, flags, pages, address, pid: of } = *self;
        if (command, flags) != (ADD_F, PRESENT) {
            return Err(format!("command {command:#x} with flags {flags:#x} where pages should have come"));
        }
        if of != u64::from(pid) || address != asked.start().addr() {
            return Err(format!("pages at {address:#x} of task {of} where {:#x} of task {pid} was asked for", asked.start().addr()));
        }
        let range = PageAddr::new(address).and_then(|start| PageRange::with_len(start, pages));
        let range = range.filter(|range| !range.is_empty() && range.pages() <= asked.pages());
        range.ok_or_else(|| format!("{pages} pages at {address:#x} of task {pid} where at most {} were asked for", asked.pages()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked() -> PageRange {
        PageRange::with_len(PageAddr::from_number(0x7000), 16).unwrap_or_else(|| unreachable!("it has pages"))
    }

    #[test]
    fn lies_as_criu_lays_it_out() {
        let bytes = Message::add(77, asked()).encode();
        assert_eq!(bytes[..4], 0x0004_0006_u32.to_ne_bytes());
        assert_eq!(bytes[8..16], 16_u64.to_ne_bytes());
        assert_eq!(bytes[16..24], 0x700_0000_u64.to_ne_bytes());
        assert_eq!(bytes[24..], 77_u64.to_ne_bytes());
    }

    #[test]
    fn answers_may_be_shorter_and_nothing_else() {
        let right = Message::add(77, asked());
        assert_eq!(right.answers(77, asked()), Ok(asked()));
        assert_eq!(Message { pages: 3, ..right }.answers(77, asked()).map(|range| range.pages()), Ok(3));
        let wrong = [
            Message { pages: 0, ..right },
            Message { pages: 17, ..right },
            Message { pages: u64::MAX, ..right },
            Message { address: right.address + 4096, ..right },
            Message { address: right.address + 1, ..right },
            Message { pid: 78, ..right },
            Message { pid: 77 | 1 << 32, ..right },
            Message { flags: 0, ..right },
            Message { command: GET, ..right },
        ];
        wrong.iter().for_each(|message| assert!(message.answers(77, asked()).is_err(), "{message:?}"));
    }

    proptest! {
        #[test]
        fn is_read_as_it_was_written(command: u16, flags: u16, pages: u64, address: u64, pid: u64) {
            let message = Message { command, flags, pages, address, pid };
            prop_assert_eq!(Message::decode(&message.encode()), message);
        }

        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes: [u8; MESSAGE_BYTES]) {
            if let Ok(range) = Message::decode(&bytes).answers(77, asked()) {
                prop_assert!(range.pages() <= 16 && range.start() == asked().start());
            }
        }
    }
}
