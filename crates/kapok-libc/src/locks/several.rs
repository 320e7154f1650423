//! futex_waitv(2): a wait at several words, by a thread that waits for the fiber.
//!
//! As [`stand_in`](super::stand_in), but for one wait a thread: nothing that is common waits so. The fiber
//! has a word of its own before the program's, by which it calls the thread back when it has gone. The
//! thread is told the last of the words that were woken, so that a wake-up of the program's is never hidden
//! by that; one that is for nobody any more is passed on.

use std::ffi::c_long;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use kapok::interpose::Inside;
use libc::timespec;

use super::abandoned::{Left, Registered};
use super::deadline::Deadline;
use super::futex::Word;
use crate::errno::Errno;
use crate::kernel::kernel;
use crate::signals::mask::{Blocked, aside};

/// `struct futex_waitv`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Waiter {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// `FUTEX2_SIZE_U32`, `FUTEX2_PRIVATE`.
const OF_32_BITS: u32 = 2;
const PRIVATE: u32 = 128;

/// `FUTEX_WAITV_MAX`.
const MOST: usize = 128;

/// How long the thread waits at a time where there is no room for the fiber's word.
const SLICE: timespec = timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// What a thread needs: two system calls.
const STACK_BYTES: usize = 128 << 10;

/// How long a fiber sleeps that found no thread, before it looks again.
const NAP: Duration = Duration::from_millis(2);

/// Where fiber and thread meet.
pub(super) struct Meeting {
    /// The program's words.
    waiters: Vec<Waiter>,
    deadline: Option<Deadline>,
    /// 1: the fiber has gone.
    control: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    over: Option<Result<usize, Errno>>,
    abandoned: bool,
    waker: Option<Waker>,
}

/// The call on a fiber, once the kernel has found nothing wrong with its arguments and nothing to return.
///
/// # Safety
///
/// There are as many waiters as are told, and the time is null or one.
pub(super) unsafe fn wait(inside: &Inside, arguments: [usize; 6]) -> Result<c_long, Errno> {
    let [waiters, count, _, at, clock, _] = arguments;
    // SAFETY: by the caller, here and below; the kernel has just read them.
    let waiters = unsafe {
        let first = std::ptr::with_exposed_provenance::<Waiter>(waiters);
        (0..count).map(|index| first.add(index).read_unaligned()).collect()
    };
    // SAFETY: as above.
    let deadline =
        unsafe { Deadline::new(clock as libc::clockid_t, std::ptr::with_exposed_provenance(at)) };
    let meeting = Arc::new(Meeting {
        waiters,
        deadline,
        control: AtomicU32::new(0),
        state: Mutex::default(),
    });
    super::note_suspension();
    if !attended(&meeting) {
        // Who finds nothing changed waits again.
        let _ = kapok::shield(|| aside(|| inside.wait(kapok::time::sleep_async(NAP), None)));
        return Err(Errno(libc::EINTR));
    }
    // In this order: what is left is taken back by one of the two.
    let _leaving = Leaving(&meeting);
    let _registered = Registered::new(Left::Several(Arc::clone(&meeting)));
    let over = poll_fn(|context| {
        let mut state = meeting.lock();
        if let Some(over) = state.over {
            // It is the fiber's now.
            state.over = Some(Err(Errno(libc::EINTR)));
            return Poll::Ready(over);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    });
    match kapok::shield(|| aside(|| inside.wait(over, None))) {
        Ok(over) => over.map(|index| index as c_long),
        Err(_) => Err(Errno(libc::EINTR)),
    }
}

/// Has a thread attend to it. `false`: there is none.
fn attended(meeting: &Arc<Meeting>) -> bool {
    // Handlers of signals run where the program expects them.
    let _blocked = Blocked::all();
    let theirs = Arc::clone(meeting);
    let thread = std::thread::Builder::new().name("kapok-futex".into()).stack_size(STACK_BYTES);
    thread.spawn(move || theirs.attend()).is_ok()
}

/// A fiber's part in it, up to its end.
struct Leaving<'a>(&'a Meeting);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the thread back: the fiber has gone, and whatever wakes the thread is for somebody else.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        let over = state.over.replace(Err(Errno(libc::EINTR)));
        let waker = state.waker.take();
        drop(state);
        drop(waker);
        match over {
            None => {
                self.control.store(1, Ordering::SeqCst);
                Word::of(&self.control, false).wake(1);
            }
            Some(over) => self.pass_on(over),
        }
    }

    /// On the thread.
    fn attend(&self) {
        let over = self.wait();
        let mut state = self.lock();
        if state.abandoned {
            drop(state);
            return self.pass_on(over);
        }
        state.over = Some(over);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes another one at the word at which this was woken for nobody.
    fn pass_on(&self, over: Result<usize, Errno>) {
        if let Some(waiter) = over.ok().and_then(|index| self.waiters.get(index)) {
            let word = std::ptr::with_exposed_provenance(waiter.address as usize);
            Word::new(word, u32::MAX, waiter.flags & PRIVATE == 0).wake(1);
        }
    }

    fn wait(&self) -> Result<usize, Errno> {
        let has_room = self.waiters.len() < MOST;
        let address = self.control.as_ptr().expose_provenance() as u64;
        let control = Waiter { value: 0, address, flags: OF_32_BITS | PRIVATE, reserved: 0 };
        let first = if has_room { 1 } else { 0 };
        let waiters: Vec<Waiter> =
            has_room.then_some(control).into_iter().chain(self.waiters.iter().copied()).collect();
        loop {
            let slice = Deadline::after(SLICE);
            let until = if has_room { self.deadline } else { Some(slice) };
            let (at, clock) = match &until {
                Some(until) => (&raw const until.at, until.clock),
                None => (std::ptr::null(), libc::CLOCK_MONOTONIC),
            };
            // SAFETY: the kernel reads locals, and the words, about whose addresses it decides.
            let waited = unsafe {
                kernel!(libc::SYS_futex_waitv, waiters.as_ptr(), waiters.len(), 0, at, clock)
            };
            let has_gone = self.control.load(Ordering::SeqCst) != 0;
            match waited {
                Ok(index) if index >= first => return Ok(index - first),
                _ if has_gone => return Err(Errno(libc::EINTR)),
                Ok(_) | Err(Errno(libc::EINTR)) => {}
                Err(Errno(libc::ETIMEDOUT)) if !has_room => {
                    if self.deadline.is_some_and(|deadline| deadline.has_passed()) {
                        return Err(Errno(libc::ETIMEDOUT));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}
