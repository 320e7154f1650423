//! One connection by calls that do not block: what every readiness model does on an event.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use super::Server;
use super::backend::NonBlocking;
use crate::workload::{Session, Want, read_file};

/// Reads in one go before other connections have their turn.
const READS_A_TURN: u32 = 16;

/// What a connection waits for: always one direction, see [`workload`](crate::workload).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    Read,
    Write,
}

/// What to do with a connection after it was driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Drive it again when this is possible.
    Wait(Interest),
    /// It had its turn and there may be more. A level-triggered selector will say so again; an
    /// edge-triggered one will not, and the loop has to remember.
    Again,
    /// It is over: drop it.
    Close,
}

/// A non-blocking connection and its session.
pub(super) struct Connection<'a> {
    server: &'a Server,
    stream: TcpStream,
    session: Session,
    backend: NonBlocking,
    /// The sweep in which something last moved.
    pub(super) active: u32,
    /// What the selector was last told to wait for.
    pub(super) interest: Interest,
    hung_up: bool,
}

impl<'a> Connection<'a> {
    /// `stream` does not block. A new connection waits to be read from.
    pub(super) fn new(server: &'a Server, stream: TcpStream, now: u32) -> Connection<'a> {
        Connection {
            server,
            stream,
            session: server.workload.session(),
            backend: NonBlocking::default(),
            active: now,
            interest: Interest::Read,
            hung_up: false,
        }
    }

    /// An edge-triggered selector reported the end of the input, or an error. It comes once and may
    /// come with data, so from here on only the end itself is taken for the end: see
    /// [`drive`](Connection::drive).
    pub(super) fn hung_up(&mut self) {
        self.hung_up = true;
    }

    /// Whether it waits for the backend.
    pub(super) fn asks(&self) -> bool {
        self.session.want() == Want::Ask
    }

    /// The backend's descriptor, once it is there, and but one time: an edge-triggered selector is
    /// told of it for both directions and for good.
    pub(super) fn backend_to_watch(&mut self) -> Option<BorrowedFd<'_>> {
        self.backend.take_unwatched()
    }

    /// Makes the input end after what has arrived already.
    pub(super) fn end_input(&self) {
        // Fails if the peer has reset the connection: then the next read says so.
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Reads what there is, answers, and writes what goes, until one of the two would block.
    ///
    /// A read that filled less than its buffer has drained a stream socket, and the call that would
    /// say EAGAIN is saved; but not after a hang-up, when the end of the input is still to be read.
    #[inline]
    pub(super) fn drive(&mut self, now: u32) -> Next {
        let mut drained = false;
        let mut reads = 0;
        loop {
            let outcome = match self.session.want() {
                Want::Read if drained => return self.wait_to_read(),
                Want::Read if reads == READS_A_TURN => return Next::Again,
                Want::Read => {
                    reads += 1;
                    let space = self.session.space();
                    let room = space.len();
                    match self.stream.read(space) {
                        Ok(0) => {
                            self.session.ended();
                            Ok(())
                        }
                        Ok(n) => {
                            self.active = now;
                            drained = n < room && !self.hung_up;
                            self.session.received(n);
                            Ok(())
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            return self.wait_to_read();
                        }
                        Err(error) => Err(error),
                    }
                }
                Want::Write => match self.stream.write(self.session.pending()) {
                    Ok(n) => {
                        self.active = now;
                        self.session.sent(n);
                        Ok(())
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Next::Wait(Interest::Write);
                    }
                    Err(error) => Err(error),
                },
                Want::Ask => match self.backend.ask(self.server.config.backend) {
                    Ok(None) => {
                        self.active = now;
                        self.session.answered();
                        Ok(())
                    }
                    Ok(Some(interest)) => return Next::Wait(interest),
                    Err(error) => Err(error),
                },
                // A regular file is always ready, so there is nothing to wait for: the loop stands still
                // until the disk has answered.
                Want::Load => {
                    let file = read_file(self.session.file());
                    self.session.loaded(file);
                    Ok(())
                }
                Want::ShutDown => {
                    self.session.shut_down();
                    self.stream.shutdown(Shutdown::Write)
                }
                Want::Close => return Next::Close,
            };
            match outcome {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Next::Close,
                _ => {}
            }
        }
    }

    fn wait_to_read(&mut self) -> Next {
        self.session.rest();
        Next::Wait(Interest::Read)
    }
}

/// What it waits for: the backend if it was asked, otherwise its peer.
impl AsFd for Connection<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let backend = if self.asks() { self.backend.fd() } else { None };
        backend.unwrap_or_else(|| self.stream.as_fd())
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.server.tally.requests(self.session.requests());
    }
}
