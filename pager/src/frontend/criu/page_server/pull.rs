//! Pulls everything, asked for or not, so that the process that was dumped can be let go early.

use super::source::BULK_PAGES;
use super::{Kept, Link, PageServerError, Urgency};
use std::sync::Arc;
use std::thread::JoinHandle;

/// A thread that does.
#[derive(Debug)]
pub struct Pull(JoinHandle<Result<(), PageServerError>>);

impl Pull {
    /// From now on, until all is `kept`. Once it is and all tasks run, the server is told.
    pub fn start(link: &Arc<Link>, kept: &Arc<Kept>) -> std::io::Result<Self> {
        let (link, kept) = (link.clone(), kept.clone());
        let run = move || {
            let mut buffer = Vec::new();
            while let Some((pid, missing)) = kept.next_missing(BULK_PAGES) {
                let came = link.get(Urgency::Bulk, pid, missing, &mut buffer)?;
                kept.keep(pid, came, &buffer);
            }
            if kept.is_whole() && link.wait_until_tasks_run() {
                link.close()?;
                tracing::info!("all pages are here: the process that was dumped is let go");
            }
            Ok(())
        };
        std::thread::Builder::new().name("pull".to_owned()).spawn(run).map(Self)
    }

    /// Wait for its end.
    pub fn ended(self) -> Result<(), PageServerError> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
