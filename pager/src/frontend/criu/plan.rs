//! What each task of a dump owes when it is restored lazily. Pure.

use super::CriuError;
use images::criu::{Dump, Memory, Origin, Piece};
use pages::{PageAddr, PageRange};

/// All tasks of a dump.
#[derive(Clone, Debug)]
pub struct Plan(Vec<Task>);

/// One of them.
#[derive(Clone, Debug)]
struct Task {
    pid: u32,
    memory: Memory,
}

impl Plan {
    /// What the tasks of `dump` owe, which has it all.
    pub fn new(dump: &Dump) -> Result<Self, CriuError> {
        let plan = Self::with_source(dump)?;
        for Task { pid, memory } in &plan.0 {
            if let Some(piece) = memory.lazy.iter().find(|piece| piece.origin == Origin::Source) {
                return Err(CriuError::AtSource { pid: *pid, pages: piece.range });
            }
        }
        Ok(plan)
    }

    /// What they owe where those who have the rest can be asked for it.
    pub fn with_source(dump: &Dump) -> Result<Self, CriuError> {
        let task = |pid: &u32| {
            let memory = dump.memory(*pid)?.unwrap_or(Memory { mappings: Vec::new(), lazy: Vec::new() });
            Ok(Task { pid: *pid, memory })
        };
        dump.tasks().iter().map(task).collect::<Result<_, _>>().map(Self)
    }

    /// The pids of the tasks, dead ones too.
    pub fn tasks(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|task| task.pid)
    }

    /// What is watched of a task that is about to run, and what of it is owed; `None` for a stranger.
    pub(super) fn memory(&self, pid: u32) -> Option<(Vec<PageRange>, Vec<PageRange>)> {
        let memory = &self.task(pid)?.memory;
        Some((memory.mappings.clone(), memory.lazy.iter().map(|piece| piece.range).collect()))
    }

    /// The run of pages with one origin that a page is in, which is owed and so of some piece.
    pub(super) fn piece(&self, pid: u32, page: PageAddr) -> Result<&Piece, CriuError> {
        let lazy = self.task(pid).map_or(&[][..], |task| &task.memory.lazy);
        let at = lazy.partition_point(|piece| piece.range.end() <= page);
        lazy.get(at).filter(|piece| piece.range.contains(page)).ok_or(CriuError::NoPiece { pid, page })
    }

    /// All pieces, with the tasks that they are of.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u32, &Piece)> {
        self.0.iter().flat_map(|task| task.memory.lazy.iter().map(|piece| (task.pid, piece)))
    }

    /// What of `wanted` can be had with its first page.
    pub(super) fn wanted(&self, pid: u32, wanted: PageRange) -> Result<Piece, CriuError> {
        let piece = self.piece(pid, wanted.start())?;
        Ok(piece.within(&wanted).unwrap_or(*piece))
    }

    fn task(&self, pid: u32) -> Option<&Task> {
        self.0.iter().find(|task| task.pid == pid)
    }
}
