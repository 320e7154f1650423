//! The io_uring engine (Linux 5.19 and later).
//!
//! Receives, accepts, connects, polls and everything on files go through the ring, straight from and
//! into the caller's memory. Three kinds of operation do not:
//!
//! * **Sends are tried directly first.** A socket nearly always has room, and a direct
//!   non-blocking send is cheaper than one through the ring. Only what finds no room is handed over.
//! * **Timers** are a heap on our side that bounds the wait of a turn; a million sleepers cost the
//!   kernel nothing.
//! * **What never waits** ([`Op::is_immediate`]) is a plain system call.
//!
//! Entries are submitted by the turn, in one io_uring_enter(2) with the wait. What does not fit into
//! the submission queue is flushed, and if the kernel takes nothing just now it is kept in a backlog
//! and submitted in order: neither an operation nor a cancel is lost.
//!
//! An operation that is pending keeps its descriptor's open file description alive: closing the
//! descriptor elsewhere neither wakes nor ends it. [`Op::Close`] cancels what is pending on it first.
//!
//! Of a datagram socket that has `O_NONBLOCK` and was shut down for receiving, [`Op::RecvMsg`] and
//! [`Op::Read`] land `-EAGAIN` instead of 0: the kernel takes the one for a wish not to wait.

mod decode;
mod encode;
mod probe;
mod ring;
mod salvage;

pub use probe::{Denied, Feature, probe};

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::bell::{Bell, BellTower};
use crate::engine::Engine;
use crate::op::{Completion, Completions, Key, Op, Submitted, Wait};
use crate::stats::EngineStats;
use crate::sys;
use crate::timers::Timers;
use ring::{Ring, Sqe};

/// The engine's own keys.
const BELL: Key = Key::new(0, Key::RESERVED_GENERATION);
const CANCEL: Key = Key::new(1, Key::RESERVED_GENERATION);

/// How long a dropped engine waits for what it has cancelled to land.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// `MSG_DONTWAIT` asks for the operation's failure rather than for its wait.
const fn refuses_to_wait(flags: i32) -> bool {
    flags & libc::MSG_DONTWAIT != 0
}

/// Whether the ring understands `MSG_WAITALL` as recv(2) does. It goes on after a short receive on
/// sockets with message boundaries too, where the flag means nothing, and makes one message of
/// several; and it goes on after a short peek, which then sees the same bytes again.
#[cold]
fn may_wait_for_all(fd: RawFd, flags: i32) -> bool {
    flags & libc::MSG_PEEK == 0 && sys::socket_option(fd, libc::SO_TYPE) == Ok(libc::SOCK_STREAM)
}

/// An operation that the kernel has.
#[derive(Clone, Copy)]
struct Pending {
    generation: u32,
    fd: RawFd,
    /// `IORING_OP_*`: what is said of it if the ring dies.
    opcode: u8,
}

const NO_DESCRIPTOR: RawFd = RawFd::MIN;

/// The io_uring engine.
pub struct Uring {
    ring: Ring,
    /// Entries that found the submission queue full, oldest first.
    backlog: VecDeque<Sqe>,
    /// How many entries ever did.
    backlogged: u64,
    timers: Timers,
    /// Landed without the kernel: expired and cancelled timers, operations refused.
    landed: Completions,
    bell: BellTower,
    /// Keys that the kernel has, or that wait in the queue or the backlog.
    in_kernel: usize,
    /// Under which number each of them was submitted, by slot index: for who closes it.
    pending: Vec<Pending>,
    /// The bell's poll has ended and must be armed again.
    bell_disarmed: bool,
}

impl Uring {
    /// Makes a ring with room for this many submissions between two turns and for this many
    /// completions, both rounded up to powers of two and clamped to what the kernel allows.
    ///
    /// # Errors
    ///
    /// What io_uring_setup(2) or io_uring_enter(2) says: `ENOSYS` (kernel or seccomp), `EPERM` (sysctl or seccomp),
    /// `EACCES` (a security module), `ENOMEM` (RLIMIT_MEMLOCK on old kernels), `EMFILE`; and
    /// `Unsupported` for kernels before 5.19.
    pub fn new(submissions: u32, completions: u32) -> io::Result<Uring> {
        let mut engine = Uring {
            ring: Ring::new(submissions, completions)?,
            backlog: VecDeque::new(),
            backlogged: 0,
            timers: Timers::default(),
            landed: Completions::new(),
            bell: BellTower::new()?,
            in_kernel: 0,
            pending: Vec::new(),
            bell_disarmed: true,
        };
        engine.arm_bell();
        // Setup may be allowed and enter denied: find out now, with a real operation.
        engine.ring.enter(false, None)?;
        Ok(engine)
    }

