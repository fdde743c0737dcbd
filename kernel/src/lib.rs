//! Everything defrost asks of Linux, and the only crate that contains `unsafe`.
//!
//! One system call to a function, errno translated here into named outcomes, so that no caller ever sees a raw errno it has to
//! know the meaning of. [`tracee`] owns the states of a traced thread, [`remote`] runs system calls in one, [`return_stub`] brings it
//! back should the tracer die meanwhile, [`wait_limit`] ends waits for one that never stops, [`spawn`] makes the
//! process that a restore fills; [`memory`] and [`pagemap`] look into a process, [`uffd`] answers its missing pages, [`handoff`]
//! moves descriptors between processes, [`file_user`] lets a thread open files as another user, [`kinship`] tells what two processes share, [`hangup`] leaves a signal to the kernel, [`sockopt`] looks at sockets, [`mapped_file`]
//! lends out a pack or an image, [`huge`] makes small pages huge, [`terminal`] and [`timer`] carry what those are set to, [`task`],
//! [`rseq`] and [`bystander`] know a thread's lesser settings, [`limits`] are a process's, [`shared_words`] keep what must outlive us and [`lazy_memory`] is filled
//! by others.

mod attendant;
pub mod bystander;
pub mod call_list;
pub mod descriptions;
pub mod file_user;
pub mod handoff;
pub mod hangup;
pub mod huge;
pub mod kinship;
pub mod known;
pub mod lazy_memory;
pub mod limits;
pub mod mapped_file;
pub mod memory;
pub mod option_keeper;
pub mod pagemap;
pub mod regs;
pub mod remote;
pub mod return_stub;
pub mod rseq;
#[cfg(feature = "testing")]
pub mod scratch;
pub mod shared_words;
pub mod sockopt;
pub mod spawn;
pub mod sys;
pub mod task;
pub mod terminal;
pub mod timer;
pub mod tracee;
pub mod uffd;
pub mod wait_limit;
