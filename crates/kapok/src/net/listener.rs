//! Accepting, for TCP and Unix listeners alike.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use kapok_engine::Op;
use socket2::{SockAddr, SockAddrStorage};

use super::socket::Socket;
use crate::fiber;
use crate::op::{self, Pending};
use crate::park;
use crate::runtime::Loop;

type Accepted = (Socket, SockAddr);

/// A listening socket, and the connections that were accepted for somebody who was gone by then.
///
/// The socket does not block: with readiness, a connection that is announced may be gone, or taken
/// by another process, before it is accepted.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    returned: Arc<Returned>,
}

/// Connections handed back by accepts that were cancelled too late: none is lost.
#[derive(Debug, Default)]
struct Returned {
    /// How many there are, to be asked without the lock.
    count: AtomicUsize,
    inner: Mutex<ReturnedInner>,
}

#[derive(Debug, Default)]
struct ReturnedInner {
    connections: VecDeque<Accepted>,
    /// Who waits, each with a number: wakers do not tell two accepts of one fiber apart.
    waiting: Vec<(u64, Waker)>,
    numbered: u64,
}

impl Returned {
    fn lock(&self) -> MutexGuard<'_, ReturnedInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, connection: Accepted) {
        let mut inner = self.lock();
        inner.connections.push_back(connection);
        self.count.store(inner.connections.len(), Ordering::Release);
        let waiting = std::mem::take(&mut inner.waiting);
        drop(inner);
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn take(&self) -> Option<Accepted> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut inner = self.lock();
        let connection = inner.connections.pop_front();
        self.count.store(inner.connections.len(), Ordering::Release);
        connection
    }

    /// Has `waker` woken by the next connection that is given back, once. `true`: it was not going
    /// to be, and a connection may have been given back before.
    fn watch(&self, watching: &mut Option<u64>, waker: &Waker) -> bool {
        let mut inner = self.lock();
        let known = inner.waiting.iter_mut().find(|known| Some(known.0) == *watching);
        if let Some((_, known)) = known {
            let old = (!known.will_wake(waker)).then(|| std::mem::replace(known, waker.clone()));
            // Anybody's destructor runs with nothing locked.
            drop(inner);
            drop(old);
            return false;
        }
        let number = inner.numbered;
        inner.numbered += 1;
        inner.waiting.push((number, waker.clone()));
        *watching = Some(number);
        true
    }

    fn unwatch(&self, watching: u64) {
        let mut inner = self.lock();
        let known = inner.waiting.iter().position(|known| known.0 == watching);
        let known = known.map(|at| inner.waiting.swap_remove(at));
        drop(inner);
        drop(known);
    }
}

