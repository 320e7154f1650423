//! The event loop of `epoll.rs` on the mio library: epoll on Linux, kqueue on macOS and the BSDs.
//!
//! Waits: in one call for all connections, each registered under a token. Costs: what epoll costs;
//! mio adds next to nothing and takes away the unsafe code. Its events are edges too: accept until
//! there is nothing to accept, read until there is nothing to read, or remember.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Poll, Token};

use super::Server;
use super::connection::{Connection, Interest, Next};
use super::intake::Intake;
use super::listener::Accepted;
use super::pace::Pace;
use super::table::Table;

const STOP: Token = Token(usize::MAX - 1);
const INTAKE: Token = Token(usize::MAX - 2);

const EVENTS_A_POLL: usize = 256;

fn mio_interest(interest: Interest) -> mio::Interest {
    match interest {
        Interest::Read => mio::Interest::READABLE,
        Interest::Write => mio::Interest::WRITABLE,
    }
}

fn register(poll: &Poll, fd: impl AsFd, token: Token) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), token, mio::Interest::READABLE)
}

fn reregister(poll: &Poll, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    poll.registry().reregister(&mut SourceFd(&fd), token, mio_interest(interest))
}

pub(super) fn serve(server: &Server, mut intake: Intake) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(EVENTS_A_POLL);
    let mut table = Table::default();
    let mut pace = Pace::new(&server.config);
    // Connections that had their turn while there may be more to read.
    let mut again: Vec<usize> = Vec::new();
    register(&poll, &server.stop, STOP)?;
    register(&poll, &intake, INTAKE)?;
    loop {
        let timeout = match again.is_empty() {
            true => pace.timeout(table.is_empty()),
            false => Some(Duration::ZERO),
        };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            outcome => outcome?,
        }

        let (mut stop, mut accept) = (false, false);
        for token in std::mem::take(&mut again) {
            drive(&poll, &mut table, Token(token), &pace, &mut again)?;
        }
        for event in &events {
            match event.token() {
                STOP => stop = true,
                INTAKE => accept = true,
                token => {
                    if (event.is_read_closed() || event.is_error())
                        && let Some(connection) = table.get(token.0)
                    {
                        connection.hung_up();
                    }
                    drive(&poll, &mut table, token, &pace, &mut again)?;
                }
            }
        }
        while accept && pace.accepts() {
            match intake.next(server)? {
                Accepted::Connection(stream) => {
                    let token = table.insert(Connection::new(server, stream, pace.now()));
                    let Some(connection) = table.get(token) else { continue };
                    if let Err(error) = register(&poll, &*connection, Token(token)) {
                        table.remove(token);
                        server.tally.refused(|| {
                            format!("connection closed, it cannot be registered: {error}")
                        });
                    }
                }
                Accepted::Pause(pause) => pace.pause_accepting(pause),
                Accepted::Empty => break,
            }
        }
        if stop && !pace.drains() {
            pace.drain(server.config.drain_timeout);
            table.iter().for_each(|(_, connection)| connection.end_input());
        }
        let due = pace.due();
        if due.resume {
            // The connections left in the backlog had their edge; registering anew makes another.
            reregister(&poll, &intake, INTAKE, Interest::Read)?;
        }
        if due.sweep {
            pace.idle(&table).into_iter().for_each(|token| table.remove(token));
        }
        if due.cut || pace.drains() && table.is_empty() {
            return Ok(());
        }
    }
}

#[inline]
fn drive(
    poll: &Poll,
    table: &mut Table<'_>,
    token: Token,
    pace: &Pace,
    again: &mut Vec<usize>,
) -> io::Result<()> {
    let Some(connection) = table.get(token.0) else { return Ok(()) };
    match connection.drive(pace.now()) {
        Next::Wait(_) if connection.asks() => {
            if let Some(backend) = connection.backend_to_watch() {
                let fd = backend.as_raw_fd();
                let both = mio::Interest::READABLE | mio::Interest::WRITABLE;
                poll.registry().register(&mut SourceFd(&fd), token, both)?;
            }
        }
        Next::Wait(interest) => {
            if connection.interest != interest {
                connection.interest = interest;
                reregister(poll, &*connection, token, interest)?;
            }
        }
        Next::Again => again.push(token.0),
        Next::Close => table.remove(token.0),
    }
    Ok(())
}
