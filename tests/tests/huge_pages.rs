//! Memory that was in huge pages is in huge pages again some time after a restore, and right all the while.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{Server, Victim, checkpoint, defrost_ok, eventually, need_root, restore_with};

/// More than the kernel by itself (khugepaged, 16 MiB in 10 s) makes huge within the test's patience.
const MIB: u64 = 256;
const NAME: &str = "huge:test";

/// Bytes of huge pages that a process has.
fn huge_bytes(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the process is gone")?;
    let kib = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).context("smaps_rollup has no AnonHugePages")?;
    Ok(kib.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

#[test]
fn huge_pages_are_huge_again() -> Result<()> {
    need_root()?;
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").context("this kernel has no huge pages")?;
    ensure!(!enabled.contains("[never]"), "huge pages are off: write `madvise` to /sys/kernel/mm/transparent_hugepage/enabled");
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("huge", &[&MIB.to_string()])?;
    let before = huge_bytes(victim.pid())?;
    ensure!(before >= (MIB << 20) / 2, "the victim has {before} bytes of huge pages: the machine has none free");
    checkpoint(&mut victim, NAME, &server.store())?;
    for how in [&[][..], &["--eager"]] {
        restore_with(&victim, NAME, &server.store(), how)?;
        defrost_ok(&["wait", &victim.pid().to_string()])?;
        let mut after = 0;
        eventually("its memory is in huge pages again", || {
            after = huge_bytes(victim.pid()).unwrap_or(0);
            after >= before / 10 * 9
        })
        .with_context(|| format!("{after} bytes of {before}: {}", victim.output()))?;
        victim.check("")?;
        victim.end()?;
    }
    Ok(())
}
