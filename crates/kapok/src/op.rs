//! The one rule, kept in one place: a call made on a fiber does not return, unwind or let its stack
//! go while the kernel holds anything that it lent.
//!
//! [`run`] is how every call that waits reaches the engine. It suspends the fiber until *its*
//! operation has landed. Cancellation and deadlines ask the engine to cancel, and go on waiting for
//! the landing; what landed is what is returned.
//!
//! On a plain thread, [`run`] makes the blocking system call.

use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use kapok_engine::{Buffers, Completion, Key, Kind, Op, Readiness, sys};

use crate::fiber::{Fiber, Waiting, interrupt_of};
use crate::runtime::{About, Frame, Loop, Waiter};

/// What a [`Pending`] with an heir ends with if a dead ring keeps its operation. No errno.
pub(crate) const LOST: i32 = i32::MIN;

/// How long a call that must not suspend, because its thread is unwinding, may block it.
const UNWINDING_LIMIT: Duration = Duration::from_millis(100);

/// How long to nap where poll(2) says that a call would not block, and it would.
const NAP: Duration = Duration::from_millis(1);

/// Carries out `op` and waits for it: its result, or its error.
///
/// # Safety
///
/// Memory named by `op` is valid and unaliased (shared, if only read) for the duration of this
/// call. The descriptor is open, and nobody closes it meanwhile without accepting that the
/// operation may still act on it.
#[inline(always)]
pub(crate) unsafe fn run(op: Op) -> io::Result<i32> {
    match Loop::running(&Frame::default()) {
        // SAFETY: by the caller.
        Some((lp, fiber)) if !std::thread::panicking() => unsafe { run_on_fiber(lp, fiber, op) },
        // A switch would carry the thread's panic to another fiber, whose locks it would poison.
        // SAFETY: by the caller.
        Some(_) => unsafe { run_blocking(op, Some(UNWINDING_LIMIT)) },
        // SAFETY: by the caller.
        None => unsafe { run_blocking(op, None) },
    }
}

/// Sends from `buf`. Nearly always there is room, and then this is send(2) and little else.
///
/// # Errors
///
/// As for every call that waits.
#[inline(always)]
pub(crate) fn send(fd: RawFd, buf: &[u8], flags: i32) -> io::Result<i32> {
    let frame = Frame::default();
    let running = Loop::running(&frame);
    if let Some((lp, fiber)) = running.filter(|_| !std::thread::panicking())
        && lp.sends_at_once(fd)
    {
        // SAFETY: the fiber that runs is alive.
        if let Some(interrupt) = interrupt_of(lp, unsafe { fiber.as_ref() }) {
            return Err(interrupt.into());
        }
        let res = sys::send_now(fd, buf, flags);
        if res != -libc::EAGAIN {
            lp.count_at_once();
            if !lp.may_go_on_after(res) {
                lp.yield_now(fiber);
            }
            return landed(res);
        }
    }
    let op = Op::Send { fd, buf: buf.as_ptr(), len: buf.len(), flags };
    // SAFETY: the slice is borrowed for the whole call, and the descriptor by the caller.
    unsafe { run(op) }
}

/// Receives into `buf`. A ring says when it has left bytes behind, and they are taken without it:
/// `left` is whether there were any, as of the last receive from this socket. Whoever streams then
/// neither submits nor suspends for each part.
///
/// # Errors
///
/// As for every call that waits.
#[inline(always)]
pub(crate) fn recv(fd: RawFd, buf: &mut [u8], left: &AtomicBool) -> io::Result<i32> {
    let frame = Frame::default();
    let running = Loop::running(&frame);
    let running = running.filter(|_| !std::thread::panicking());
    if let Some((lp, fiber)) = running
        && left.load(Ordering::Relaxed)
        && let Some(received) = recv_what_is_left(lp, fiber, fd, buf, left)
    {
        return received;
    }
    let op = Op::Recv { fd, buf: buf.as_mut_ptr(), len: buf.len(), flags: 0 };
    let Some((lp, fiber)) = running else {
        // SAFETY: the slice is borrowed for the whole call, and the descriptor by the caller.
        return unsafe { run(op) };
    };
    // What landed last may have been another socket's.
    // SAFETY: the fiber that runs is alive; a plain field.
    unsafe { (*fiber.as_ref().local()).flags = 0 };
    // SAFETY: as above.
    let received = unsafe { run_on_fiber(lp, fiber, op) };
    // SAFETY: the fiber that runs is alive; a field that is set as its operation lands.
    if unsafe { (*fiber.as_ref().local()).flags } & Completion::SOCK_NONEMPTY != 0 {
        left.store(true, Ordering::Relaxed);
    }
    received
}

