//! A checkpoint never ends what cannot come back: it plans the restore first. `restore --dry-run` does the same on any host.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::command::as_nobody;
use defrost_tests::{Victim, checkpoint, defrost, defrost_fails_through, defrost_ok, defrost_through, eventually, need_root, restore};
use std::fs;
use std::process::Command;
use tempfile::TempDir;

fn store() -> Result<(TempDir, String)> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let store = folder.path().join("store").to_string_lossy().into_owned();
    Ok((folder, store))
}

/// A checkpoint that would end `victim` is refused with the restore's words; there is no snapshot, and it finds itself right.
fn not_ended(victim: &Victim, store: &str, through: &[&str], words: &[&str]) -> Result<()> {
    let text = defrost_fails_through(through, &["checkpoint", &victim.pid().to_string(), "x", "--store", store])?;
    ensure!(text.contains("was not ended: a restore here would fail: ") && text.contains("--no-restore-check"), "{text}");
    ensure!(words.iter().all(|word| text.contains(word)), "{text:?} lacks some of {words:?}");
    ensure!(defrost_through(through, &["list", "--store", store])?.stdout.is_empty(), "a name is left behind");
    victim.runs_untouched()?;
    victim.check("")
}

#[test]
fn a_hard_limit_that_could_not_be_set_again_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let victim = Victim::c("refused", &["nothing"])?;
    let through = ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=300:300"];
    not_ended(&victim, &store, &through, &["this host cannot run the snapshot", "resource 7 was limited to", "ulimit -H"])
}

/// It has eight gigabytes mapped, which our own limit would not let its successor map.
#[test]
fn an_address_space_that_may_not_be_mapped_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let text = "import mmap, time\nm = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)\n\
                print('ready', flush=True)\ntime.sleep(1000)\n";
    let victim = Victim::python(text)?;
    victim.wait_for("ready", 1)?;
    let text = defrost_fails_through(&["prlimit", "--as=6000000000:"], &["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    ensure!(text.contains("bytes of address space (ulimit -v), our limit is 6000000000: raise it first"), "{text}");
    victim.runs_untouched()
}

/// Its owner may freeze it, and could never bring it back.
#[test]
fn an_owner_without_root_is_refused() -> Result<()> {
    let (folder, store) = store()?;
    let nobody = as_nobody(folder.path())?;
    let nobody = nobody.each_ref().map(String::as_str);
    let victim = Victim::c_as(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], "refused", &["nothing"])?;
    not_ended(&victim, &store, &nobody, &["is not permitted: run as root or with CAP_CHECKPOINT_RESTORE"])
}

