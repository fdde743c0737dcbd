//! What a server counts, and the names under which Prometheus finds it: all of them are here.

use crate::peer::Budget;
use proto::domain::Class;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use store::Store;

/// A number that only grows, unless it is a gauge.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Add to it.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Take from it.
    pub fn sub(&self, less: u64) {
        self.0.fetch_sub(less, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A call under way; counted until dropped.
#[derive(Debug)]
pub struct Call(Arc<Metrics>);

impl Call {
    /// Count one more.
    #[must_use]
    pub fn begin(metrics: &Arc<Metrics>) -> Self {
        metrics.calls_open.add(1);
        Self(metrics.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.calls_open.sub(1);
    }
}

/// All counts of a server.
#[derive(Default)]
pub struct Metrics {
    /// Connections open now.
    pub connections_open: Count,
    /// Connections accepted so far.
    pub connections: Count,
    /// Connections refused as there were too many.
    pub connections_refused: Count,
    /// Connections whose thread panicked.
    pub connections_failed: Count,
    /// Calls under way, but streams of page requests.
    pub calls_open: Count,
    /// Requests of each class.
    pub requests: [Count; 3],
    /// Requests that were not answered with frames.
    pub requests_failed: Count,
    /// Frames sent.
    pub frames: Count,
    /// Bytes of frames sent.
    pub frame_bytes: Count,
    /// Chunks received.
    pub stored_chunks: Count,
    /// Bytes of them.
    pub stored_bytes: Count,
    watched: OnceLock<(Arc<dyn Store>, Arc<Budget>)>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Say from now on what is known of the store, and what connections hold.
    pub(crate) fn watch(&self, store: &Arc<dyn Store>, budget: &Arc<Budget>) {
        let _ = self.watched.set((store.clone(), budget.clone())); // once for each server
    }

    /// The count of a class.
    pub fn requests_of(&self, class: Class) -> &Count {
        match class {
            Class::Demand => &self.requests[0],
            Class::Replay => &self.requests[1],
            Class::Bulk => &self.requests[2],
        }
    }

    /// All of it in Prometheus' text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
            // Writing to a string does not fail.
            let _ = writeln!(out, "# HELP defrost_page_server_{name} {help}\n# TYPE defrost_page_server_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "defrost_page_server_{name}{labels} {value}");
            }
        };
        let one = |count: &Count| [(String::new(), count.get())];
        family("connections_open", "gauge", "Connections open now.", &one(&self.connections_open));
        family("connections_total", "counter", "Connections accepted.", &one(&self.connections));
        family("connections_refused_total", "counter", "Connections refused at the limit.", &one(&self.connections_refused));
        family("connections_failed_total", "counter", "Connections whose thread failed.", &one(&self.connections_failed));
        family("calls_open", "gauge", "Calls under way, but streams of page requests.", &one(&self.calls_open));
        let by_class = Class::ALL.map(|class| (format!("{{class=\"{}\"}}", class.name()), self.requests_of(class).get()));
        family("requests_total", "counter", "Page requests, by class.", &by_class);
        family("requests_failed_total", "counter", "Page requests not answered with frames.", &one(&self.requests_failed));
        family("frames_total", "counter", "Frames sent.", &one(&self.frames));
        family("frame_bytes_total", "counter", "Bytes of frames sent.", &one(&self.frame_bytes));
        family("stored_chunks_total", "counter", "Chunks received.", &one(&self.stored_chunks));
        family("stored_bytes_total", "counter", "Bytes of chunks received.", &one(&self.stored_bytes));
        if let Some((store, budget)) = self.watched.get() {
            let (damage, now) = (store.damage(), |value: u64| [(String::new(), value)]);
            family("held_bytes", "gauge", "Bytes of messages and answers under way.", &now(budget.held()));
            family("damaged_packs", "gauge", "Packs that cannot be used or have wrong frames.", &now(damage.packs));
            family("damaged_frames", "gauge", "Wrong frames found since the server started.", &now(damage.frames));
            family("damaged_names", "gauge", "Names that cannot be restored, as of the last listing.", &now(damage.names));
        }
        out
    }
}
