//! Operations that offload threads carry out for an engine, and the way back.
//!
//! A thread puts the result into the engine's inbox and rings its bell. The ticket says who has the
//! operation: it is the engine's to cancel until a thread has taken it up.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bell::Bell;
use crate::offload;
use crate::op::{Key, Op};
use crate::sys::perform;

/// How a thread carries an operation out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Carry {
    /// By the call that blocks.
    Blocking,
    /// By trying, until it succeeds or is cancelled: for calls that are refused when they would
    /// block, by a kernel that has no way to say when they no longer would.
    Retrying,
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const CANCELLED: u8 = 2;

/// Who has an operation.
pub(super) struct Ticket(AtomicU8);

impl Ticket {
    /// Whether the operation was called back before any thread took it up. If one has, it is asked
    /// to leave it, and will land it.
    #[must_use]
    pub(super) fn call_back(&self) -> bool {
        self.0.swap(CANCELLED, Ordering::AcqRel) == WAITING
    }

    fn take_up(&self) -> bool {
        self.0.compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire) == CANCELLED
    }
}

/// An operation on its way to a thread.
struct Loan(Op);

// SAFETY: the memory named by the operation is lent to whoever carries it out until the key lands
// (`Engine::submit`), and it lands only after the thread is done with it: see `Inbox::post`.
unsafe impl Send for Loan {}

impl Loan {
    fn carry_out(self, carry: Carry, ticket: &Ticket) -> i32 {
        let mut nap = Duration::from_micros(100);
        loop {
            // SAFETY: the loan, see above.
            let res = unsafe { perform(&self.0, carry == Carry::Blocking) };
            if carry == Carry::Blocking || res != -libc::EAGAIN {
                return res;
            }
            if ticket.is_cancelled() {
                return -libc::ECANCELED;
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(10));
        }
    }
}

/// Results on their way back to the engine.
pub(super) struct Inbox {
    results: Mutex<Vec<(Key, i32)>>,
    arrived: Condvar,
    /// Whether `results` is worth a lock.
    any: AtomicBool,
    bell: Bell,
}

impl Inbox {
    pub(super) fn new(bell: Bell) -> Arc<Inbox> {
        Arc::new(Inbox {
            results: Mutex::default(),
            arrived: Condvar::new(),
            any: AtomicBool::new(false),
            bell,
        })
    }

    /// Hands `op` to an offload thread, whose result will be in this inbox unless the ticket is
    /// called back in time. `Err` is `-errno`: there is no thread, and the operation is not handed
    /// out.
    pub(super) fn hand_out(
        self: &Arc<Self>,
        key: Key,
        op: Op,
        carry: Carry,
    ) -> Result<Arc<Ticket>, i32> {
        let ticket = Arc::new(Ticket(AtomicU8::new(WAITING)));
        let (inbox, held, loan) = (Arc::clone(self), Arc::clone(&ticket), Loan(op));
        let job = move || {
            let loan = loan;
            if held.take_up() {
                let res = loan.carry_out(carry, &held);
                inbox.post(key, res);
            }
        };
        match offload::spawn(job) {
            Ok(()) => Ok(ticket),
            // Not `EAGAIN`, which clone(2) says: that would read as a wait that was refused.
            Err(_) => Err(-libc::ENOMEM),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Key, i32)>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, key: Key, res: i32) {
        let mut results = self.lock();
        results.push((key, res));
        self.any.store(true, Ordering::Release);
        drop(results);
        self.arrived.notify_one();
        self.bell.ring();
    }

    /// Exchanges what has arrived for `empty`, or leaves it if nothing has.
    pub(super) fn collect(&self, empty: &mut Vec<(Key, i32)>) {
        if self.any.load(Ordering::Acquire) {
            let mut results = self.lock();
            self.any.store(false, Ordering::Release);
            mem::swap(&mut *results, empty);
        }
    }

    /// Waits until `count` results have arrived, at most until `deadline`; says whether they have.
    pub(super) fn await_results(&self, count: usize, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .arrived
            .wait_timeout_while(self.lock(), left, |results| results.len() < count)
            .unwrap_or_else(PoisonError::into_inner);
        waited.0.len() >= count
    }
}
