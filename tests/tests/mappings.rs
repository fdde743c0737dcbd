//! Mappings of every kind come back as they were: flags, guards, huge pages, names; or are refused by name.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Victim, checkpoint, defrost_fails, defrost_ok, need_root, proves, restore, victims};
use std::fs;

victims! {
    guards_stay_guards: "guards";
    a_shared_file_that_was_open_for_writing_may_be_written: "mappings", "writable";
    a_shared_file_that_was_open_for_reading_may_not: "mappings", "readable";
    droppable_memory_comes_back_empty: "mappings", "droppable";
    sealed_memory_is_sealed: "mappings", "sealed";
    memory_is_locked_as_it_was: "mappings", "locked";
    reserved_terabytes_cost_nothing: "mappings", "reserved";
    a_file_whose_name_has_a_newline_stays_mapped: "mappings", "newline";
    a_file_whose_name_has_a_backslash_stays_mapped: "mappings", "backslash";
    a_file_that_is_called_deleted_stays_mapped: "mappings", "marked";
}
