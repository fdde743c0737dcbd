//! What a bench leaves behind: every single figure, and where it was taken. `cargo xtask bench report` makes docs/benchmarks.md of it.
//!
//! A bench fills [`Table`]s while it runs, one figure a round and contender, and [`Record::write`]s them as JSON. Nothing is thrown
//! away and nothing is averaged here: medians and ratios are the report's.

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every bench is told.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// The record to write
    #[arg(long)]
    pub out: PathBuf,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// One run of one bench.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// What was asked, in a few words.
    pub title: String,
    /// The command that runs it again.
    pub command: String,
    /// What the code was built from; ends in `+changes` where the tree had some.
    pub commit: String,
    /// Where it ran.
    pub machine: Machine,
    /// The conditions, a sentence each.
    pub conditions: Vec<String>,
    /// The figures.
    pub tables: Vec<Table>,
    /// What was found, by measuring, to be why an aim is missed, a sentence each.
    #[serde(default)]
    pub reasons: Vec<String>,
}

/// The machine and what was on it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Its processor's model.
    pub cpu: String,
    /// Processors we may use.
    pub cores: usize,
    /// Whether a hypervisor is beneath.
    pub virtual_machine: bool,
    /// Its memory.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Its load averages when the bench began: others may have been at work.
    pub load: String,
    /// Kind of file system the snapshots were on.
    pub file_system: String,
    /// Programs that took part.
    pub versions: Vec<String>,
}

/// Figures that may be compared with each other.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    /// What was measured, from when to when.
    pub title: String,
    /// Its unit.
    pub unit: String,
    /// A line for each contender.
    pub rows: Vec<Row>,
}

/// One contender's figures, in the order of the rounds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// Who.
    pub name: String,
    /// A figure a round.
    pub figures: Vec<f64>,
    /// Whom to hold it against.
    pub against: Option<Against>,
}

/// A comparison by medians.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Against {
    /// The other row.
    pub row: String,
    /// The ratio that is aimed at, at most.
    pub aim: Option<f64>,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(title: &str, unit: &str) -> Self {
        Self { title: title.to_owned(), unit: unit.to_owned(), rows: Vec::new() }
    }

    /// Add a figure of `name`.
    pub fn add(&mut self, name: &str, figure: f64) {
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.figures.push(figure),
            None => self.rows.push(Row { name: name.to_owned(), figures: vec![figure], against: None }),
        }
    }

    /// Whether any row is held against another.
    #[must_use]
    pub fn is_compared(&self) -> bool {
        self.rows.iter().any(|row| row.against.is_some())
    }

    /// Whether all of it was taken once and is held against nothing.
    #[must_use]
    pub fn is_counts(&self) -> bool {
        !self.is_compared() && self.rows.iter().all(|row| row.figures.len() == 1)
    }

    /// A row's median, divided by that of the row it is held against.
    #[must_use]
    pub fn ratio(&self, row: &Row) -> Option<f64> {
        let against = row.against.as_ref()?;
        let other = self.rows.iter().find(|other| other.name == against.row)?;
        Some(row.median() / other.median())
    }

    /// Hold `name` against `other`, aiming at a ratio of at most `aim`.
    pub fn hold(&mut self, name: &str, other: &str, aim: Option<f64>) {
        for row in self.rows.iter_mut().filter(|row| row.name == name) {
            row.against = Some(Against { row: other.to_owned(), aim });
        }
    }

    /// Hold `name` against whichever of `others` has the least median.
    pub fn hold_best(&mut self, name: &str, others: &[&str], aim: Option<f64>) {
        let rows = self.rows.iter().filter(|row| others.contains(&row.name.as_str()));
        if let Some(best) = rows.min_by(|a, b| a.median().total_cmp(&b.median())).map(|row| row.name.clone()) {
            self.hold(name, &best, aim);
        }
    }
}

impl Row {
    /// The least and the greatest figure.
    #[must_use]
    pub fn extremes(&self) -> (f64, f64) {
        self.figures.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), f| (least.min(*f), most.max(*f)))
    }

    /// The middle figure; the mean of the two in the middle where their number is even.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut sorted = self.figures.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }
}

impl Record {
    /// Begin one: describes this machine. `versions` are commands that print theirs.
    pub fn new(title: &str, command: String, snapshots: &Path, versions: &[Command]) -> Result<Self> {
        let record = Self {
            title: title.to_owned(),
            command,
            commit: commit()?,
            machine: Machine::ours(snapshots, versions)?,
            conditions: Vec::new(),
            tables: Vec::new(),
            reasons: Vec::new(),
        };
        Ok(record)
    }

    /// Add conditions.
    pub fn conditions(&mut self, sentences: &[&str]) {
        self.conditions.extend(sentences.iter().map(|sentence| (*sentence).to_owned()));
    }

    /// Leave it in a file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Read one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a bench's record", path.display()))
    }
}

impl Machine {
    fn ours(snapshots: &Path, versions: &[Command]) -> Result<Self> {
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let of_cpu = |key: &str| cpus.lines().find(|line| line.starts_with(key)).and_then(|line| line.split(": ").nth(1)).unwrap_or("?");
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let total_kib: u64 = memory.split_whitespace().nth(1).context("/proc/meminfo is empty")?.parse()?;
        let file_system = said(Command::new("stat").args(["-f", "-c", "%T"]).arg(snapshots))?;
        let versions = versions.iter().map(|command| {
            let mut again = Command::new(command.get_program());
            said(again.args(command.get_args())).map(|text| text.lines().next().unwrap_or_default().to_owned())
        });
        Ok(Self {
            cpu: of_cpu("model name").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            virtual_machine: of_cpu("flags").split(' ').any(|flag| flag == "hypervisor"),
            memory_bytes: total_kib * 1024,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load: std::fs::read_to_string("/proc/loadavg")?.split(' ').take(2).collect::<Vec<_>>().join(" and "),
            file_system,
            versions: versions.collect::<Result<_>>()?,
        })
    }
}

fn commit() -> Result<String> {
    let id = said(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]))?;
    // What benches write themselves is no change of the code.
    let changes = said(Command::new("git").args(["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)docs"]))?;
    Ok(if changes.is_empty() { id } else { format!("{id}+changes") })
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
