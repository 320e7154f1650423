//! An operation as a future, and as a call that blocks.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::mem;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use kapok_engine::{Op, sys};

use crate::carrier;
use crate::cell::Landed;
use crate::gate::Place;
use crate::pool::Pool;
use crate::request::Request;
use crate::shared::{InFlight, Lack, NotTaken, Shared};
use crate::via::Via;

/// So many operations of one thread may be over at once in a row; then a future lets others run.
const INLINE_BUDGET: u32 = 128;

enum State<R> {
    /// Not begun.
    Fresh(R),
    /// Over without having waited, but it is others' turn first.
    Over(R, Landed),
    /// Stands at a gate, because there is no room for it.
    Waiting(R, Lack, Place),
    /// On an I/O thread.
    InFlight(InFlight),
    /// The outcome has been taken.
    Taken,
}

/// One whose turn it is, while it is being submitted. If that panics it leaves the gate, where its entry
/// would take a wake-up that is meant for somebody else.
struct Stands<'s> {
    shared: &'s Shared,
    at: Option<(Lack, Place)>,
}

impl Stands<'_> {
    fn leave(&mut self, served: bool) {
        if let Some((lack, place)) = self.at.take() {
            self.shared.gate(lack).leave(place, served);
        }
    }
}

impl Drop for Stands<'_> {
    fn drop(&mut self) {
        self.leave(false);
    }
}

/// The pool that an operation is of.
enum Handle<'p> {
    Borrowed(&'p Pool),
    Owned(Pool),
}

impl Deref for Handle<'_> {
    type Target = Pool;

    #[inline]
    fn deref(&self) -> &Pool {
        match self {
            Handle::Borrowed(pool) => pool,
            Handle::Owned(pool) => pool,
        }
    }
}

/// An operation of a [`Pool`]: await it on any executor, or [`block`](Operation::block) for it.
///
/// Nothing is done before it is polled for the first time.
///
/// # Cancellation
///
/// It may be dropped at any time and does not block then. If it is in flight, the buffer and the
/// descriptor stay alive until it has landed, and it is asked to land soon; what it did by then it did:
/// bytes may have been written, or taken out of a socket. What it brought is not lost where that can be
/// helped: a leased buffer returns to its pool, an accepted connection goes to the next accept, a
/// descriptor is closed.
///
/// # Panics
///
/// Polling panics after the end, and if the ring of its thread broke in mid-run (a seccomp filter) while
/// the kernel had the operation: nobody will ever say what became of it, and its buffer stays lent.
#[must_use = "nothing is done before it is awaited or `block` is called"]
pub struct Operation<'p, R: Request> {
    pool: Handle<'p>,
    state: State<R>,
    via: Via,
}

/// It is moved as data: what the kernel is lent lies in a slot or behind a pointer.
impl<R: Request> Unpin for Operation<'_, R> {}

impl<'p, R: Request> Operation<'p, R> {
    pub(crate) fn new(pool: &'p Pool, request: R) -> Operation<'p, R> {
        Operation { pool: Handle::Borrowed(pool), state: State::Fresh(request), via: pool.via() }
    }

    /// Runs it there.
    pub fn via(mut self, via: Via) -> Operation<'p, R> {
        self.via = via;
        self
    }