#[test]
fn missing_capabilities_are_refused_by_name() -> Result<()> {
    let (_folder, store) = store()?;
    let without = |names: &str| [format!("--bounding-set={names}"), format!("--inh-caps={names}")];
    for (names, words) in [("-sys_ptrace", "userfaultfd is not permitted"), ("-setpcap", "CAP_SETPCAP"), ("-setgid", "CAP_SETGID")] {
        let victim = Victim::c_as(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"], "refused", &["nothing"])?;
        let options = without(names);
        let through = ["setpriv", &options[0], &options[1]];
        let text = defrost_fails_through(&through, &["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
        ensure!(text.contains(words), "without {names}: {text}");
        victim.runs_untouched()?;
        victim.check("")?;
    }
    Ok(())
}

/// Others of its session would keep its pid from being given out again.
#[test]
fn a_session_with_other_members_is_refused() -> Result<()> {
    let (_folder, store) = store()?;
    let text = "import os, time\nif os.fork() == 0:\n    if os.fork(): os._exit(0)\n    os.execv('/usr/bin/sleep', ['sleep', '1000'])\n\
                os.wait()\nprint('ready', flush=True)\ntime.sleep(1000)\n";
    let victim = Victim::python(text)?;
    victim.wait_for("ready", 1)?;
    let text = defrost_fails_through(&[], &["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    ensure!(text.contains(&format!("pid {} is taken by the process group or session of sleep", victim.pid())), "{text}");
    victim.runs_untouched()
}

/// With --no-restore-check it is ended all the same, for a restore elsewhere; with --leave-running nothing is at stake.
#[test]
fn the_check_can_be_left_out() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("refused", &["nothing"])?;
    let pid = victim.pid().to_string();
    let through = ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=300:300"];
    for (name, option) in [("left", "--leave-running"), ("ended", "--no-restore-check")] {
        let output = defrost_through(&through, &["checkpoint", &pid, name, "--store", &store, option])?;
        ensure!(output.status.success(), "{option}: {}", String::from_utf8_lossy(&output.stderr));
    }
    victim.reap()?;
    restore(&victim, "ended", &store)?;
    victim.check("")
}

#[test]
fn a_dry_run_tells_every_obstacle_and_restores_nothing() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("memory", &["1"])?;
    checkpoint(&mut victim, "x", &store)?;
    let said = defrost_ok(&["restore", "x", "--dry-run", "--store", &store])?;
    ensure!(said == "x:latest would be restored here\n", "{said:?}");
    victim.left_nothing()?;

    let mapped = victim.folder().join("mapped");
    let away = victim.folder().join("away");
    fs::rename(&mapped, &away)?;
    let dry = ["restore", "x", "--dry-run", "--store", &store];
    let output = defrost_through(&["setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=300:300"], &dry)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{text}");
    ensure!(text.lines().all(|line| line.starts_with("defrost: ")), "{text}");
    for words in ["resource 7 was limited to", &format!("file {} cannot be found", mapped.display())] {
        ensure!(text.lines().filter(|line| line.contains(words)).count() == 1, "{words:?} is not said once: {text}");
    }
    let json = defrost(&["restore", "x", "--dry-run", "--json", "--store", &store])?;
    let said: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    ensure!(json.status.code() == Some(1) && said["obstacles"].as_array().is_some_and(|all| !all.is_empty()), "{said}");
    victim.left_nothing()?;
    fs::rename(&away, &mapped)?;
    restore(&victim, "x", &store)?;
    victim.check("")
}

#[test]
fn a_dry_run_names_who_has_the_number_and_the_port() -> Result<()> {
    let (_folder, store) = store()?;
    let text = "import socket, time\na = socket.create_server(('127.0.0.1', 0))\nprint('port', a.getsockname()[1], flush=True)\ntime.sleep(1000)\n";
    let victim = Victim::python(text)?;
    victim.wait_for("port", 1)?;
    let port = victim.output().trim().trim_start_matches("port ").to_owned();
    defrost_ok(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store, "--leave-running"])?;
    let output = defrost(&["restore", "x", "--dry-run", "--store", &store])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for words in [format!("pid {} is taken by", victim.pid()), format!("bind to 127.0.0.1:{port}: ")] {
        ensure!(text.lines().filter(|line| line.contains(&words)).count() == 1, "{words:?} is not said once: {text}");
    }
    victim.runs_untouched()
}

/// The cases that a 64-bit checkpoint cannot describe are named before anything is changed.
#[test]
fn relatives_are_named() -> Result<()> {
    let (_folder, store) = store()?;
    let dead =
        "import os, time\npid = os.fork()\nif pid == 0: os._exit(0)\ntime.sleep(0.2)\nprint('child', pid, flush=True)\ntime.sleep(1000)\n";
    let victim = Victim::python(dead)?;
    victim.wait_for("child", 1)?;
    let child = victim.output().trim().trim_start_matches("child ").to_owned();
    let text = defrost_fails_through(&[], &["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    ensure!(text.contains(&format!("a dead child ({child} python3) waits to be reaped; let it wait for its children first")), "{text}");
    victim.runs_untouched()?;
    for (kind, words) in [("vm", "its memory"), ("files", "its descriptor table"), ("fs", "its working directory")] {
        let victim = Victim::c("sharer", &[kind])?;
        let text = defrost_fails_through(&[], &["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
        ensure!(text.contains(&format!("it shares {words} with process ")) && text.contains("end that process first"), "{kind}: {text}");
        victim.runs_untouched()?;
        victim.check("").with_context(|| kind.to_owned())?;
    }
    Ok(())
}

/// Compiled here: the compiler's own 32-bit start-up code is not needed for it.
#[test]
fn programs_of_32_bits_are_named() -> Result<()> {
    let (folder, store) = store()?;
    let text = folder.path().join("pause.s");
    // pause() by the 32-bit gate, over and over.
    fs::write(&text, ".globl _start\n_start: mov $29, %eax\n int $0x80\n jmp _start\n")?;
    let [object, program] = ["pause.o", "pause"].map(|name| folder.path().join(name));
    let built = Command::new("as").args(["--32", "-o"]).args([&object, &text]).status()?.success()
        && Command::new("ld").args(["-m", "elf_i386", "-o"]).args([&program, &object]).status()?.success();
    ensure!(built, "as and ld could not make a 32-bit program");
    let victim = Victim::start(&program.to_string_lossy(), &[])?;
    defrost_tests::eventually("it is the program", || {
        fs::read_link(format!("/proc/{}/exe", victim.pid())).is_ok_and(|exe| exe == program)
    })?;
    let text = defrost_fails_through(&[], &["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    ensure!(text.contains("it is a 32-bit program; only 64-bit programs can be checkpointed"), "{text}");
    victim.runs_untouched()
}

/// While memory is missing the refusal says what to wait for; from then on it can be frozen again, whatever its pager still does.
#[test]
fn a_restored_process_is_frozen_again_as_soon_as_all_is_there() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("memory", &["8"])?;
    checkpoint(&mut victim, "x:0", &store)?;
    for round in 1..=4 {
        restore(&victim, &format!("x:{}", round - 1), &store)?;
        eventually("it is frozen again", || {
            let again = defrost(&["checkpoint", &victim.pid().to_string(), &format!("x:{round}"), "--store", &store]);
            let Ok(again) = again else { return false };
            let said = String::from_utf8_lossy(&again.stderr);
            assert!(again.status.success() || said.contains("`defrost wait`"), "round {round}: {said}");
            again.status.success()
        })?;
    }
    restore(&victim, "x:4", &store)?;
    victim.check("")
}