    fn arm_bell(&mut self) {
        self.bell_disarmed = false;
        let fd = self.bell.fd();
        // SAFETY: a poll names no memory; the descriptor lives as long as the engine.
        unsafe { self.push(encode::poll_multishot(BELL, fd)) };
    }

    /// Queues an entry, behind those that wait already.
    ///
    /// # Safety
    ///
    /// What the entry names obeys the contract of [`Engine::submit`].
    #[inline]
    unsafe fn push(&mut self, sqe: Sqe) {
        // SAFETY: by the caller.
        if self.backlog.is_empty() && unsafe { self.ring.push(sqe) } {
            return;
        }
        self.push_to_full(sqe);
    }

    #[cold]
    fn push_to_full(&mut self, sqe: Sqe) {
        self.backlog.push_back(sqe);
        self.backlogged += 1;
        // An error here is for the next turn to report: the entry is safe in the backlog.
        if self.ring.enter(false, None).is_ok() {
            self.refill();
        }
    }

    /// Moves what it can of the backlog to the submission queue.
    fn refill(&mut self) {
        while let Some(&sqe) = self.backlog.front() {
            // SAFETY: whoever queued the entry keeps the contract until its key lands.
            if !unsafe { self.ring.push(sqe) } {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Takes back what the kernel has not seen. By the time it would, the number that the entry
    /// names may be another file's.
    fn withdraw(&mut self, key: Key) -> bool {
        if self.ring.withdraw(key.bits(), encode::nop(CANCEL)) {
            return true;
        }
        let before = self.backlog.len();
        self.backlog.retain(|sqe| sqe.user_data != key.bits());
        self.backlog.len() < before
    }

    /// Remembers the number that `key` works on, and what it is.
    #[inline]
    fn note(&mut self, key: Key, sqe: &Sqe) {
        let index = key.index() as usize;
        if index >= self.pending.len() {
            let none = Pending { generation: 0, fd: NO_DESCRIPTOR, opcode: 0 };
            self.pending.resize((index + 1).next_power_of_two(), none);
        }
        self.pending[index] =
            Pending { generation: key.generation(), fd: sqe.fd, opcode: sqe.opcode };
    }

    fn take_landed(&mut self, out: &mut Completions) {
        out.append(&mut self.landed);
        if self.timers.next_deadline().is_some() {
            let now = Instant::now();
            while let Some(key) = self.timers.pop_expired(now) {
                out.push(Completion { key, res: 0, flags: 0 });
            }
        }
    }

    #[inline]
    fn reap(&mut self, out: &mut Completions) {
        let Uring { ring, in_kernel, pending, bell, bell_disarmed, .. } = self;
        ring.reap(|cqe| {
            let key = Key::from_bits(cqe.user_data);
            let completion = Completion { key, res: cqe.res, flags: cqe.flags };
            if key.is_reserved() {
                if key == BELL {
                    bell.drain();
                    *bell_disarmed |= completion.is_terminal();
                }
                return;
            }
            if completion.is_terminal() {
                *in_kernel -= 1;
                pending[key.index() as usize].fd = NO_DESCRIPTOR;
            }
            out.push(completion);
        });
    }

    /// Ends everything that was submitted under the number `fd`, as far as the kernel is told here
    /// and now. By key: the kernel knows only open files, which other numbers may share.
    fn cancel_descriptor(&mut self, fd: RawFd) {
        if self.in_kernel == 0 || !sys::is_open(fd) {
            return;
        }
        let landed = &mut self.landed;
        let in_kernel = &mut self.in_kernel;
        let pending = &mut self.pending;
        // What the kernel has not seen must not act on a later use of the number.
        self.backlog.retain(|sqe| {
            let key = Key::from_bits(sqe.user_data);
            let hit = sqe.fd == fd && !key.is_reserved();
            if hit {
                landed.push(Completion { key, res: -libc::EBADF, flags: 0 });
                pending[key.index() as usize].fd = NO_DESCRIPTOR;
                *in_kernel -= 1;
            }
            !hit
        });
        let keys: Vec<Key> = (0..)
            .zip(&self.pending)
            .filter(|(_, pending)| pending.fd == fd)
            .map(|(index, pending)| Key::new(index, pending.generation))
            .collect();
        for &key in &keys {
            // SAFETY: a cancel names no memory.
            unsafe { self.push(encode::cancel(CANCEL, key)) };
        }
        if !keys.is_empty() {
            let _ = self.ring.enter(false, None);
        }
    }

    /// Cancels everything and waits until it has landed or `DRAIN_LIMIT` has passed.
    fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        let mut sink = Completions::new();
        // SAFETY: a cancel names no memory.
        unsafe { self.push(encode::cancel_all(CANCEL)) };
        while self.in_kernel > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.refill();
            if let Err(error) = self.ring.enter(true, Some(left.min(Duration::from_millis(100)))) {
                tracing::error!(%error, "io_uring cannot be entered any more");
                break;
            }
            self.reap(&mut sink);
            sink.clear();
        }
    }
}

impl Engine for Uring {
    #[inline]
    unsafe fn submit(&mut self, key: Key, op: Op) -> Submitted {
        debug_assert!(!key.is_reserved());
        let mut poll_first = false;
        match op {
            Op::Send { flags, .. } | Op::SendMsg { flags, .. } => {
                // SAFETY: by the caller.
                let res = unsafe { sys::perform(&op, false) };
                if res != -libc::EAGAIN || refuses_to_wait(flags) {
                    return Submitted::Done(res);
                }
                poll_first = true;
            }
            Op::Timer { deadline } => {
                self.timers.insert(key, deadline);
                return Submitted::Pending;
            }
            Op::Close { fd } => {
                self.cancel_descriptor(fd);
                // SAFETY: by the caller.
                return Submitted::Done(unsafe { sys::perform(&op, false) });
            }
            // SAFETY: by the caller.
            _ if op.is_immediate() => return Submitted::Done(unsafe { sys::perform(&op, false) }),
            _ => {}
        }
        let Some(mut sqe) = encode::encode(key, &op) else {
            unreachable!("{} is not for the ring", op.name());
        };
        if let Op::Recv { fd, flags, .. } | Op::RecvMsg { fd, flags, .. } = op
            && flags & libc::MSG_WAITALL != 0
            && !may_wait_for_all(fd, flags)
        {
            sqe.op_flags &= !(libc::MSG_WAITALL as u32);
        }
        if poll_first {
            sqe.ioprio |= linux_raw_sys::io_uring::IORING_RECVSEND_POLL_FIRST as u16;
        }
        self.in_kernel += 1;
        self.note(key, &sqe);
        // SAFETY: by the caller.
        unsafe { self.push(sqe) };
        Submitted::Pending
    }

