//! One connection of the generator: what was asked, written, and answered.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::schedule::Turns;
use super::traffic::Traffic;

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not open. It is opened (again) at the given time.
    Vacant { retry_ns: u64 },
    /// The handshake is under way.
    Connecting,
    /// Open; the one message that every connection begins with is awaited.
    Greeting,
    /// Open, and silent unless it is one of the active ones.
    Open,
    /// Not served in time at the start, or not wanted any more; never opened again.
    Retired,
}

/// A connection's counters. Those of bytes and requests begin anew when it is reopened.
#[derive(Debug)]
pub(super) struct Connection<R> {
    pub(super) stream: Option<TcpStream>,
    pub(super) state: State,
    /// Bytes that the kernel has taken.
    pub(super) written: u64,
    /// Requests issued.
    pub(super) requests: u64,
    /// Replies verified.
    pub(super) replies: u64,
    /// Replies verified at this place in the measured interval, whichever connection had it.
    pub(super) measured: u64,
    /// When a reply was last completed, or first awaited.
    pub(super) heard_ns: u64,
    /// Its place in the schedule of a fixed rate.
    pub(super) turns: Turns,
    pub(super) reader: Option<R>,
}

impl<R> Connection<R> {
    pub(super) fn new() -> Connection<R> {
        Connection {
            stream: None,
            state: State::Vacant { retry_ns: 0 },
            written: 0,
            requests: 0,
            replies: 0,
            measured: 0,
            heard_ns: 0,
            turns: Turns::default(),
            reader: None,
        }
    }

    /// Requests issued and not answered.
    pub(super) fn outstanding(&self) -> u64 {
        self.requests - self.replies
    }

    /// Forgets the old stream and takes a new one, which is still connecting.
    pub(super) fn reopen(&mut self, stream: TcpStream, reader: R, now_ns: u64) {
        self.stream = Some(stream);
        self.reader = Some(reader);
        self.state = State::Connecting;
        (self.written, self.requests, self.replies) = (0, 0, 0);
        self.heard_ns = now_ns;
    }

    /// Writes what is issued and unwritten, until the kernel takes no more. Returns the bytes taken.
    pub(super) fn flush<T: Traffic<Reader = R>>(&mut self, traffic: &T) -> io::Result<u64> {
        let (Some(stream), Some(reader)) = (&mut self.stream, &self.reader) else { return Ok(0) };
        let issued = self.requests * traffic.request_bytes();
        let before = self.written;
        while self.written < issued {
            let output = traffic.output(reader, self.written);
            let left = usize::try_from(issued - self.written).unwrap_or(usize::MAX);
            match stream.write(&output[..output.len().min(left)]) {
                Ok(length) => self.written += length as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.written - before)
    }
}

/// Begins to connect to `server`, from `source` if one is given.
pub(super) fn connect(server: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        leave_the_port_to_connect(&socket);
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&server.into()) {
        Err(error)
            if error.raw_os_error() != Some(libc::EINPROGRESS)
                && error.kind() != io::ErrorKind::WouldBlock =>
        {
            Err(error)
        }
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// Without this, `bind` takes a port that no other connection from this source may use, whatever
/// its destination.
fn leave_the_port_to_connect(socket: &Socket) {
    #[cfg(target_os = "linux")]
    {
        let on: libc::c_int = 1;
        // SAFETY: `on` is a c_int that outlives the call, and its size is what is passed.
        // A failure costs ports, nothing else.
        let _ = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_BIND_ADDRESS_NO_PORT,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = socket.as_raw_fd();
}

/// Whether the handshake has ended: its error, or that it is still under way (`false`).
pub(super) fn connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match SockRef::from(stream).peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}
