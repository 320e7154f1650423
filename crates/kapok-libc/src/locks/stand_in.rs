//! Threads that wait at futex words for fibers whose engine cannot.
//!
//! Each waits for one fiber, so no wait stands in line behind another: fibers that wait for each other
//! by way of a third would never get out of a line. A thread that has nothing to do for some seconds
//! ends. If the system has no thread to give, the fiber sleeps for a moment and looks again, which is
//! slow and right.
//!
//! ```text
//!   fiber: StandIn ──task──► thread: futex_waitv { control, word }
//!      │ dropped: control = 1, wake                │ woken: leave the result, wake the fiber;
//!      └──────────────────────────────────────►    │ or, if the fiber has gone, pass it on
//! ```

use std::future::Future;
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libc::timespec;

use super::abandoned::{Left, Registered};
use super::futex::Word;
use super::per_process::PerProcess;
use crate::errno::Errno;
use crate::kernel::kernel;
use crate::signals::mask::Blocked;

/// How long a thread waits for another fiber before it ends.
const IDLE: Duration = Duration::from_secs(5);

/// How long a fiber sleeps that found no thread.
const NAP: Duration = Duration::from_millis(2);

/// How long a thread waits at a time on a kernel that cannot wait at two words (before 5.16).
const SLICE: timespec = timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// What a thread needs: a system call and a channel.
const STACK_BYTES: usize = 128 << 10;

/// Where fiber and thread meet.
pub(super) struct Meeting {
    word: Word,
    expected: u32,
    /// 1: the fiber has gone.
    control: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    over: Option<Over>,
    abandoned: bool,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// By a wake-up, which is for one waiter.
    Woken,
    ForNoReason,
}

/// A wait by a thread, as a future.
pub(super) struct StandIn(Wait);

enum Wait {
    Thread(Arc<Meeting>, #[expect(dead_code, reason = "for as long as it is there")] Registered),
    Nap(kapok::time::Sleep),
}

impl StandIn {
    pub(super) fn new(word: Word, expected: u32) -> StandIn {
        let control = AtomicU32::new(0);
        let meeting = Arc::new(Meeting { word, expected, control, state: Mutex::default() });
        StandIn(if hand_over(Arc::clone(&meeting)) {
            let registered = Registered::new(Left::StandIn(Arc::clone(&meeting)));
            Wait::Thread(meeting, registered)
        } else {
            Wait::Nap(kapok::time::sleep_async(NAP))
        })
    }
}

impl Future for StandIn {
    /// Whether it was woken, rather than for no reason.
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        match &mut self.0 {
            Wait::Nap(nap) => Pin::new(nap).poll(context).map(|()| false),
            Wait::Thread(meeting, _) => {
                let mut state = lock(&meeting.state);
                if let Some(over) = &mut state.over {
                    let woken = std::mem::replace(over, Over::ForNoReason) == Over::Woken;
                    return Poll::Ready(woken);
                }
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Wait::Thread(meeting, _) = &self.0 {
            meeting.abandon();
        }
    }
}

impl Meeting {
    /// Calls the thread back: the fiber has gone, and whatever wakes the thread is for somebody else.
    pub(super) fn abandon(&self) {
        let mut state = lock(&self.state);
        state.abandoned = true;
        let over = state.over;
        let waker = state.waker.take();
        drop(state);
        drop(waker);
        match over {
            None => {
                self.control.store(1, Ordering::SeqCst);
                Word::of(&self.control, false).wake(1);
            }
            Some(Over::Woken) => self.word.pass_on(),
            Some(Over::ForNoReason) => {}
        }
    }

    /// Waits, on a thread. Calls `ready` when it has, before the fiber can go on.
    fn attend(&self, ready: impl FnOnce()) {
        let over = if self.wait() { Over::Woken } else { Over::ForNoReason };
        ready();
        let mut state = lock(&self.state);
        state.over = Some(over);
        let waker = state.waker.take();
        let abandoned = state.abandoned;
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        if abandoned && over == Over::Woken {
            self.word.pass_on();
        }
    }

