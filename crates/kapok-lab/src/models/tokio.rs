//! Tasks on the tokio runtime.
//!
//! Waits: in an event loop (mio's) that nobody sees; each connection is a task that reads like the
//! blocking server, and `.await` is where it gives its thread away. Costs: an epoll loop's, and for
//! each wake-up the scheduling and polling of a task; a read that waits holds its buffer. With one
//! worker everything runs on the thread that called; with more, tasks move between the workers of
//! one runtime, or, with a listener in each worker, every worker has a runtime of its own.

use std::future::pending;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::listener::Listener;
use super::pace::Pace;
use super::{Server, on_threads};
use crate::serve::AcceptMode;
use crate::workload::{Session, Want};

pub(super) fn serve(server: &Arc<Server>, listeners: Vec<Listener>) -> io::Result<()> {
    let workers = server.config.threads;
    on_threads(server, "worker", listeners, |listener| {
        let mut builder = match server.config.accept {
            AcceptMode::Thread if workers > 1 => {
                let mut builder = Builder::new_multi_thread();
                builder.worker_threads(workers);
                builder
            }
            AcceptMode::Thread | AcceptMode::Worker => Builder::new_current_thread(),
        };
        builder.enable_all().build()?.block_on(accept(server, listener))
    })
}

/// Accepts and spawns until the stop, then waits for the tasks.
async fn accept(server: &Arc<Server>, listener: Listener) -> io::Result<()> {
    let (listener, mut backoff) = listener.into_parts();
    let listener = TcpListener::from_std(listener)?;
    let stop = AsyncFd::with_interest(server.stop.as_fd(), Interest::READABLE)?;
    let mut pace = Pace::new(&server.config);
    let roster = Arc::new(Roster::default());
    let mut tasks = JoinSet::new();
    loop {
        let timeout = pace.timeout(tasks.is_empty());
        tokio::select! {
            accepted = listener.accept(), if pace.accepts() => match accepted {
                Ok((stream, _peer)) => {
                    server.tally.accepted();
                    backoff.reset();
                    tasks.spawn(converse(Arc::clone(server), stream, Arc::clone(&roster)));
                }
                Err(error) => {
                    if let Some(pause) = backoff.failed(error, &server.tally)? {
                        pace.pause_accepting(pause);
                    }
                }
            },
            _ = stop.readable(), if !pace.drains() => {
                pace.drain(server.config.drain_timeout);
                roster.shut_down(Shutdown::Read, |_| true);
            }
            Some(_ended) = tasks.join_next() => {}
            () = sleep_or_pend(timeout) => {}
        }
        let due = pace.due();
        if due.sweep {
            roster.now.store(pace.now(), Relaxed);
            roster.shut_down(Shutdown::Both, |active| pace.is_idle(active));
        }
        if due.cut || pace.drains() && tasks.is_empty() {
            // Dropping a task at its `.await` closes its connection.
            tasks.shutdown().await;
            return Ok(());
        }
    }
}

async fn sleep_or_pend(limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep(limit).await,
        None => pending().await,
    }
}

/// Serves one connection to its end. How it ended concerns that connection only.
async fn converse(server: Arc<Server>, mut stream: TcpStream, roster: Arc<Roster>) {
    // Declared after the stream, so it is dropped before: off the roster, then closed.
    let entry = Roster::enter(&roster, &stream);
    let mut counted = Counted { session: server.workload.session(), server };
    let session = &mut counted.session;
    loop {
        let outcome = match session.want() {
            Want::Read => match stream.read(session.space()).await {
                Ok(0) => {
                    session.ended();
                    Ok(())
                }
                read => read.map(|n| session.received(n)),
            },
            Want::Write => stream.write(session.pending()).await.map(|n| session.sent(n)),
            Want::ShutDown => {
                session.shut_down();
                stream.shutdown().await
            }
            Want::Close => return,
        };
        if outcome.is_err() {
            return;
        }
        entry.active.store(roster.now.load(Relaxed), Relaxed);
    }
}

/// A session whose requests are counted however its task ends.
struct Counted {
    session: Session,
    server: Arc<Server>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.server.tally.requests(self.session.requests());
    }
}

/// The open connections, for the sweep and the stop: cheaper than a timer for each read.
#[derive(Default)]
struct Roster {
    slots: Mutex<Vec<Option<(RawFd, Arc<AtomicU32>)>>>,
    free: Mutex<Vec<usize>>,
    /// The number of the current sweep.
    now: AtomicU32,
}

/// A connection on the roster; leaves it when dropped.
struct Entry {
    roster: Arc<Roster>,
    slot: usize,
    active: Arc<AtomicU32>,
}

impl Roster {
    fn slots(&self) -> MutexGuard<'_, Vec<Option<(RawFd, Arc<AtomicU32>)>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free(&self) -> MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(roster: &Arc<Roster>, stream: &TcpStream) -> Entry {
        let active = Arc::new(AtomicU32::new(roster.now.load(Relaxed)));
        let mut slots = roster.slots();
        let slot = roster.free().pop().unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        slots[slot] = Some((stream.as_raw_fd(), Arc::clone(&active)));
        drop(slots);
        Entry { roster: Arc::clone(roster), slot, active }
    }

    /// Shuts down the connections whose last activity `which` picks: their reads then end.
    fn shut_down(&self, how: Shutdown, which: impl Fn(u32) -> bool) {
        for (fd, active) in self.slots().iter().flatten() {
            if which(active.load(Relaxed)) {
                // SAFETY: the descriptor is open: its task leaves the roster, which is locked here,
                // before it closes the stream.
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                // Fails if the peer has reset the connection: then the task's read says so.
                let _ = SockRef::from(&fd).shutdown(how);
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut slots = self.roster.slots();
        slots[self.slot] = None;
        self.roster.free().push(self.slot);
    }
}
