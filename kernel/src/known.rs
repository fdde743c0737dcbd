//! What Linux keeps for a task, a mapping, a descriptor and a socket: one table for each kind of state.
//!
//! Each table lists a uapi header or a list of the kernel's, whole, and says of each entry how it is
//! carried: read and set again, refused by name, or without meaning for a restored process. The
//! describer refuses what no table has; the planner, `docs/coverage.md` and the tests read the same
//! tables, so that an entry that is missing here is missing nowhere in silence.

pub mod fdinfo;
pub mod prctl;
pub mod proc_files;
pub mod socket_options;
pub mod vm_flags;
