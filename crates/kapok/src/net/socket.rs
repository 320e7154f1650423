//! What every kind of socket has in common: ownership of the descriptor, and the transfers.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kapok_engine::sys::descriptors;
use kapok_engine::{Kind, Op};
use socket2::{Domain, SockAddr, Type};

use crate::fiber;
use crate::op;
use crate::runtime::Loop;
use crate::sim;

/// A descriptor that one Kapok object owns: see `kapok_engine::sys::descriptors`.
///
/// Calls on a socket borrow it, and a call does not return before its operation has landed, so
/// nothing is pending on the descriptor when it is closed.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: ManuallyDrop<OwnedFd>,
    read_timeout: Limit,
    write_timeout: Limit,
    /// The last receive has left bytes behind, as far as anybody said: see [`op::recv`].
    left: AtomicBool,
}

/// A time-out: nanoseconds, or 0 for none.
#[derive(Debug, Default)]
struct Limit(AtomicU64);

impl Limit {
    fn get(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    fn set(&self, limit: Option<Duration>) -> io::Result<()> {
        if limit == Some(Duration::ZERO) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "cannot set a time-out of zero",
            ));
        }
        let nanos = limit.map_or(0, |limit| limit.as_nanos().min(u64::MAX.into()) as u64);
        self.0.store(nanos, Ordering::Relaxed);
        Ok(())
    }

    #[inline(always)]
    fn around<R>(&self, f: impl FnOnce() -> R) -> R {
        match self.get() {
            None => f(),
            Some(limit) => fiber::timeout(limit, f),
        }
    }
}

impl Socket {
    /// A new socket, connected to nothing.
    pub(crate) fn open(domain: Domain, kind: Type) -> io::Result<Socket> {
        let op = Op::Socket { domain: domain.into(), kind: kind.into(), protocol: 0 };
        // SAFETY: the operation names no memory.
        let fd = unsafe { op::now(op) }?;
        // SAFETY: a descriptor that was just made and is nobody else's.
        Ok(Socket::new(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Two Unix sockets that are connected to each other.
    pub(crate) fn pair(kind: Type) -> io::Result<(Socket, Socket)> {
        let mut fds = [-1; 2];
        // SAFETY: the array is a local that outlives the call.
        unsafe { op::now(Op::SocketPair { kind: kind.into(), fds: &raw mut fds }) }?;
        // SAFETY: descriptors that were just made and are nobody else's.
        let [one, other] = fds.map(|fd| Socket::new(unsafe { OwnedFd::from_raw_fd(fd) }));
        Ok((one, other))
    }

    pub(crate) fn new(fd: OwnedFd) -> Socket {
        descriptors::adopt(fd.as_raw_fd());
        Socket {
            fd: ManuallyDrop::new(fd),
            read_timeout: Limit::default(),
            write_timeout: Limit::default(),
            left: AtomicBool::new(false),
        }
    }

    pub(crate) fn into_owned(self) -> OwnedFd {
        let mut this = ManuallyDrop::new(self);
        descriptors::retire(this.fd.as_raw_fd());
        // SAFETY: taken once, and `this` is never dropped.
        unsafe { ManuallyDrop::take(&mut this.fd) }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Socket> {
        // SAFETY: the operation names no memory.
        let fd = unsafe { op::now(Op::Duplicate { fd: self.as_raw_fd() }) }?;
        // SAFETY: a descriptor that was just made and is nobody else's.
        let clone = Socket::new(unsafe { OwnedFd::from_raw_fd(fd) });
        clone.read_timeout.set(self.read_timeout.get())?;
        clone.write_timeout.set(self.write_timeout.get())?;
        Ok(clone)
    }

    pub(crate) fn options(&self) -> socket2::SockRef<'_> {
        socket2::SockRef::from(&*self.fd)
    }

    pub(crate) fn read_timeout(&self) -> Option<Duration> {
        self.read_timeout.get()
    }

    pub(crate) fn write_timeout(&self) -> Option<Duration> {
        self.write_timeout.get()
    }

    pub(crate) fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.read_timeout.set(limit)
    }

    pub(crate) fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.write_timeout.set(limit)
    }

    /// Receives from a stream. An empty buffer is full at once, whatever has come; anything else
    /// that gives 0 is the end of the stream.
    #[inline(always)]
    pub(crate) fn recv_stream(&self, buf: &mut [u8], flags: i32) -> io::Result<usize> {
        if buf.is_empty() { Ok(0) } else { self.recv(buf, flags) }
    }

    /// Runs `f` with the descriptor, under the time-out of reads.
    #[inline(always)]
    pub(crate) fn around_read<R>(&self, f: impl FnOnce(RawFd) -> io::Result<R>) -> io::Result<R> {
        self.read_timeout.around(|| f(self.as_raw_fd()))
    }

    /// What the last receive has left behind, as far as anybody said: see [`op::recv`].
    #[inline(always)]
    pub(crate) fn left(&self) -> &AtomicBool {
        &self.left
    }

    #[inline(always)]
    pub(crate) fn recv(&self, buf: &mut [u8], flags: i32) -> io::Result<usize> {
        // Without a closure, which might not be inlined: see `Loop::suspend`.
        if flags == 0 && self.read_timeout.get().is_none() {
            return op::recv(self.as_raw_fd(), buf, &self.left).map(|count| count as usize);
        }
        let op = Op::Recv { fd: self.as_raw_fd(), buf: buf.as_mut_ptr(), len: buf.len(), flags };
        // SAFETY: the buffer is borrowed, exclusively, for the whole call, as is the socket.
        self.read_timeout.around(|| unsafe { op::run(op) }).map(|count| count as usize)
    }

    #[inline(always)]
    pub(crate) fn send(&self, buf: &[u8], flags: i32) -> io::Result<usize> {
        match self.write_timeout.get() {
            // Without a closure, as above.
            None => op::send(self.as_raw_fd(), buf, flags),
            Some(limit) => fiber::timeout(limit, || op::send(self.as_raw_fd(), buf, flags)),
        }
        .map(|count| count as usize)
    }

    pub(crate) fn recv_vectored(&self, bufs: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(0);
        }
        let mut message = empty_message();
        // `IoSliceMut` has the layout of `iovec`.
        message.msg_iov = bufs.as_mut_ptr().cast();
        message.msg_iovlen = vector_count(bufs.len());
        self.recv_message(&mut message, 0)
    }

