//! Tasks on the tokio runtime.
//!
//! Waits: in an event loop (mio's) that nobody sees; each connection is a task that reads like the
//! blocking server, and `.await` is where it gives its thread away. Costs: an epoll loop's, and for
//! each wake-up the scheduling and polling of a task; a read that waits holds its buffer. With one
//! worker everything runs on the thread that called; with more, tasks move between the workers of
//! one runtime, or, with a listener in each worker, every worker has a runtime of its own.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use super::activity::{ActivityEntry, ActivityRoster};
use super::backend::QUESTION;
use super::listener::{Backoff, Listener};
use super::pace::Pace;
use super::{Server, on_threads};
use crate::serve::AcceptMode;
use crate::workload::{Session, Want, read_file};

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
    let (listener, mut backoff) = (listener.into_socket(), Backoff::default());
    let listener = TcpListener::from_std(listener)?;
    // SAFETY: the descriptor stays open while it is registered: the server outlives this call.
    let stop = unsafe { AsyncFd::register_with_interest(server.stop.as_fd(), Interest::READABLE)? };
    let mut pace = Pace::new(&server.config);
    let roster = Arc::new(ActivityRoster::new(|fd, how| SockRef::from(&fd).shutdown(how)));
    let mut tasks = JoinSet::new();
    loop {
        let timeout = pace.timeout(tasks.is_empty());
        tokio::select! {
            accepted = listener.accept(), if pace.accepts() => match accepted {
                Ok((stream, _peer)) => {
                    server.tally.accepted();
                    backoff.reset();
                    // On the roster before the task first runs, so that no stop overlooks it.
                    tasks.spawn(converse(Connection {
                        entry: ActivityRoster::enter(&roster, &stream),
                        stream,
                        session: server.workload.session(),
                        server: Arc::clone(server),
                    }));
                }
                Err(error) => {
                    if let Some(pause) = backoff.failed(error, &server.tally)? {
                        pace.pause_accepting(pause);
                    }
                }
            },
            _ = stop.readable(), if !pace.drains() => {
                pace.drain(server.config.drain_timeout);
                roster.end_input();
            }
            Some(_ended) = tasks.join_next() => {}
            () = sleep_or_pend(timeout) => {}
        }
        let due = pace.due();
        if due.sweep {
            roster.sweep(&pace);
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
async fn converse(mut connection: Connection) {
    let Connection { entry, stream, session, server } = &mut connection;
    let mut backend = None;
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
            Want::Ask => {
                ask(&mut backend, server.config.backend).await.map(|()| session.answered())
            }
            Want::Load => {
                // What tokio::fs does: a thread that may block.
                let path = session.file().to_owned();
                let read = spawn_blocking(move || read_file(&path)).await;
                session.loaded(read.unwrap_or_else(|error| Err(io::Error::other(error))));
                Ok(())
            }
            Want::ShutDown => {
                session.shut_down();
                stream.shutdown().await
            }
            Want::Close => return,
        };
        if outcome.is_err() {
            return;
        }
        entry.touch();
    }
}

/// Asks the backend, over a connection that is opened at the first time.
async fn ask(backend: &mut Option<TcpStream>, addr: Option<SocketAddr>) -> io::Result<()> {
    let stream = match backend {
        Some(stream) => stream,
        none => {
            let addr = addr.ok_or_else(|| io::Error::other("there is no backend to ask"))?;
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            none.insert(stream)
        }
    };
    stream.write_all(&QUESTION).await?;
    stream.read_exact(&mut [0; QUESTION.len()]).await.map(|_| ())
}

/// What a task owns. Fields are dropped in this order: off the roster, then closed.
struct Connection {
    entry: ActivityEntry,
    stream: TcpStream,
    session: Session,
    server: Arc<Server>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.server.tally.requests(self.session.requests());
    }
}
