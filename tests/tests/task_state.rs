//! The state of a task: what a process set about itself and its threads comes back, nothing of the restorer's own stays, and what
//! cannot be built again is refused by name. And the tables of that state hold all that this kernel shows.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{
    Victim, checkpoint, compiled, defrost_fails, defrost_fails_through, defrost_ok, defrost_through, eventually, need_root, proves,
    restore, restore_with, victims,
};
use kernel::known::proc_files::{FILES, NAMESPACES, STATUS_KEYS};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

victims! {
    what_a_task_never_set_stays_unset: "task_state", "plain";
    what_a_task_set_comes_back: "task_state", "odd";
    a_restartable_sequence_is_aborted: "rseq_section";
    dispatched_system_calls_stay_dispatched: "user_dispatch";
    threads_keep_directories_of_their_own: "thread_fs";
    what_a_program_forbade_itself_stays_forbidden: "restrictions";
}

fn store() -> Result<(TempDir, String)> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    Ok((folder, store))
}

/// Restore through a program that sets something first.
fn restore_through(through: &[&str], name: &str, store: &str) -> Result<()> {
    let output = defrost_through(through, &["restore", name, "--store", store, "--detach"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Control groups made for a test, one in each hierarchy that lets groups be made, which go with it.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn new(name: &str) -> Result<Self> {
        let name = format!("defrost-{name}-{}", std::process::id());
        let groups: Vec<PathBuf> = ["pids", "unified", ""].iter().map(|root| Path::new("/sys/fs/cgroup").join(root).join(&name)).collect();
        // The root of version 1 is no hierarchy.
        let is_hierarchy = |group: &&PathBuf| group.parent().is_some_and(|root| root.join("cgroup.procs").exists());
        let groups = Self(groups.iter().filter(is_hierarchy).cloned().collect());
        ensure!(!groups.0.is_empty(), "no control groups are mounted below /sys/fs/cgroup");
        groups.make()?;
        Ok(groups)
    }

    fn make(&self) -> Result<()> {
        self.0.iter().try_for_each(|group| std::fs::create_dir(group).with_context(|| format!("make {}", group.display())))
    }

    fn take(&self, pid: u32) -> Result<()> {
        self.0.iter().try_for_each(|group| Ok(std::fs::write(group.join("cgroup.procs"), pid.to_string())?))
    }

    /// Whether the process is in all of them.
    fn hold(&self, pid: u32) -> bool {
        let holds = |group: &PathBuf| {
            std::fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|all| all.lines().any(|line| line == pid.to_string()))
        };
        self.0.iter().all(holds)
    }

    fn remove(&self) -> Result<()> {
        // Members that were killed leave a moment later.
        self.0.iter().try_for_each(|group| eventually("a control group is empty", || !group.exists() || std::fs::remove_dir(group).is_ok()))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn nothing_of_the_restorers_own_stays() -> Result<()> {
    let (_folder, store) = store()?;
    let odd = compiled("odd_launcher")?.to_string_lossy().into_owned();
    let groups = Groups::new("odd")?;
    for mode in ["plain", "odd"] {
        let mut victim = Victim::c("task_state", &[mode])?;
        checkpoint(&mut victim, mode, &store)?;
        for group in &groups.0 {
            let group = format!("ODD_CGROUP={}", group.join("cgroup.procs").display());
            restore_through(&["env", &group, &odd], mode, &store)?;
            victim.check("").with_context(|| format!("{mode}, restored by a restorer with odd state"))?;
            victim.end()?;
        }
    }
    Ok(())
}

#[test]
fn many_checkpoints_break_no_restartable_sequence() -> Result<()> {
    let (_folder, store) = store()?;
    let victim = Victim::c("rseq_section", &[])?;
    for round in 0..12 {
        let name = format!("r{round}");
        defrost_ok(&["checkpoint", &victim.pid().to_string(), &name, "--store", &store, "--leave-running"])?;
    }
    victim.check("")
}

#[test]
fn checkpoints_leave_dispatched_calls_alone() -> Result<()> {
    let (_folder, store) = store()?;
    let victim = Victim::c("user_dispatch", &[])?;
    for name in ["a", "b"] {
        defrost_ok(&["checkpoint", &victim.pid().to_string(), name, "--store", &store, "--leave-running"])?;
    }
    victim.check("")
}

#[test]
fn a_process_comes_back_into_its_control_groups() -> Result<()> {
    let (_folder, store) = store()?;
    let groups = Groups::new("home")?;
    let mut victim = Victim::c("task_state", &["plain"])?;
    groups.take(victim.pid())?;
    checkpoint(&mut victim, "v", &store)?;
    restore(&victim, "v", &store)?;
    ensure!(groups.hold(victim.pid()), "it was not put back into its control groups");
    victim.end()?;
    groups.remove()?;
    let text = defrost_fails(&["restore", "v", "--store", &store, "--detach"])?;
    let name = groups.0[0].file_name().unwrap_or_default().to_string_lossy().into_owned();
    for words in [name.as_str(), "does not exist", "--inherit-cgroups"] {
        ensure!(text.contains(words), "{text:?} lacks {words:?}");
    }
    restore_with(&victim, "v", &store, &["--inherit-cgroups"])?;
    ensure!(Path::new(&format!("/proc/{}", victim.pid())).exists(), "it does not run");
    Ok(())
}

/// The state letter and the parent of a process.
fn parent(pid: u32) -> Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("it is gone")?;
    let fields = stat.rsplit_once(") ").context("stat")?.1;
    Ok(fields.split(' ').nth(1).unwrap_or_default().to_owned())
}

#[test]
fn a_detached_process_outlives_the_restorer_whatever_its_parent_death_signal() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("death_signal", &[])?;
    checkpoint(&mut victim, "v", &store)?;
    for how in [&[][..], &["--eager"]] {
        restore_with(&victim, "v", &store, how)?;
        // The restorer has ended by now; its parent is who adopts orphans, and stays so.
        let adopter = parent(victim.pid())?;
        victim.check("").with_context(|| format!("its parent is {adopter}"))?;
        victim.end()?;
    }
    let pid = defrost_ok(&["restore", "v", "--store", &store, "--detach", "--new-pid-namespace"])?;
    victim.known_as(pid.trim().parse()?);
    victim.check("").context("in a pid namespace of its own")
}

#[test]
fn what_a_restorer_cannot_take_from_its_child_is_an_obstacle() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("task_state", &["plain"])?;
    checkpoint(&mut victim, "v", &store)?;
    let restore = ["restore", "v", "--store", &store, "--detach"];
    let text = defrost_fails_through(&["setpriv", "--no-new-privs"], &restore)?;
    ensure!(text.contains("defrost runs with no_new_privs"), "{text}");
    let deny = r#"import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0 or sys.exit("no MDWE"); os.execv(sys.argv[1], sys.argv[1:])"#;
    let text = defrost_fails_through(&["/usr/bin/python3", "-c", deny], &restore)?;
    ensure!(text.contains("PR_SET_MDWE"), "{text}");
    victim.left_nothing()
}

