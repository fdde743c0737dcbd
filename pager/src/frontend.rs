//! Who brings userfaultfds to the pager other than our own restores.

pub mod criu;
