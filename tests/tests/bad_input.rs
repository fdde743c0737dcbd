//! What must be refused: in one sentence, with exit code 1, and leaving everything as it was.

use anyhow::Result;
use defrost_tests::{Victim, checkpoint, defrost_fails, defrost_ok, need_root, restore};

/// Counts for ever.
const COUNTER: &str = "import time, itertools\nfor n in itertools.count():\n    print('count', n, flush=True)\n    time.sleep(0.05)\n";

#[test]
fn a_pid_that_does_not_exist_is_named() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let text = defrost_fails(&["checkpoint", "4194000", "x", "--store", &store])?;
    assert!(text.contains("process 4194000 does not exist"), "{text}");
    Ok(())
}

#[test]
fn a_kernel_thread_is_refused() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let text = defrost_fails(&["checkpoint", "2", "x", "--store", &store])?;
    assert!(text.contains("kernel thread"), "{text}");
    Ok(())
}

#[test]
fn an_established_connection_is_refused_and_the_process_runs_on() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let text = "import socket\na = socket.create_server(('127.0.0.1', 0))\nb = socket.create_connection(a.getsockname())\nc = a.accept()\n";
    let python = Victim::python(&format!("{text}{COUNTER}"))?;
    python.wait_for("count", 2)?;
    let text = defrost_fails(&["checkpoint", &python.pid().to_string(), "x", "--store", &store])?;
    assert!(text.contains("established network connection"), "{text}");
    python.wait_for("count", python.output().lines().count() + 3)
}

#[test]
fn names_pids_and_damage_are_refused() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut python = Victim::python(COUNTER)?;
    python.wait_for("count", 2)?;
    let pid = python.pid().to_string();
    defrost_ok(&["checkpoint", &pid, "counter", "--store", &store, "--leave-running"])?;
    python.wait_for("count", python.output().lines().count() + 3)?;
    let taken = defrost_fails(&["checkpoint", &pid, "counter", "--store", &store])?;
    assert!(taken.contains("exists already"), "{taken}");
    let absent = defrost_fails(&["restore", "nothing", "--store", &store])?;
    assert!(absent.contains("is not in the store"), "{absent}");
    let held = defrost_fails(&["restore", "counter", "--store", &store])?;
    assert!(held.contains("is taken by python3"), "{held}");
    checkpoint(&mut python, "counter:end", &store)?;
    for entry in std::fs::read_dir(folder.path().join("packs"))? {
        let path = entry?.path();
        let mut bytes = std::fs::read(&path)?;
        bytes[2000] ^= 1; // in a frame
        std::fs::write(&path, bytes)?;
    }
    let damaged = defrost_fails(&["verify", "counter:end", "--store", &store])?;
    assert!(damaged.contains("checksum does not fit") && damaged.contains(".pack"), "{damaged}");
    Ok(())
}

#[test]
fn a_changed_file_is_refused() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let text = "import mmap\nf = open('data', 'rb')\nm = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)\n";
    let held = tempfile::tempdir()?;
    let data = held.path().join("data");
    std::fs::write(&data, vec![1; 8192])?;
    let mut python = Victim::python(&format!("{}{COUNTER}", text.replace("'data'", &format!("{:?}", data.to_string_lossy()))))?;
    python.wait_for("count", 2)?;
    checkpoint(&mut python, "mapped", &store)?;
    std::fs::write(&data, vec![2; 8192])?;
    let refused = defrost_fails(&["restore", "mapped", "--store", &store])?;
    assert!(refused.contains("was modified since the checkpoint"), "{refused}");
    std::fs::remove_file(&data)?;
    let refused = defrost_fails(&["restore", "mapped", "--store", &store])?;
    assert!(refused.contains("cannot be found"), "{refused}");
    assert!(restore(&python, "mapped", &store).is_err());
    Ok(())
}