/// Tests named for what they prove, each one kind of `victims/task_refused.c` and words of the refusal.
macro_rules! refusals {
    ($($name:ident: $kind:literal, $($word:literal),+;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            let (_folder, store) = store()?;
            let victim = Victim::c("task_refused", &[$kind])?;
            let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
            for word in [$($word),+] {
                ensure!(text.contains(word), "{text:?} lacks {word:?}");
            }
            victim.runs_untouched()?;
            victim.check("")
        })*
    };
}

refusals! {
    a_thread_with_descriptors_of_its_own_is_refused: "files", "thread ", "a table of descriptors of its own";
    a_thread_in_another_namespace_is_refused: "network", "thread ", "another net namespace";
    a_thread_under_a_filter_is_refused: "seccomp", "thread ", "under a seccomp filter";
    a_thread_keyring_is_refused: "thread-keyring", "thread ", "a keyring of its own";
    a_process_keyring_is_refused: "process-keyring", "a process keyring";
    a_session_keyring_with_keys_is_refused: "session-keyring", "session keyring", "holds keys";
    children_in_another_pid_namespace_are_refused: "children", "its children would be born in another pid namespace";
    a_landlock_domain_is_refused: "landlock", "Landlock domain";
    a_local_descriptor_table_is_refused: "ldt", "local descriptor table";
}

