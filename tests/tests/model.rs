//! A victim performs random reads, writes, unmappings, moves, drops, protections and forks while it is restored lazily; a model
//! rebuilt from the seed predicts every byte (see `victims/model.c`).
//!
//! `DEFROST_MODEL_SEEDS=N` runs N seeds, `DEFROST_MODEL_FIRST=S` begins with S: a failure names its seed, so
//! `DEFROST_MODEL_SEEDS=1 DEFROST_MODEL_FIRST=S cargo test -p defrost-tests --test model` runs that one again.

use anyhow::{Context as _, Result};
use defrost_tests::{Server, Victim, checkpoint, need_root, restore_with};

/// Seeds unless told: a minute or less on a machine of its own. Hundreds have been run.
const SEEDS: u64 = 50;

fn number(name: &str, otherwise: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(otherwise), |text| text.parse().with_context(|| format!("{name}={text} is not a number")))
}

#[test]
fn a_model_predicts_every_byte_while_memory_arrives() -> Result<()> {
    need_root()?;
    let (first, seeds) = (number("DEFROST_MODEL_FIRST", 1)?, number("DEFROST_MODEL_SEEDS", SEEDS)?);
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("model", &["2048"])?;
    checkpoint(&mut victim, "model", &server.store())?;
    for seed in first..first + seeds {
        // Two of three with the rest coming behind: then bulk fill races with what the program does.
        let how: &[&str] = if seed % 3 == 0 { &["--no-background"] } else { &[] };
        restore_with(&victim, "model", &server.store(), how).with_context(|| format!("seed {seed} {how:?}"))?;
        victim.check(&seed.to_string()).with_context(|| format!("seed {seed} {how:?}"))?;
        victim.end()?;
    }
    Ok(())
}