/// Receives what the last receive has left, without waiting; `None` if there is nothing.
#[inline(always)]
fn recv_what_is_left(
    lp: &Loop,
    fiber: NonNull<Fiber>,
    fd: RawFd,
    buf: &mut [u8],
    left: &AtomicBool,
) -> Option<io::Result<i32>> {
    // SAFETY: the fiber that runs is alive.
    if let Some(interrupt) = interrupt_of(lp, unsafe { fiber.as_ref() }) {
        return Some(Err(interrupt.into()));
    }
    let res = sys::recv_now(fd, buf);
    if usize::try_from(res) != Ok(buf.len()) {
        left.store(false, Ordering::Relaxed);
    }
    if res == -libc::EAGAIN {
        return None;
    }
    lp.count_at_once();
    if !lp.may_go_on_after(res) {
        lp.yield_now(fiber);
    }
    Some(landed(res))
}

/// As [`recv`] into `memory`, which is for what was left alone; `None` if there is nothing, or no memory, or on
/// no fiber.
///
/// # Errors
///
/// As for every call that waits.
#[inline(always)]
pub(crate) fn recv_left<M: AsMut<[u8]>>(
    fd: RawFd,
    memory: impl FnOnce() -> Option<M>,
    left: &AtomicBool,
) -> io::Result<Option<(M, usize)>> {
    let frame = Frame::default();
    let Some((lp, fiber)) = Loop::running(&frame).filter(|_| !std::thread::panicking()) else {
        return Ok(None);
    };
    let Some(mut memory) = memory() else { return Ok(None) };
    let received = recv_what_is_left(lp, fiber, fd, memory.as_mut(), left).transpose()?;
    Ok(received.map(|count| (memory, count as usize)))
}

/// Carries out an operation that [never waits](Op::is_immediate), on a fiber, on its loop or on a
/// plain thread alike. Neither cancellation nor a deadline is in its way.
///
/// # Safety
///
/// As for [`run`].
pub(crate) unsafe fn now(op: Op) -> io::Result<i32> {
    debug_assert!(op.is_immediate());
    let res = Loop::with_current(|current| match current {
        // SAFETY: by the caller.
        Some(lp) => match unsafe { lp.submit(Waiter::Nobody, op) } {
            Err(res) => res,
            Ok(_) => unreachable!("{} never waits", op.name()),
        },
        // SAFETY: by the caller.
        None => unsafe { sys::perform(&op, true) },
    });
    landed(res)
}

/// What a receive that brings no memory came to.
pub(crate) enum Pooled {
    /// So many bytes, in one of the buffers of the loop with this number.
    Bytes { buffers: Rc<Buffers>, id: u16, len: usize, home: u64 },
    /// The end of the stream.
    End,
    /// There is no buffer to be had: on no fiber, or when all are taken.
    Unavailable,
}

/// Receives into a buffer of the engine's own, and notes whether that has left bytes behind: a ring says so,
/// and on readiness engines it is likely where a buffer was filled without a wait.
#[inline(always)]
pub(crate) fn receive_pooled(fd: RawFd, left: &AtomicBool) -> io::Result<Pooled> {
    let frame = Frame::default();
    let running = Loop::running(&frame);
    let Some((lp, fiber)) = running.filter(|_| !std::thread::panicking()) else {
        return Ok(Pooled::Unavailable);
    };
    // Stays if nothing has to be waited for.
    // SAFETY: the fiber that runs is alive; a plain field.
    unsafe { (*fiber.as_ref().local()).flags = Completion::SOCK_NONEMPTY };
    // SAFETY: the operation names no memory, and the descriptor is open: by the callers, which
    // borrow its socket.
    let received = unsafe { run_on_fiber(lp, fiber, Op::RecvPooled { fd }) };
    // SAFETY: the fiber that runs is alive; a field that is set as its operation lands.
    let buffer = unsafe { (*fiber.as_ref().local()).buffer.take() };
    match (received, buffer) {
        (Ok(count), Some((buffers, id))) => {
            let len = count as usize;
            // SAFETY: the fiber that runs is alive; a field that is set as its operation lands.
            let told = unsafe { (*fiber.as_ref().local()).flags } & Completion::SOCK_NONEMPTY != 0;
            if told && len == buffers.bytes() {
                left.store(true, Ordering::Relaxed);
            }
            Ok(Pooled::Bytes { buffers, id, len, home: lp.id() })
        }
        (Ok(_), None) => Ok(Pooled::End),
        (Err(error), _) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Pooled::Unavailable),
        (Err(error), _) => Err(error),
    }
}

