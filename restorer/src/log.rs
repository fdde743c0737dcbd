//! What is said on standard error: as our users know it, or, where `defrost-criu` stands in for CRIU, as those of CRIU's logs do, who look
//! for lines with `Error (`:
//!
//! ```text
//! (00.012345) Error (pager/src/frontend/serve.rs:87): what went wrong
//! (00.012345) Warn  (pager/src/chunks.rs:90): what may
//! (00.012345) anything else
//! ```

use pages::line::{Lines, on_one_line};
use std::fmt::Result;
use std::io::Write;
use std::time::Instant;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, fmt};
use tracing_subscriber::registry::LookupSpan;

/// The variable of the environment that asks for CRIU's form: its value is `criu`.
const FORM: &str = "DEFROST_LOG";

/// CRIU's form; since when.
struct LikeCriu(Instant);

impl<S, N> FormatEvent<S, N> for LikeCriu
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> Result {
        let (age, metadata) = (self.0.elapsed(), event.metadata());
        write!(writer, "({:02}.{:06}) ", age.as_secs(), age.subsec_micros())?;
        let place = (metadata.file().unwrap_or("defrost"), metadata.line().unwrap_or(0));
        match *metadata.level() {
            Level::ERROR => write!(writer, "Error ({}:{}): ", place.0, place.1)?,
            Level::WARN => write!(writer, "Warn  ({}:{}): ", place.0, place.1)?,
            _ => {}
        }
        context.format_fields(writer.by_ref(), event)?;
        writer.write_char('\n')
    }
}

fn is_like_criu() -> bool {
    std::env::var_os(FORM).is_some_and(|form| form == "criu")
}

/// From now on.
pub fn begin() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    // Without colours: in an event's text no escape is ours.
    let log = fmt().with_env_filter(filter).with_writer(|| Lines(std::io::stderr())).with_ansi(false);
    // What cannot be written (the disk is full) is lost: saying so on the same stream would be a panic, and a pager's end.
    let log = log.log_internal_errors(false);
    match is_like_criu() {
        true => log.event_format(LikeCriu(Instant::now())).init(),
        false => log.init(),
    }
}

/// The last words of a command that failed.
pub fn failed(why: &str) {
    let why = on_one_line(why);
    match is_like_criu() {
        true => tracing::error!("{why}"),
        false => _ = writeln!(std::io::stderr(), "defrost: {why}"), // the same
    }
}
