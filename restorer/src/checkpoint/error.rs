//! What can stop a checkpoint, each as one sentence: what failed, on which object, what to do next.

use kernel::remote::CallError;
use kernel::tracee::TraceError;
use store::StoreError;

/// Why there is no snapshot. Whatever the reason, the process runs on as it was.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// No process has the pid.
    #[error("process {0} does not exist: check the pid with ps")]
    NoProcess(u32),
    /// The process ended while it was being frozen or read.
    #[error("process {0} ended during the checkpoint: nothing was stored under the name")]
    Vanished(u32),
    /// It belongs to somebody else.
    #[error("process {0} may not be traced by this user: run defrost as its owner or as root")]
    NotPermitted(u32),
    /// A thread of the kernel's own.
    #[error("process {0} is a kernel thread: only user processes have memory to checkpoint")]
    KernelThread(u32),
    /// A debugger has it.
    #[error("process {pid} is already traced by process {tracer}: end that debugger or tracer first")]
    AlreadyTraced {
        /// The process.
        pid: u32,
        /// Who traces it.
        tracer: u64,
    },
    /// Its first thread has ended, others go on; and the kernel has no way to its descriptors.
    #[error("cannot checkpoint process {0}: its first thread has ended while others go on; use Linux 6.9 or later")]
    Outlived(u32),
    /// Its control group is frozen, so that none of its threads can run.
    #[error("cannot checkpoint process {pid}: its control group is frozen by {}; thaw it first", file.display())]
    Paused {
        /// The process.
        pid: u32,
        /// The file that says so.
        file: std::path::PathBuf,
    },
    /// A thread sleeps in the kernel and listens to no one.
    #[error("cannot checkpoint process {pid}: its thread {tid} did not stop (state {state}, in {place}); try again once that wait is over")]
    Stuck {
        /// The process.
        pid: u32,
        /// The thread.
        tid: u32,
        /// Its state, as /proc has it.
        state: char,
        /// Where in the kernel it waits.
        place: String,
    },
    /// Something of it cannot be captured.
    #[error("cannot checkpoint process {pid}: {object}; {advice}")]
    Refused {
        /// The process.
        pid: u32,
        /// What cannot be captured, by name.
        object: String,
        /// What can be done about it.
        advice: &'static str,
    },
    /// /proc said something unexpected or nothing.
    #[error("read {path} of process {pid}: {source}")]
    Proc {
        /// The process.
        pid: u32,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A call injected into the process failed.
    #[error("ask process {pid} for its {what}: {source}")]
    Ask {
        /// The process.
        pid: u32,
        /// What was asked.
        what: &'static str,
        /// Why it gave no answer.
        source: CallError,
    },
    /// ptrace failed.
    #[error("freeze process {pid}: {source}")]
    Trace {
        /// The process.
        pid: u32,
        /// Why.
        source: TraceError,
    },
    /// Its memory could not be read.
    #[error("read memory of process {pid} at {range}: {why}")]
    Memory {
        /// The process.
        pid: u32,
        /// Where.
        range: String,
        /// Why.
        why: String,
    },
    /// Processes and threads are counted together.
    #[error("read memory of process {0}: no further thread can be made: a process limit is full, end something or raise it")]
    NoThread(u32),
    /// A restore here would fail.
    #[error("process {pid} was not ended: a restore here would fail: {source}; checkpoint with --no-restore-check to restore it elsewhere")]
    NoWayBack {
        /// The process.
        pid: u32,
        /// The restore's own words.
        source: Box<crate::restore::RestoreError>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CheckpointError {
    /// A ptrace error with its process; a thread that is gone means that the process is.
    pub fn trace(pid: u32) -> impl Fn(TraceError) -> Self {
        move |source| match source {
            TraceError::Gone(_) => Self::Vanished(pid),
            TraceError::NotPermitted(_) => Self::NotPermitted(pid),
            source => Self::Trace { pid, source },
        }
    }

    /// An injected call's error.
    pub fn ask(pid: u32, what: &'static str) -> impl Fn(CallError) -> Self {
        move |source| match source {
            CallError::Trace(trace) => Self::trace(pid)(trace),
            source => Self::Ask { pid, what, source },
        }
    }
}