impl Listener {
    pub(super) fn new(socket: Socket) -> io::Result<Listener> {
        socket.options().set_nonblocking(true)?;
        Ok(Listener { socket, returned: Arc::default() })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn try_clone(&self) -> io::Result<Listener> {
        Ok(Listener { socket: self.socket.try_clone()?, returned: Arc::clone(&self.returned) })
    }

    /// The descriptor, as std has it.
    pub(super) fn into_owned(self) -> OwnedFd {
        // Whoever shares the description agrees, or does not find out: nothing else can be done.
        let _ = self.socket.options().set_nonblocking(false);
        self.socket.into_owned()
    }

    pub(super) fn accept(&self) -> io::Result<(Socket, SockAddr)> {
        if fiber::on_fiber() && !std::thread::panicking() {
            park::block_on_interruptible(self.accept_async())?
        } else {
            self.accept_blocking()
        }
    }

    /// Accepts where nothing can suspend: on a plain thread, or while a fiber unwinds.
    fn accept_blocking(&self) -> io::Result<(Socket, SockAddr)> {
        loop {
            if let Some((socket, address)) = self.returned.take() {
                return admit(socket, address);
            }
            let storage = SockAddrStorage::zeroed();
            let len = storage.size_of();
            let mut address = PeerAddress { storage, len };
            let op = Op::Accept {
                fd: self.socket.as_raw_fd(),
                addr: (&raw mut address.storage).cast(),
                addr_len: &raw mut address.len,
            };
            // SAFETY: the address is a local that outlives the call, and the listener is borrowed.
            match unsafe { op::run(op) } {
                Ok(fd) => {
                    // SAFETY: accept has just made it, and filled in the address.
                    let (socket, address) = unsafe { address.accepted(fd) };
                    return admit(socket, address);
                }
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn accept_async(&self) -> Accept<'_> {
        Accept { listener: self, pending: None, watching: None }
    }
}

/// Where the kernel writes the address of who connects. Owned by the operation.
struct PeerAddress {
    storage: SockAddrStorage,
    len: libc::socklen_t,
}

impl PeerAddress {
    /// The connection that an accept with this address came to.
    ///
    /// # Safety
    ///
    /// The accept landed with `fd`, which nobody else knows.
    unsafe fn accepted(self, fd: RawFd) -> Accepted {
        // SAFETY: by the caller: the descriptor is ours, address and length are filled in.
        unsafe { (Socket::new(OwnedFd::from_raw_fd(fd)), SockAddr::new(self.storage, self.len)) }
    }
}

/// The future of one accept.
pub(super) struct Accept<'a> {
    listener: &'a Listener,
    pending: Option<(Pending, *mut PeerAddress)>,
    watching: Option<u64>,
}

impl Accept<'_> {
    fn begin(&mut self) -> (Pending, *mut PeerAddress) {
        let storage = SockAddrStorage::zeroed();
        let len = storage.size_of();
        let address = Box::into_raw(Box::new(PeerAddress { storage, len }));
        let returned = Arc::clone(&self.listener.returned);
        let heir = move |res: i32| {
            // SAFETY: the operation has landed, and who waited for it is gone: the address is ours.
            let address = unsafe { Box::from_raw(address) };
            if res >= 0 {
                // SAFETY: accept has just made it, and filled in the address.
                returned.give_back(unsafe { address.accepted(res) });
            }
        };
        // SAFETY: a fresh allocation, of which the heir is the only owner.
        let (addr, addr_len) = unsafe { (&raw mut (*address).storage, &raw mut (*address).len) };
        let op = Op::Accept { fd: self.listener.socket.as_raw_fd(), addr: addr.cast(), addr_len };
        // SAFETY: what is lent is the address, which only the heir frees. The listener is borrowed
        // for the future's life.
        (unsafe { Pending::new(op, Some(Box::new(heir))) }, address)
    }
}

impl Future for Accept<'_> {
    type Output = io::Result<(Socket, SockAddr)>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some((socket, address)) = self.listener.returned.take() {
                return Poll::Ready(admit(socket, address));
            }
            let Poll::Ready(res) = ({
                let mut begun = self.pending.take();
                let (pending, address) = match &mut begun {
                    Some(begun) => begun,
                    None => begun.insert(self.begin()),
                };
                let polled = Pin::new(&mut *pending).poll(context);
                let address = *address;
                match polled {
                    Poll::Pending => {
                        self.pending = begun;
                        Poll::Pending
                    }
                    Poll::Ready(res) => {
                        if res == op::LOST {
                            // A dead ring keeps the address for good. Another accept has another.
                            continue;
                        }
                        pending.disinherit();
                        // SAFETY: the operation has landed and its heir is gone.
                        Poll::Ready((res, unsafe { Box::from_raw(address) }))
                    }
                }
            }) else {
                let listener = self.listener;
                if listener.returned.watch(&mut self.watching, context.waker()) {
                    continue;
                }
                return Poll::Pending;
            };
            let (res, address) = res;
            match res {
                0.. => {
                    // SAFETY: accept has just made it, and filled in the address.
                    let (socket, address) = unsafe { address.accepted(res) };
                    return Poll::Ready(admit(socket, address));
                }
                _ if res == -libc::EINTR || res == -libc::ECONNABORTED => {}
                _ => return Poll::Ready(Err(io::Error::from_raw_os_error(-res))),
            }
        }
    }
}

/// The error of an accept whose connection has a descriptor that the loop's engine cannot wait for,
/// as select(2) cannot for numbers from `FD_SETSIZE` on. The connection was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DescriptorLimit {
    descriptor: i32,
    limit: i32,
}

impl DescriptorLimit {
    /// Whether this is what `error` says.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<DescriptorLimit>())
    }
}

impl fmt::Display for DescriptorLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DescriptorLimit { descriptor, limit } = self;
        write!(
            f,
            "its descriptor is {descriptor} and select's FD_SETSIZE is {limit}: use another engine"
        )
    }
}

impl std::error::Error for DescriptorLimit {}

impl From<DescriptorLimit> for io::Error {
    fn from(limit: DescriptorLimit) -> io::Error {
        io::Error::other(limit)
    }
}

/// Takes up a connection, if the loop's engine can wait for it.
fn admit(socket: Socket, address: SockAddr) -> io::Result<Accepted> {
    let limit = Loop::with_current(|current| current.and_then(Loop::descriptor_limit));
    match limit {
        // The connection is closed, others are served.
        Some(limit) if socket.as_raw_fd() >= limit => {
            Err(DescriptorLimit { descriptor: socket.as_raw_fd(), limit }.into())
        }
        _ => Ok((socket, address)),
    }
}

impl Drop for Accept<'_> {
    fn drop(&mut self) {
        if let Some(watching) = self.watching.take() {
            self.listener.returned.unwatch(watching);
        }
    }
}
