//! Frames under way that nobody waits for yet. The thread that looks drives the connection meanwhile.

use super::fetching::{Asked, Lost};
use super::link::Link;
use crate::{Arrived, Coming};
use proto::domain::PageAnswer;
use std::sync::Arc;
use std::time::Duration;

/// Turns of the runtime in one look: the socket is read in the first, the connection's and the stream's task follow it.
const TURNS: usize = 2;

/// A request under way.
pub(super) struct RemoteComing {
    link: Arc<Link>,
    asked: Asked,
    chunks: usize,
}

impl RemoteComing {
    pub(super) fn new(link: Arc<Link>, asked: Asked, chunks: usize) -> Self {
        Self { link, asked, chunks }
    }

    fn arrived(&self, answer: Option<Result<PageAnswer, Lost>>) -> Arrived {
        match answer {
            None => Arrived::NotYet,
            Some(Ok(PageAnswer { outcome: Ok(frames), .. })) if frames.len() == self.chunks => Arrived::Frames(frames),
            Some(_) => Arrived::Lost,
        }
    }
}

impl Coming for RemoteComing {
    fn look(&mut self) -> Arrived {
        let asked = &mut self.asked;
        let answer = self.link.runtime().block_on(async {
            for _ in 0..TURNS {
                if let Some(answer) = asked.answer_now() {
                    return Some(answer);
                }
                tokio::task::yield_now().await;
            }
            asked.answer_now()
        });
        self.arrived(answer)
    }

    fn wait(&mut self, limit: Duration) -> Arrived {
        let asked = &mut self.asked;
        let answer = self.link.runtime().block_on(async { tokio::time::timeout(limit, asked.answer()).await });
        self.arrived(answer.ok())
    }
}
