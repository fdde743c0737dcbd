//! One stream of page requests with any number of them under way: a task hands each answer to whoever waits for its id.
//!
//! A caller that gives up takes its id back, and an answer that comes for it later is dropped. When the stream ends, everybody who
//! waits is told why, and so is whoever asks later.

use pages::ChunkId;
use proto::domain::{Class, PageAnswer, PageRequest, ProtocolError};
use proto::wire::pages_client::PagesClient;
use proto::wire::{FetchAnswer, FetchRequest};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Requests that may wait to be sent; each is a few KiB at most, and its caller waits.
const QUEUED: usize = 64;

/// Why there will be no answer.
#[derive(Clone, Debug)]
pub(super) enum Lost {
    /// The stream ended.
    Ended(Status),
    /// An answer was malformed.
    Malformed(ProtocolError),
}

/// An open stream.
pub(super) struct Fetching {
    requests: mpsc::Sender<FetchRequest>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    last_id: u64,
    by_id: HashMap<u64, oneshot::Sender<Result<PageAnswer, Lost>>>,
    ended: Option<Lost>,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
}

impl Waiting {
    fn end(&mut self, why: &Lost) {
        self.ended = Some(why.clone());
        for (_, caller) in self.by_id.drain() {
            let _ = caller.send(Err(why.clone())); // it may have given up
        }
    }
}

/// A request under way. Takes its id back when its caller gives up.
pub(super) struct Asked {
    waiting: Arc<Mutex<Waiting>>,
    id: u64,
    answer: oneshot::Receiver<Result<PageAnswer, Lost>>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        lock(&self.waiting).by_id.remove(&self.id);
    }
}

fn ended() -> Lost {
    Lost::Ended(Status::unavailable("the stream ended"))
}

impl Asked {
    /// Wait for the answer; the caller sets the deadline.
    pub(super) async fn answer(&mut self) -> Result<PageAnswer, Lost> {
        (&mut self.answer).await.unwrap_or_else(|_| Err(ended()))
    }

    /// The same, without going to sleep for the first so long.
    pub(super) async fn answer_within_a_spin(&mut self, spin: Duration) -> Result<PageAnswer, Lost> {
        let begun = (!spin.is_zero()).then(Instant::now);
        while begun.is_some_and(|begun| begun.elapsed() < spin) {
            if let Some(answer) = self.answer_now() {
                return answer;
            }
            tokio::task::yield_now().await; // whose runtime then looks at the socket, and returns at once
        }
        self.answer().await
    }

    /// The answer, if it is there.
    pub(super) fn answer_now(&mut self) -> Option<Result<PageAnswer, Lost>> {
        match self.answer.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => Some(Err(ended())),
        }
    }
}

impl Fetching {
    /// Open a stream; the caller sets the deadline.
    pub(super) async fn open(channel: Channel) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(QUEUED);
        let mut client = PagesClient::new(channel).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
        let answers = client.fetch(ReceiverStream::new(receiver)).await?.into_inner();
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        tokio::spawn(hand_out(answers, waiting.clone()));
        Ok(Self { requests, waiting })
    }

    /// Ask for a run; the caller sets the deadline.
    pub(super) async fn ask(&self, class: Class, run: &[ChunkId]) -> Result<Asked, Lost> {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut waiting = lock(&self.waiting);
            if let Some(why) = &waiting.ended {
                return Err(why.clone());
            }
            waiting.last_id += 1;
            let id = waiting.last_id;
            waiting.by_id.insert(id, sender);
            id
        };
        let asked = Asked { waiting: self.waiting.clone(), id, answer };
        let request = PageRequest { id, class, run: run.to_vec() };
        if self.requests.send(request.into()).await.is_err() {
            return Err(lock(&self.waiting).ended.clone().unwrap_or_else(ended));
        }
        Ok(asked)
    }
}

async fn hand_out(mut answers: Streaming<FetchAnswer>, waiting: Arc<Mutex<Waiting>>) {
    let why = loop {
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => break Lost::Ended(Status::unavailable("it ended the stream")),
            Err(status) => break Lost::Ended(status),
        };
        match PageAnswer::try_from(answer) {
            Ok(answer) => {
                if let Some(caller) = lock(&waiting).by_id.remove(&answer.id) {
                    let _ = caller.send(Ok(answer)); // it may have given up just now
                }
            }
            Err(error) => break Lost::Malformed(error),
        }
    };
    lock(&waiting).end(&why);
}
