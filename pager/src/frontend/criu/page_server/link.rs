//! The one connection to a page server, which all who need pages share.
//!
//! A request has it alone until its answer is read. Faults go before bulk: whoever is [`Urgency::Bulk`] asks for little at a time, and
//! waits while a fault does. After a failure nothing that comes over it can be told apart any more, so that the failure is everybody's.

use super::PageServerError;
use super::wire::{CLOSE, MESSAGE_BYTES, Message, NONSENSE};
use nix::sys::socket::{setsockopt, sockopt};
use pages::PageRange;
use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// After this a server that is not heard of is asked for a sign of life: so a machine that is gone is noticed within a minute or so.
const IDLE_S: u32 = 15;
/// How often it is asked, and how many times.
const PROBE_S: u32 = 5;
const PROBES: u32 = 6;
/// How long a server that is told off may keep us: it may be what hangs.
const ABANDON: Duration = Duration::from_secs(2);

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A thread waits.
    Fault,
    /// Nobody does.
    Bulk,
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    address: String,
    stream: TcpStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// A request is on its way.
    busy: bool,
    /// Faults that wait for their turn.
    faults: usize,
    /// Restored tasks run: their memory is theirs, and the source must not.
    running: bool,
    over: Option<PageServerError>,
}

impl Link {
    /// Connect to HOST:PORT.
    pub fn connect(address: &str) -> Result<Self, PageServerError> {
        let failed = |source| PageServerError::Connect { address: address.to_owned(), source: Arc::new(source) };
        let stream = TcpStream::connect(address).map_err(failed)?;
        watch_over(&stream).and_then(|()| give_up_unanswered(&stream)).map_err(failed)?;
        Ok(Self { address: address.to_owned(), stream, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Ask for pages of a task. Yields how many of them came, into `buffer`: those at the beginning, at least one.
    pub fn get(&self, urgency: Urgency, pid: u32, asked: PageRange, buffer: &mut Vec<u8>) -> Result<PageRange, PageServerError> {
        self.in_turn(urgency, || {
            let lost = |why| PageServerError::Lost { address: self.address.clone(), pid, pages: asked, why: Arc::new(why) };
            let mut stream = &self.stream;
            stream.write_all(&Message::get(pid, asked).encode()).map_err(lost)?;
            let mut head = [0; MESSAGE_BYTES];
            stream.read_exact(&mut head).map_err(lost)?;
            let answered = Message::decode(&head).answers(pid, asked);
            let range = answered.map_err(|what| PageServerError::Lied { address: self.address.clone(), what })?;
            buffer.resize(range.bytes() as usize, 0);
            stream.read_exact(buffer).map_err(lost)?;
            Ok(range)
        })
    }

    /// All tasks run.
    pub fn tasks_run(&self) {
        self.state().running = true;
        self.changed.notify_all();
    }

    /// Wait until all tasks run; false if the session ended before.
    pub fn wait_until_tasks_run(&self) -> bool {
        let waited = self.changed.wait_while(self.state(), |state| !state.running && state.over.is_none());
        let state = waited.unwrap_or_else(PoisonError::into_inner);
        state.running && state.over.is_none()
    }

    /// Whether tasks run that were restored.
    pub fn do_tasks_run(&self) -> bool {
        self.state().running
    }

    /// All pages are here: let the server go, and with it the process that it serves. Once is enough.
    pub fn close(&self) -> Result<(), PageServerError> {
        if matches!(self.state().over, Some(PageServerError::Over(_))) {
            return Ok(());
        }
        self.in_turn(Urgency::Bulk, || {
            let not = |what: String| PageServerError::NotClosed { address: self.address.clone(), what };
            let mut stream = &self.stream;
            let mut status = [0; 4];
            let asked = stream.write_all(&Message::bare(CLOSE).encode()).and_then(|()| stream.read_exact(&mut status));
            asked.map_err(|error| not(error.to_string()))?;
            match i32::from_ne_bytes(status) {
                0 => {
                    // While it is still our turn: to a CRIU that was told of the end, whatever else comes is a failure.
                    self.end(PageServerError::Over(self.address.clone()));
                    Ok(())
                }
                status => Err(not(format!("status {status}"))),
            }
        })
    }

    /// Nothing will come of the restore: unless tasks run, have a CRIU that serves the process it dumped let that process go on.
    pub fn abandon(&self) {
        let mut state = self.state();
        state.faults += 1; // no bulk behind this
        let idle = self.changed.wait_timeout_while(state, ABANDON, |state| state.busy && state.over.is_none());
        let (state, _) = idle.unwrap_or_else(PoisonError::into_inner);
        let matters = !state.running && !matches!(state.over, Some(PageServerError::Over(_)));
        drop(state);
        if matters {
            // Behind whatever is on its way; a server that hung up has noticed already.
            let _ = (&self.stream).write_all(&Message::bare(NONSENSE).encode());
        }
        self.end(PageServerError::Over(self.address.clone()));
    }

    /// Run `exchange` once nobody else does who goes first.
    fn in_turn<T>(&self, urgency: Urgency, exchange: impl FnOnce() -> Result<T, PageServerError>) -> Result<T, PageServerError> {
        let mut state = self.state();
        let fault = urgency == Urgency::Fault;
        state.faults += usize::from(fault);
        let others = |state: &mut State| state.over.is_none() && (state.busy || (!fault && state.faults > 0));
        let mut state = self.changed.wait_while(state, others).unwrap_or_else(PoisonError::into_inner);
        state.faults -= usize::from(fault);
        if let Some(error) = &state.over {
            return Err(error.clone());
        }
        state.busy = true;
        drop(state);
        let result = exchange();
        let mut state = self.state();
        state.busy = false;
        if let Err(error) = &result {
            state.over.get_or_insert_with(|| error.clone());
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Nothing more is asked.
    fn end(&self, why: PageServerError) {
        self.state().over.get_or_insert(why);
        let _ = self.stream.shutdown(Shutdown::Both); // the other end was faster
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Small messages go at once, and a peer whose machine is gone is found out.
pub(super) fn watch_over(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &IDLE_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &PROBE_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &PROBES)?;
    Ok(())
}

/// Nor may a request stay unacknowledged for longer: nothing is probed meanwhile.
fn give_up_unanswered(stream: &TcpStream) -> std::io::Result<()> {
    Ok(setsockopt(stream, sockopt::TcpUserTimeout, &((IDLE_S + PROBE_S * PROBES) * 1000))?)
}

/// The error of a peer that closed where more should have come.
pub(super) fn cut_off() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "it closed in the middle of a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pages::PageAddr;
    use std::net::TcpListener;
    use std::sync::mpsc::channel;

    fn page(number: u64) -> PageRange {
        PageRange::with_len(PageAddr::from_number(number), 1).unwrap_or_else(|| unreachable!("one page is a range"))
    }

    /// A server that tells what it is asked, and answers once it may.
    fn server() -> std::io::Result<(Link, std::sync::mpsc::Receiver<u64>, std::sync::mpsc::Sender<()>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let link = Link::connect(&listener.local_addr()?.to_string()).map_err(Error::other)?;
        let ((asked, told), (go, may)) = (channel(), channel());
        std::thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut head = [0; MESSAGE_BYTES];
            loop {
                stream.read_exact(&mut head)?;
                let message = Message::decode(&head);
                asked.send(message.address / 4096).map_err(Error::other)?;
                may.recv().map_err(Error::other)?;
                match message.command {
                    CLOSE => stream.write_all(&[0; 4])?,
                    _ => {
                        stream.write_all(&Message::add(message.pid as u32, page(message.address / 4096)).encode())?;
                        stream.write_all(&[message.pid as u8; 4096])?;
                    }
                }
            }
        });
        Ok((link, told, go))
    }

    #[test]
    fn a_fault_goes_before_all_bulk_that_waits() -> std::io::Result<()> {
        let (link, told, go) = server()?;
        std::thread::scope(|scope| {
            let get = |urgency, number| {
                let link = &link;
                scope.spawn(move || {
                    let mut buffer = Vec::new();
                    assert_eq!(link.get(urgency, 7, page(number), &mut buffer).ok(), Some(page(number)));
                    assert_eq!(buffer, [7; 4096]);
                })
            };
            get(Urgency::Bulk, 1);
            assert_eq!(told.recv(), Ok(1));
            let waiting: Vec<_> = (2..6).map(|number| get(Urgency::Bulk, number)).collect();
            // That they wait already is what makes it hard; if they do not, it holds all the same.
            std::thread::sleep(Duration::from_millis(50));
            get(Urgency::Fault, 9);
            while link.state().faults == 0 {
                std::thread::yield_now();
            }
            for _ in 0..6 {
                go.send(()).map_err(Error::other)?;
            }
            assert_eq!(told.recv(), Ok(9));
            waiting.into_iter().for_each(|thread| assert!(thread.join().is_ok()));
            Ok(())
        })
    }

    /// Whoever fills may want more than anybody owes any more, and must not be what CRIU hears after the end.
    #[test]
    fn whoever_waits_while_the_end_is_told_asks_nothing() -> std::io::Result<()> {
        for _ in 0..100 {
            let (link, told, go) = server()?;
            std::thread::scope(|scope| {
                let close = scope.spawn(|| link.close());
                assert_eq!(told.recv(), Ok(0));
                let waiting = [1, 2].map(|number| {
                    let link = &link;
                    scope.spawn(move || link.get(Urgency::Bulk, 7, page(number), &mut Vec::new()).err())
                });
                go.send(()).map_err(Error::other)?;
                assert!(close.join().is_ok_and(|closed| closed.is_ok()));
                let over = |refused| matches!(refused, Ok(Some(PageServerError::Over(_))));
                assert!(waiting.into_iter().all(|thread| over(thread.join())));
                std::io::Result::Ok(())
            })?;
            // The server reads on, and would tell.
            assert!(told.recv().is_err(), "something was asked after the end");
        }
        Ok(())
    }

    #[test]
    fn after_the_end_nothing_is_asked() -> std::io::Result<()> {
        let (link, told, go) = server()?;
        go.send(()).map_err(Error::other)?;
        assert!(link.close().is_ok() && link.close().is_ok(), "twice is as well");
        assert_eq!(told.recv(), Ok(0));
        let asked = link.get(Urgency::Fault, 7, page(1), &mut Vec::new());
        assert!(matches!(asked, Err(PageServerError::Over(_))), "{asked:?}");
        Ok(())
    }
}
