//! A fiber per connection, on Kapok.
//!
//! Waits: the code is the blocking server's, word for word; what waits is a fiber, and its thread
//! runs others meanwhile. Costs: a stack of which a page is touched, a switch of some nanoseconds
//! for each wait, and the system calls of the engine beneath: on io_uring one for all that was
//! submitted and has landed, with receives straight into the session's own buffer; on epoll, poll
//! and select those of an event loop on them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kapok::net::{DescriptorLimit, TcpListener, TcpStream, wait_readable};
use kapok::sync::channel::{self, Sender};
use kapok::{Canceled, Kind, Runtime, RuntimeBuilder};

use super::activity::{ActivityEntry, ActivityRoster};
use super::backend::QUESTION;
use super::listener::{Backoff, Listener};
use super::pace::Pace;
use super::{Server, on_threads};
use crate::serve::{AcceptMode, Model, ServeConfig};
use crate::workload::{Want, check_file};

/// A runtime of one loop on the engine that the model names, or on the best there is.
pub(super) fn runtime(config: &ServeConfig) -> RuntimeBuilder {
    let engine = match config.model {
        Model::FiberUring => Some(Kind::Uring),
        Model::FiberEpoll => Some(Kind::Epoll),
        Model::FiberPoll => Some(Kind::Poll),
        Model::FiberSelect => Some(Kind::Select),
        _ => None,
    };
    let mut builder = Runtime::builder().dump_on_signal(config.dump_on_signal);
    if let Some(kind) = engine {
        builder = builder.engine(kind);
    }
    if let Some(limit) = config.watchdog {
        builder = builder.watchdog(limit);
    }
    builder
}

/// Serves the listeners on the engine that the model names.
pub(super) fn serve(server: &Arc<Server>, listeners: Vec<Listener>) -> io::Result<()> {
    // With a listener for each worker every worker has a runtime of its own; with one listener,
    // connections that have not been looked at move to whichever loop has nothing to do.
    let loops = match server.config.accept {
        AcceptMode::Thread => server.config.threads,
        AcceptMode::Worker => 1,
    };
    on_threads(server, "worker", listeners, |listener| {
        let builder = runtime(&server.config).threads(loops).close_limit(Duration::from_secs(1));
        let server = Arc::clone(server);
        builder.build()?.run(move || {
            let listener = TcpListener::try_from(listener.into_socket())?;
            supervise(&server, listener, || wait_readable(server.stop.as_fd()))
        })
    })
}

/// Starts what serves, waits until `stopped` returns, and then for the connections.
pub(super) fn supervise(
    server: &Arc<Server>,
    listener: TcpListener,
    stopped: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let roster = Arc::new(ActivityRoster::new(|fd, how| kapok::net::shutdown(fd, how)));
    // Every connection holds a sender; when the last is gone the receiver says so.
    let (open, all_closed) = channel::unbounded::<()>();
    let acceptor = {
        let (server, roster) = (Arc::clone(server), Arc::clone(&roster));
        kapok::spawn_local(move || accept(&server, &listener, &roster, &open))
    };
    let sweeper = {
        let (config, roster) = (server.config.clone(), Arc::clone(&roster));
        kapok::spawn_local(move || sweep(&Pace::by(kapok::time::now, &config), &roster))
    };
    stopped()?;
    acceptor.cancel();
    let accepted = acceptor.join().unwrap_or_else(|error| Err(io::Error::other(error.to_string())));
    roster.end_input();
    // What is left after the limit is cancelled with the runtime.
    let _ = kapok::timeout(server.config.drain_timeout, || all_closed.recv());
    sweeper.cancel();
    accepted
}

fn accept(
    server: &Arc<Server>,
    listener: &TcpListener,
    roster: &Arc<ActivityRoster>,
    open: &Sender<()>,
) -> io::Result<()> {
    let mut backoff = Backoff::default();
    loop {
        match listener.accept() {
            Ok((stream, _peer)) => {
                server.tally.accepted();
                backoff.reset();
                let connection = Connection {
                    entry: ActivityRoster::enter(roster, &stream),
                    stream,
                    server: Arc::clone(server),
                    _open: open.clone(),
                };
                // How a connection ended concerns that connection only.
                kapok::spawn(move || drop(connection.converse())).detach();
            }
            Err(error) if Canceled::is(&error) => return Ok(()),
            Err(error) if DescriptorLimit::is(&error) => {
                server.tally.refused(|| format!("connection closed: {error}"));
            }
            Err(error) => {
                if let Some(pause) = backoff.failed(error, &server.tally)?
                    && kapok::sleep(pause).is_err()
                {
                    return Ok(());
                }
            }
        }
    }
}

fn sweep(pace: &Pace, roster: &ActivityRoster) {
    let mut pace = pace.clone();
    while let Some(pause) = pace.timeout(false) {
        if kapok::sleep(pause).is_err() {
            return;
        }
        if pace.due().sweep {
            roster.sweep(&pace);
        }
    }
}

/// Asks the backend, over a connection that is opened at the first time.
fn ask(backend: &mut Option<TcpStream>, addr: Option<SocketAddr>) -> io::Result<()> {
    let stream = match backend {
        Some(stream) => stream,
        none => {
            let addr = addr.ok_or_else(|| io::Error::other("there is no backend to ask"))?;
            let stream = TcpStream::connect(addr)?;
            stream.set_nodelay(true)?;
            none.insert(stream)
        }
    };
    stream.write_all(&QUESTION)?;
    stream.read_exact(&mut [0; QUESTION.len()])
}

/// Reads a file; only the fiber waits for the disk.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = kapok::fs::File::open(path)?;
    let metadata = file.metadata()?;
    check_file(metadata.is_file(), metadata.len())?;
    let mut bytes = vec![0; metadata.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// What a fiber owns. Fields are dropped in this order: off the roster, then closed.
struct Connection {
    entry: ActivityEntry,
    stream: TcpStream,
    server: Arc<Server>,
    _open: Sender<()>,
}

impl Connection {
    /// Serves the connection to its end.
    fn converse(&self) -> io::Result<()> {
        let mut session = self.server.workload.session();
        let mut stream = &self.stream;
        let mut backend = None;
        let outcome = loop {
            let outcome = match session.want() {
                Want::Read => match stream.read(session.space()) {
                    Ok(0) => {
                        session.ended();
                        Ok(())
                    }
                    read => read.map(|n| session.received(n)),
                },
                Want::Write => stream.write(session.pending()).map(|n| session.sent(n)),
                Want::Ask => {
                    ask(&mut backend, self.server.config.backend).map(|()| session.answered())
                }
                Want::Load => {
                    let file = read_file(session.file());
                    session.loaded(file);
                    Ok(())
                }
                Want::ShutDown => {
                    session.shut_down();
                    stream.shutdown(Shutdown::Write)
                }
                Want::Close => break Ok(()),
            };
            if outcome.is_err() {
                break outcome;
            }
            self.entry.touch();
        };
        self.server.tally.requests(session.requests());
        outcome
    }
}
