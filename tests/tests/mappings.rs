//! Mappings of every kind come back as they were: flags, guards, huge pages, names; or are refused by name.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::machines::HugePages;
use defrost_tests::{Victim, checkpoint, criu, defrost_fails, defrost_ok, eventually, need_root, proves, restore, restore_with, victims};
use kernel::known::vm_flags::VmFlags;
use std::collections::BTreeSet;
use std::fs;

victims! {
    guards_stay_guards: "guards";
    a_shared_file_that_was_open_for_writing_may_be_written: "mappings", "writable";
    a_shared_file_that_was_open_for_reading_may_not: "mappings", "readable";
    droppable_memory_comes_back_empty: "mappings", "droppable";
    sealed_memory_is_sealed: "mappings", "sealed";
    memory_is_locked_as_it_was: "mappings", "locked";
    read_only_relocations_stay_apart: "mappings", "relocations";
    policies_of_mappings_stay: "mappings", "numa";
    reserved_terabytes_cost_nothing: "mappings", "reserved";
    a_file_whose_name_has_a_newline_stays_mapped: "mappings", "newline";
    a_file_whose_name_has_a_backslash_stays_mapped: "mappings", "backslash";
    a_file_that_is_called_deleted_stays_mapped: "mappings", "marked";
}

/// Every flag that the running kernel shows of any process of this machine is in the table.
#[test]
fn the_running_kernel_shows_no_flag_that_is_not_known() -> Result<()> {
    need_root()?;
    let mut unknown = BTreeSet::new();
    let mut seen = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        // Kernel threads have no mappings, and a process may end meanwhile.
        let Ok(smaps) = fs::read_to_string(entry.path().join("smaps")) else { continue };
        for flags in smaps.lines().filter_map(|line| line.strip_prefix("VmFlags:")) {
            unknown.extend(VmFlags::parse(flags).unknown().iter().cloned());
            seen += 1;
        }
    }
    ensure!(seen > 100, "only {seen} mappings were seen");
    ensure!(unknown.is_empty(), "the table lacks {unknown:?}: see kernel/src/known/vm_flags.rs");
    Ok(())
}

/// Four huge pages: one of the first three is not touched, and a child of the restored process needs none.
#[test]
fn huge_pages_come_back() -> Result<()> {
    let _lent = HugePages::lend(4)?;
    proves("mappings", &["huge"])?;
    proves("mappings", &["huge-shared"])
}

#[test]
fn huge_pages_that_the_host_lacks_are_refused_with_their_number() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let lent = HugePages::lend(4)?;
    let mut victim = Victim::c("mappings", &["huge"])?;
    checkpoint(&mut victim, "x", &store)?;
    drop(lent);
    let said = defrost_fails(&["restore", "x", "--store", &store, "--detach"])?;
    for word in ["huge pages of 2048 KiB", "raise /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"] {
        ensure!(said.contains(word), "{said:?} lacks {word:?}");
    }
    victim.left_nothing()?;
    let _lent = HugePages::lend(4)?;
    restore(&victim, "x", &store)?;
    victim.check("")
}

/// The program of the C library in use for a victim: with getrandom() of the vDSO, whose state lies in droppable memory (2.41), and
/// guards of MADV_GUARD_INSTALL below the stacks of threads (2.42).
fn with_a_newer_c_library(source: &str) -> Result<Victim> {
    let through = criu::newer_c_library()?;
    Victim::c_as(&through.each_ref().map(String::as_str), source, &[])
}

#[test]
fn two_restores_get_different_random_bytes() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = with_a_newer_c_library("random")?;
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", victim.pid()))?;
    ensure!(smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" dp")), "it has no droppable memory");
    checkpoint(&mut victim, "x", &store)?;
    let mut drawn = BTreeSet::new();
    for round in 0..3 {
        restore(&victim, "x", &store)?;
        victim.check("").with_context(|| format!("round {round}"))?;
        drawn.insert(fs::read_to_string(victim.folder().join("drawn"))?);
        victim.end()?;
    }
    ensure!(drawn.len() == 3, "two restores drew the same: {drawn:?}");
    Ok(())
}

#[test]
fn guards_of_thread_stacks_stay() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = with_a_newer_c_library("stack_guards")?;
    checkpoint(&mut victim, "x", &store)?;
    for how in [&["--no-background"][..], &[]] {
        restore_with(&victim, "x", &store, how)?;
        victim.check("").with_context(|| format!("{how:?}"))?;
        victim.end()?;
    }
    Ok(())
}

/// Each mapping of a process with its flags: but those that tell of who brings memory back, and what the kernel counts of anonymous
/// memory.
fn mappings_of(pid: u32) -> Result<Vec<String>> {
    let mut mappings: Vec<String> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let last = mappings.last_mut().context("flags without a mapping")?;
            let passed_over: &[&str] = if last.contains('/') { &["um", "uw", "gu"] } else { &["um", "uw", "gu", "ac"] };
            last.extend(flags.split_whitespace().filter(|flag| !passed_over.contains(flag)).map(|flag| format!(" {flag}")));
        } else if line.split(' ').next().is_some_and(|first| first.contains('-') && !first.contains(':')) {
            mappings.push(line.to_owned());
        }
    }
    Ok(mappings)
}

#[test]
fn the_list_of_mappings_is_the_same() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::python("import numpy, time\nkept = numpy.ones(10**6)\nprint('ready', flush=True)\ntime.sleep(1000)\n")?;
    victim.wait_for("ready", 1)?;
    let before = mappings_of(victim.pid())?;
    checkpoint(&mut victim, "x", &store)?;
    restore(&victim, "x", &store)?;
    defrost_ok(&["wait", &victim.pid().to_string()])?;
    let after = mappings_of(victim.pid())?;
    let lost: Vec<_> = before.iter().filter(|mapping| !after.contains(mapping)).collect();
    let new: Vec<_> = after.iter().filter(|mapping| !before.contains(mapping)).collect();
    ensure!(before.len() > 50 && lost.is_empty() && new.is_empty(), "of {} mappings lost: {lost:#?}; new: {new:#?}", before.len());
    Ok(())
}

/// What is said of a mapping is one line, whatever its file is called.
#[test]
fn a_refusal_is_one_line() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::c("mappings", &["newline"])?;
    checkpoint(&mut victim, "x", &store)?;
    let mapped = victim.folder().join("one\ntwo");
    eventually("the file is there", || mapped.exists())?;
    fs::remove_file(&mapped)?;
    let said = defrost_fails(&["restore", "x", "--store", &store, "--detach"])?;
    ensure!(said.trim_end().lines().count() == 1 && said.contains("one\\ntwo"), "{said:?}");
    victim.left_nothing()
}