    fn cancel(&mut self, key: Key) {
        if self.timers.remove(key) {
            self.landed.push(Completion { key, res: -libc::ECANCELED, flags: 0 });
        } else if self.withdraw(key) {
            self.in_kernel -= 1;
            self.pending[key.index() as usize].fd = NO_DESCRIPTOR;
            self.landed.push(Completion { key, res: -libc::ECANCELED, flags: 0 });
        } else {
            // SAFETY: a cancel names no memory.
            unsafe { self.push(encode::cancel(CANCEL, key)) };
        }
    }

    fn disarm(&mut self, key: Key) -> bool {
        self.timers.remove(key)
    }

    fn turn(&mut self, wait: Wait, out: &mut Completions) -> io::Result<()> {
        let before = out.len();
        if self.bell_disarmed {
            self.arm_bell();
        }
        self.refill();
        self.take_landed(out);
        self.reap(out);

        // Asleep only if nothing has landed, and never with a ring unheard.
        let wanted = out.len() == before && wait != Wait::No && self.backlog.is_empty();
        let waits = wanted && self.bell.fall_asleep();
        let limit = if waits { self.limit(wait) } else { None };
        let entered = if waits || self.ring.unsubmitted() > 0 || self.ring.wants_enter() {
            self.ring.enter(waits, limit)
        } else {
            Ok(true)
        };
        self.reap(out);
        if waits {
            self.take_landed(out);
        }
        self.bell.wake_up();
        assert_eq!(self.ring.lost(), 0, "io_uring lost a completion: the kernel is out of memory");
        entered.map(drop)
    }

    fn bell(&self) -> Bell {
        self.bell.bell()
    }

    fn in_flight(&self) -> usize {
        self.in_kernel + self.timers.len() + self.landed.len()
    }

    #[inline]
    fn stats(&self) -> EngineStats {
        EngineStats {
            system_calls: self.ring.enters(),
            backlogged: self.backlogged,
            backlog: self.backlog.len(),
            lost_edges: 0,
        }
    }
}

impl Uring {
    /// How long a turn may wait: what the caller says, and not beyond the next timer.
    fn limit(&self, wait: Wait) -> Option<Duration> {
        let deadline = match wait {
            Wait::Until(instant) => {
                Some(self.timers.next_deadline().map_or(instant, |timer| timer.min(instant)))
            }
            _ => self.timers.next_deadline(),
        };
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.in_kernel > 0 {
            self.drain();
        }
        if self.in_kernel > 0 {
            tracing::error!(
                operations = self.in_kernel,
                "io_uring closed with operations that did not end; their memory must not be freed"
            );
        }
    }
}
