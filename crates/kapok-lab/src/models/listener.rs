//! Listening and accepting, alike for every model.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::tally::Tally;

const BACKLOG: i32 = 4096;
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What accepting gave.
pub(super) enum Accepted {
    /// A connection, blocking.
    Connection(TcpStream),
    /// None is waiting.
    Empty,
    /// Out of descriptors or memory: ask again after this long. The listener stays readable all
    /// the while, so an event loop must look away from it or it would spin.
    Pause(Duration),
}

/// A non-blocking listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: TcpListener,
    next_pause: Duration,
}

impl Listener {
    /// Listens on `addr`; `shared` lets several listeners have the same address.
    pub(super) fn bind(addr: SocketAddr, shared: bool) -> io::Result<Listener> {
        let bind = || {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if shared {
                socket.set_reuse_port(true)?;
            }
            // Accepted sockets inherit it, on Linux and on the BSDs: a call less for each.
            socket.set_tcp_nodelay(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            Ok(TcpListener::from(socket))
        };
        let socket = bind().map_err(|error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}"))
        })?;
        Ok(Listener { socket, next_pause: SHORTEST_PAUSE })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Takes one connection out of the backlog. Call it until it says [`Accepted::Empty`]: several
    /// may be pending on one event.
    pub(super) fn accept(&mut self, tally: &Tally) -> io::Result<Accepted> {
        loop {
            match self.socket.accept() {
                Ok((stream, _peer)) => {
                    self.next_pause = SHORTEST_PAUSE;
                    tally.accepted();
                    return Ok(Accepted::Connection(stream));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Accepted::Empty);
                }
                Err(error) => match self.failed(error, tally)? {
                    Some(pause) => return Ok(Accepted::Pause(pause)),
                    None => continue,
                },
            }
        }
    }

    /// What a failed accept means: a pause, another try (none), or the end of the server.
    pub(super) fn failed(
        &mut self,
        error: io::Error,
        tally: &Tally,
    ) -> io::Result<Option<Duration>> {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                let pause = self.next_pause;
                self.next_pause = (pause * 2).min(LONGEST_PAUSE);
                tally.paused(&error);
                Ok(Some(pause))
            }
            // The connection was gone before it was accepted, or its network failed: accept(2)
            // asks to treat these like EAGAIN, by trying again.
            Some(
                libc::EINTR
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP,
            ) => Ok(None),
            _ => Err(io::Error::new(error.kind(), format!("accept failed: {error}"))),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
