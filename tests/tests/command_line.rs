//! The verbs that look after snapshots, and what they print, as scripts depend on it.

use anyhow::{Context as _, Result};
use defrost_tests::{Server, Victim, checkpoint, defrost, defrost_fails, defrost_ok, eventually, need_root, restore};
use serde_json::Value;

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text.trim()).with_context(|| format!("no JSON: {text}"))
}

#[test]
fn a_snapshot_is_copied_between_stores_and_restores_from_the_copy() -> Result<()> {
    need_root()?;
    let (first, second) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let server = Server::start(second.path())?;
    let (from, to) = (first.path().to_string_lossy().into_owned(), server.store());
    let mut victim = Victim::c("memory", &["32"])?;
    checkpoint(&mut victim, "m:1", &from)?;
    let copied = json(&defrost_ok(&["copy", "m:1", "--from", &from, "--to", &to, "--json"])?)?;
    assert!(copied["copied"] == copied["chunks"] && copied["bytes"].as_u64() > Some(1 << 20), "{copied}");
    let taken = defrost_fails(&["copy", "m:1", "--from", &from, "--to", &to])?;
    assert!(taken.contains("m:1 exists already"), "{taken}");
    let absent = defrost_fails(&["copy", "m:2", "--from", &from, "--to", &to])?;
    assert!(absent.contains("m:2 is not in the store"), "{absent}");
    let (here, there) = (defrost_ok(&["list", "--store", &from, "--json"])?, defrost_ok(&["list", "--store", &to, "--json"])?);
    assert_eq!(json(&here)?["id"], json(&there)?["id"]);
    defrost_ok(&["verify", "m:1", "--store", &to])?;
    restore(&victim, "m:1", &to)?;
    victim.check("")
}

/// Where nothing is known of a process, each verb says that in one sentence, without the kernel's words behind it.
#[test]
fn a_process_that_is_no_restore_is_told_in_one_sentence() -> Result<()> {
    let pid = std::process::id().to_string();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report").display().to_string();
    for verb in [&["status", &pid][..], &["wait", &pid], &["pager", "--adopt", &pid], &["status", &pid, "--report", &file]] {
        let said = defrost_fails(verb)?;
        assert!(said.contains(&pid) && !said.contains("os error") && said.trim().lines().count() == 1, "{verb:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_damaged_source_is_not_copied() -> Result<()> {
    need_root()?;
    let (first, second) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (from, to) = (first.path().to_string_lossy().into_owned(), second.path().to_string_lossy().into_owned());
    let mut victim = Victim::c("memory", &["8"])?;
    checkpoint(&mut victim, "m", &from)?;
    for entry in std::fs::read_dir(first.path().join("packs"))? {
        let path = entry?.path();
        let mut bytes = std::fs::read(&path)?;
        bytes[2000] ^= 1; // in a frame
        std::fs::write(&path, bytes)?;
    }
    let refused = defrost_fails(&["copy", "m", "--from", &from, "--to", &to])?;
    assert!(refused.contains(".pack") && refused.contains("checksum"), "{refused}");
    assert_eq!(defrost_ok(&["list", "--store", &to])?, "", "nothing by halves");
    Ok(())
}

#[test]
fn inspect_shows_what_is_inside() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::c("threads", &["all"])?;
    let pid = victim.pid();
    checkpoint(&mut victim, "t", &store)?;
    let shown = json(&defrost_ok(&["inspect", "t", "--store", &store, "--json"])?)?;
    assert_eq!(shown["pid"].as_u64(), Some(u64::from(pid)));
    assert_eq!(shown["threads"].as_array().map(Vec::len), Some(16), "fifteen and the leader");
    assert!(shown["memory"]["contents_bytes"].as_u64() > Some(1 << 16), "{}", shown["memory"]);
    assert!(shown["files"].as_array().is_some_and(|files| files.iter().any(|f| f["kind"] == "device /dev/null")), "{}", shown["files"]);
    let words = defrost_ok(&["inspect", "t", "--store", &store])?;
    assert!(words.contains(&format!("process {pid} (threads), 16 threads")), "{words}");
    Ok(())
}

#[test]
fn removed_snapshots_give_their_space_back_and_shared_chunks_stay() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::c("memory", &["16"])?;
    let pid = victim.pid().to_string();
    let first = json(&defrost_ok(&["checkpoint", &pid, "m:1", "--store", &store, "--leave-running", "--json"])?)?;
    let second = json(&defrost_ok(&["checkpoint", &pid, "m:2", "--store", &store, "--json"])?)?;
    victim.reap()?;
    let sent = |report: &Value| report["sent_bytes"].as_u64().unwrap_or(u64::MAX);
    assert!(sent(&second) * 20 < sent(&first), "a barely changed process sends little: {second} after {first}");
    defrost_ok(&["remove", "m:1", "--store", &store])?;
    let kept = json(&defrost_ok(&["gc", "--store", &store, "--json"])?)?;
    assert_eq!(kept["packs"], 0, "m:2 needs them: {kept}");
    defrost_ok(&["verify", "m:2", "--store", &store])?;
    defrost_ok(&["remove", "m:2", "--store", &store])?;
    let freed = json(&defrost_ok(&["gc", "--store", &store, "--json"])?)?;
    assert!(freed["packs"].as_u64() >= Some(1) && freed["bytes"].as_u64() > Some(1 << 20), "{freed}");
    Ok(())
}

