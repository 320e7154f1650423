//! One operation that receives again and again.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use kapok_engine::Op;
use kapok_engine::entry::Entry;

use crate::cell::Landed;
use crate::descriptor::{Descriptor, Held};
use crate::operation::Operation;
use crate::pool::Pool;
use crate::request::{BUFFER_GROUP, Request};
use crate::via::Via;

/// So many bytes wait to be taken; then the operation ends, and the rest waits in the kernel.
const MOST_WAITING: usize = 256 << 10;

/// How much is received at once where the kernel has no buffers to take.
const SINGLE_BYTES: usize = 16 << 10;

#[derive(Default)]
struct Inbox {
    pieces: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many operations may still bring some: one, or none.
    running: u32,
    waker: Option<Waker>,
    /// What recv(2) said behind the pieces, and says but once: a connection that was reset is at its end
    /// ever after.
    error: Option<io::Error>,
}

/// What was received and not taken yet.
#[derive(Default)]
struct Received(Mutex<Inbox>);

impl Received {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how many bytes wait now.
    fn add(&self, piece: Vec<u8>) -> usize {
        let mut inbox = self.lock();
        inbox.bytes += piece.len();
        inbox.pieces.push_back(piece);
        let (waker, bytes) = (inbox.waker.take(), inbox.bytes);
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
        bytes
    }
}

/// What an operation has of it as long as it may bring something.
struct Brings(Arc<Received>);

impl Brings {
    fn new(received: &Arc<Received>) -> Brings {
        received.lock().running += 1;
        Brings(Arc::clone(received))
    }
}

impl Brings {
    /// Whether the stream is at its end, by what an operation has come to. What has befallen the socket is
    /// kept for whoever takes the pieces, also if nobody waits for the operation.
    fn ended(&self, socket: RawFd, landed: io::Result<Landed>) -> io::Result<bool> {
        let error = match landed {
            // An empty message is one, and ends the operation and nothing else.
            Ok(landed) if landed.res == 0 && brings_datagrams(socket) => {
                self.0.add(Vec::new());
                return Ok(false);
            }
            // The bytes were told of before.
            Ok(landed) => return Ok(landed.res == 0),
            Err(error) => error,
        };
        match error.raw_os_error() {
            None | Some(libc::ECANCELED | libc::ENOBUFS | libc::EOPNOTSUPP | libc::EINVAL) => {
                Err(error)
            }
            Some(_) => {
                self.0.lock().error.get_or_insert(error);
                Ok(false)
            }
        }
    }

