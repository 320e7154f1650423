//! Operations that offload threads carry out for an engine, and the way back.
//!
//! A thread puts the result into the engine's inbox and rings its bell. The ticket says who has the
//! operation: it is the engine's to cancel until a thread has taken it up.

use std::ffi::{CStr, CString};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
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
    /// By a call that waits without a limit, until it is called back.
    #[cfg(target_os = "linux")]
    Recallable,
}

const WAITING: u32 = 0;
const TAKEN: u32 = 1;
const CANCELLED: u32 = 2;
/// A thread is at it, and needs nothing any more of what was lent.
const LET_GO: u32 = 3;

/// Who has an operation.
pub(super) struct Ticket(AtomicU32);

impl Ticket {
    /// Whether the operation was called back before any thread took it up, or after it was let go. If one
    /// has it, it is asked to leave it, and will land it.
    #[must_use]
    pub(super) fn call_back(&self) -> bool {
        let before = self.0.swap(CANCELLED, Ordering::AcqRel);
        #[cfg(target_os = "linux")]
        if before == TAKEN {
            crate::sys::entry::Recall::ring(&self.0);
        }
        before == WAITING || before == LET_GO
    }

    fn take_up(&self) -> bool {
        self.change(WAITING, TAKEN)
    }

    /// Lets the engine land it as cancelled at any time. Says whether it has not been called back yet.
    fn let_go(&self) -> bool {
        self.change(TAKEN, LET_GO)
    }

    /// Has it again, with what was lent, if it was not called back meanwhile. If it was, nobody is to hear
    /// of it.
    fn take_again(&self) -> bool {
        self.change(LET_GO, TAKEN)
    }

    fn change(&self, from: u32, to: u32) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// An operation on its way to a thread.
struct Loan(Op);

// SAFETY: the memory named by the operation is lent to whoever carries it out until the key lands
// (`Engine::submit`), and it lands only after the thread is done with it: see `Inbox::post`.
unsafe impl Send for Loan {}

impl Loan {
    /// `None` if it was called back while nothing needed it: it has landed.
    fn carry_out(self, carry: Carry, ticket: &Ticket) -> Option<i32> {
        #[cfg(target_os = "linux")]
        if let (Carry::Recallable, Op::Entry { entry }) = (carry, self.0) {
            let recall = crate::sys::entry::Recall::new(&ticket.0, TAKEN);
            // SAFETY: the loan, see above.
            return Some(unsafe { crate::sys::entry::wait(entry, recall) });
        }
        let mut nap = Duration::from_micros(100);
        loop {
            // SAFETY: the loan, see above.
            let res = unsafe { perform(&self.0, carry != Carry::Retrying) };
            if carry != Carry::Retrying || res != -libc::EAGAIN {
                return Some(res);
            }
            // Who has it cancelled may close the number, which is another file's then.
            if !ticket.let_go() {
                return Some(-libc::ECANCELED);
            }
            std::thread::sleep(nap);
            if !ticket.take_again() {
                return None;
            }
            nap = (nap * 2).min(Duration::from_millis(10));
        }
    }
}

/// The opening of a FIFO, which waits for its other end, maybe for ever. No signal reaches the thread that
/// waits, and for a reader no other call tells that a writer has come, so it is not called out of it: it
/// needs nothing that was lent, and what it comes to after it was called back is closed.
struct Opening {
    path: CString,
    flags: i32,
}

impl Opening {
    /// `None` if it waits for nothing, or if its path begins at a descriptor, whose number may be another's
    /// once the operation has landed.
    ///
    /// # Safety
    ///
    /// The memory named by `op` is valid as [`Engine::submit`](crate::Engine::submit) asks.
    unsafe fn of(op: &Op) -> Option<Opening> {
        let Op::Open { dir, path, flags, .. } = *op else { return None };
        let is_exclusive = flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0;
        let is_for_both = flags & libc::O_ACCMODE == libc::O_RDWR;
        if is_exclusive || is_for_both || flags & (libc::O_NONBLOCK | NAME_ONLY) != 0 {
            return None;
        }
        // SAFETY: the caller's promise.
        let path = unsafe { CStr::from_ptr(path) };
        if dir != libc::AT_FDCWD && !path.to_bytes().starts_with(b"/") {
            return None;
        }
        let follow = if flags & libc::O_NOFOLLOW != 0 { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
        // SAFETY: all zeros is a stat.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: the path ends; writes to a local.
        let found = unsafe { libc::fstatat(libc::AT_FDCWD, path.as_ptr(), &raw mut stat, follow) };
        // Neither means anything to a FIFO. If there is something else by then it is left alone.
        let flags = flags & !(libc::O_CREAT | libc::O_TRUNC);
        (found == 0 && is_fifo(&stat)).then(|| Opening { path: path.to_owned(), flags })
    }

    /// Waits until it is open. `None` if there is no FIFO any more, or if it cannot be opened.
    fn wait(self) -> Option<OwnedFd> {
        let (dir, path) = (libc::AT_FDCWD, self.path.as_ptr());
        // SAFETY: the path is its own.
        let fd = unsafe { perform(&Op::Open { dir, path, flags: self.flags, mode: 0 }, true) };
        if fd < 0 {
            return None;
        }
        // SAFETY: it was just made, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeros is a stat.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: writes to a local.
        let found = unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) };
        (found == 0 && is_fifo(&stat)).then_some(fd)
    }
}

/// The flag of an open that opens nothing.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NAME_ONLY: i32 = libc::O_PATH;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const NAME_ONLY: i32 = 0;

fn is_fifo(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFIFO
}

/// What a thread carries out for an engine.
struct Job {
    inbox: Arc<Inbox>,
    key: Key,
    loan: Loan,
    carry: Carry,
    ticket: Arc<Ticket>,
}

impl Job {
    fn run(self) {
        if !self.ticket.take_up() {
            return;
        }
        // SAFETY: the loan: the ticket has been taken up.
        match unsafe { Opening::of(&self.loan.0) } {
            Some(opening) => self.open_fifo(opening),
            None => self.carry_out(),
        }
    }

    /// With the ticket.
    fn carry_out(self) {
        if let Some(res) = self.loan.carry_out(self.carry, &self.ticket) {
            self.inbox.post(self.key, res);
        }
    }

    /// On a thread of its own: there are not so many of the others, and the other end may want one.
    fn open_fifo(self, opening: Opening) {
        let (inbox, key) = (Arc::clone(&self.inbox), self.key);
        if !self.ticket.let_go() {
            inbox.post(key, -libc::ECANCELED);
            return;
        }
        let ticket = Arc::clone(&self.ticket);
        let wait = move || {
            let opened = opening.wait();
            if !self.ticket.take_again() {
                // Nobody waits for it.
                return;
            }
            match opened {
                Some(fd) => self.inbox.post(self.key, fd.into_raw_fd()),
                None => self.carry_out(),
            }
        };
        if offload::start_thread("kapok-open".into(), wait).is_err() && ticket.take_again() {
            inbox.post(key, -libc::ENOMEM);
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
        let ticket = Arc::new(Ticket(AtomicU32::new(WAITING)));
        let (inbox, held) = (Arc::clone(self), Arc::clone(&ticket));
        let job = Job { inbox, key, loan: Loan(op), carry, ticket: held };
        match offload::spawn(move || job.run()) {
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