/// # Safety
///
/// As for [`run`].
#[inline(always)]
unsafe fn run_on_fiber(lp: &Loop, fiber: NonNull<Fiber>, op: Op) -> io::Result<i32> {
    loop {
        // SAFETY: the fiber that runs is alive.
        if let Some(interrupt) = interrupt_of(lp, unsafe { fiber.as_ref() }) {
            return Err(interrupt.into());
        }
        // SAFETY: by the caller; this function stays until the operation has landed, and it cannot
        // be unwound out of `suspend`.
        let res = match unsafe { lp.submit(Waiter::Fiber(fiber), op) } {
            Err(res) => {
                if !lp.may_go_on_after(res) {
                    lp.yield_now(fiber);
                }
                res
            }
            // SAFETY: the key was just submitted for this fiber.
            Ok(key) => unsafe { wait_for(lp, fiber, key, &op) },
        };
        match res {
            0.. => return Ok(res),
            // A signal, or a wait that was broken off: nothing happened, so start again, unless
            // there is a reason to be interrupted, which the next round sees.
            _ if res == -libc::EINTR => {}
            _ if res == -libc::ECANCELED => {
                // SAFETY: the fiber that runs is alive.
                return Err(match interrupt_of(lp, unsafe { fiber.as_ref() }) {
                    Some(interrupt) => interrupt.into(),
                    None => io::Error::from_raw_os_error(libc::ECANCELED),
                });
            }
            // A ring takes `O_NONBLOCK` for the wish not to wait.
            _ if res == -libc::EAGAIN && lp.kind() == Kind::Uring => {
                // SAFETY: by the caller; the operation has landed, so its memory is lent no more.
                return landed(unsafe { sys::outcome_of_refused(&op) });
            }
            _ => return Err(io::Error::from_raw_os_error(-res)),
        }
    }
}

/// The result of an operation that is over.
fn landed(res: i32) -> io::Result<i32> {
    if res < 0 { Err(io::Error::from_raw_os_error(-res)) } else { Ok(res) }
}

/// Suspends the running fiber until `key`, submitted on its behalf, has landed.
///
/// # Safety
///
/// `fiber` is the one that runs on `lp`, and `key` was submitted with it as the waiter.
#[inline(always)]
unsafe fn wait_for(lp: &Loop, fiber: NonNull<Fiber>, key: Key, op: &Op) -> i32 {
    // SAFETY: on the fiber itself, by the caller; plain fields, copied.
    let local = unsafe { fiber.as_ref().local() };
    // SAFETY: as above.
    let deadline = unsafe {
        (*local).waiting = Waiting::Operation(key);
        (*local).deadline
    };
    let limit = deadline.map(|deadline| lp.arm(Waiter::Limit(fiber), deadline));
    lp.suspend(fiber, || About::operation(op));
    if let Some(limit) = limit {
        lp.disarm(limit);
    }
    // SAFETY: as above.
    unsafe { (*local).result }
}

/// Carries out `op` on a plain thread.
///
/// # Safety
///
/// As for [`run`].
unsafe fn run_blocking(op: Op, limit: Option<Duration>) -> io::Result<i32> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    if let Op::Timer { deadline: timer } = op {
        let until = deadline.map_or(timer, |deadline| deadline.min(timer));
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        return Ok(0);
    }
    let wanted = wanted_readiness(&op);
    // poll(2) knows no waiting for regular files, and they do not make anyone wait for good.
    let blocking = limit.is_none() || works_on_regular_file(&op);
    let connects = matches!(op, Op::Connect { .. });
    let (mut was_ready, mut begun) = (false, false);
    loop {
        // With a limit, or on a descriptor that does not block, ask before and wait in poll(2).
        // SAFETY: by the caller.
        let res = match unsafe { sys::perform(&op, blocking) } {
            // SAFETY: by the caller.
            res if res == -libc::EAGAIN => unsafe { sys::outcome_of_refused(&op) },
            res => res,
        };
        match res {
            0.. => return Ok(res),
            _ if res == -libc::EINTR => {}
            // A connect that does not block has begun; when it is over, another one says how it went.
            _ if res == -libc::EISCONN && begun => return Ok(0),
            _ if connects
                && deadline.is_some()
                && [libc::EINPROGRESS, libc::EALREADY].contains(&-res) =>
            {
                begun = true;
                let (fd, events) = wanted.unwrap_or((-1, Readiness::WRITABLE));
                sys::wait_ready(fd, events, deadline)?;
            }
            _ if res == -libc::EAGAIN && wanted.is_some() => {
                let (fd, events) = wanted.unwrap_or((-1, Readiness::READABLE));
                if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                // What poll(2) called ready and the call refuses: a full peer found by its name.
                if std::mem::replace(&mut was_ready, true) {
                    std::thread::sleep(NAP);
                }
                sys::wait_ready(fd, events, deadline)?;
            }
            _ => return Err(io::Error::from_raw_os_error(-res)),
        }
    }
}

