//! The process side: checkpoint and restore.
//!
//! [`checkpoint`] turns a running process into a snapshot in a store; [`restore`] builds a process from one and hands its memory to
//! the pager. [`process`] reads what /proc says, [`contents`] what a file contains. [`report`] draws what the pager did. `main` is the command line over both, and [`demo`] the whole story;
//! [`foreign`] takes in what others checkpointed.
#![forbid(unsafe_code)]

pub mod checkpoint;
mod contents;
pub mod demo;
pub mod foreign;
mod intake;
pub mod output_file;
mod process;
pub mod report;
pub mod restore;
