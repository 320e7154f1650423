//! UDP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Type};

use super::resolve::{ToSocketAddrs, each_address};
use super::socket::Socket;

/// A UDP socket, like [`std::net::UdpSocket`].
///
/// A datagram that is longer than the buffer loses its end, as with std.
#[derive(Debug)]
pub struct UdpSocket(Socket);

fn address_of(address: &socket2::SockAddr) -> io::Result<SocketAddr> {
    address
        .as_socket()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an internet address"))
}

impl UdpSocket {
    /// Binds the first of the addresses that can be bound.
    ///
    /// # Errors
    ///
    /// The last address's error, with the address in its text; what resolving says.
    pub fn bind(addresses: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        each_address("bind", addresses, |address| {
            let socket = Socket::open(Domain::for_address(address), Type::DGRAM)?;
            socket.bind(&address.into())?;
            Ok(UdpSocket(socket))
        })
    }

    /// Sets the peer of [`send`](UdpSocket::send) and [`recv`](UdpSocket::recv).
    ///
    /// # Errors
    ///
    /// The last address's error, with the address in its text; what resolving says.
    pub fn connect(&self, addresses: impl ToSocketAddrs) -> io::Result<()> {
        each_address("connect to", addresses, |address| self.0.options().connect(&address.into()))
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

    /// Receives a datagram and its sender without taking it out of the socket.
    ///
    /// # Errors
    ///
    /// What recvmsg(2) says; cancellation and deadlines.
    pub fn peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (count, address) = self.0.recv_from(buf, libc::MSG_PEEK)?;
        Ok((count, address_of(&address)?))
    }

    /// Sends a datagram to the first of the addresses.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no address; what sendmsg(2) and resolving say.
    pub fn send_to(&self, buf: &[u8], addresses: impl ToSocketAddrs) -> io::Result<usize> {
        let address =
            addresses.to_socket_addrs()?.first().copied().ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "no address to send to")
            })?;
        self.0.send_to(buf, &address.into())
    }

    /// Receives a datagram of the peer.
    ///
    /// # Errors
    ///
    /// What recv(2) says; cancellation and deadlines.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buf, 0)
    }

    /// Receives a datagram of the peer without taking it out of the socket.
    ///
    /// # Errors
    ///
    /// What recv(2) says; cancellation and deadlines.
    pub fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buf, libc::MSG_PEEK)
    }

    /// Sends a datagram to the peer.
    ///
    /// # Errors
    ///
    /// What send(2) says; cancellation and deadlines.
    pub fn send(&self, buf: &[u8]) -> io::Result<usize> {
        self.0.send(buf, 0)
    }

    /// The address of the peer, if there is one.
    ///
    /// # Errors
    ///
    /// `NotConnected` if there is none.
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

    /// A second object for the same socket, with a descriptor of its own (dup(2)).
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<UdpSocket> {
        self.0.try_clone().map(UdpSocket)
    }

    /// Allows sending to broadcast addresses.
    ///
    /// # Errors
    ///
    /// What setsockopt(2) says.
    pub fn set_broadcast(&self, on: bool) -> io::Result<()> {
        self.0.options().set_broadcast(on)
    }

    /// A future that ends when there is a datagram; see [`Ready`](super::Ready).
    pub fn readable_async(&self) -> super::Ready<'_> {
        super::readable_async(self)
    }
}

super::timeout_methods!(UdpSocket);
impl UdpSocket {
    fn socket(&self) -> &Socket {
        &self.0
    }

    fn from_owned(fd: OwnedFd) -> io::Result<UdpSocket> {
        Ok(UdpSocket(Socket::new(fd)))
    }

    fn into_owned(self) -> OwnedFd {
        self.0.into_owned()
    }
}

super::descriptor_conversions!(UdpSocket, std::net::UdpSocket);
