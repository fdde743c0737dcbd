//! What a pager can say of itself, in a form that scripts can read.

use crate::latency::Latency;
use crate::readers::Reader;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// Where a restore stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "why")]
pub enum State {
    /// Pages are still to come.
    Lazy,
    /// The store does not answer; touches of missing pages wait.
    Waiting,
    /// Everything is there.
    Resident,
    /// A page could not be brought: the process was ended.
    Failed(String),
    /// Pages did not come in time: what is missing was given up, and touches of it are a SIGBUS. The process may live on.
    Poisoned(String),
    /// The process ended by itself.
    Gone,
    /// Its pager lives and does not answer: it is stopped, frozen or stuck.
    Unresponsive,
    /// Nobody serves it: touches of missing pages wait until somebody does.
    Unattended,
}

impl State {
    /// Why the process was ended or has lost pages, if so.
    #[must_use]
    pub fn why_broken(&self) -> Option<&str> {
        match self {
            Self::Failed(why) | Self::Poisoned(why) => Some(why),
            Self::Lazy | Self::Waiting | Self::Resident | Self::Gone | Self::Unresponsive | Self::Unattended => None,
        }
    }
}

/// One restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The process.
    pub pid: u32,
    /// Its snapshot.
    pub snapshot: String,
    /// Where its pages come from.
    pub store: String,
    /// Where it stands.
    #[serde(flatten)]
    pub state: State,
    /// Bytes with contents in the snapshot that come lazily.
    pub total_bytes: u64,
    /// Bytes still to come.
    pub missing_bytes: u64,
    /// Faults answered with contents.
    pub demand_faults: u64,
    /// Faults answered with zeros.
    pub zero_faults: u64,
    /// Median time from reading a fault to its answer, in microseconds.
    pub stall_p50_us: u64,
    /// 99th percentile of the same.
    pub stall_p99_us: u64,
    /// What last went wrong.
    pub last_error: Option<String>,
    /// How often another pager took over from one that died.
    pub adopted: u32,
    /// Whether its pager spins before it sleeps.
    #[serde(default)]
    pub latency: Latency,
    /// The process that serves it; 0 where none does.
    pub pager_pid: u32,
    /// The process that starts another one if that dies; 0 where none does.
    pub supervisor_pid: u32,
    /// Since when the store does not answer, in seconds since 1970.
    #[serde(default)]
    pub waiting_since_unix_s: Option<u64>,
    /// The server that is asked first now; none where the store is a directory.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Demand reads that went to a second server because the first was late.
    #[serde(default)]
    pub hedges: u64,
    /// Of these, those that the second answered first.
    #[serde(default)]
    pub hedges_won: u64,
    /// How often another server came to be asked first.
    #[serde(default)]
    pub fail_overs: u64,
    /// Bytes that earlier restores touched first, as far as they were recorded.
    #[serde(default)]
    pub working_set_bytes: u64,
    /// Bytes of these that came before anybody asked for them.
    #[serde(default)]
    pub replayed_bytes: u64,
    /// Who looks into the process from outside; only where that was asked for.
    #[serde(default)]
    pub readers: Vec<Reader>,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pid, snapshot, state, missing_bytes, total_bytes, store, .. } = self;
        let Self { demand_faults, stall_p50_us, stall_p99_us, zero_faults, .. } = self;
        write!(f, "{pid} {snapshot} {state}: {missing_bytes} of {total_bytes} bytes to come, {demand_faults} faults ")?;
        write!(f, "(p50 {stall_p50_us} µs, p99 {stall_p99_us} µs), {zero_faults} zero faults, from {store}")?;
        self.endpoint.iter().filter(|endpoint| *endpoint != store).try_for_each(|endpoint| write!(f, ", now {endpoint}"))?;
        let Self { hedges, hedges_won, fail_overs, .. } = self;
        if *hedges > 0 {
            write!(f, ", {hedges} reads hedged ({hedges_won} won)")?;
        }
        if *fail_overs > 0 {
            write!(f, ", {fail_overs} fail-overs")?;
        }
        let Self { working_set_bytes, replayed_bytes, .. } = self;
        if *working_set_bytes > 0 {
            write!(f, ", {replayed_bytes} of {working_set_bytes} bytes replayed")?;
        }
        self.readers.iter().try_for_each(|reader| write!(f, "; {reader}"))?;
        if let Some(since) = self.waiting_since_unix_s {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(since, |now| now.as_secs());
            write!(f, "; no answer for {} s", now.saturating_sub(since))?;
        }
        self.last_error.iter().try_for_each(|error| write!(f, "; last error: {error}"))
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lazy => f.write_str("lazy"),
            Self::Waiting => f.write_str("waiting"),
            Self::Resident => f.write_str("resident"),
            Self::Failed(why) => write!(f, "failed ({why})"),
            Self::Poisoned(why) => write!(f, "poisoned ({why})"),
            Self::Gone => f.write_str("gone"),
            Self::Unresponsive => f.write_str("unresponsive (its pager does not answer: it is replaced once a thread waits for a page)"),
            Self::Unattended => f.write_str("unattended (run `defrost pager --adopt` with its pid)"),
        }
    }
}

/// Times of the last faults, for percentiles.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    us: Vec<u32>,
    next: usize,
}

/// Faults remembered: enough for a p99, little memory.
const REMEMBERED: usize = 16_384;

impl Stalls {
    pub(crate) fn add(&mut self, us: u32) {
        if self.us.len() < REMEMBERED {
            self.us.push(us);
        } else {
            self.us[self.next % REMEMBERED] = us;
        }
        self.next += 1;
    }

    /// The median and the 99th percentile.
    pub(crate) fn percentiles(&self) -> (u64, u64) {
        let mut sorted = self.us.clone();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
        (at(50).map_or(0, |us| u64::from(*us)), at(99).map_or(0, |us| u64::from(*us)))
    }
}