/// Whether `op` reads or writes a regular file.
fn works_on_regular_file(op: &Op) -> bool {
    let (Op::Read { fd, .. } | Op::Write { fd, .. }) = *op else { return false };
    // SAFETY: integers, for which zero is a value; fstat writes to a local of its type.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG
    }
}

/// What a descriptor must be for `op` to get on.
fn wanted_readiness(op: &Op) -> Option<(i32, Readiness)> {
    match *op {
        Op::Recv { fd, flags, .. } | Op::RecvMsg { fd, flags, .. } => {
            (flags & libc::MSG_DONTWAIT == 0).then_some((fd, Readiness::READABLE))
        }
        Op::Send { fd, flags, .. } | Op::SendMsg { fd, flags, .. } => {
            (flags & libc::MSG_DONTWAIT == 0).then_some((fd, Readiness::WRITABLE))
        }
        Op::Accept { fd, .. } | Op::Read { fd, .. } => Some((fd, Readiness::READABLE)),
        Op::Connect { fd, .. } | Op::Write { fd, .. } => Some((fd, Readiness::WRITABLE)),
        Op::Poll { fd, events } => Some((fd, events)),
        _ => None,
    }
}

/// An operation that lends nothing of its caller's, as a future: what `select!` waits for.
///
/// It runs on the loop of the fiber that polls it first. Dropped before it has landed, the
/// operation is cancelled and its result, if there is one after all, goes to `heir`.
///
/// If the ring that has the operation dies, an operation without an heir, which lends nothing, is
/// made again. With one the future ends with [`LOST`]: what the heir owns is lent for good, so it is
/// never told, and leaked.
pub(crate) struct Pending {
    op: Op,
    state: State,
    heir: Option<Box<dyn FnOnce(i32)>>,
    // Loops belong to threads.
    _pinned: PhantomData<*const ()>,
}

#[derive(Clone, Copy)]
enum State {
    New,
    /// The key means something to the loop of this number only.
    Submitted(Key, u64),
    Over,
}

impl Pending {
    /// A future for `op`.
    ///
    /// # Safety
    ///
    /// Memory named by `op` is owned by `heir`, or there is none: it stays until `heir` is called
    /// or dropped, by itself or after the future has ended. The descriptor stays open while the
    /// future lives; afterwards, an operation that is being cancelled may still act on it.
    pub(crate) unsafe fn new(op: Op, heir: Option<Box<dyn FnOnce(i32)>>) -> Pending {
        Pending { op, state: State::New, heir, _pinned: PhantomData }
    }

    /// Has the engine cancel the operation. It lands all the same, if with nothing.
    pub(crate) fn cancel(&self) {
        let State::Submitted(key, home) = self.state else { return };
        Loop::with_current(|current| {
            let Some(lp) = current.filter(|lp| lp.id() == home) else { return };
            if lp.with_waiter(key, |waiter| matches!(waiter, Some(Waiter::Task(..)))) {
                lp.cancel(key);
            }
        });
    }

    /// Takes the heir back once the operation is over.
    pub(crate) fn disinherit(&mut self) {
        debug_assert!(matches!(self.state, State::Over));
        self.heir = None;
    }
}