    /// The same operation with a handle of its own on the pool, for futures that outlive a borrow.
    pub fn owned(mut self) -> Operation<'static, R> {
        let state = mem::replace(&mut self.state, State::Taken);
        Operation { pool: Handle::Owned(self.pool.clone()), state, via: self.via }
    }

    /// Waits until it is over: a fiber of Kapok is suspended, a thread is blocked.
    ///
    /// By [`Via::Auto`] what is not over at once runs on the loop of a fiber that calls, and a thread makes
    /// the system call itself: nothing cancels it, and [`Pool::shutdown`] does not know of it. Where that
    /// matters, use [`Via::Thread`].
    ///
    /// # Errors
    ///
    /// Those of the operation; on the caller's own loop those that end a fiber's waits as well: its
    /// cancellation, its deadline. It came to nothing then.
    ///
    /// # Panics
    ///
    /// If it has been polled to its end.
    pub fn block(mut self) -> R::Output {
        let is_here = matches!(self.via, Via::Auto | Via::Ring) && !self.pool.is_closed();
        let mut request = match mem::replace(&mut self.state, State::Taken) {
            State::Fresh(request) if is_here => request,
            state => {
                self.state = state;
                return block_on(self);
            }
        };
        if self.via == Via::Auto
            && carrier::on_fiber()
            && let Some(res) = request.attempt(false)
        {
            carrier::went_on();
            return request.finish(Landed { res, flags: 0 }.into_result());
        }
        if self.via == Via::Auto || carrier::on_fiber() {
            request.leave_rings();
        }
        let op = request.op();
        if matches!(op, Op::Entry { .. }) {
            // It may name what is the rings' own, and land again and again.
            self.state = State::Fresh(request);
            return block_on(self);
        }
        // What is over at once is none that a fiber's deadline could come before: a close that never was
        // begun would be a descriptor that nobody closes.
        // SAFETY: the request, a local, keeps what the operation names, and does not move before the call
        // has returned, when it is over.
        let ran = if op.is_immediate() { None } else { unsafe { carrier::run(op) } };
        let landed = match ran {
            Some(ran) => ran.map(|res| Landed { res, flags: 0 }),
            None if self.via == Via::Auto => {
                // SAFETY: as above.
                let res = unsafe { sys::perform(&op, true) };
                Landed { res, flags: 0 }.into_result()
            }
            None => {
                self.state = State::Fresh(request);
                return block_on(self);
            }
        };
        request.finish(landed)
    }

    /// Tries the operation in the caller.
    #[inline]
    fn attempt(&self, request: &mut R) -> Option<i32> {
        match self.via {
            Via::Auto | Via::Caller => request.attempt(self.via == Via::Caller),
            Via::Ring | Via::Thread => None,
        }
    }
}

impl<R: Request> Future for Operation<'_, R> {
    type Output = R::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<R::Output> {
        let this = self.get_mut();
        if let State::InFlight(at) = this.state {
            let shared = this.pool.shared();
            let slot = &shared.slots[at.slot];
            // SAFETY: this future is the slot's waiter, and leaves it when it has landed.
            let Some(landed) = (unsafe { slot.cell.poll(context.waker()) }) else {
                return Poll::Pending;
            };
            this.state = State::Taken;
            assert_ne!(
                landed,
                Landed::LOST,
                "the ring broke, and the kernel holds the memory of this operation for good"
            );
            // SAFETY: it has landed, and is an `R`, which this future put there.
            let request = unsafe { slot.empty::<R>() };
            // In a fork's child nobody can be woken for it: see `Drop`.
            if !shared.is_left_behind() {
                shared.free(at.slot);
            }
            return Poll::Ready(landed.outcome_of(request));
        }
        let (mut request, at) = match mem::replace(&mut this.state, State::Taken) {
            State::Over(request, landed) => {
                return Poll::Ready(request.finish(landed.into_result()));
            }
            State::Fresh(mut request) => {
                if let Some(res) = this.attempt(&mut request) {
                    let landed = Landed { res, flags: 0 };
                    if may_go_on() {
                        return Poll::Ready(request.finish(landed.into_result()));
                    }
                    this.state = State::Over(request, landed);
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                (request, None)
            }
            State::Waiting(request, ..) if this.pool.shared().is_left_behind() => {
                return Poll::Ready(request.finish_unbegun(shut_down()));
            }
            State::Waiting(request, lack, place) => (request, Some((lack, place))),
            State::InFlight(_) | State::Taken => panic!("an operation was polled after its end"),
        };
        let shared = this.pool.shared();
        let mut stands = Stands { shared, at };
        let mut announced = None;
        loop {
            let lack = match shared.submit(request, announced == Some(Lack::Slot)) {
                Ok(at) => {
                    stands.leave(true);
                    drop(stands);
                    this.state = State::InFlight(at);
                    return Pin::new(this).poll(context);
                }
                Err(NotTaken { request, lacks: None }) => {
                    stands.leave(true);
                    return Poll::Ready(request.finish_unbegun(shut_down()));
                }
                Err(NotTaken { request: again, lacks: Some(lack) }) => {
                    request = again;
                    lack
                }
            };
            match stands.at.take() {
                Some((at, place)) if at == lack && announced == Some(lack) => {
                    drop(stands);
                    this.state = State::Waiting(request, lack, place);
                    return Poll::Pending;
                }
                Some((at, place)) if at == lack => stands.at = Some((at, place)),
                // It may have been woken for what somebody else can use.
                Some((at, place)) => shared.gate(at).leave(place, false),
                None => {}
            }
            // Once more when whoever makes room would see this waiter.
            let place = stands.at.take().map(|(_, place)| place);
            stands.at = Some((lack, shared.gate(lack).announce(place, context.waker())));
            announced = Some(lack);
        }
    }
}

