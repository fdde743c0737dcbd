//! Sentences for people and logs: each on one line, whatever the names in it hold.
//!
//! Names of files, processes, snapshots and peers may hold anything. A reader of lines counts on
//! one sentence a line, and a terminal obeys some characters.

use std::error::Error;
use std::io::{Result, Write};

/// A sentence with everything escaped that a terminal obeys or a reader takes for a new line.
#[must_use]
pub fn on_one_line(sentence: &str) -> String {
    let mut line = String::new();
    for c in sentence.chars() {
        match is_obeyed(c) {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Control characters, separators of lines, and what changes the direction of the text behind it.
#[must_use]
pub fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}

/// An error and its causes, without the causes whose words the sentence has already.
#[must_use]
pub fn sentence(error: &dyn Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !words.is_empty() && !sentence.contains(&words) {
            sentence = format!("{sentence}: {words}");
        }
        cause = error.source();
    }
    sentence
}

/// A log behind which each event, which ends with a newline, is one line.
#[derive(Debug)]
pub struct Lines<W>(pub W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> Result<usize> {
        let text = String::from_utf8_lossy(event);
        let sentence = text.strip_suffix('\n').unwrap_or(&text);
        writeln!(self.0, "{}", on_one_line(sentence))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Caused(&'static str, Option<Box<Caused>>);

    impl std::fmt::Display for Caused {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Caused {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = || Some(Box::new(Caused("is a directory", None)));
        assert_eq!(sentence(&Caused("read /x", cause())), "read /x: is a directory");
        assert_eq!(sentence(&Caused("read /x: is a directory", cause())), "read /x: is a directory");
    }

    #[test]
    fn an_event_is_one_line() {
        let mut log = Lines(Vec::new());
        log.write_all("a\nb\x1b[31m\u{202e}\n".as_bytes()).expect("memory takes it");
        assert_eq!(String::from_utf8_lossy(&log.0), "a\\nb\\u{1b}[31m\\u{202e}\n");
    }
}
