//! A restore as a front end: what it says, checked against the images.

use super::conversation::{Conversation, Said};
use super::{CriuError, Plan};
use crate::frontend::{Arrival, Failure, FrontEnd, Held, Memory};
use std::collections::BTreeSet;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// One restore's tasks.
pub(super) struct Tasks {
    plan: Arc<Plan>,
    conversation: Conversation,
    /// The other end of what is read, to hang up by.
    line: Arc<UnixStream>,
    announced: BTreeSet<u32>,
    /// Where only what is asked for is brought, until that says otherwise.
    on_demand: Option<Held>,
}

impl Tasks {
    /// Only what is asked for is brought if there are signals to wait for: these then end that.
    pub fn new(plan: Arc<Plan>, conversation: Conversation, on_demand: Option<Held>) -> std::io::Result<Self> {
        Ok(Self { plan, line: Arc::new(conversation.line()?), conversation, announced: BTreeSet::new(), on_demand })
    }

    /// A task comes once, and is one of the images'. What it has is watched and owed.
    fn announce(&mut self, pid: u32) -> Result<(Vec<pages::PageRange>, Vec<pages::PageRange>), CriuError> {
        let memory = self.plan.memory(pid).ok_or(CriuError::Stranger(pid as i32))?;
        if self.announced.insert(pid) { Ok(memory) } else { Err(CriuError::Twice(pid)) }
    }
}

impl FrontEnd for Tasks {
    fn next(&mut self) -> Result<Option<Arrival>, Failure> {
        loop {
            match self.conversation.next()? {
                Said::Task(pid, uffd) => {
                    let (regions, owed) = self.announce(pid)?;
                    return Ok(Some(Arrival::Memory(Memory {
                        id: pid,
                        uffd,
                        regions,
                        owed,
                        granule_pages: 1,
                        watched: false,
                        shared: false,
                    })));
                }
                Said::Dead(pid) => drop(self.announce(pid)?),
                Said::Finished => {
                    return Ok(Some(if self.on_demand.is_some() { Arrival::OnDemand } else { Arrival::Complete }));
                }
                Said::HungUp => {
                    let Some(signals) = self.on_demand.take() else { return Ok(None) };
                    signals.wait()?;
                    return Ok(Some(Arrival::Complete));
                }
            }
        }
    }

    /// A restore that is under way fails when it has something to say.
    fn give_up(&self) -> Box<dyn FnOnce() + Send> {
        let line = self.line.clone();
        Box::new(move || {
            let _ = line.shutdown(Shutdown::Read);
        })
    }
}
