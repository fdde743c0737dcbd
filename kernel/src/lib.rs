//! Everything defrost asks of Linux, and the only crate that contains `unsafe`.
//!
//! One system call to a function, errno translated here into named outcomes, so that no caller ever sees a raw errno it has to
//! know the meaning of. [`tracee`] owns the states of a traced thread, [`remote`] runs system calls in one, [`spawn`] makes the
//! process that a restore fills; the rest read or change another process's memory.

pub mod regs;
pub mod remote;
pub mod spawn;
pub mod sys;
pub mod tracee;