/// Where the CPU has protection keys; elsewhere the unit tests of `describe::settings` say what the describer makes of the kernel's answers.
#[test]
fn protection_keys_are_refused_where_there_are_some() -> Result<()> {
    let (_folder, store) = store()?;
    let has_keys = std::fs::read_to_string("/proc/cpuinfo")?.split_whitespace().any(|flag| flag == "ospke");
    for kind in ["key", "key-of-memory"] {
        let victim = Victim::c("task_refused", &[kind, if has_keys { "there are keys" } else { "there are none" }])?;
        let args = ["checkpoint", &victim.pid().to_string(), kind, "--store", &store, "--leave-running"];
        if has_keys {
            let text = defrost_fails(&args)?;
            ensure!(text.contains("protection key 1") && text.contains("start it without memory protection keys"), "{text}");
        } else {
            defrost_ok(&args)?;
        }
        victim.runs_untouched()?;
        victim.check("")?;
    }
    Ok(())
}

fn names(folder: &str) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.to_owned())?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

#[test]
fn every_file_and_key_of_a_task_is_known() -> Result<()> {
    let known: BTreeSet<&str> = FILES.iter().map(|(name, _)| *name).collect();
    for folder in ["/proc/self", "/proc/thread-self"] {
        let unknown: Vec<String> = names(folder)?.into_iter().filter(|name| !known.contains(name.as_str())).collect();
        ensure!(unknown.is_empty(), "kernel/src/known/proc_files.rs lacks files of {folder}: {unknown:?}");
    }
    let unknown: Vec<String> = names("/proc/self/ns")?.into_iter().filter(|name| !NAMESPACES.contains(&name.as_str())).collect();
    ensure!(unknown.is_empty(), "kernel/src/known/proc_files.rs lacks namespaces: {unknown:?}");
    let status = std::fs::read_to_string("/proc/self/status")?;
    let keys = status.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key);
    let unknown: Vec<&str> = keys.filter(|key| !STATUS_KEYS.iter().any(|(known, _)| known == key)).collect();
    ensure!(unknown.is_empty(), "kernel/src/known/proc_files.rs lacks keys of /proc/PID/status: {unknown:?}");
    Ok(())
}

#[test]
fn every_prctl_option_of_the_header_is_known() -> Result<()> {
    let path = "/usr/include/linux/prctl.h";
    let header = std::fs::read_to_string(path).with_context(|| format!("{path}: install linux-libc-dev"))?;
    // Their arguments are indented behind the `#`.
    let mut seen = 0;
    for line in header.lines().filter_map(|line| line.strip_prefix("#define PR_")) {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let name = format!("PR_{name}");
        let number = value.strip_prefix("0x").map_or_else(|| value.parse(), |hex| u32::from_str_radix(hex, 16));
        let Ok(number) = number else { continue };
        let option = kernel::known::prctl::OPTIONS.iter().find(|option| option.number == number);
        let option = option.with_context(|| format!("kernel/src/known/prctl.rs lacks {name} ({number})"))?;
        ensure!(option.name == name, "{number} is {name} in the header and {} in the table", option.name);
        seen += 1;
    }
    ensure!(seen > 50, "{path} has another form: only {seen} options were found");
    Ok(())
}
