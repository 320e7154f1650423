//! One operation that accepts again and again.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use kapok_engine::Op;
use kapok_engine::entry::Entry;

use crate::cell::Landed;
use crate::gate::Place;
use crate::listener::Listener;
use crate::operation::Operation;
use crate::pool::Pool;
use crate::request::Request;
use crate::via::Via;

/// So many connections wait to be taken; then the operation ends, and the rest waits in the kernel.
const MOST_KEPT: usize = 64;

/// Accepting whatever comes. What comes is kept by the listener.
struct AcceptMany {
    entry: Entry,
    listener: Listener,
}

impl AcceptMany {
    fn keep(&self, fd: i32) -> usize {
        // SAFETY: a descriptor that accept has just made, and that nobody else has.
        self.listener.keep(unsafe { TcpStream::from_raw_fd(fd) })
    }
}

// SAFETY: the entry is a part of the request and names no memory; the listener keeps the descriptor open.
unsafe impl Request for AcceptMany {
    type Output = io::Result<()>;
    // The last handle on a listener closes it.
    const QUIET: bool = false;

    fn op(&mut self) -> Op {
        let (fd, none) = (self.listener.as_fd().as_raw_fd(), std::ptr::null_mut());
        let none_either = std::ptr::null_mut();
        self.entry = Entry::multishot_accept(fd, none, none_either, libc::SOCK_CLOEXEC);
        Op::Entry { entry: &raw const self.entry }
    }

    fn more(&self, landed: Landed, _bytes: &[u8]) -> bool {
        landed.res < 0 || self.keep(landed.res) < MOST_KEPT
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<()> {
        landed.map(|landed| {
            self.keep(landed.res);
        })
    }

    fn abandon(self, landed: Landed) {
        if landed == Landed::CANCELLED {
            self.listener.take_in();
        } else {
            drop(landed.outcome_of(self));
        }
    }
}

/// Connections as they come, by one operation of a ring (a multishot accept), which is begun again when it
/// ends; off io_uring by one after the other. Made by [`Pool::incoming`].
///
/// Up to 64 are accepted before they are asked for. Dropped, it loses none: they are for the next that
/// accepts on this [`Listener`].
///
/// ```
/// use std::net::{TcpListener, TcpStream};
/// use kapok_pool::{Listener, Pool, block_on};
///
/// # fn main() -> std::io::Result<()> {
/// let pool = Pool::builder().build()?;
/// let listener = Listener::new(TcpListener::bind("127.0.0.1:0")?)?;
/// let client = TcpStream::connect(listener.get_ref().local_addr()?)?;
/// let mut incoming = pool.incoming(&listener);
/// let connection = block_on(incoming.next())?;
/// assert_eq!(connection.peer_addr()?, client.local_addr()?);
/// # Ok(())
/// # }
/// ```
pub struct Incoming {
    pool: Pool,
    listener: Listener,
    operation: Option<Operation<'static, AcceptMany>>,
    place: Option<Place>,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Incoming {
    pub(crate) fn new(pool: &Pool, listener: &Listener) -> Incoming {
        let (pool, listener) = (pool.clone(), listener.clone());
        Incoming { pool, listener, operation: None, place: None }
    }

    /// The next connection. Dropped, the future loses none.
    ///
    /// # Errors
    ///
    /// What accept(2) says: `EMFILE` and `ENFILE` where there is no descriptor for it. It goes on after an
    /// error; who asks again at once after these may ask in vain.
    pub async fn next(&mut self) -> io::Result<TcpStream> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`next`](Incoming::next), to be polled.
    ///
    /// # Errors
    ///
    /// As for `next`.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        loop {
            if let Some(connection) = self.listener.take_kept() {
                self.leave(true);
                return Poll::Ready(Ok(connection));
            }
            let operation = self.operation.get_or_insert_with(|| {
                let request =
                    AcceptMany { entry: Entry::default(), listener: self.listener.clone() };
                self.pool.run(request).via(Via::Thread).owned()
            });
            if let Poll::Ready(ended) = Pin::new(operation).poll(context) {
                self.operation = None;
                match ended {
                    Ok(()) => continue,
                    // It was to leave the rest to the kernel.
                    Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => continue,
                    Err(error) => {
                        self.leave(false);
                        return Poll::Ready(Err(error));
                    }
                }
            }
            let place = self.place.take();
            self.place = Some(self.listener.announce(place, context.waker()));
            // One may have come before anybody knew that it is waited for.
            let Some(connection) = self.listener.take_kept() else { return Poll::Pending };
            self.leave(true);
            return Poll::Ready(Ok(connection));
        }
    }

    fn leave(&mut self, served: bool) {
        if let Some(place) = self.place.take() {
            self.listener.gate().leave(place, served);
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // In a fork's child the line may be locked, by a thread that is not there.
        if !self.pool.shared().is_left_behind() {
            self.leave(false);
        }
    }
}
