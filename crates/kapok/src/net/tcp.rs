//! TCP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, SockAddr, Type};

use super::listener::Listener;
use super::resolve::{ToSocketAddrs, each_address};
use super::socket::Socket;
use crate::fiber;

/// The backlog of a listener: what the kernel lets it be (`net.core.somaxconn`), up to this.
const BACKLOG: i32 = 4096;

fn address_of(address: &SockAddr) -> io::Result<SocketAddr> {
    address
        .as_socket()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an internet address"))
}

/// A TCP connection, like [`std::net::TcpStream`].
#[derive(Debug)]
pub struct TcpStream(pub(crate) Socket);

impl TcpStream {
    /// Connects to the first of the addresses that answers.
    ///
    /// # Errors
    ///
    /// The last address's error, with the address in its text; what resolving says.
    pub fn connect(addresses: impl ToSocketAddrs) -> io::Result<TcpStream> {
        each_address("connect to", addresses, |address| {
            let socket = Socket::open(Domain::for_address(address), Type::STREAM)?;
            socket.connect(&address.into())?;
            Ok(TcpStream(socket))
        })
    }

    /// Connects to one address, and gives up after `limit`.
    ///
    /// # Errors
    ///
    /// As for [`connect`](TcpStream::connect); `TimedOut` after `limit`.
    pub fn connect_timeout(address: &SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        fiber::timeout(limit, || TcpStream::connect(address))
    }

    /// The address of the peer.
    ///
    /// # Errors
    ///
    /// `NotConnected` if the connection was reset.
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

    /// Sets `TCP_NODELAY`: small writes leave at once.
    ///
    /// # Errors
    ///
    /// What setsockopt(2) says.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.0.options().set_tcp_nodelay(on)
    }

    /// Whether `TCP_NODELAY` is set.
    ///
    /// # Errors
    ///
    /// What getsockopt(2) says.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.0.options().tcp_nodelay()
    }

    /// Sets the time to live of packets.
    ///
    /// # Errors
    ///
    /// What setsockopt(2) says.
    pub fn set_ttl(&self, hops: u32) -> io::Result<()> {
        self.0.options().set_ttl_v4(hops)
    }

    /// The time to live of packets.
    ///
    /// # Errors
    ///
    /// What getsockopt(2) says.
    pub fn ttl(&self) -> io::Result<u32> {
        self.0.options().ttl_v4()
    }
}

super::stream_methods!(TcpStream);
impl TcpStream {
    fn socket(&self) -> &Socket {
        &self.0
    }

    fn from_owned(fd: OwnedFd) -> io::Result<TcpStream> {
        Ok(TcpStream(Socket::new(fd)))
    }

    fn into_owned(self) -> OwnedFd {
        self.0.into_owned()
    }
}

super::descriptor_conversions!(TcpStream, std::net::TcpStream);

/// A listening TCP socket, like [`std::net::TcpListener`].
#[derive(Debug)]
pub struct TcpListener(Listener);

impl TcpListener {
    /// Listens at the first of the addresses that can be bound, with `SO_REUSEADDR` and a backlog
    /// of 4,096.
    ///
    /// # Errors
    ///
    /// The last address's error, with the address in its text; what resolving says.
    pub fn bind(addresses: impl ToSocketAddrs) -> io::Result<TcpListener> {
        each_address("listen at", addresses, |address| {
            let socket = Socket::open(Domain::for_address(address), Type::STREAM)?;
            socket.options().set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(TcpListener(Listener::new(socket)?))
        })
    }

    /// Waits for a connection and takes it.
    ///
    /// # Errors
    ///
    /// `EMFILE` or `ENFILE` when there is no descriptor left: back off and go on.
    /// [`DescriptorLimit`](super::DescriptorLimit) when the connection's is beyond what the engine
    /// can wait for. Cancellation and deadlines.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, address) = self.0.accept()?;
        Ok((TcpStream(socket), address_of(&address)?))
    }

    /// Accepting as a future, for [`select!`](crate::select). Dropped too late, the connection that
    /// it has accepted goes to the next accept. Polled on a fiber.
    pub async fn accept_async(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, address) = self.0.accept_async().await?;
        Ok((TcpStream(socket), address_of(&address)?))
    }

    /// The connections, one after the other, without end.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming(self)
    }

    /// A second object for the same socket, with a descriptor of its own (dup(2)).
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<TcpListener> {
        self.0.try_clone().map(TcpListener)
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

impl TcpListener {
    fn socket(&self) -> &Socket {
        self.0.socket()
    }

    fn from_owned(fd: OwnedFd) -> io::Result<TcpListener> {
        Listener::new(Socket::new(fd)).map(TcpListener)
    }

    fn into_owned(self) -> OwnedFd {
        self.0.into_owned()
    }
}

super::descriptor_conversions!(TcpListener, std::net::TcpListener);

/// See [`TcpListener::incoming`].
#[derive(Debug)]
pub struct Incoming<'a>(&'a TcpListener);

impl Iterator for Incoming<'_> {
    type Item = io::Result<TcpStream>;

    fn next(&mut self) -> Option<io::Result<TcpStream>> {
        Some(self.0.accept().map(|(stream, _)| stream))
    }
}