impl<R: Request> Drop for Operation<'_, R> {
    fn drop(&mut self) {
        let state = mem::replace(&mut self.state, State::Taken);
        if matches!(state, State::Waiting(..) | State::InFlight(_))
            && self.pool.shared().is_left_behind()
        {
            // A fork's child. What is in flight is the parent's, and a line or a bell may be locked for good,
            // by a thread that is not there.
            return;
        }
        match state {
            State::Fresh(_) | State::Taken => {}
            State::Over(request, landed) => request.abandon(landed),
            State::Waiting(request, lack, place) => {
                self.pool.shared().gate(lack).leave(place, false);
                drop(request);
            }
            State::InFlight(at) => {
                let shared = self.pool.shared();
                let slot = &shared.slots[at.slot];
                // SAFETY: this future is the slot's waiter, and leaves it here for good.
                match unsafe { slot.cell.abandon() } {
                    // The slot is left to the kernel.
                    Some(Landed::LOST) => {}
                    Some(landed) => {
                        // SAFETY: it has landed, and is an `R`, which this future put there.
                        let request = unsafe { slot.empty::<R>() };
                        shared.free(at.slot);
                        request.abandon(landed);
                    }
                    None => shared.ports[at.thread as usize].cancel(&shared.slots, at.slot),
                }
            }
        }
    }
}

impl<R: Request> fmt::Debug for Operation<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Fresh(_) => "not begun",
            State::Over(..) => "over",
            State::Waiting(..) => "waits for room",
            State::InFlight(_) => "in flight",
            State::Taken => "taken",
        };
        f.debug_struct("Operation").field("state", &state).field("via", &self.via).finish()
    }
}

/// The error of an operation that comes too late.
pub(crate) fn shut_down() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the pool of I/O threads is shut down, or its threads are in the process that this one was forked from",
    )
}

/// Whether another operation may be over at once. Not if so many were in a row: a task that finds all
/// it reads in the page cache would never let others run.
#[inline]
fn may_go_on() -> bool {
    thread_local! {
        static IN_A_ROW: Cell<u32> = const { Cell::new(0) };
    }
    IN_A_ROW
        .try_with(|count| {
            let next = count.get() + 1;
            count.set(if next < INLINE_BUDGET { next } else { 0 });
            next < INLINE_BUDGET
        })
        .unwrap_or(true)
}

/// Waits until a future is over, for what takes several operations, where there is no executor: a fiber
/// of Kapok is suspended, a thread is blocked.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    if let Some(output) = carrier::wait(&mut future) {
        return output;
    }
    // Taken, for the future may block in its turn. At a thread's end its locals may be gone.
    let spare = BLOCKED.try_with(Cell::take).ok().flatten();
    let (parker, waker) = spare.unwrap_or_else(Parker::new);
    let mut context = Context::from_waker(&waker);
    let output = loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => break output,
            Poll::Pending => parker.park(),
        }
    };
    let _ = BLOCKED.try_with(|spare| spare.set(Some((parker, waker))));
    output
}

/// What a blocked thread waits on.
struct Parker {
    thread: std::thread::Thread,
    notified: AtomicBool,
}

thread_local! {
    /// The parker of this thread while no call uses it.
    static BLOCKED: Cell<Option<(Arc<Parker>, Waker)>> = const { Cell::new(None) };
}

impl Parker {
    fn new() -> (Arc<Parker>, Waker) {
        let thread = std::thread::current();
        let parker = Arc::new(Parker { thread, notified: AtomicBool::new(false) });
        let waker = Waker::from(Arc::clone(&parker));
        (parker, waker)
    }