    /// Whether a wake-up ended it.
    fn wait(&self) -> bool {
        if self.word.mask() == u32::MAX
            && let Some(woken) = self.wait_at_both()
        {
            return woken;
        }
        let word = self.word;
        let operation = word.operation(libc::FUTEX_WAIT_BITSET);
        loop {
            if self.control.load(Ordering::SeqCst) != 0 {
                return false;
            }
            let until = super::deadline::Deadline::after(SLICE).at;
            let null = ptr::null::<u32>();
            // SAFETY: the kernel reads a local, and the word, about whose address it decides.
            let waited = unsafe {
                kernel!(
                    libc::SYS_futex,
                    word.address(),
                    operation,
                    self.expected,
                    &raw const until,
                    null,
                    word.mask()
                )
            };
            match waited {
                Ok(_) => return true,
                Err(Errno(libc::ETIMEDOUT | libc::EINTR)) => {}
                Err(_) => return false,
            }
        }
    }

    /// Waits until the word is woken or the fiber has gone. None: the kernel cannot.
    fn wait_at_both(&self) -> Option<bool> {
        /// `struct futex_waitv`.
        #[repr(C)]
        struct Waiter {
            value: u64,
            address: u64,
            flags: u32,
            reserved: u32,
        }
        /// `FUTEX2_SIZE_U32`, `FUTEX2_PRIVATE`.
        const OF_32_BITS: u32 = 2;
        const PRIVATE: u32 = 128;
        let private = if self.word.is_shared() { 0 } else { PRIVATE };
        let waiters = [
            Waiter {
                value: 0,
                address: self.control.as_ptr() as u64,
                flags: OF_32_BITS | PRIVATE,
                reserved: 0,
            },
            // The last that was woken is told: a wake-up of the word is never hidden by the other.
            Waiter {
                value: u64::from(self.expected),
                address: self.word.address() as u64,
                flags: OF_32_BITS | private,
                reserved: 0,
            },
        ];
        loop {
            // SAFETY: the kernel reads locals, and the words, about whose addresses it decides.
            let waited =
                unsafe { kernel!(libc::SYS_futex_waitv, waiters.as_ptr(), waiters.len(), 0, 0, 0) };
            return match waited {
                Ok(index) => Some(index == 1),
                Err(Errno(libc::EINTR)) => continue,
                Err(Errno(libc::ENOSYS | libc::EPERM)) => None,
                Err(_) => Some(false),
            };
        }
    }
}

type Threads = Mutex<Vec<(u64, Sender<Arc<Meeting>>)>>;

/// Threads that wait for a task, by number; the last to become idle last. Those of a process that has
/// forked this one are not here.
static IDLE_THREADS: PerProcess<Threads> = {
    static FIRST: Threads = Mutex::new(Vec::new());
    PerProcess::new(&FIRST)
};

/// Forgets the threads of the parent, in the child of a fork.
pub(super) fn forget() {
    IDLE_THREADS.renew(Mutex::new(Vec::new()));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the task to a thread. `false`: there is none.
fn hand_over(mut task: Arc<Meeting>) -> bool {
    loop {
        let idle = lock(IDLE_THREADS.get()).pop();
        let Some((_, thread)) = idle else { break };
        match thread.send(task) {
            Ok(()) => return true,
            Err(mpsc::SendError(back)) => task = back,
        }
    }
    // Handlers of signals run where the program expects them.
    let _blocked = Blocked::all();
    let (sender, tasks) = mpsc::channel();
    std::thread::Builder::new()
        .name("kapok-futex".into())
        .stack_size(STACK_BYTES)
        .spawn(move || work(task, &sender, &tasks))
        .is_ok()
}

fn work(first: Arc<Meeting>, to_me: &Sender<Arc<Meeting>>, tasks: &Receiver<Arc<Meeting>>) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut task = Some(first);
    while let Some(meeting) = task.take() {
        // A fiber that goes on often waits again at once, and finds this thread.
        meeting.attend(|| lock(IDLE_THREADS.get()).push((number, to_me.clone())));
        drop(meeting);
        task = tasks.recv_timeout(IDLE).ok();
        if task.is_none() {
            let mut idle = lock(IDLE_THREADS.get());
            let before = idle.len();
            idle.retain(|(other, _)| *other != number);
            let is_wanted = idle.len() == before;
            drop(idle);
            if is_wanted {
                // Somebody has just taken it out of the list, to give it a task.
                task = tasks.recv().ok();
            }
        }
    }
}
