//! The other server that a handler asks, and waits for, before it replies.
//!
//! Each connection has a connection of its own to it, opened at its first request: what is compared is
//! how a model waits, not how cleverly it shares.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::connection::Interest;

/// What is asked, and as many bytes come back: any echo server can answer.
pub(super) const QUESTION: [u8; 1] = *b"?";

/// Asked by blocking calls.
#[derive(Default)]
pub(super) struct Blocking(Option<TcpStream>);

impl Blocking {
    pub(super) fn ask(&mut self, addr: Option<SocketAddr>) -> io::Result<()> {
        let stream = match &mut self.0 {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(known(addr)?)?;
                stream.set_nodelay(true)?;
                none.insert(stream)
            }
        };
        stream.write_all(&QUESTION)?;
        stream.read_exact(&mut [0; QUESTION.len()])
    }
}

/// Asked by calls that do not block: see [`ask`](NonBlocking::ask).
#[derive(Default)]
pub(super) struct NonBlocking {
    stream: Option<TcpStream>,
    asked: bool,
    /// A selector was told of it.
    watched: bool,
}

impl NonBlocking {
    /// Goes on with asking: nothing if the answer has come, or what to wait for. Calling it without
    /// cause does no harm.
    pub(super) fn ask(&mut self, addr: Option<SocketAddr>) -> io::Result<Option<Interest>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(connect(known(addr)?)?),
        };
        let blocked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        while !self.asked {
            // While the handshake is under way there is no room either.
            match stream.write(&QUESTION) {
                Ok(_) => self.asked = true,
                Err(error) if blocked(&error) || error.kind() == io::ErrorKind::NotConnected => {
                    return Ok(Some(Interest::Write));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        loop {
            match stream.read(&mut [0; QUESTION.len()]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    self.asked = false;
                    return Ok(None);
                }
                Err(error) if blocked(&error) => return Ok(Some(Interest::Read)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Its descriptor, once: for a selector that is told of each but one time.
    pub(super) fn take_unwatched(&mut self) -> Option<BorrowedFd<'_>> {
        let watched = std::mem::replace(&mut self.watched, self.stream.is_some());
        self.stream.as_ref().map(AsFd::as_fd).filter(|_| !watched)
    }
}

fn known(addr: Option<SocketAddr>) -> io::Result<SocketAddr> {
    addr.ok_or_else(|| io::Error::other("there is no backend to ask"))
}

/// A socket on which a connection is being made.
fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&addr.into()) {
        Err(error)
            if error.raw_os_error() != Some(libc::EINPROGRESS)
                && error.kind() != io::ErrorKind::WouldBlock =>
        {
            Err(error)
        }
        _ => Ok(socket.into()),
    }
}
