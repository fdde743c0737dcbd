//! Our end for those who restore with `criu lazy-pages --page-server`, or with our own daemon: pages of a dump from any [`Source`].
//!
//! Each client has a thread and a source of its own. Whoever asks for what the dump does not have, or says what makes no sense, is hung
//! up on: the protocol has no other way to say no.

use super::PageServerError;
use super::link::{cut_off, watch_over};
use super::wire::{CLOSE, FORCE_CLOSE, GET, MESSAGE_BYTES, Message};
use crate::frontend::criu::{CriuError, Plan};
use crate::frontend::{Held, Source, Wanted};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// Pages sent in one answer: as many as CRIU asks for at most.
const ANSWER_PAGES: u64 = 1024;
/// Clients at a time: each costs a thread, what its source has open, and an answer of 4 MiB.
const CLIENTS_MAX: usize = 64;
/// How long a client may take to the rest of a request that it has begun. It may begin when it likes: a daemon connects before its
/// restore is started.
const REQUEST_COMES: Duration = Duration::from_secs(10);
/// How long a client may leave an answer unread.
const ANSWER_TAKEN: Duration = Duration::from_secs(60);

/// Clients that have made no request yet, the oldest first: they make room for others.
#[derive(Debug, Default)]
struct Silent(Mutex<VecDeque<(u64, TcpStream)>>);

impl Silent {
    fn list(&self) -> MutexGuard<'_, VecDeque<(u64, TcpStream)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
    }

    fn spoke(&self, number: u64) {
        self.list().retain(|(one, _)| *one != number);
    }

    /// Hang up on the oldest of the host that has most of them; whether there was one.
    fn make_room(&self) -> bool {
        let mut list = self.list();
        let host = |stream: &TcpStream| stream.peer_addr().ok().map(|peer| peer.ip());
        let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
        list.iter().for_each(|(_, stream)| *counts.entry(host(stream)).or_default() += 1);
        let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(host, _)| host);
        let oldest = most.and_then(|most| list.iter().position(|(_, stream)| host(stream) == most));
        oldest.and_then(|at| list.remove(at)).is_some_and(|(_, stream)| stream.shutdown(Shutdown::Both).is_ok())
    }
}

/// When it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// With its first client, as CRIU's own.
    FirstClientEnds,
    /// When told by a signal, and no client is left.
    Told,
}

/// One that listens.
pub struct PageServer {
    plan: Arc<Plan>,
    listener: TcpListener,
    held: Held,
}

/// Makes a client's source.
pub type MakeSource<'a> = &'a (dyn Fn() -> Result<Box<dyn Source>, String> + Sync);

impl PageServer {
    /// Listen on HOST:PORT for clients who need what `plan` tells of.
    pub fn listen(plan: Arc<Plan>, address: &str, held: Held) -> Result<Self, PageServerError> {
        let failed = |source| PageServerError::Listen { address: address.to_owned(), source: Arc::new(source) };
        Ok(Self { plan, listener: TcpListener::bind(address).map_err(failed)?, held })
    }

    /// Where.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serve; yields how many clients there were.
    pub fn serve(self, until: Until, source: MakeSource<'_>) -> Result<u64, CriuError> {
        let mut clients = 0;
        let (here, last, silent) = (AtomicUsize::new(0), RwLock::new(Ok(())), Silent::default());
        std::thread::scope(|scope| {
            loop {
                let Some((stream, client)) = self.accept(until)? else { return Ok(()) };
                clients += 1;
                let (plan, here, last, silent, number) = (&self.plan, &here, &last, &silent, clients);
                if here.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX && !silent.make_room() {
                    tracing::warn!(%client, "turned away: {CLIENTS_MAX} clients are being served");
                    here.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                if let Ok(same) = stream.try_clone() {
                    silent.list().push_back((number, same));
                }
                let run = move || {
                    let served = source().map_err(PageServerError::Source);
                    let served =
                        served.and_then(|source| Session { plan, client, stream, source, served: 0 }.run(&|| silent.spoke(number)));
                    silent.spoke(number);
                    match &served {
                        Ok(pages) => tracing::info!(%client, pages, "session over"),
                        Err(error) => tracing::error!(%error, "session over"),
                    }
                    *last.write().unwrap_or_else(PoisonError::into_inner) = served.map(drop);
                    here.fetch_sub(1, Ordering::Relaxed);
                };
                std::thread::Builder::new().name("client".to_owned()).spawn_scoped(scope, run)?;
                if until == Until::FirstClientEnds {
                    return Ok::<(), CriuError>(());
                }
            }
        })?;
        match (until, last.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Until::FirstClientEnds, Err(error)) => Err(error.into()),
            _ => Ok(clients),
        }
    }

