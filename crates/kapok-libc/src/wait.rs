//! Waiting inside a hooked call, and being told to stop.
//!
//! A fiber waits here for a future: the readiness of a descriptor, a timer, a futex word. Three
//! things besides end the wait: its time limit; the fiber's cancellation; and a *notice*, which any
//! thread may leave: the descriptor was closed, or a signal was handled.
//!
//! Everybody who waits is in a table by descriptor, so that close(2) finds them. Between a first
//! attempt and the entry into the table the number may be closed and belong to another file: the
//! epoch of the number, taken before the attempt, is compared after the entry.

use std::ffi::c_int;
use std::future::{Future, pending, poll_fn};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use kapok::Interrupted;
use kapok::interpose::{Ended, Operation};
use kapok_engine::sys::descriptors::{self, Epoch};
use kapok_engine::sys::own::OwnDescriptor;
use kapok_engine::{Op, Readiness};

use crate::call::Call;
use crate::errno::Errno;
use crate::fork;
use crate::kernel::kernel;
use crate::signals::mask::{self, aside};
use crate::signals::waiters::{self, Listed, Waiter};
use crate::signals::{deferred, listener};

/// Why a wait ended before what it waited for had come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stopped {
    /// Its time limit passed.
    TimedOut,
    /// The descriptor was closed.
    Closed,
    /// A signal was handled that may interrupt this fiber.
    Signal,
    /// What the call waits for may be there, where no readiness tells of it.
    LookAgain,
    /// The fiber was cancelled, its deadline passed or its peer is gone.
    Interrupted(Interrupted),
}

impl Stopped {
    /// The error of a call that has nothing to show for itself. A time limit is the caller's to
    /// translate, since functions differ in that.
    pub(crate) fn errno(self) -> Errno {
        Errno(match self {
            Stopped::TimedOut => libc::EAGAIN,
            Stopped::Closed => libc::EBADF,
            Stopped::Signal => libc::EINTR,
            // For those who do not look: as if it had been a signal.
            Stopped::LookAgain => libc::EINTR,
            Stopped::Interrupted(Interrupted::Canceled) => libc::ECANCELED,
            Stopped::Interrupted(Interrupted::DeadlineElapsed) => libc::ETIMEDOUT,
            Stopped::Interrupted(Interrupted::PeerGone) => libc::ECONNRESET,
        })
    }
}

const NO_NOTICE: u8 = 0;
/// The number was closed. It has precedence over the others.
const CLOSED: u8 = 1;
/// Look at the number's epoch, and at what there is.
const LOOK_AGAIN: u8 = 2;

/// What others know of a wait.
struct Waiting {
    notice: AtomicU8,
    /// What signals know of it.
    signals: Waiter,
    /// Whom to wake; set before it is in the table.
    waker: OnceLock<Waker>,
}

