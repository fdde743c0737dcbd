//! The long kill storm (`defrost_tests::storm`): a wrong byte, a hang or anything left behind fails it.

use anyhow::Result;
use clap::Parser;
use defrost_tests::record::{Output, Record, Table};
use defrost_tests::storm::{KINDS, Kind, Plan, run};
use defrost_tests::unrest::{EVENTS, in_a_runtime_directory_of_our_own};
use defrost_tests::{binary, need_root};
use std::process::Command;

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 500)]
    kills: usize,
    /// MiB that the victim checks and changes
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Makes the same times again; otherwise a new one each time
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// Pause of each of the victim's threads between two steps: slow enough that most memory is missing for dozens of kills.
const PACE_US: u64 = 3000;
/// Kills of one restore: some minutes' worth of missing memory, and still many restores.
const KILLS_PER_RESTORE: usize = 40;

fn main() -> Result<()> {
    need_root()?;
    in_a_runtime_directory_of_our_own()?;
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let mut defrost = Command::new(binary("defrost")?);
    defrost.arg("--version");
    let command = format!("cargo xtask bench torture --kills {} --mib {} --seed {seed}", cli.kills, cli.mib);
    println!("{command}");
    let mut record = Record::new("Torture: kills at random times", command, &std::env::temp_dir(), &[defrost])?;
    let kinds = KINDS.map(|(kind, _)| kind).to_vec();
    let plan = Plan { mib: cli.mib, pace_us: PACE_US, kills: cli.kills, kills_per_restore: KILLS_PER_RESTORE, seed, kinds, events: true };
    let report = run(&plan)?;
    println!("{report}");
    let mut kills = Table::new("SIGKILLs at random times", "kills");
    let mut served = Table::new("From a kill until it is served again and every thread has made a step", "ms");
    for (kind, name) in KINDS {
        kills.add(name, report.killed(kind) as f64);
        for took in report.kills.iter().filter(|(killed, _)| *killed == kind).filter_map(|(_, took)| *took) {
            served.add(&waited_for(kind, name), took.as_secs_f64() * 1e3);
        }
    }
    kills.add("all", report.kills.len() as f64);
    let mut events = Table::new("What happened between kills", "number");
    EVENTS.iter().zip(report.events).for_each(|((_, name), count)| events.add(name, count as f64));
    let mut did = Table::new("What the program did meanwhile", "number");
    let counts = report.counts;
    for (name, count) in [
        ("restores", report.restores as u64),
        ("adoptions after everything of ours was dead", report.adoptions as u64),
        ("faults answered with contents, as far as pagers lived to tell", report.faults),
        ("steps of its threads", counts.steps),
        ("pages compared", counts.checked),
        ("pages changed", counts.changed),
        ("pages dropped by MADV_DONTNEED", counts.dropped),
        ("pages unmapped and mapped anew", counts.mapped),
        ("pages moved by mremap", counts.moved),
        ("children forked", counts.forks),
        ("children that found everything right", counts.children_ok),
        ("children ended rather than served wrongly", counts.children_killed),
    ] {
        did.add(name, count as f64);
    }
    record.conditions(&[
        &format!(
            "Four threads check and change {} MiB in known patterns, call MADV_DONTNEED, munmap, mmap, mremap, set and remove guards, and fork \
             children and grandchildren that do the same with their copies; one in ten ends by a signal that dumps core. Restored over loopback, in turn with background fill and without.",
            cli.mib
        ),
        "One kill in four is followed by the next without waiting until it is served again. A page server is down for up to 0.4 s, which is \
         part of its figure; where pager and supervisor are dead, `defrost pager --adopt` is called, and is part of it too.",
        "Between kills the snapshot's name is removed and the store collected, the runtime directory is filled, or pager and supervisor get \
         three further descriptors at most; a child that cannot be kept then is ended (SIGBUS), which is counted.",
        "The first wrong byte, thread that makes no step for a minute, and process or file that is left ends the run without a record.",
    ]);
    record.tables.extend([kills, events, served, did]);
    record.write(&cli.output.out)
}

fn waited_for(kind: Kind, name: &str) -> String {
    if kind == Kind::Server { format!("{name}, time it was down included") } else { name.to_owned() }
}
