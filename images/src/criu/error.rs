//! What is wrong with a dump, and where.

/// A file of a dump that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {what}: dump the process again, or take another dump", record.map_or_else(String::new, |n| format!(", record {n}")))]
pub struct DumpError {
    /// Its name; those of parents begin with `parent/`.
    pub file: String,
    /// Which record, counted from 0.
    pub record: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl DumpError {
    /// About a file as a whole.
    pub(super) fn file(file: &str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), record: None, what: what.into() }
    }

    /// About one record of it.
    pub(super) fn record(file: &str, record: u64, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), record: Some(record), what: what.into() }
    }

    /// The same, of a file some parents down.
    pub(super) fn below(mut self, parents: usize) -> Self {
        self.file = format!("{}{}", "parent/".repeat(parents), self.file);
        self
    }
}