impl Waiting {
    /// The first notice counts, or that of a close.
    fn notify(&self, notice: u8) -> bool {
        let first = if notice == CLOSED {
            self.notice.swap(CLOSED, Ordering::AcqRel) != CLOSED
        } else {
            let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
            self.notice.compare_exchange(NO_NOTICE, notice, order, failed).is_ok()
        };
        if first {
            self.wake();
        }
        first
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

/// The number under which a fiber's wait without a descriptor is entered: for each shard one.
fn no_descriptor(fiber: u64) -> RawFd {
    -1 - (fiber % SHARDS as u64) as RawFd
}

/// The number under which a fiber's wait for descriptors that are not known is entered besides.
fn unknown(fiber: u64) -> RawFd {
    no_descriptor(fiber) - SHARDS as RawFd
}

type Entries = Vec<(RawFd, Arc<Waiting>)>;

const SHARDS: usize = 256;

static TABLE: [Mutex<Entries>; SHARDS] = [const { Mutex::new(Vec::new()) }; SHARDS];

/// How many are in each shard, for those who look whether there is anybody.
static WAITING: [AtomicUsize; SHARDS] = [const { AtomicUsize::new(0) }; SHARDS];

fn shard(fd: RawFd) -> MutexGuard<'static, Entries> {
    TABLE[fd as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks the table, for a fork.
pub(crate) fn hold(tables: &mut Vec<Box<dyn fork::Held>>) {
    for shard in &TABLE {
        fork::emptied(tables, shard);
    }
}

/// Runs something while the table is locked that a fork locks last.
#[cfg(test)]
pub(crate) fn with_last_locked(f: impl FnOnce()) {
    let _last = shard(SHARDS as RawFd - 1);
    f();
}

/// How many are in the table, and how many are counted.
#[cfg(test)]
pub(crate) fn all() -> (usize, usize) {
    let entries = (0..SHARDS).map(|index| shard(index as RawFd).len()).sum();
    (entries, WAITING.iter().map(|count| count.load(Ordering::Relaxed)).sum())
}

/// In the child of a fork nobody waits.
pub(crate) fn in_child() {
    for count in &WAITING {
        count.store(0, Ordering::Relaxed);
    }
}

/// Tells whoever waits for a number in this range that it is being closed. Called by any thread, but not in
/// handlers of signals.
pub(crate) fn close(first: RawFd, last: RawFd) {
    close_those_of_handlers();
    tell(first, last, CLOSED);
}

/// How often anybody was to look again.
static LOOKS: AtomicUsize = AtomicUsize::new(0);

/// The same, as it is now: for [`Call::looks`].
pub(crate) fn looks() -> usize {
    LOOKS.load(Ordering::SeqCst)
}

/// Has whoever waits for a number look at what there is, and whoever waits for numbers that are not known.
/// One that has looked before and is not in the table yet finds it out as it enters.
pub(crate) fn look_again(fd: RawFd) {
    try_again(fd);
    tell(-2 * SHARDS as RawFd, -1 - SHARDS as RawFd, LOOK_AGAIN);
}

/// Has whoever waits for a number try what it waits for. One that has tried before and is not in the table
/// yet finds it out as it enters, if it [looks](Call::looks).
pub(crate) fn try_again(fd: RawFd) {
    LOOKS.fetch_add(1, Ordering::SeqCst);
    tell(fd, fd, LOOK_AGAIN);
}

fn tell(first: RawFd, last: RawFd, notice: u8) {
    // Before the counts are looked at: whoever enters after that finds the change by itself.
    fence(Ordering::SeqCst);
    let few = ((last - first) as usize) < SHARDS - 1;
    for (index, waiting) in WAITING.iter().enumerate() {
        let wanted = !few || (first..=last).any(|fd| fd as usize % SHARDS == index);
        if !wanted || waiting.load(Ordering::Acquire) == 0 {
            continue;
        }
        loop {
            let untold = shard(index as RawFd)
                .iter()
                .find(|(fd, waiting)| {
                    let now = waiting.notice.load(Ordering::Acquire);
                    (first..=last).contains(fd)
                        && now != CLOSED
                        && (notice == CLOSED || now == NO_NOTICE)
                })
                .map(|(_, waiting)| Arc::clone(waiting));
            // Woken with nothing locked: a waker may be anybody's.
            match untold {
                Some(waiting) => waiting.notify(notice),
                None => break,
            };
        }
    }
}

/// The least and the greatest number that handlers of signals have closed, of which nobody has been told:
/// in the upper half and the lower half.
static CLOSED_BY_HANDLERS: AtomicU64 = AtomicU64::new(NONE_CLOSED);
const NONE_CLOSED: u64 = (u32::MAX as u64) << 32;

/// [`close`], in a handler of a signal, which may take no lock: they are told when it is over.
pub(crate) fn close_later(first: RawFd, last: RawFd) {
    let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
    // `Err` is impossible: the closure always answers.
    let _ = CLOSED_BY_HANDLERS.fetch_update(order, failed, |closed| {
        let least = (closed >> 32).min(first as u64);
        let greatest = (closed & u64::from(u32::MAX)).max(last as u64);
        Some(least << 32 | greatest)
    });
    listener::call();
}

/// Those who wait for a number in between that was not closed find its epoch as it was.
fn close_those_of_handlers() {
    if CLOSED_BY_HANDLERS.load(Ordering::Acquire) != NONE_CLOSED {
        let closed = CLOSED_BY_HANDLERS.swap(NONE_CLOSED, Ordering::AcqRel);
        let (least, greatest) = (closed >> 32, closed & u64::from(u32::MAX));
        if least <= greatest {
            tell(least as RawFd, greatest as RawFd, LOOK_AGAIN);
        }
    }
}

/// All waits that `pick` picks.
fn picked(mut pick: impl FnMut(&Waiter) -> bool) -> Vec<Arc<Waiting>> {
    let mut picked = Vec::new();
    for index in (0..SHARDS).filter(|&index| WAITING[index].load(Ordering::Acquire) > 0) {
        let entries = shard(index as RawFd);
        let entries = entries.iter().filter(|(_, waiting)| pick(&waiting.signals));
        picked.extend(entries.map(|(_, waiting)| Arc::clone(waiting)));
    }
    picked
}

/// Has one wait end because a signal was handled elsewhere. If its handler `restarts` what it
/// interrupts, only one of a call that is [never restarted](Call::never_restarts).
pub(crate) fn interrupt(signal: c_int, restarts: bool) {
    // The handler is over.
    close_those_of_handlers();
    let mut waiting = picked(|waiter| waiter.is_ended_by(signal, restarts));
    waiting.sort_by_key(|waiting| waiting.signals.rank(signal, restarts));
    if let Some(waiting) = waiting.iter().find(|waiting| waiting.signals.tell(restarts)) {
        waiting.wake();
    }
}

/// Wakes those whom handlers could not wake.
pub(crate) fn wake_struck() {
    close_those_of_handlers();
    for waiting in picked(Waiter::is_struck) {
        waiting.wake();
    }
}

/// Takes the waits of a fiber that will never go on out of the table: a notice to it would be lost.
pub(crate) fn abandon(fiber: u64) {
    waiters::abandon(fiber);
    for (index, count) in WAITING.iter().enumerate() {
        if count.load(Ordering::Acquire) > 0 {
            let mut entries = shard(index as RawFd);
            entries.retain(|(_, waiting)| !waiting.signals.is_of(fiber));
            count.store(entries.len(), Ordering::Release);
        }
    }
}

/// A wait's place in the table.
struct Entered<'a> {
    fds: &'a [RawFd],
    waiting: Arc<Waiting>,
}

impl<'a> Entered<'a> {
    fn new(waiting: &Arc<Waiting>, fds: &'a [RawFd], waker: Waker) -> Entered<'a> {
        let waiting = Arc::clone(waiting);
        let _ = waiting.waker.set(waker);
        for &fd in fds {
            let mut entries = shard(fd);
            entries.push((fd, Arc::clone(&waiting)));
            WAITING[fd as usize % SHARDS].store(entries.len(), Ordering::Release);
        }
        // As in `tell`.
        fence(Ordering::SeqCst);
        Entered { fds, waiting }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        for &fd in self.fds {
            let mut entries = shard(fd);
            let ours = |(_, waiting): &(_, Arc<Waiting>)| Arc::ptr_eq(waiting, &self.waiting);
            if let Some(index) = entries.iter().position(ours) {
                entries.swap_remove(index);
                WAITING[fd as usize % SHARDS].store(entries.len(), Ordering::Release);
            }
        }
    }
}

/// A descriptor as it was when a call began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptor {
    pub(crate) fd: RawFd,
    epoch: Epoch,
}

impl Descriptor {
    pub(crate) fn new(fd: RawFd) -> Descriptor {
        Descriptor { fd, epoch: descriptors::epoch(fd) }
    }

    pub(crate) fn is_closed(self) -> bool {
        descriptors::epoch(self.fd) != self.epoch
    }
}

impl Call {
    /// Suspends the fiber until `future` has its output.
    pub(crate) fn wait<F: Future>(
        &self,
        future: F,
        until: Option<Instant>,
    ) -> Result<F::Output, Stopped> {
        self.wait_with(&[], future, until)
    }

    /// Suspends the fiber until `future` has its output; ended by a close of any of `descriptors`.
    pub(crate) fn wait_with<F: Future>(
        &self,
        descriptors: &[Descriptor],
        future: F,
        until: Option<Instant>,
    ) -> Result<F::Output, Stopped> {
        self.suspended.set(true);
        let mut fds: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.fd).collect();
        if fds.is_empty() {
            fds.push(no_descriptor(self.fiber()));
        }
        if self.knows_not_all() {
            fds.push(unknown(self.fiber()));
        }
        let mut future = pin!(future);
        listener::waits();
        let waiting = Arc::new(Waiting {
            notice: AtomicU8::new(NO_NOTICE),
            signals: self.waiter(),
            waker: OnceLock::new(),
        });
        // From here on a signal for this fiber ends the wait.
        let listed = self.ends_by_signals().then(|| Listed::new(&waiting.signals));
        if listed.is_some() && deferred::of(self.fiber()) != 0 {
            return Err(Stopped::Signal);
        }
        let mut entered = None;
        let waited = self.aside(|| {
            self.inside.wait(
                poll_fn(|context| {
                    let first = entered.is_none();
                    let entered = entered.get_or_insert_with(|| {
                        Entered::new(&waiting, &fds, context.waker().clone())
                    });
                    // Before anything is submitted for a number that is another file's by now.
                    if first && any_closed(descriptors) {
                        return Poll::Ready(Err(Stopped::Closed));
                    }
                    if first && self.has_missed_a_look() {
                        return Poll::Ready(Err(Stopped::LookAgain));
                    }
                    if let Poll::Ready(output) = future.as_mut().poll(context) {
                        return Poll::Ready(Ok(output));
                    }
                    match entered.waiting.notice.load(Ordering::Acquire) {
                        CLOSED => return Poll::Ready(Err(Stopped::Closed)),
                        LOOK_AGAIN if any_closed(descriptors) => {
                            return Poll::Ready(Err(Stopped::Closed));
                        }
                        LOOK_AGAIN => return Poll::Ready(Err(Stopped::LookAgain)),
                        _ => {}
                    }
                    if waiting.signals.is_over() {
                        return Poll::Ready(Err(Stopped::Signal));
                    }
                    Poll::Pending
                }),
                until,
            )
        });
        match waited {
            Ok(done) => done,
            Err(Ended::TimedOut) => Err(Stopped::TimedOut),
            Err(Ended::Interrupted(why)) => Err(Stopped::Interrupted(why)),
        }
    }

    /// Suspends the fiber until `future` has its output, and is stopped by nothing but the time.
    pub(crate) fn wait_out<F: Future>(&self, future: F, until: Instant) -> Option<F::Output> {
        self.suspended.set(true);
        // What a signal has left for this fiber, and leaves now, waits for the end of the call.
        let waiter = self.waiter();
        let _listed = self.ends_by_signals().then(|| Listed::new(&waiter));
        self.aside(|| kapok::shield(|| self.inside.wait(future, Some(until)))).ok()
    }

    /// What signals know of the call's waits.
    fn waiter(&self) -> Waiter {
        // One that blocks them all is told of none.
        let mask = if self.ends_by_signals() { mask::mine() } else { !0 };
        Waiter::new(self.fiber(), mask, self.inside.is_main(), self.is_never_restarted())
    }

    /// [`wait_with`](Call::wait_with) of something that only says that an attempt may be worth it. By
    /// the time the fiber runs, another may have closed the number, and it may be another file's.
    fn wait_for_hint<F: Future>(
        &self,
        descriptors: &[Descriptor],
        future: F,
        until: Option<Instant>,
    ) -> Result<Option<F::Output>, Stopped> {
        let hint = match self.wait_with(descriptors, future, until) {
            Ok(hint) => Some(hint),
            Err(Stopped::LookAgain) => None,
            Err(stopped) => return Err(stopped),
        };
        if any_closed(descriptors) { Err(Stopped::Closed) } else { Ok(hint) }
    }

    /// Suspends the fiber until one of `events` (`POLL*`), an error or a hang-up is seen on the
    /// descriptor. What was seen is not told: it may be gone again.
    pub(crate) fn wait_ready(
        &self,
        descriptor: Descriptor,
        events: i16,
        until: Option<Instant>,
    ) -> Result<(), Stopped> {
        let wanted = events | libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
        let seen = readiness(descriptor.fd, events);
        let Some(landed) = self.wait_for_hint(&[descriptor], seen, until)? else { return Ok(()) };
        // A ring ends the wait when the peer has sent all it will, whoever asked for that. An error
        // is one that the next attempt meets too.
        if landed < 0 || landed & i32::from(wanted) != 0 {
            return Ok(());
        }
        self.wait_any(&[(descriptor, events)], until)
    }

    /// The same for several descriptors, and for exactly these events.
    pub(crate) fn wait_any(
        &self,
        wanted: &[(Descriptor, i16)],
        until: Option<Instant>,
    ) -> Result<(), Stopped> {
        let descriptors: Vec<Descriptor> = wanted.iter().map(|&(one, _)| one).collect();
        match Set::new(wanted) {
            Ok(set) => {
                let seen = readiness(set.0.as_raw_fd(), libc::POLLIN);
                self.wait_for_hint(&descriptors, seen, until).map(drop)
            }
            // No descriptor left for it: then the callers look again and again.
            Err(_) => self.nap(&descriptors, until),
        }
    }

    /// Suspends the fiber for a moment: where the kernel cannot say when to try again.
    pub(crate) fn nap(
        &self,
        descriptors: &[Descriptor],
        until: Option<Instant>,
    ) -> Result<(), Stopped> {
        const NAP: Duration = Duration::from_millis(1);
        let end = Instant::now() + NAP;
        match until {
            Some(until) if until <= end => {
                self.wait_for_hint(descriptors, pending::<()>(), Some(until)).map(drop)
            }
            _ => match self.wait_for_hint(descriptors, pending::<()>(), Some(end)) {
                Err(Stopped::TimedOut) if any_closed(descriptors) => Err(Stopped::Closed),
                Err(Stopped::TimedOut) => Ok(()),
                ended => ended.map(drop),
            },
        }
    }

    /// Runs `f`, which blocks, on a helper thread, and suspends the fiber meanwhile. Nothing
    /// interrupts that.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no thread for it.
    pub(crate) fn offload<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R, Errno> {
        self.suspended.set(true);
        aside(|| kapok::blocking(f)).map_err(|_| Errno(libc::ENOMEM))
    }
}

/// The readiness of a descriptor as a future.
pub(crate) fn readiness(fd: RawFd, events: i16) -> Operation {
    // SAFETY: the operation names no memory.
    unsafe { Operation::new(Op::Poll { fd, events: Readiness(events) }, None) }
}

fn any_closed(descriptors: &[Descriptor]) -> bool {
    descriptors.iter().any(|descriptor| descriptor.is_closed())
}

/// Several descriptors as one: an epoll instance, readable if any of them is as wanted.
struct Set(OwnDescriptor);

impl Set {
    fn new(wanted: &[(Descriptor, i16)]) -> Result<Set, Errno> {
        // SAFETY: no memory is named.
        let fd = unsafe { kernel!(libc::SYS_epoll_create1, libc::EPOLL_CLOEXEC) }?;
        // SAFETY: it was just made, and nobody else knows of it.
        let set = Set(OwnDescriptor::new(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }));
        for (index, &(descriptor, events)) in wanted.iter().enumerate() {
            let fd = descriptor.fd;
            // Once a number: the events of all its mentions.
            if wanted[..index].iter().any(|(before, _)| before.fd == fd) {
                continue;
            }
            let all = wanted[index..]
                .iter()
                .filter(|(other, _)| other.fd == fd)
                .fold(events, |all, (_, more)| all | more);
            let mut event = libc::epoll_event { events: u32::from(all as u16), u64: 0 };
            let (instance, add) = (set.0.as_raw_fd(), libc::EPOLL_CTL_ADD);
            // SAFETY: reads a local.
            unsafe { kernel!(libc::SYS_epoll_ctl, instance, add, fd, &raw mut event) }?;
        }
        Ok(set)
    }
}