    pub(crate) fn send_vectored(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut message = empty_message();
        // `IoSlice` has the layout of `iovec`; the kernel only reads it.
        message.msg_iov = bufs.as_ptr().cast_mut().cast();
        message.msg_iovlen = vector_count(bufs.len());
        self.send_message(&message, 0)
    }

    /// Receives one datagram and its sender's address.
    pub(crate) fn recv_from(&self, buf: &mut [u8], flags: i32) -> io::Result<(usize, SockAddr)> {
        let mut part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        // SAFETY: the closure hands the storage to the kernel, which fills in address and length.
        unsafe {
            SockAddr::try_init(|storage, len| {
                let mut message = empty_message();
                message.msg_name = storage.cast();
                message.msg_namelen = *len;
                message.msg_iov = &raw mut part;
                message.msg_iovlen = 1;
                let count = self.recv_message(&mut message, flags)?;
                *len = message.msg_namelen;
                Ok(count)
            })
        }
    }

    /// Sends one datagram to an address.
    pub(crate) fn send_to(&self, buf: &[u8], address: &SockAddr) -> io::Result<usize> {
        let mut part = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
        let mut message = empty_message();
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        self.send_message(&message, 0)
    }

    fn recv_message(&self, message: &mut libc::msghdr, flags: i32) -> io::Result<usize> {
        let op = Op::RecvMsg { fd: self.as_raw_fd(), msg: message, flags };
        // SAFETY: the header, and what it names, is borrowed by the caller for the whole call.
        self.read_timeout.around(|| unsafe { op::run(op) }).map(|count| count as usize)
    }

    fn send_message(&self, message: &libc::msghdr, flags: i32) -> io::Result<usize> {
        let op = Op::SendMsg { fd: self.as_raw_fd(), msg: message, flags };
        // SAFETY: the header, and what it names, is borrowed by the caller for the whole call.
        self.write_timeout.around(|| unsafe { op::run(op) }).map(|count| count as usize)
    }

    pub(crate) fn connect(&self, address: &SockAddr) -> io::Result<()> {
        // A ring waits on any descriptor. Readiness needs one that does not block, and a connected
        // stream of ours always blocks, so that it can be turned into std's without more ado. So does a
        // wait that blocks the thread, for as long as it may, because the fiber unwinds.
        let readiness = Loop::with_running(|running| {
            running.is_some_and(|(lp, _)| lp.kind() != Kind::Uring || std::thread::panicking())
        });
        if readiness {
            self.options().set_nonblocking(true)?;
        }
        let op = Op::Connect {
            fd: self.as_raw_fd(),
            addr: address.as_ptr().cast(),
            addr_len: address.len(),
        };
        // SAFETY: the address is borrowed for the whole call, as is the socket.
        let result = unsafe { op::run(op) };
        if readiness {
            self.options().set_nonblocking(false)?;
        }
        result.map(drop)
    }

    pub(crate) fn bind(&self, address: &SockAddr) -> io::Result<()> {
        let op = Op::Bind {
            fd: self.as_raw_fd(),
            addr: address.as_ptr().cast(),
            addr_len: address.len(),
        };
        // SAFETY: the address is borrowed for the whole call.
        unsafe { op::now(op) }.map(drop)
    }

    pub(crate) fn listen(&self, backlog: i32) -> io::Result<()> {
        // SAFETY: the operation names no memory.
        unsafe { op::now(Op::Listen { fd: self.as_raw_fd(), backlog }) }.map(drop)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SockAddr> {
        let fd = self.as_raw_fd();
        self.address(|addr, addr_len| Op::LocalAddress { fd, addr, addr_len })
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SockAddr> {
        let fd = self.as_raw_fd();
        self.address(|addr, addr_len| Op::PeerAddress { fd, addr, addr_len })
    }

    fn address(
        &self,
        asking: impl FnOnce(*mut libc::sockaddr_storage, *mut libc::socklen_t) -> Op,
    ) -> io::Result<SockAddr> {
        // SAFETY: the closure hands the storage to the kernel, which fills in address and length.
        let ((), address) = unsafe {
            SockAddr::try_init(|storage, len| op::now(asking(storage.cast(), len)).map(drop))
        }?;
        Ok(address)
    }
}

fn empty_message() -> libc::msghdr {
    // SAFETY: integers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// The kernel takes at most `IOV_MAX` parts at once; a short transfer is the caller's to go on from.
/// (The field's type differs between platforms.)
fn vector_count<N: TryFrom<usize> + Default>(count: usize) -> N {
    N::try_from(count.min(1024)).unwrap_or_default()
}

impl Drop for Socket {
    fn drop(&mut self) {
        let fd = self.as_raw_fd();
        descriptors::retire(fd);
        if sim::with_world(|_| ()).is_some() {
            // A simulated peer hears of it now. That there is nobody to tell of an error is as ever.
            // SAFETY: it names no memory, and the number is used no more: dropped once, here.
            let _ = unsafe { op::now(Op::Close { fd }) };
            return;
        }
        // SAFETY: dropped once, here; `into_owned` forgets the rest.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    #[inline]
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
