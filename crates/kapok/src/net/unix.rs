//! Unix domain sockets.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::SocketAddr;
use std::path::Path;

use socket2::{Domain, SockAddr, Type};

use super::listener::Listener;
use super::socket::Socket;

fn address_of(address: &SockAddr) -> io::Result<SocketAddr> {
    match address.as_unix() {
        Some(address) => Ok(address),
        // Most clients: no name, which std's type writes as the empty path.
        None if address.is_unnamed() || address.len() == 0 => SocketAddr::from_pathname(""),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "not a Unix address")),
    }
}

fn at_path<T>(
    what: &str,
    path: &Path,
    f: impl FnOnce(&SockAddr) -> io::Result<T>,
) -> io::Result<T> {
    SockAddr::unix(path).and_then(|address| f(&address)).map_err(|error| {
        if crate::Canceled::is(&error) {
            return error;
        }
        io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
    })
}

/// A Unix stream, like [`std::os::unix::net::UnixStream`].
#[derive(Debug)]
pub struct UnixStream(pub(crate) Socket);

impl UnixStream {
    /// Connects to the socket at `path`. Waits while the listener's backlog is full.
    ///
    /// # Errors
    ///
    /// What connect(2) says, with the path in its text.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<UnixStream> {
        at_path("connect to", path.as_ref(), |address| {
            let socket = Socket::open(Domain::UNIX, Type::STREAM)?;
            socket.connect(address)?;
            Ok(UnixStream(socket))
        })
    }

    /// Two streams that are connected to each other.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
        let (one, other) = Socket::pair(Type::STREAM)?;
        Ok((UnixStream(one), UnixStream(other)))
    }

    /// The address of the peer.
    ///
    /// # Errors
    ///
    /// What getpeername(2) says.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        address_of(&self.0.peer_addr()?)
    }

    /// The address of this end.
    ///
    /// # Errors
    ///
    /// What getsockname(2) says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        address_of(&self.0.local_addr()?)
    }
}

super::stream_methods!(UnixStream);
impl UnixStream {
    fn socket(&self) -> &Socket {
        &self.0
    }

    fn from_owned(fd: OwnedFd) -> io::Result<UnixStream> {
        Ok(UnixStream(Socket::new(fd)))
    }

    fn into_owned(self) -> OwnedFd {
        self.0.into_owned()
    }
}

super::descriptor_conversions!(UnixStream, std::os::unix::net::UnixStream);

/// A listening Unix socket, like [`std::os::unix::net::UnixListener`]. The file at its path stays
/// when it is dropped.
#[derive(Debug)]
pub struct UnixListener(Listener);

impl UnixListener {
    /// Makes a socket at `path` and listens there.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if there is a file; what bind(2) says, with the path in its text.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<UnixListener> {
        at_path("listen at", path.as_ref(), |address| {
            let socket = Socket::open(Domain::UNIX, Type::STREAM)?;
            socket.bind(address)?;
            socket.listen(4096)?;
            Ok(UnixListener(Listener::new(socket)?))
        })
    }

    /// Waits for a connection and takes it.
    ///
    /// # Errors
    ///
    /// As for [`TcpListener::accept`](super::TcpListener::accept).
    pub fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (socket, address) = self.0.accept()?;
        Ok((UnixStream(socket), address_of(&address)?))
    }

    /// Accepting as a future; see [`TcpListener::accept_async`](super::TcpListener::accept_async).
    pub async fn accept_async(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (socket, address) = self.0.accept_async().await?;
        Ok((UnixStream(socket), address_of(&address)?))
    }

    /// A second object for the same socket, with a descriptor of its own (dup(2)).
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<UnixListener> {
        self.0.try_clone().map(UnixListener)
    }

    /// The address it listens at.
    ///
    /// # Errors
    ///
    /// What getsockname(2) says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        address_of(&self.0.socket().local_addr()?)
    }
}

impl UnixListener {
    fn socket(&self) -> &Socket {
        self.0.socket()
    }

    fn from_owned(fd: OwnedFd) -> io::Result<UnixListener> {
        Listener::new(Socket::new(fd)).map(UnixListener)
    }

    fn into_owned(self) -> OwnedFd {
        self.0.into_owned()
    }
}

super::descriptor_conversions!(UnixListener, std::os::unix::net::UnixListener);

/// A Unix datagram socket, like [`std::os::unix::net::UnixDatagram`].
#[derive(Debug)]
pub struct UnixDatagram(Socket);

impl UnixDatagram {
    /// Makes a socket at `path`.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if there is a file; what bind(2) says, with the path in its text.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<UnixDatagram> {
        at_path("bind", path.as_ref(), |address| {
            let socket = Socket::open(Domain::UNIX, Type::DGRAM)?;
            socket.bind(address)?;
            Ok(UnixDatagram(socket))
        })
    }

    /// A socket without an address.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn unbound() -> io::Result<UnixDatagram> {
        Socket::open(Domain::UNIX, Type::DGRAM).map(UnixDatagram)
    }

    /// Two sockets that are connected to each other.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
        let (one, other) = Socket::pair(Type::DGRAM)?;
        Ok((UnixDatagram(one), UnixDatagram(other)))
    }

    /// Sets the peer of [`send`](UnixDatagram::send).
    ///
    /// # Errors
    ///
    /// What connect(2) says, with the path in its text.
    pub fn connect(&self, path: impl AsRef<Path>) -> io::Result<()> {
        at_path("connect to", path.as_ref(), |address| self.0.options().connect(address))
    }

    /// Receives a datagram and its sender.
    ///
    /// # Errors
    ///
    /// What recvmsg(2) says; cancellation and deadlines.
    pub fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (count, address) = self.0.recv_from(buf, 0)?;
        Ok((count, address_of(&address)?))
    }

    /// Receives a datagram.
    ///
    /// # Errors
    ///
    /// What recv(2) says; cancellation and deadlines.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buf, 0)
    }

    /// Sends a datagram to the socket at `path`. Waits while its queue is full.
    ///
    /// # Errors
    ///
    /// What sendmsg(2) says, with the path in its text.
    pub fn send_to(&self, buf: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        at_path("send to", path.as_ref(), |address| self.0.send_to(buf, address))
    }

    /// Sends a datagram to the peer.
    ///
    /// # Errors
    ///
    /// What send(2) says; cancellation and deadlines.
    pub fn send(&self, buf: &[u8]) -> io::Result<usize> {
        self.0.send(buf, 0)
    }

    /// A second object for the same socket, with a descriptor of its own (dup(2)).
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<UnixDatagram> {
        self.0.try_clone().map(UnixDatagram)
    }

    /// The address of this end.
    ///
    /// # Errors
    ///
    /// What getsockname(2) says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        address_of(&self.0.local_addr()?)
    }
}

super::timeout_methods!(UnixDatagram);
impl UnixDatagram {
    fn socket(&self) -> &Socket {
        &self.0
    }

    fn from_owned(fd: OwnedFd) -> io::Result<UnixDatagram> {
        Ok(UnixDatagram(Socket::new(fd)))
    }

    fn into_owned(self) -> OwnedFd {
        self.0.into_owned()
    }
}

super::descriptor_conversions!(UnixDatagram, std::os::unix::net::UnixDatagram);