    /// The next client; `None` once we are told to end.
    fn accept(&self, until: Until) -> Result<Option<(TcpStream, SocketAddr)>, CriuError> {
        loop {
            match (self.held.waits_for(self.listener.as_fd())?, until) {
                (false, Until::FirstClientEnds) => return Err(CriuError::NoClient),
                (false, Until::Told) => return Ok(None),
                (true, _) => {}
            }
            match self.listener.accept() {
                Ok((stream, client)) => match watch_over(&stream) {
                    Ok(()) => return Ok(Some((stream, client))),
                    Err(error) => tracing::warn!(%client, %error, "it is gone again"),
                },
                // It hung up before we came to it.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

struct Session<'a> {
    plan: &'a Plan,
    client: SocketAddr,
    stream: TcpStream,
    source: Box<dyn Source>,
    served: u64,
}

impl Session<'_> {
    /// Answer until there are no more questions; yields how many pages went out.
    fn run(mut self, spoke: &dyn Fn()) -> Result<u64, PageServerError> {
        tracing::info!(client = %self.client, "serving");
        let client = self.client;
        let gone = |source| PageServerError::Gone { client: client.to_string(), source: Arc::new(source) };
        let mut answer = Vec::new();
        self.stream.set_write_timeout(Some(ANSWER_TAKEN)).map_err(gone)?;
        while let Some(message) = self.next().map_err(gone)? {
            spoke();
            match message.command {
                GET => self.contents(&message, &mut answer)?,
                CLOSE | FORCE_CLOSE => answer = 0_i32.to_ne_bytes().to_vec(),
                command => return Err(self.refused(format!("command {command:#x}, and this server has only pages to give"))),
            }
            self.stream.write_all(&answer).map_err(gone)?;
            if message.command == FORCE_CLOSE {
                break;
            }
        }
        Ok(self.served)
    }

    /// The next question; `None` if there is none.
    fn next(&mut self) -> std::io::Result<Option<Message>> {
        let (mut head, mut length) = ([0; MESSAGE_BYTES], 0);
        while length < MESSAGE_BYTES {
            match self.stream.read(&mut head[length..]) {
                Ok(0) if length == 0 => return Ok(None),
                Ok(0) => return Err(cut_off()),
                Ok(bytes) => {
                    length += bytes;
                    self.stream.set_read_timeout((length < MESSAGE_BYTES).then_some(REQUEST_COMES))?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Message::decode(&head)))
    }

    /// The answer to GET: pages from the address on, as many as lie together.
    fn contents(&mut self, message: &Message, answer: &mut Vec<u8>) -> Result<(), PageServerError> {
        let &Message { pages, address, pid, .. } = message;
        let found = u32::try_from(pid).ok().zip(PageAddr::new(address));
        let found = found.and_then(|(pid, start)| Some((pid, start, self.plan.piece(pid, start).ok()?)));
        let wanted = found.and_then(|(pid, start, piece)| {
            let range = PageRange::with_len(start, pages.min(ANSWER_PAGES))?.intersect(&piece.range)?;
            Some((pid, range)).filter(|(_, range)| !range.is_empty())
        });
        let Some((pid, range)) = wanted else {
            return Err(self.refused(format!("a request for {pages} pages at {address:#x} of task {pid}, which are not lazy here")));
        };
        answer.clear();
        answer.extend_from_slice(&Message::add(pid, range).encode());
        answer.resize(MESSAGE_BYTES + range.bytes() as usize, 0);
        let mut missing = vec![true; range.pages() as usize];
        let contents = &mut answer[MESSAGE_BYTES..];
        let stop = AtomicBool::new(false);
        let brought = self.source.bring(&[Wanted { id: pid, pages: range }], &[], &stop, &mut |of, came, data| {
            let Some(part) = came.intersect(&range).filter(|_| of == pid) else { return true };
            let pages_from = |start: PageAddr| (part.start().number() - start.number()) as usize;
            let (to, from, pages) = (pages_from(range.start()), pages_from(came.start()), part.pages() as usize);
            let page_bytes = PAGE_SIZE_BYTES as usize;
            contents[to * page_bytes..(to + pages) * page_bytes].copy_from_slice(&data[from * page_bytes..(from + pages) * page_bytes]);
            missing[to..to + pages].fill(false);
            true
        });
        brought.map_err(|error| PageServerError::Source(error.to_string()))?;
        if missing.contains(&true) {
            return Err(PageServerError::Source(format!(
                "pages {range} of task {pid} did not all come: run `defrost verify` on the snapshot"
            )));
        }
        self.served += range.pages();
        Ok(())
    }

    fn refused(&self, what: String) -> PageServerError {
        PageServerError::Client { client: self.client.to_string(), what: format!("it sent {what}") }
    }
}
