//! The record's tables, and who is held against whom.

use crate::split::Pieces;
use crate::turn::{Placement, Touches};
use defrost_tests::record::Table;

pub const EMBEDDED: &str = "embedded store";
pub const SERVED: &str = "page server";
pub const EMBEDDED_SPINNING: &str = "embedded store, --latency low";
pub const SERVED_SPINNING: &str = "page server, --latency low";
pub const RAW: &str = "raw TCP";
pub const HANDLER: &str = "one handler thread left to the scheduler, no network";

/// A median and a 99th percentile.
struct Pair(Table, Table);

impl Pair {
    fn new(what: &str) -> Self {
        Self(Table::new(&format!("{what}: median"), "µs"), Table::new(&format!("{what}: 99th percentile"), "µs"))
    }

    fn add(&mut self, name: &str, us: &crate::turn::Percentiles) {
        self.0.add(name, us.at(0.5));
        self.1.add(name, us.at(0.99));
    }
}

pub struct Tables {
    idle: Pair,
    background: Pair,
    /// Only those that waited, beside the same without bulk.
    load: Pair,
    waited: Table,
    gaps: Pair,
    split: Table,
    at_once: Table,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            idle: Pair::new("Touch of a cold page, --no-background"),
            background: Pair::new("Touch of a cold page, with background fill"),
            load: Pair::new("Touch that waited for its page, under bulk load and without"),
            waited: Table::new("Touches that waited", "%"),
            gaps: Pair::new("Touch of a cold page after a sleep, --no-background"),
            split: Table::new("Where the time of a touch goes, all on one processor, --no-background: medians", "µs"),
            at_once: Table::new("Two threads touch cold pages at once, --no-background: time for each touch", "µs"),
        }
    }
}

fn row(what: &str, placement: Placement) -> String {
    format!("{what}, {}", placement.name())
}

const UNDER_LOAD: &str = "with background fill";
const IDLE: &str = "--no-background";

impl Tables {
    pub fn touched(&mut self, what: &str, placement: Placement, background: bool, touches: &Touches) {
        let name = row(what, placement);
        let (all, how) = if background { (&mut self.background, UNDER_LOAD) } else { (&mut self.idle, IDLE) };
        all.add(&name, &touches.all());
        if ![EMBEDDED, SERVED].contains(&what) {
            return;
        }
        self.waited.add(&format!("{name}, {how}"), touches.share_waited());
        if let Some(waited) = touches.waited() {
            self.load.add(&format!("{name}, {how}"), &waited);
        }
    }

    pub fn with_gaps(&mut self, what: &str, placement: Placement, touches: &Touches) {
        self.gaps.add(&row(what, placement), &touches.all());
    }

    /// After the touches of the same round.
    pub fn split(&mut self, what: &str, pieces: &Pieces) {
        let touch = row(what, Placement::Together);
        let Some(whole) = self.idle.0.rows.iter().find(|row| row.name == touch).and_then(|row| row.figures.last()) else { return };
        let parts =
            [("wire", pieces.wire), ("decode", pieces.decode), ("install", pieces.install), ("wake, and all else", whole - pieces.sum())];
        parts.iter().for_each(|(part, us)| self.split.add(&format!("{what}: {part}"), *us));
    }

    pub fn at_once(&mut self, what: &str, touches: &Touches) {
        self.at_once.add(what, touches.us_a_touch());
    }

    /// The last figures, for whoever watches.
    pub fn latest(&self) -> String {
        let line = |table: &Table, row: &defrost_tests::record::Row| {
            row.figures.last().map(|last| format!("  {} | {}: {last:.1} {}\n", table.title, row.name, table.unit))
        };
        self.all().into_iter().flat_map(|table| table.rows.iter().filter_map(move |row| line(table, row))).collect()
    }

    fn all(&self) -> [&Table; 11] {
        let Self { idle, background, load, waited, gaps, split, at_once } = self;
        [&idle.0, &idle.1, &background.0, &background.1, &load.0, &load.1, waited, &gaps.0, &gaps.1, split, at_once]
    }

    /// All of them, with what is aimed at.
    pub fn done(mut self) -> Vec<Table> {
        for placement in crate::turn::PLACEMENTS {
            let (ours, twin) = (row(SERVED, placement), row(RAW, placement));
            let pinned = placement == Placement::Together;
            self.idle.0.hold(&ours, &twin, pinned.then_some(1.25));
            self.idle.1.hold(&ours, &twin, None);
            self.gaps.0.hold(&ours, &twin, pinned.then_some(1.35));
            self.gaps.1.hold(&ours, &twin, None);
            for what in [EMBEDDED, SERVED] {
                let [busy, idle] = [UNDER_LOAD, IDLE].map(|how| format!("{}, {how}", row(what, placement)));
                // On one processor both share what there is: bulk load is a load there.
                let aims = (what == SERVED && !pinned).then_some((1.5, 5.0));
                self.load.0.hold(&busy, &idle, aims.map(|(p50, _)| p50));
                self.load.1.hold(&busy, &idle, aims.map(|(_, p99)| p99));
            }
        }
        self.at_once.hold(EMBEDDED, HANDLER, Some(1.0 / 3.0));
        self.at_once.hold(SERVED, HANDLER, None);
        let Self { idle, background, load, waited, gaps, split, at_once } = self;
        vec![idle.0, idle.1, background.0, background.1, load.0, load.1, waited, gaps.0, gaps.1, split, at_once]
    }
}
