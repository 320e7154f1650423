//! Accepting, without losing a connection to a future that was dropped.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use kapok_engine::Op;

use crate::cell::Landed;
use crate::gate::{Gate, Place};
use crate::operation::{Operation, block_on};
use crate::pool::Pool;
use crate::request::Request;

/// A listening TCP socket for [`Pool::accept`](crate::Pool::accept). A handle: clones are of the same
/// socket.
#[derive(Clone)]
pub struct Listener(Arc<Inner>);

struct Inner {
    socket: TcpListener,
    /// Connections that accepts have brought whose futures were gone. They are for the next accepts.
    kept: Mutex<VecDeque<TcpStream>>,
    /// Where accepts wait for those, beside their own.
    gate: Gate,
    /// An accept was cancelled, and nobody has looked since whether that has cost others a wake-up.
    is_owed: AtomicBool,
}

impl Listener {
    /// Takes a listening socket, and sets `O_NONBLOCK` on it.
    ///
    /// # Errors
    ///
    /// What fcntl(2) says.
    pub fn new(socket: TcpListener) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        let (kept, gate, is_owed) = (Mutex::default(), Gate::default(), AtomicBool::new(false));
        Ok(Listener(Arc::new(Inner { socket, kept, gate, is_owed })))
    }

    /// The socket.
    pub fn get_ref(&self) -> &TcpListener {
        &self.0.socket
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<TcpStream>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for the next accept. Says how many there are.
    pub(crate) fn keep(&self, connection: TcpStream) -> usize {
        let mut kept = self.kept();
        kept.push_back(connection);
        let count = kept.len();
        drop(kept);
        self.0.gate.room_made(1);
        count
    }

    /// After an accept that was cancelled. The kernel wakes one of those who wait for a connection, and if
    /// that was just being cancelled, no other hears of it. So those who wait are brought what has come;
    /// what nobody waits for is left to the kernel, and to other processes that accept.
    ///
    /// One whose accept is in the kernel may not stand at the gate yet, or not again. It is to look for
    /// itself then: either it sees the debt after it has [announced](Listener::announce) itself, or it is
    /// seen here, by the fences on both sides.
    pub(crate) fn take_in(&self) {
        self.0.is_owed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.settle();
    }

    fn settle(&self) {
        while self.0.gate.waiting() > 0 && self.0.is_owed.swap(false, Ordering::AcqRel) {
            let is_paid = self.bring();
            if is_paid == Some(true) {
                return;
            }
            self.0.is_owed.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if is_paid.is_none() {
                return;
            }
        }
    }

    /// Accepts for those who wait. Whether one was brought, or there was none to be had; `None` if there may be
    /// one that cannot be had now: the next who waits tries again.
    fn bring(&self) -> Option<bool> {
        // No backlog is longer.
        for count in 0..4096 {
            if self.0.gate.waiting() == 0 {
                return Some(count > 0);
            }
            match self.accept() {
                Ok(connection) => {
                    self.keep(connection);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(true),
                Err(_) => return None,
            }
        }
        None
    }

    /// Without a wait, and past connections that were given up.
    fn accept(&self) -> io::Result<TcpStream> {
        loop {
            match self.0.socket.accept() {
                Ok((connection, _)) => return Ok(connection),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Stands at the [gate](Listener::gate). After this the caller looks once more for one that is kept.
    pub(crate) fn announce(&self, place: Option<Place>, waker: &Waker) -> Place {
        let place = self.0.gate.announce(place, waker);
        if self.0.is_owed.load(Ordering::Relaxed) {
            self.settle();
        }
        place
    }

    /// The one that has been kept for longest.
    pub(crate) fn take_kept(&self) -> Option<TcpStream> {
        self.kept().pop_front()
    }

    /// Where those wait who want one.
    pub(crate) fn gate(&self) -> &Gate {
        &self.0.gate
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.0.socket).finish()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// Accepting a connection.
#[derive(Debug)]
pub struct Accept {
    listener: Listener,
}

// SAFETY: no memory is named, and the listener keeps the descriptor open.
unsafe impl Request for Accept {
    type Output = io::Result<TcpStream>;
    // The last handle on a listener closes it.
    const QUIET: bool = false;

    fn op(&mut self) -> Op {
        let (addr, addr_len) = (std::ptr::null_mut(), std::ptr::null_mut());
        Op::Accept { fd: self.listener.0.socket.as_raw_fd(), addr, addr_len }
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<TcpStream> {
        // SAFETY: a descriptor that accept has just made, or that was kept, and that nobody else has.
        landed.map(|landed| unsafe { TcpStream::from_raw_fd(landed.res) })
    }

    fn abandon(self, landed: Landed) {
        let listener = self.listener.clone();
        match landed.into_result() {
            Err(_) if landed == Landed::CANCELLED => listener.take_in(),
            result => {
                if let Ok(connection) = self.finish(result) {
                    listener.keep(connection);
                }
            }
        }
    }
}

/// The wait for a connection: see [`Pool::accept`].
///
/// Dropped, it loses none: one that had come already is for the next accept, or for one that waits.
#[must_use = "nothing is accepted before it is awaited or `block` is called"]
#[derive(Debug)]
pub struct Accepting<'p> {
    pool: &'p Pool,
    listener: Listener,
    /// `None` once there is a connection.
    operation: Option<Operation<'p, Accept>>,
    place: Option<Place>,
}

impl<'p> Accepting<'p> {
    pub(crate) fn new(pool: &'p Pool, listener: &Listener) -> Accepting<'p> {
        let operation = pool.run(Accept { listener: listener.clone() });
        Accepting { pool, listener: listener.clone(), operation: Some(operation), place: None }
    }

    /// Blocks the calling thread until there is a connection.
    ///
    /// # Errors
    ///
    /// As for [`Pool::accept`].
    pub fn block(self) -> io::Result<TcpStream> {
        block_on(self)
    }

    /// One that somebody else's accept has brought. What the own one brings is kept in its turn.
    fn take_kept(&mut self) -> Option<TcpStream> {
        let kept = self.listener.take_kept()?;
        self.operation = None;
        self.leave(true);
        Some(kept)
    }

    fn leave(&mut self, served: bool) {
        if let Some(place) = self.place.take() {
            self.listener.0.gate.leave(place, served);
        }
    }
}

impl Future for Accepting<'_> {
    type Output = io::Result<TcpStream>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        let this = &mut *self;
        if let Some(kept) = this.take_kept() {
            return Poll::Ready(Ok(kept));
        }
        let operation = this.operation.as_mut().expect("an accept was polled after its end");
        if let Poll::Ready(outcome) = Pin::new(operation).poll(context) {
            this.operation = None;
            // If it was woken for one that is kept, somebody else wants it.
            this.leave(false);
            return Poll::Ready(outcome);
        }
        let place = this.place.take();
        this.place = Some(this.listener.announce(place, context.waker()));
        match this.take_kept() {
            Some(kept) => Poll::Ready(Ok(kept)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Accepting<'_> {
    fn drop(&mut self) {
        // In a fork's child the line may be locked, by a thread that is not there.
        if !self.pool.shared().is_left_behind() {
            self.leave(false);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn with_clients(count: usize) -> (Listener, Vec<TcpStream>) {
        let listener = Listener::new(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let address = listener.get_ref().local_addr().unwrap();
        let clients = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
        (listener, clients)
    }

    fn left(listener: &Listener) -> usize {
        std::iter::from_fn(|| listener.get_ref().accept().ok()).count()
    }

    #[test]
    fn after_a_cancelled_accept_what_nobody_waits_for_is_left_to_the_kernel() {
        let (listener, _clients) = with_clients(3);
        listener.take_in();
        assert_eq!(listener.kept().len(), 0, "accepted, and nobody asked for it");
        assert_eq!(left(&listener), 3);
    }

    #[test]
    fn after_a_cancelled_accept_each_who_waits_gets_one() {
        let (listener, _clients) = with_clients(3);
        let places = [(); 2].map(|()| listener.announce(None, Waker::noop()));
        listener.take_in();
        assert_eq!(listener.kept().len(), 2);
        assert_eq!(listener.gate().waiting(), 0);
        assert_eq!(left(&listener), 1);
        places.into_iter().for_each(|place| listener.gate().leave(place, true));
    }

    #[test]
    fn who_stands_in_line_just_after_a_cancelled_accept_gets_what_it_has_missed() {
        let (listener, _clients) = with_clients(3);
        listener.take_in();
        // Its own accept is in the kernel already, and the wake-up was the cancelled one's.
        let place = listener.announce(None, Waker::noop());
        assert_eq!(listener.kept().len(), 1);
        assert_eq!(left(&listener), 2);
        listener.gate().leave(place, true);
    }
}