impl Future for Pending {
    type Output = i32;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<i32> {
        Loop::with_current(|current| {
            let lp = current.expect("this future belongs to kapok: poll it on a fiber");
            if let State::Submitted(key, home) = self.state {
                assert!(lp.id() == home, "a future was polled on another loop than it began on");
                let replaced = lp.with_waiter(key, |waiter| match waiter {
                    Some(Waiter::Landed(res)) => Err(*res),
                    Some(Waiter::Lost) => Err(LOST),
                    Some(Waiter::Task(waker, _)) => Ok(match waker {
                        Some(old) if old.will_wake(context.waker()) => None,
                        _ => waker.replace(context.waker().clone()),
                    }),
                    _ => unreachable!("the slot of {key:?} is someone else's"),
                });
                let res = match replaced {
                    Err(res) => res,
                    Ok(_old_waker) => return Poll::Pending,
                };
                let _landed = lp.free(key);
                if res != LOST || self.heir.is_some() {
                    self.state = State::Over;
                    if res == LOST {
                        std::mem::forget(self.heir.take());
                    }
                    return Poll::Ready(res);
                }
                self.state = State::New;
            }
            if let State::Over = self.state {
                panic!("a future was polled after it had ended");
            }
            let waiter = Waiter::Task(Some(context.waker().clone()), self.op.fd());
            // SAFETY: by who made the future: what is lent is the heir's, which is kept here, or in
            // the slot, until the operation has landed.
            match unsafe { lp.submit(waiter, self.op) } {
                Err(res) => {
                    self.state = State::Over;
                    Poll::Ready(res)
                }
                Ok(key) => {
                    self.state = State::Submitted(key, lp.id());
                    Poll::Pending
                }
            }
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let State::Submitted(key, home) = self.state else { return };
        let heir = self.heir.take();
        Loop::with_current(|current| match current.filter(|lp| lp.id() == home) {
            Some(lp) if heir.is_none() && matches!(self.op, Op::Timer { .. }) => {
                lp.disarm(key);
            }
            Some(lp) => lp.orphan(key, heir),
            // Without its loop the operation never lands here: its heir keeps what was lent.
            None => std::mem::forget(heir),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;
    use std::sync::mpsc;

    use super::*;
    use crate::Runtime;

    /// Receives in every way there is.
    fn receive(from: &UnixDatagram) -> Vec<io::Result<i32>> {
        let (fd, mut bytes) = (from.as_raw_fd(), [0u8; 8]);
        let (buf, len) = (bytes.as_mut_ptr(), bytes.len());
        let mut part = libc::iovec { iov_base: buf.cast(), iov_len: len };
        let mut name = [0u8; 128];
        // SAFETY: integers and pointers, for which zero is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = name.as_mut_ptr().cast();
        message.msg_namelen = name.len() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        let ops = [
            Op::Recv { fd, buf, len, flags: 0 },
            Op::RecvMsg { fd, msg: &raw mut message, flags: 0 },
            Op::Read { fd, buf, len, offset: Op::CURRENT_POSITION },
            Op::Recv { fd, buf, len, flags: libc::MSG_DONTWAIT },
        ];
        // SAFETY: all that is named are locals that outlive the calls.
        let results = ops.map(|op| unsafe { run(op) });
        // Of nobody: what came had no sender either.
        assert!(results[1].is_err() || message.msg_namelen == 0);
        results.into()
    }

    fn at_the_end(results: &[io::Result<i32>]) -> bool {
        let [waiting @ .., not_waiting] = results else { return false };
        waiting.iter().all(|result| matches!(result, Ok(0)))
            && matches!(not_waiting, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn a_socket_shut_down_for_receiving_is_at_its_end_everywhere() {
        struct OnDrop(UnixDatagram, mpsc::Sender<Vec<io::Result<i32>>>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                let _ = self.1.send(receive(&self.0));
            }
        }
        let in_time = Duration::from_secs(20);
        for nonblocking in [false, true] {
            let (near, far) = UnixDatagram::pair().unwrap();
            near.set_nonblocking(nonblocking).unwrap();
            for _ in 0..2 {
                far.send(b"before").unwrap();
            }
            near.shutdown(std::net::Shutdown::Read).unwrap();
            let (sender, results) = mpsc::channel();
            let shared = near.try_clone().unwrap();
            let fibers = sender.clone();
            std::thread::spawn(move || {
                Runtime::builder().threads(1).build().unwrap().run(move || {
                    fibers.send(receive(&shared)).unwrap();
                    fibers.send(receive(&shared)).unwrap();
                    let unwinds = OnDrop(shared, fibers);
                    let fiber = crate::spawn(move || {
                        let _unwinds = unwinds;
                        panic!("on purpose");
                    });
                    assert!(fiber.join().is_err());
                });
            });
            let first = results.recv_timeout(in_time).unwrap();
            assert!(matches!(first[..3], [Ok(6), Ok(6), Ok(0)]), "{first:?}");
            for place in ["a fiber", "a fiber that unwinds"] {
                let found = results.recv_timeout(in_time).unwrap();
                assert!(at_the_end(&found), "on {place}, {nonblocking}: {found:?}");
            }
            std::thread::spawn(move || sender.send(receive(&near)));
            let found = results.recv_timeout(in_time).expect("a thread that does not hang");
            assert!(at_the_end(&found), "on a thread, {nonblocking}: {found:?}");
        }
    }
}
