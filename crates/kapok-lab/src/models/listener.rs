//! Listening and accepting, alike for every model.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::tally::Tally;

const BACKLOG: i32 = 4096;
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What accepting gave.
pub(super) enum Accepted {
    /// A connection, blocking or not as the listener was told.
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
    nonblocking: bool,
    backoff: Backoff,
}

/// What a failed accept means, and for how long to pause after it.
#[derive(Debug)]
pub(super) struct Backoff {
    next_pause: Duration,
}

impl Listener {
    /// Listens on `addr`. `shared` lets several listeners have the same address; `nonblocking` says
    /// how the connections are to be, the listener itself never blocks.
    pub(super) fn bind(addr: SocketAddr, shared: bool, nonblocking: bool) -> io::Result<Listener> {
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
        Ok(Listener { socket, nonblocking, backoff: Backoff::default() })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// For who waits in the accept itself. [`accept`](Listener::accept) would block from here on.
    #[cfg(target_os = "linux")]
    pub(super) fn set_blocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(false)
    }

    /// Takes one connection out of the backlog. Call it until it says [`Accepted::Empty`]: several
    /// may be pending on one event.
    pub(super) fn accept(&mut self, tally: &Tally) -> io::Result<Accepted> {
        loop {
            match self.accept_one() {
                Ok(stream) => {
                    self.backoff.reset();
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

    /// With `accept4` the mode of the connection costs no call of its own.
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    fn accept_one(&self) -> io::Result<TcpStream> {
        let nonblocking = if self.nonblocking { libc::SOCK_NONBLOCK } else { 0 };
        // SAFETY: null pointers say that the peer's address is not wanted.
        let fd = unsafe {
            libc::accept4(
                self.socket.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC | nonblocking,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made and that nobody else knows.
        Ok(unsafe { TcpStream::from_raw_fd(fd) })
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    fn accept_one(&self) -> io::Result<TcpStream> {
        let (stream, _peer) = self.socket.accept()?;
        // Some systems let it inherit the listener's mode.
        stream.set_nonblocking(self.nonblocking)?;
        Ok(stream)
    }

    /// For a runtime that accepts in its own way: the socket. It needs a [`Backoff`] of its own.
    pub(super) fn into_socket(self) -> TcpListener {
        self.socket
    }

    /// As [`Backoff::failed`].
    pub(super) fn failed(
        &mut self,
        error: io::Error,
        tally: &Tally,
    ) -> io::Result<Option<Duration>> {
        self.backoff.failed(error, tally)
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next_pause: SHORTEST_PAUSE }
    }
}

impl Backoff {
    /// An accept succeeded.
    pub(super) fn reset(&mut self) {
        self.next_pause = SHORTEST_PAUSE;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn connections_have_nodelay_and_the_mode_asked_for() {
        for nonblocking in [false, true] {
            let addr = SocketAddr::from(([127, 0, 0, 1], 0));
            let mut listener = Listener::bind(addr, false, nonblocking).expect("bound");
            let tally = Tally::default();
            assert!(matches!(listener.accept(&tally), Ok(Accepted::Empty)));
            let _client = TcpStream::connect(listener.local_addr().expect("bound"));
            let begun = Instant::now();
            let stream = loop {
                match listener.accept(&tally) {
                    Ok(Accepted::Connection(stream)) => break stream,
                    // It has connected, and may be taken a moment later.
                    Ok(Accepted::Empty) if begun.elapsed() < Duration::from_secs(60) => {
                        std::thread::yield_now();
                    }
                    _ => panic!("a connection is waiting"),
                }
            };
            assert!(stream.nodelay().expect("a socket"));
            // SAFETY: fcntl without a pointer on an open descriptor.
            let flags = unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_GETFL) };
            assert_eq!(flags & libc::O_NONBLOCK != 0, nonblocking);
        }
    }

    #[test]
    fn pauses_grow_to_a_second_and_other_errors_end_the_server() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut listener = Listener::bind(addr, false, false).expect("bound");
        let tally = Tally::default();
        let mut failed = |errno| listener.failed(io::Error::from_raw_os_error(errno), &tally);
        assert!(matches!(failed(libc::ECONNABORTED), Ok(None)));
        let pauses: Vec<_> = (0..9)
            .map(|_| failed(libc::EMFILE).expect("a pause").expect("a pause").as_millis())
            .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert!(failed(libc::EBADF).is_err());
        assert_eq!(tally.served().accept_pauses, 9);
    }
}
