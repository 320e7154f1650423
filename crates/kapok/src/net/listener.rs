//! Accepting, for TCP and Unix listeners alike.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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

type Accepted = (OwnedFd, SockAddr);

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
    waiting: Vec<Waker>,
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
        waiting.into_iter().for_each(Waker::wake);
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

    /// Has `waker` woken by the next connection that is given back.
    fn watch(&self, waker: &Waker) {
        let mut inner = self.lock();
        if !inner.waiting.iter().any(|known| known.will_wake(waker)) {
            inner.waiting.push(waker.clone());
        }
    }

    fn unwatch(&self, waker: &Waker) {
        self.lock().waiting.retain(|known| !known.will_wake(waker));
    }
}

impl Listener {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Listener> {
        let socket = Socket::new(fd);
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
        // The future belongs to a loop, and to code that may suspend.
        if fiber::on_fiber() && !std::thread::panicking() {
            park::block_on_interruptible(self.accept_async())?
        } else {
            self.accept_blocking()
        }
    }

    /// Blocks the thread. A connection that is given back meanwhile waits for the next accept.
    fn accept_blocking(&self) -> io::Result<(Socket, SockAddr)> {
        loop {
            if let Some((fd, address)) = self.returned.take() {
                return admit(fd, address);
            }
            let mut storage = SockAddrStorage::zeroed();
            let mut len = storage.size_of();
            let op = Op::Accept {
                fd: self.socket.as_raw_fd(),
                addr: (&raw mut storage).cast(),
                addr_len: &raw mut len,
            };
            // SAFETY: the address is on this stack, and the socket borrowed, for the whole call.
            match unsafe { op::run(op) } {
                Ok(fd) => {
                    // SAFETY: a descriptor that accept has just made and that nobody else knows.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    // SAFETY: accept filled in the address and its length.
                    return admit(fd, unsafe { SockAddr::new(storage, len) });
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
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

/// The future of one accept.
pub(super) struct Accept<'a> {
    listener: &'a Listener,
    pending: Option<(Pending, *mut PeerAddress)>,
    watching: Option<Waker>,
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
                // SAFETY: a descriptor that accept has just made and that nobody else knows.
                let fd = unsafe { OwnedFd::from_raw_fd(res) };
                // SAFETY: accept filled in the address and its length.
                returned.give_back((fd, unsafe { SockAddr::new(address.storage, address.len) }));
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
            if let Some((fd, address)) = self.listener.returned.take() {
                return Poll::Ready(admit(fd, address));
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
                        pending.disinherit();
                        // SAFETY: the operation has landed and its heir is gone.
                        Poll::Ready((res, unsafe { Box::from_raw(address) }))
                    }
                }
            }) else {
                let listener = self.listener;
                if self.watching.as_ref().is_none_or(|known| !known.will_wake(context.waker())) {
                    if let Some(old) = self.watching.replace(context.waker().clone()) {
                        listener.returned.unwatch(&old);
                    }
                    listener.returned.watch(context.waker());
                    // One may have been given back before we watched.
                    continue;
                }
                return Poll::Pending;
            };
            let (res, address) = res;
            match res {
                0.. => {
                    // SAFETY: a descriptor that accept has just made and that nobody else knows.
                    let fd = unsafe { OwnedFd::from_raw_fd(res) };
                    // SAFETY: accept filled in the address and its length.
                    let address = unsafe { SockAddr::new(address.storage, address.len) };
                    return Poll::Ready(admit(fd, address));
                }
                _ if res == -libc::EINTR || res == -libc::ECONNABORTED => {}
                _ => return Poll::Ready(Err(io::Error::from_raw_os_error(-res))),
            }
        }
    }
}

/// Takes up a connection, if the loop's engine can wait for it.
fn admit(fd: OwnedFd, address: SockAddr) -> io::Result<(Socket, SockAddr)> {
    let limit = Loop::with_current(|current| current.and_then(Loop::descriptor_limit));
    match limit {
        Some(limit) if fd.as_raw_fd() >= limit => {
            // As if it were the process's limit: the connection is closed, others are served.
            drop(fd);
            Err(io::Error::from_raw_os_error(libc::EMFILE))
        }
        _ => Ok((Socket::new(fd), address)),
    }
}

impl Drop for Accept<'_> {
    fn drop(&mut self) {
        if let Some(waker) = self.watching.take() {
            self.listener.returned.unwatch(&waker);
        }
    }
}
