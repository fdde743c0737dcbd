//! What each task of a dump owes when it is restored lazily. Pure.

use super::FrontendError;
use crate::residency::Residency;
use images::criu::{Dump, Memory, Origin, Piece};
use pages::PageAddr;

/// All tasks of a dump.
#[derive(Debug)]
pub struct Plan(Vec<Task>);

/// One of them.
#[derive(Debug)]
struct Task {
    pid: u32,
    memory: Memory,
}

impl Plan {
    /// What the tasks of `dump` owe.
    pub fn new(dump: &Dump) -> Result<Self, FrontendError> {
        let task = |pid: &u32| {
            let memory = dump.memory(*pid)?.unwrap_or(Memory { mappings: Vec::new(), lazy: Vec::new() });
            match memory.lazy.iter().find(|piece| piece.origin == Origin::Source) {
                Some(piece) => Err(FrontendError::AtSource { pid: *pid, pages: piece.range }),
                None => Ok(Task { pid: *pid, memory }),
            }
        };
        dump.tasks().iter().map(task).collect::<Result<_, _>>().map(Self)
    }

    /// The pids of the tasks, dead ones too.
    pub fn tasks(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|task| task.pid)
    }

    /// The memory of a task that is about to run; `None` for a stranger.
    pub(super) fn residency(&self, pid: u32) -> Option<Residency> {
        let memory = &self.task(pid)?.memory;
        Some(Residency::new(memory.mappings.iter().copied(), memory.lazy.iter().map(|piece| piece.range)))
    }

    /// The run of pages with one origin that a page is in.
    pub(super) fn piece(&self, pid: u32, page: PageAddr) -> Option<&Piece> {
        let lazy = &self.task(pid)?.memory.lazy;
        let at = lazy.partition_point(|piece| piece.range.end() <= page);
        lazy.get(at).filter(|piece| piece.range.contains(page))
    }

    fn task(&self, pid: u32) -> Option<&Task> {
        self.0.iter().find(|task| task.pid == pid)
    }
}