#[test]
fn a_taken_pid_is_free_in_a_pid_namespace() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::c("identity", &[])?;
    let pid = victim.pid().to_string();
    defrost_ok(&["checkpoint", &pid, "i", "--store", &store, "--leave-running"])?;
    let taken = defrost_fails(&["restore", "i", "--store", &store, "--detach"])?;
    assert!(taken.contains(&format!("pid {pid} is taken")) && taken.contains("--new-pid-namespace"), "{taken}");
    let report = json(&defrost_ok(&["restore", "i", "--store", &store, "--detach", "--new-pid-namespace", "--json"])?)?;
    let outer = report["pid"].as_u64().context("a pid")?;
    assert!(report["own_pid"].as_u64() == Some(victim.pid().into()) && outer != u64::from(victim.pid()), "{report}");
    // Both run now; the original is ended so that the verdict, which both would write, is the restored one's.
    victim.end()?;
    victim.known_as(u32::try_from(outer)?);
    victim.check("")?;
    let gone = || !std::path::Path::new(&format!("/proc/{outer}")).exists();
    eventually("the restored process and its namespace are gone", gone)
}

#[test]
fn timings_tell_what_restore_and_pager_did() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::c("identity", &[])?;
    defrost_ok(&["checkpoint", &victim.pid().to_string(), "i", "--store", &store])?;
    victim.reap()?;
    let begun = std::time::Instant::now();
    let report = json(&defrost_ok(&["restore", "i", "--store", &store, "--detach", "--json", "--timings"])?)?;
    let whole_us = begun.elapsed().as_micros() as u64;
    for (who, least) in
        [("restore", ["plan", "map memory", "hand over", "let it run"]), ("pager", ["begin", "open the store", "read the image", "listen"])]
    {
        let timings = report["timings"].as_array().context("timings")?.iter().filter(|phase| phase["who"] == who);
        let mut before_us = 0;
        let mut names = Vec::new();
        for phase in timings {
            let (at_us, us) = (phase["at_us"].as_u64().context("at_us")?, phase["us"].as_u64().context("us")?);
            assert!(at_us >= before_us && at_us + us <= whole_us, "{who}: not one after the other within {whole_us} µs: {report}");
            before_us = at_us + us;
            names.push(phase["phase"].as_str().context("phase")?);
        }
        assert!(least.iter().all(|name| names.contains(name)), "{who}: {names:?}");
    }
    victim.check("")?;
    victim.end()
}

#[test]
fn threads_come_back_in_a_pid_namespace() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("threads", &["all"])?;
    checkpoint(&mut victim, "t", &server.store())?;
    let pid = defrost_ok(&["restore", "t", "--store", &server.store(), "--detach", "--new-pid-namespace"])?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("NSpid")?;
    assert!(inner.split_whitespace().last() == Some(&victim.pid().to_string()), "NSpid {inner}");
    victim.known_as(pid.trim().parse()?);
    victim.check("")
}

#[test]
fn usage_ends_with_2_and_a_reader_that_leaves_is_no_panic() -> Result<()> {
    for wrong in
        [&["checkpoint", "1", "a/b"][..], &["restore"], &["checkpoint", "x", "y"], &["nonsense"], &["restore", "a", "--chunk-size", "5"]]
    {
        assert_eq!(defrost(wrong)?.status.code(), Some(2), "{wrong:?}");
    }
    let text = "defrost=$1; \"$defrost\" --help | true; \"$defrost\" list --store \"$2\" --json | true";
    let folder = tempfile::tempdir()?;
    drop(Server::start(folder.path())?); // makes the store
    let defrost = defrost_tests::binary("defrost")?;
    let output = std::process::Command::new("sh").args(["-c", text, "sh"]).arg(defrost).arg(folder.path()).output()?;
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
    Ok(())
}
