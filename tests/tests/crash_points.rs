//! A pager dies at each point of the sequence in which it reads, keeps and applies what happened (see `pager/src/journal.rs` and
//! `pager/src/keep.rs`), over and over, while the model victim reads, writes, unmaps, moves, drops, protects and forks: whoever takes over
//! must have lost nothing. The model predicts every byte; a failure names point and seed. `DEFROST_CRASH_POINT=NAME` runs one point alone.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Server, Victim, checkpoint, defrost_through, need_root};

/// Each point, and how often a pager comes there before it dies. Every pager that takes over counts anew, so it must get further than
/// what its predecessor left behind: for a fork's points that is one message.
const POINTS: [&str; 9] = [
    "before-read:2000",
    "after-read:2000",
    "before-apply:700",
    "before-applied:700",
    "after-applied:700",
    "after-move-logged:8",
    "before-mailbox:4",
    "after-mailbox:3",
    "after-copy:500",
];

/// Pagers of this process that died and were succeeded, as their supervisors log it.
fn deaths(pid: u32) -> usize {
    let log = std::fs::read_to_string("/run/defrost/pager.log").unwrap_or_default();
    let pid = format!("pid={pid} ");
    log.lines().filter(|line| line.contains("another one takes over") && line.contains(&pid)).count()
}

#[test]
fn nothing_is_lost_wherever_a_pager_dies() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("model", &["2048"])?;
    checkpoint(&mut victim, "model", &server.store())?;
    let only = std::env::var("DEFROST_CRASH_POINT").unwrap_or_default();
    for (seed, point) in (1_u64..).zip(POINTS.iter().flat_map(|point| [point; 2])).filter(|(_, point)| point.starts_with(&only)) {
        let before = deaths(victim.pid());
        let how = if seed % 2 == 0 { &["--no-background"][..] } else { &[] };
        let crash = format!("DEFROST_CRASH_AT={point}");
        let restored = defrost_through(&["env", &crash], &[&["restore", "model", "--store", &server.store(), "--detach"], how].concat())?;
        ensure!(restored.status.success(), "{point}, seed {seed}: {}", String::from_utf8_lossy(&restored.stderr));
        victim.check(&seed.to_string()).with_context(|| format!("{point}, seed {seed} {how:?}"))?;
        victim.end()?;
        let died = deaths(victim.pid()) - before;
        println!("{point}, seed {seed} {how:?}: {died} pagers died");
        // With background fill all may be there before the point is reached so often.
        ensure!(died > 0 || how.is_empty(), "{point}, seed {seed}: no pager died");
    }
    Ok(())
}
