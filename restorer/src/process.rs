//! What /proc says of a process, as plain data: text in, values out, no I/O in the parsers.
//!
//! [`maps`] reads the memory map with its flags, [`status`] credentials and signal dispositions, [`stat`] the layout fields, [`fdinfo`]
//! what an open file is, [`locks`] file locks, [`others`] all other processes, [`hierarchy`] where control groups lie,
//! [`timers`] the POSIX timers, [`attributes`] what a file has beside its mode. `checkpoint::describe` reads the files and calls these.

pub mod attributes;
pub mod cgroup;
pub mod fdinfo;
pub mod hierarchy;
pub mod locks;
pub mod maps;
pub mod others;
pub mod stat;
pub mod status;
pub mod timers;
