//! Where a worker's connections come from: its own listener, or a thread that accepts for all.

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::listener::{Accepted, Listener};
use super::pace::milliseconds;
use super::{Server, on_threads};
use crate::serve::AcceptMode;

/// Connections that the accepting thread handed to a worker. The descriptor is readable while there
/// are some; it holds at most a few bytes, so writing to it never blocks.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: Mutex<VecDeque<TcpStream>>,
    readable: PipeReader,
    writer: PipeWriter,
}

impl Inbox {
    fn new() -> io::Result<Inbox> {
        let (readable, writer) = io::pipe()?;
        Ok(Inbox { queue: Mutex::default(), readable, writer })
    }

    fn push(&self, stream: TcpStream) -> io::Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(stream);
        // One byte for each time that the queue stops being empty, and it is taken out before the
        // last connection is.
        if queue.len() == 1 { (&self.writer).write_all(&[1]) } else { Ok(()) }
    }

    fn pop(&self) -> io::Result<Option<TcpStream>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() == 1 {
            (&self.readable).read_exact(&mut [0])?;
        }
        Ok(queue.pop_front())
    }
}

/// A worker's source of connections.
#[derive(Debug)]
pub(super) enum Intake {
    Listener(Listener),
    Inbox(Arc<Inbox>),
}

impl Intake {
    /// The next connection, which does not block. Call it until it says [`Accepted::Empty`].
    pub(super) fn next(&mut self, server: &Server) -> io::Result<Accepted> {
        match self {
            Intake::Listener(listener) => listener.accept(&server.tally),
            Intake::Inbox(inbox) => Ok(inbox.pop()?.map_or(Accepted::Empty, Accepted::Connection)),
        }
    }
}

impl AsFd for Intake {
    /// Readable while there are connections.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Intake::Listener(listener) => listener.as_fd(),
            Intake::Inbox(inbox) => inbox.readable.as_fd(),
        }
    }
}

/// Runs `work` in as many workers as configured, each with its intake. A single one has the
/// listener to itself and runs on the calling thread.
pub(super) fn run_workers(
    server: &Server,
    mut listeners: Vec<Listener>,
    work: impl Fn(Intake) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let workers = server.config.threads;
    if workers == 1 || server.config.accept == AcceptMode::Worker {
        let intakes = listeners.into_iter().map(Intake::Listener).collect();
        return on_threads(server, "worker", intakes, work);
    }
    let inboxes: Vec<_> =
        (0..workers).map(|_| Inbox::new().map(Arc::new)).collect::<io::Result<_>>()?;
    // The first role is the calling thread's: it accepts.
    let mut roles = vec![Role::Accept(listeners.remove(0))];
    roles.extend(inboxes.iter().map(|inbox| Role::Work(Intake::Inbox(Arc::clone(inbox)))));
    let result = on_threads(server, "worker", roles, |role| match role {
        Role::Accept(listener) => {
            let mut next = inboxes.iter().cycle();
            accept_each(server, listener, |stream| {
                next.next().map_or(Ok(()), |inbox| inbox.push(stream))
            })
        }
        Role::Work(intake) => work(intake),
    });
    for inbox in inboxes {
        while let Some(_unserved) = inbox.pop()? {
            server.tally.unserved();
        }
    }
    result
}

enum Role {
    Accept(Listener),
    Work(Intake),
}

/// Accepts on a thread of its own until the stop, giving each connection to `take`.
pub(super) fn accept_each(
    server: &Server,
    mut listener: Listener,
    mut take: impl FnMut(TcpStream) -> io::Result<()>,
) -> io::Result<()> {
    while !server.stop.requested() {
        match listener.accept(&server.tally)? {
            Accepted::Connection(stream) => take(stream)?,
            Accepted::Empty => {
                wait_readable(&[listener.as_fd(), server.stop.as_fd()], None)?;
            }
            Accepted::Pause(pause) => wait_readable(&[server.stop.as_fd()], Some(pause))?,
        }
    }
    Ok(())
}

/// Blocks until one of the descriptors is readable or the time is over.
pub(super) fn wait_readable(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the pointer and length are those of a vector that outlives the call.
    let n = unsafe {
        libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, milliseconds(limit))
    };
    match n {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
    }
}
