//! How soon a redis-server answers again: defrost beside CRIU, in turn, round by round.
//!
//! Each froze the same living process once. Everything is compared: some values after each restore, all of them after each contender's
//! last. A wrong one fails the bench.

mod restores;

use anyhow::{Context as _, Result};
use clap::Parser;
use defrost_tests::record::{Output, Record};
use defrost_tests::redis::Redis;
use defrost_tests::stored::fresh;
use defrost_tests::{Server, binary, criu, defrost_ok, need_root};
use restores::restores;
use std::path::PathBuf;
use std::process::Command;

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Values of about 1 KB that redis holds
    #[arg(long, default_value_t = 700_000)]
    values: usize,
    /// CRIU's program
    #[arg(long)]
    criu: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// The snapshot's name in every store.
const NAME: &str = "redis:bench";

/// What the checkpoints left, for the restores.
struct Stored {
    /// A store, written by us.
    embedded: PathBuf,
    /// A store, written by a page server.
    served: PathBuf,
    /// CRIU's images.
    criu: PathBuf,
}

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    let work = tempfile::tempdir()?;
    let mut defrost = Command::new(binary("defrost")?);
    defrost.arg("--version");
    let (mut criu, mut redis) = (Command::new(&cli.criu), Command::new("/usr/bin/redis-server"));
    criu.arg("--version");
    redis.arg("--version");
    let command = format!("cargo xtask bench resume --rounds {} --values {}", cli.rounds, cli.values);
    let mut record = Record::new("Resume: a redis-server beside CRIU", command, work.path(), &[defrost, criu, redis])?;
    println!("loading redis-server with {} values", cli.values);
    let mut redis = Redis::start(cli.values)?;
    let stored = Stored { embedded: work.path().join("embedded"), served: work.path().join("served"), criu: work.path().join("criu") };
    stored.freeze(&redis).context("freeze it")?;
    redis.victim.end()?;
    restores(&mut record, &mut redis, &stored, &cli).context("restores")?;
    record.conditions(&[
        &format!("One redis-server with {} JSON-like values of about 1 KB, half of each hardly compressible.", cli.values),
        &format!("{} rounds; in each the contenders take their turns in the order of the tables. Release builds.", cli.rounds),
        "Frozen once by each at the same state; what they stored is read into the page cache before each restore; the earlier process and \
         its pager are gone. All run on one machine, the page server too.",
        "A client asks for a value every millisecond until it is answered, from the moment the restore command is started; page server \
         and CRIU's lazy-pages daemon are up before that, defrost's pager is started by the command.",
        "Peak memory is what was resident at once, mapped files included.",
        "After each restore 1000 values were compared with what was loaded, after each contender's last all of them: none was wrong.",
    ]);
    record.write(&cli.output.out)
}

impl Stored {
    fn freeze(&self, redis: &Redis) -> Result<()> {
        [&self.embedded, &self.served].into_iter().try_for_each(|folder| fresh(folder))?;
        let server = Server::start(&self.served)?;
        for store in [self.embedded.to_string_lossy().into_owned(), server.store()] {
            defrost_ok(&["checkpoint", &redis.victim.pid().to_string(), NAME, "--leave-running", "--store", &store])?;
        }
        criu::dump(&redis.victim, &self.criu, &["--leave-running"])
    }
}