    /// It will bring nothing more.
    fn end(&self) {
        let mut inbox = self.0.lock();
        inbox.running -= 1;
        let waker = inbox.waker.take();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Brings {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether nothing received is a message of no bytes, and not the end, which of datagrams is a shutdown.
fn brings_datagrams(socket: RawFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut len = size_of_val(&kind) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_TYPE);
    // SAFETY: writes to locals of the sizes that are told.
    let res =
        unsafe { libc::getsockopt(socket, level, name, (&raw mut kind).cast(), &raw mut len) };
    res == 0 && kind == libc::SOCK_DGRAM && !is_shut_down(socket)
}

#[cfg(target_os = "linux")]
fn is_shut_down(socket: RawFd) -> bool {
    let mut one = libc::pollfd { fd: socket, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one, which outlives the call.
    let res = unsafe { libc::poll(&raw mut one, 1, 0) };
    res > 0 && one.revents & libc::POLLRDHUP != 0
}

/// Not to be asked here.
#[cfg(not(target_os = "linux"))]
fn is_shut_down(_socket: RawFd) -> bool {
    false
}

/// Receiving whatever comes, into buffers of the thread's.
struct ReceiveMany<D: Descriptor> {
    entry: Entry,
    held: Held<D>,
    brings: Brings,
}

// SAFETY: the entry is a part of the request and names no memory, and the clone keeps its descriptor open.
unsafe impl<D: Descriptor> Request for ReceiveMany<D> {
    /// Whether the stream is at its end.
    type Output = io::Result<bool>;
    const QUIET: bool = true;

    fn op(&mut self) -> Op {
        self.entry = Entry::recv_multishot(self.held.raw(), std::ptr::null_mut(), 0, 0)
            .with_buffer_group(BUFFER_GROUP);
        Op::Entry { entry: &raw const self.entry }
    }

    fn more(&self, _landed: Landed, bytes: &[u8]) -> bool {
        bytes.is_empty() || self.brings.0.add(bytes.to_vec()) < MOST_WAITING
    }

    fn lost(&self) {
        self.brings.end();
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<bool> {
        self.brings.ended(self.held.raw(), landed)
    }
}

/// Receiving once.
struct ReceiveOnce<D: Descriptor> {
    held: Held<D>,
    buffer: Vec<u8>,
    brings: Brings,
}

// SAFETY: the buffer is on the heap and the request's, and the clone keeps its descriptor open.
unsafe impl<D: Descriptor> Request for ReceiveOnce<D> {
    type Output = io::Result<bool>;
    const QUIET: bool = true;

    fn op(&mut self) -> Op {
        let (buf, len) = (self.buffer.as_mut_ptr(), self.buffer.capacity());
        Op::Recv { fd: self.held.raw(), buf, len, flags: 0 }
    }

    fn lost(&self) {
        self.brings.end();
    }

    fn finish(mut self, landed: io::Result<Landed>) -> io::Result<bool> {
        let count = landed.as_ref().map_or(0, |landed| landed.res as usize);
        // SAFETY: the kernel has written so many.
        unsafe { self.buffer.set_len(count) };
        let ended = self.brings.ended(self.held.raw(), landed);
        if count > 0 {
            self.brings.0.add(self.buffer);
        }
        ended
    }
}

enum Running<D: Descriptor> {
    Many(Operation<'static, ReceiveMany<D>>),
    Once(Operation<'static, ReceiveOnce<D>>),
}

/// What comes over a socket, piece by piece, by one operation of a ring (a multishot receive), which is
/// begun again when it ends; off io_uring by one receive after the other. A datagram is a piece, and cut if
/// it is larger than what a piece has room for. While nothing comes it holds no memory. Made by
/// [`Pool::receiver`].
///
/// It receives ahead, up to about 256 KiB: who else receives from this socket, peeks or polls misses what is
/// here. Let there be one for a socket, and [`stop`](Receiver::stop) it to go on otherwise.
///
/// Dropping the futures of [`next`](Receiver::next) loses nothing. With the receiver itself goes what it
/// has received and nobody has taken.
pub struct Receiver<D: Descriptor> {
    pool: Pool,
    socket: D,
    received: Arc<Received>,
    running: Option<Running<D>>,
    /// The thread had no buffers.
    by_one: bool,
    is_at_end: bool,
}

impl<D: Descriptor> fmt::Debug for Receiver<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.received.lock().bytes;
        f.debug_struct("Receiver").field("fd", &self.socket.raw()).field("bytes", &bytes).finish()
    }
}

impl<D: Descriptor> Receiver<D> {
    pub(crate) fn new(pool: &Pool, socket: &D) -> Receiver<D> {
        Receiver {
            pool: pool.clone(),
            socket: socket.clone(),
            received: Arc::default(),
            running: None,
            by_one: false,
            is_at_end: false,
        }
    }

    /// The next piece, or `None` at the end of the stream. Datagrams may be empty, and have no end but a
    /// shutdown of their socket, of which a ring is not told. Dropped, the future loses nothing.
    ///
    /// # Errors
    ///
    /// What recv(2) says. What was received before the error comes before it.
    pub async fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`next`](Receiver::next), to be polled.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Vec<u8>>>> {
        loop {
            {
                let mut inbox = self.received.lock();
                if let Some(piece) = inbox.pieces.pop_front() {
                    inbox.bytes -= piece.len();
                    return Poll::Ready(Some(Ok(piece)));
                }
                if let Some(error) = inbox.error.take() {
                    return Poll::Ready(Some(Err(error)));
                }
                inbox.waker = Some(context.waker().clone());
            }
            if self.is_at_end {
                return Poll::Ready(None);
            }
            let Poll::Ready(ended) = self.poll_running(context) else { return Poll::Pending };
            self.running = None;
            match ended {
                Ok(is_at_end) => self.is_at_end |= is_at_end,
                Err(error) => match error.raw_os_error() {
                    // It was to leave the rest to the kernel, or all buffers were taken just then.
                    Some(libc::ECANCELED | libc::ENOBUFS) => {}
                    Some(libc::EOPNOTSUPP | libc::EINVAL) if !self.by_one => self.by_one = true,
                    // What came before it comes first, and the error again: it is the pool's.
                    _ if !self.received.lock().pieces.is_empty() => {}
                    _ => return Poll::Ready(Some(Err(error))),
                },
            }
        }
    }

    /// Ends the receiving, and answers what was received and not taken, in its order, and what recv(2) said
    /// behind it, which it will not say again. Once it is over nothing more is taken out of the socket.
    /// Dropped, it ends all the same, and what was received is gone. If the ring has broken in mid-run, what
    /// the kernel had taken and not told of is gone too.
    pub async fn stop(mut self) -> (Vec<Vec<u8>>, io::Result<()>) {
        // Cancels it, and its last landing comes some time.
        self.running = None;
        poll_fn(|context| {
            let mut inbox = self.received.lock();
            if inbox.running > 0 {
                inbox.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            let said = inbox.error.take().map_or(Ok(()), Err);
            Poll::Ready((std::mem::take(&mut inbox.pieces).into(), said))
        })
        .await
    }

    fn poll_running(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let running = self.running.get_or_insert_with(|| {
            let (held, brings) = (Held::new(self.socket.clone()), Brings::new(&self.received));
            if self.by_one {
                let buffer = Vec::with_capacity(SINGLE_BYTES);
                let request = ReceiveOnce { held, buffer, brings };
                Running::Once(self.pool.run(request).via(Via::Thread).owned())
            } else {
                let request = ReceiveMany { entry: Entry::default(), held, brings };
                Running::Many(self.pool.run(request).via(Via::Thread).owned())
            }
        });
        match running {
            Running::Many(operation) => Pin::new(operation).poll(context),
            Running::Once(operation) => Pin::new(operation).poll(context),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::pin::pin;

    use kapok_engine::{AnyEngine, Config, Engine, Kind};

    use super::*;
    use crate::balance::Balance;
    use crate::shared::Shared;
    use crate::step::{Event, Loop};

    #[test]
    fn a_receiver_whose_ring_has_broken_can_be_stopped() {
        let Ok(engine) = AnyEngine::new(Kind::Uring, &Config::default()) else { return };
        let shared = Arc::new(Shared::new(8, 1, 8, Balance::default()));
        shared.active.store(1, std::sync::atomic::Ordering::Release);
        shared.ports[0].open(crate::port::Rouse::Bell(engine.bell()));
        let mut steps = Loop::new(engine, Arc::clone(&shared), 0, crate::pool::pace_for_tests());
        steps.provide = crate::thread::provide_buffers;
        let pool = crate::pool::tests_only(shared);
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut receiver = Receiver::new(&pool, &Arc::new(near));
        let mut context = Context::from_waker(Waker::noop());
        assert!(receiver.poll_next(&mut context).is_pending());
        far.write_all(b"before").unwrap();
        while steps.step().unwrap() != Event::Completed(1) {}
        let error = io::Error::from_raw_os_error(libc::EPERM);
        steps.recover(&error).unwrap();
        let mut stop = pin!(receiver.stop());
        let Poll::Ready((pieces, said)) = stop.as_mut().poll(&mut context) else {
            panic!("it waits for what never comes");
        };
        assert_eq!(pieces.concat(), b"before");
        said.unwrap();
    }
}
