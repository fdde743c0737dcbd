//! `restore --latency low`: the pager spins before it sleeps; contents, ends and everything else are as without it.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::{Server, Victim, checkpoint, defrost_ok, need_root, restore_with};

/// Freeze a victim to a page server, bring it back each way, and let it check itself.
fn comes_back(source: &str, args: &[&str]) -> Result<()> {
    need_root()?;
    let (folder, mut victim) = (tempfile::tempdir()?, Victim::c(source, args)?);
    let server = Server::start(folder.path())?;
    checkpoint(&mut victim, "victim:v", &server.store())?;
    for (how, latency) in [(&["--latency", "low", "--no-background"][..], "low"), (&["--latency", "low"], "low"), (&[], "usual")] {
        restore_with(&victim, "victim:v", &server.store(), how)?;
        let pager = pager_of(victim.pid())?;
        let status: serde_json::Value = serde_json::from_str(&defrost_ok(&["status", &victim.pid().to_string(), "--json"])?)?;
        ensure!(status["latency"] == latency, "{how:?}: {status}");
        victim.check("").with_context(|| format!("restored with {how:?}"))?;
        victim.end()?;
        gone(pager)?;
    }
    Ok(())
}

#[test]
fn memory_comes_back() -> Result<()> {
    comes_back("memory", &["64"])
}

#[test]
fn threads_of_all_kinds_go_on() -> Result<()> {
    comes_back("threads", &["all"])
}

#[test]
fn memory_may_move_while_pages_are_missing() -> Result<()> {
    comes_back("mremap", &[])
}

#[test]
fn another_word_is_refused() -> Result<()> {
    let output = defrost_tests::defrost(&["restore", "victim:v", "--latency", "high"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains("use usual or low"), "{:?}: {said}", output.status);
    Ok(())
}