    /// Waits for a wake-up, or takes one that has come. The thread's own token is anyone's, so it only
    /// says when to look.
    fn park(&self) {
        while !self.notified.swap(false, Ordering::AcqRel) {
            std::thread::park();
        }
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.notified.swap(true, Ordering::AcqRel) {
            self.thread.unpark();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::buffer::Source;

    fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Forks, and says whether `what` holds in the child, which may not hang.
    fn in_child(what: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child calls what is written for it, and ends without unwinding into the test.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let holds = catch_unwind(AssertUnwindSafe(what)).unwrap_or(false);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!holds)) };
        }
        assert!(child > 0);
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut status = 0;
        // SAFETY: writes to a local.
        while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
            if Instant::now() > deadline {
                // SAFETY: the child is this test's own, and not waited for yet.
                unsafe { libc::kill(child, libc::SIGKILL) };
                // SAFETY: writes to a local.
                unsafe { libc::waitpid(child, &raw mut status, 0) };
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }

    #[test]
    fn operations_end_in_a_forks_child_whatever_was_locked() {
        let pool = Pool::builder().slots(2).spin(0).via(Via::Thread).build().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let mut endless = pool.recv(&near, vec![0; 1], 0);
        let mut over = pool.sleep_until(Instant::now() + Duration::from_millis(100));
        assert!(poll_once(&mut endless).is_pending());
        assert!(poll_once(&mut over).is_pending());
        let deadline = Instant::now() + Duration::from_secs(20);
        while pool.stats().pending() != 1 {
            assert!(Instant::now() < deadline, "it does not land");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut waits = pool.nop();
        assert!(poll_once(&mut waits).is_pending());
        let mut gone = pool.nop();
        assert!(poll_once(&mut gone).is_pending());
        // The thread sleeps, so whoever wants something of it would ring.
        std::thread::sleep(Duration::from_millis(50));
        let shared = pool.shared();
        let held = (
            shared.gate(Lack::Slot).hold(),
            shared.gate(Lack::Room).hold(),
            shared.ports[0].hold_bell(),
        );
        let (mut endless, mut gone) = (Some(endless), Some(gone));
        let ends = [
            ("in flight, dropped", in_child(|| endless.take().map(drop).is_some())),
            ("in line, dropped", in_child(|| gone.take().map(drop).is_some())),
            ("landed", in_child(|| matches!(poll_once(&mut over), Poll::Ready(Ok(_))))),
            (
                "in line, polled",
                in_child(|| match poll_once(&mut waits) {
                    Poll::Ready(Err(error)) => error.kind() == io::ErrorKind::NotConnected,
                    _ => false,
                }),
            ),
        ];
        drop(held);
        for (what, is_well) in ends {
            assert!(is_well, "{what}");
        }
        // Here they go on.
        drop((endless, gone));
        assert!(over.block().is_ok());
        assert!(waits.block().is_ok());
    }

    /// Bytes that cannot be had.
    struct Trap;

    // SAFETY: there are none.
    unsafe impl Source for Trap {
        fn bytes(&self) -> &[u8] {
            panic!("the bytes are asked for");
        }
    }

    #[test]
    fn a_request_that_panics_leaves_the_line() {
        let pool = Pool::builder().slots(1).via(Via::Thread).build().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let mut first = pool.recv(&near, vec![0; 1], 0);
        assert!(poll_once(&mut first).is_pending());
        // The one that is woken when there is room, and does not come.
        let mut woken = pool.nop();
        assert!(poll_once(&mut woken).is_pending());
        let mut panics = pool.send(&near, Trap, 0);
        assert!(poll_once(&mut panics).is_pending());
        let mut behind = pool.nop();
        assert!(poll_once(&mut behind).is_pending());
        assert_eq!(pool.stats().waiting, 3);
        far.write_all(b"x").unwrap();
        assert_eq!(first.block().0.unwrap(), 1);
        assert!(catch_unwind(AssertUnwindSafe(|| poll_once(&mut panics))).is_err());
        // It has handed on what it was woken for by its own slot.
        assert_eq!(pool.stats().waiting, 0);
        assert!(behind.block().is_ok());
        assert!(woken.block().is_ok());
    }
}
