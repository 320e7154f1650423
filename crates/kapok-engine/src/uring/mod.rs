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
//! What is an entry already ([`Op::Entry`], [`Uring::submit_chain`]) goes as it is.
//!
//! Entries are submitted by the turn, some at a time, the last in one io_uring_enter(2) with the wait.
//! What does not fit into the submission queue is kept in a backlog and submitted in order: neither an
//! operation nor a cancel is lost.
//!
//! An operation that is pending keeps its descriptor's open file description alive: closing the
//! descriptor elsewhere neither wakes nor ends it. [`Op::Close`] cancels what is pending on it first.
//! What one of the kernel's workers carries out may keep it a moment longer, when it has landed; of
//! writes and syncs that is waited for, so that who then closes the file has closed it: it can be executed,
//! its locks are free, its file system can be unmounted. It is not waited for after a write at an offset past
//! the page cache, of which it would cost a tenth, nor after entries.
//!
//! Of a datagram socket that has `O_NONBLOCK` and was shut down for receiving, [`Op::RecvMsg`] and
//! [`Op::Read`] land `-EAGAIN` instead of 0: the kernel takes the one for a wish not to wait. Whoever
//! has the operation still at hand asks [`sys::outcome_of_refused`].

mod cancel;
mod drain;
mod encode;
mod entries;
mod probe;
mod resources;
mod ring;
mod salvage;
#[cfg(test)]
mod tests;

pub use entries::Link;
pub use probe::{Denied, Feature, probe};
pub use resources::Operations;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::bell::{Bell, BellTower};
use crate::buffers::Buffers;
use crate::engine::Engine;
use crate::entry::Entry;
use crate::op::{Completion, Completions, Key, Op, Submitted, Wait};
use crate::stats::EngineStats;
use crate::sys;
use crate::timers::Timers;
use cancel::Missed;
use ring::{Ring, Sqe};

/// The engine's own keys.
const BELL: Key = Key::new(0, Key::RESERVED_GENERATION);
const CANCEL: Key = Key::new(1, Key::RESERVED_GENERATION);
/// From here on they are what follows the operations of slots, see `entries`, and then their cancels: see
/// `cancel`.
const FOLLOWERS: u32 = 2;

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
    form: Form,
    /// How often the kernel was asked to end it: see `cancel`.
    cancels: u8,
    /// It is noted that the kernel has missed that.
    is_missed: bool,
    /// What it came to, while its file is being let go of.
    res: i32,
}

/// In which form an operation came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As one of the others of [`Op`].
    Op,
    /// As an entry, whose place is in `Uring::entries`.
    Entry,
    /// As an entry of a chain.
    Chained,
    /// As one of [`Op`], which lands when the kernel has let go of its file: see `entries`.
    Holding,
    /// The same, when it is over.
    LettingGo,
}

const _: () = assert!(size_of::<Pending>() == 16);

/// How many entries an enter submits, unless all must go. Receives whose bytes are there complete as they
/// are submitted, one after the other: so many connections are still in the processor's caches when their
/// fibers run, and those that wait for deferred work (the kernel carries out twenty pieces an enter, from
/// 6.12 on) are not overtaken by hundreds.
const SUBMITTED_AN_ENTER: u32 = 32;

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
    /// Where the entries among them are, by slot index. As long as the highest index that one had.
    entries: Vec<*const Entry>,
    /// Buffers of groups that were asked for.
    groups: Vec<Rc<Buffers>>,
    /// The bell's poll has ended and must be armed again.
    bell_disarmed: bool,
    missed: Missed,
    pooled_buffer_bytes: u32,
    buffers: Pool,
}

/// The buffers that the kernel takes from: made when they are first asked for.
enum Pool {
    NotMade,
    Made(Rc<Buffers>),
    /// The kernel will not have them.
    Refused,
}

impl Uring {
    /// Makes a ring with room for this many submissions between two turns and for this many
    /// completions, both rounded up to powers of two and clamped to what the kernel allows. Where it has
    /// no memory for that, it halves both until it has, down to 64 and 128; nothing is lost with a small
    /// ring, there are only more calls.
    ///
    /// # Errors
    ///
    /// What io_uring_setup(2) or io_uring_enter(2) says: `ENOSYS` (kernel or seccomp), `EPERM` (sysctl
    /// or seccomp), `EACCES` (a security module), `ENOMEM` (RLIMIT_MEMLOCK, the memory cgroup; after
    /// half a second, or four if this process has dropped a ring, whose memory may come back), `EMFILE`;
    /// and `Unsupported` for kernels before 5.19.
    pub fn new(submissions: u32, completions: u32, pooled_buffer_bytes: u32) -> io::Result<Uring> {
        let mut engine = Uring {
            ring: Ring::new(submissions, completions)?,
            backlog: VecDeque::new(),
            backlogged: 0,
            timers: Timers::default(),
            landed: Completions::new(),
            bell: BellTower::new()?,
            in_kernel: 0,
            pending: Vec::new(),
            entries: Vec::new(),
            groups: Vec::new(),
            bell_disarmed: true,
            missed: Missed::default(),
            pooled_buffer_bytes,
            buffers: Pool::NotMade,
        };
        engine.arm_bell();
        // Setup may be allowed and enter denied: find out now, with a real operation.
        engine.ring.enter(u32::MAX, false, None)?;
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
    }

    /// Submits all there is, if something had to queue behind a full submission queue: for what must
    /// not wait for its turn among thousands. What the kernel does not take now is for the next turn.
    fn hurry(&mut self) {
        while !self.backlog.is_empty() {
            let before = self.backlog.len();
            if !matches!(self.ring.enter(u32::MAX, false, None), Ok(true)) {
                return;
            }
            self.refill();
            if self.backlog.len() == before {
                return;
            }
        }
    }

    /// Moves what it can of the backlog to the submission queue.
    fn refill(&mut self) {
        while let Some(&sqe) = self.backlog.front() {
            if sqe.is_linked() {
                if !self.refill_chain() {
                    break;
                }
                continue;
            }
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
        // Without it the rest of its chain would hang on another.
        if self.is_of(key, Form::Chained) {
            return false;
        }
        let is_followed = self.is_of(key, Form::Holding);
        let follower = is_followed.then(|| entries::follower(key).bits());
        if self.ring.withdraw(key.bits(), encode::nop(CANCEL)) {
            if let Some(follower) = follower {
                self.ring.withdraw(follower, encode::nop(CANCEL));
            }
            return true;
        }
        let before = self.backlog.len();
        self.backlog.retain(|sqe| sqe.user_data != key.bits() && Some(sqe.user_data) != follower);
        self.backlog.len() < before
    }

    /// Remembers the number that `key` works on, and what it is.
    #[inline]
    fn note(&mut self, key: Key, fd: RawFd, opcode: u8, form: Form) {
        let index = key.index() as usize;
        if index >= self.pending.len() {
            self.make_slots(index);
        }
        let generation = key.generation();
        self.pending[index] =
            Pending { generation, fd, opcode, form, cancels: 0, is_missed: false, res: 0 };
    }

    #[cold]
    fn make_slots(&mut self, index: usize) {
        assert!(index < cancel::MOST_SLOTS, "slot {index} is beyond the keys that there are");
        let none = Pending {
            generation: 0,
            fd: NO_DESCRIPTOR,
            opcode: 0,
            form: Form::Op,
            cancels: 0,
            is_missed: false,
            res: 0,
        };
        let slots = (index + 1).next_power_of_two().min(cancel::MOST_SLOTS);
        self.pending.resize(slots, none);
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
        let Uring { ring, in_kernel, pending, bell, bell_disarmed, buffers, missed, .. } = self;
        ring.reap(|cqe| {
            let key = Key::from_bits(cqe.user_data);
            let mut completion = Completion { key, res: cqe.res, flags: cqe.flags };
            if key.is_reserved() {
                if key == BELL {
                    // A multishot poll reports edges.
                    bell.heard_an_edge();
                    *bell_disarmed |= completion.is_terminal();
                } else if key.is_message() {
                    out.push(completion);
                } else if let Some(index) = cancel::cancelled(key) {
                    let pending = pending.get_mut(index as usize).filter(|_| cqe.res < 0);
                    if let Some(pending) = pending {
                        pending.was_missed(index, missed);
                    }
                } else if let Some(index) = entries::followed(key) {
                    let over = entries::let_go(&mut pending[index as usize], index);
                    *in_kernel -= usize::from(over.is_some());
                    out.extend(over);
                }
                return;
            }
            if completion.res <= 0
                && let (Some(id), Pool::Made(buffers)) = (completion.buffer(), &*buffers)
                && pending[key.index() as usize].form == Form::Op
            {
                // SAFETY: the kernel has taken it, for nothing, and nobody is told. Entries take
                // from other groups.
                unsafe { buffers.give_back(id) };
                completion.flags &= !Completion::BUFFER;
            }
            if completion.is_terminal() {
                let pending = &mut pending[key.index() as usize];
                if pending.form == Form::Holding {
                    pending.form = Form::LettingGo;
                    pending.res = cqe.res;
                    return;
                }
                *in_kernel -= 1;
                pending.fd = NO_DESCRIPTOR;
            } else {
                pending[key.index() as usize].has_landed_once();
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
        self.backlog.retain_mut(|sqe| {
            let key = Key::from_bits(sqe.user_data);
            let hit = sqe.works_on(fd) && !key.is_reserved();
            let is_of_chain =
                |index: u32| matches!(pending[index as usize].form, Form::Chained | Form::Holding);
            if hit && is_of_chain(key.index()) {
                // The kernel is to end its chain.
                *sqe = entries::bad_descriptor(sqe);
                return true;
            }
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
            self.ask_for_cancel(key);
        }
        if !keys.is_empty() {
            self.hurry();
            let _ = self.ring.enter(u32::MAX, false, None);
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
            Op::RecvPooled { .. } if !self.has_buffers() => return Submitted::Done(-libc::ENOBUFS),
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
            // SAFETY: by the caller.
            Op::Entry { entry } => return unsafe { self.submit_entry(key, entry) },
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
        // A futex wait has flags in the place of a descriptor.
        let fd = if let Op::FutexWait { .. } = op { -1 } else { sqe.fd.max(-1) };
        if entries::may_have_a_worker(&op) && self.ring.capacity() > 1 {
            self.note(key, fd, sqe.opcode, Form::Holding);
            self.in_kernel += 1;
            // SAFETY: by the caller.
            unsafe { self.push_to_let_go(sqe) };
        } else {
            self.note(key, fd, sqe.opcode, Form::Op);
            self.in_kernel += 1;
            // SAFETY: by the caller.
            unsafe { self.push(sqe) };
        }
        Submitted::Pending
    }

    fn cancel(&mut self, key: Key) {
        self.cancel_operation(key);
    }

    fn disarm(&mut self, key: Key) -> bool {
        self.timers.remove(key)
    }

    fn turn(&mut self, wait: Wait, out: &mut Completions) -> io::Result<()> {
        let before = out.len();
        if self.missed.at().is_some() {
            self.ask_again();
        }
        self.refill();
        self.take_landed(out);
        self.reap(out);
        // Also by what was just reaped: nobody would hear the bell of a loop that sleeps.
        if self.bell_disarmed {
            self.arm_bell();
        }

        // Asleep only if nothing has landed, and never with a ring unheard.
        let wanted = out.len() == before && wait != Wait::No && self.backlog.is_empty();
        let waits = wanted && self.bell.fall_asleep();
        let limit = if waits { self.limit(wait) } else { None };
        let entered = if waits || self.ring.unsubmitted() > 0 || self.ring.wants_enter() {
            self.ring.enter(SUBMITTED_AN_ENTER, waits, limit)
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
    fn flush(&mut self, at_least: usize, busy: usize) {
        let unsubmitted = self.ring.unsubmitted() as usize;
        if unsubmitted >= at_least && self.in_kernel.saturating_sub(unsubmitted) < busy {
            // A ring that is broken says so in the next turn too.
            let _ = self.ring.enter(u32::MAX, false, None);
            if !self.backlog.is_empty() {
                self.refill();
                self.hurry();
                let _ = self.ring.enter(u32::MAX, false, None);
            }
        }
    }

    #[inline]
    fn wants_turn(&self) -> bool {
        self.ring.unsubmitted() > 0 || self.ring.wants_enter() || self.ring.has_completions()
    }

    /// As [`submit`](Engine::submit) does it: what waits in the ring waits for room.
    #[inline]
    fn sends_at_once(&self, _fd: RawFd) -> bool {
        true
    }

    #[inline]
    fn buffers(&self) -> Option<&Rc<Buffers>> {
        match &self.buffers {
            Pool::Made(buffers) => Some(buffers),
            _ => None,
        }
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
    /// Whether there are buffers for the kernel to take from.
    #[inline]
    fn has_buffers(&mut self) -> bool {
        match self.buffers {
            Pool::Made(_) => true,
            Pool::Refused => false,
            Pool::NotMade => self.make_buffers(),
        }
    }

    #[cold]
    fn make_buffers(&mut self) -> bool {
        let made = Buffers::new(self.pooled_buffer_bytes as usize, true).and_then(|buffers| {
            self.ring.register_buffers(encode::BUFFER_GROUP, buffers.ring(), buffers.count())?;
            Ok(buffers)
        });
        self.buffers = match made {
            Ok(buffers) => Pool::Made(buffers),
            Err(error) => {
                tracing::debug!(%error, "io_uring takes no buffers: receives bring their own");
                Pool::Refused
            }
        };
        matches!(self.buffers, Pool::Made(_))
    }

    /// Takes an eventfd(2) for who waits elsewhere than in a turn: while that is [asked for](Uring::announce) it is
    /// written to whenever something has landed, or a turn would have it land (`IORING_REGISTER_EVENTFD`). The
    /// ring's own descriptor does not tell of what a turn has yet to do (`IORING_SETUP_DEFER_TASKRUN`). Of timers,
    /// and of cancels that are to be asked for again, there is only [`next_deadline`](Uring::next_deadline). One that
    /// was registered before is given up.
    ///
    /// The kernel may fall silent: from 6.11 on where what lands was itself announced by a write to an eventfd. Who
    /// finds something that was not announced registers it again.
    ///
    /// # Errors
    ///
    /// `EBADF` and `EINVAL` for what is no eventfd.
    pub fn register_eventfd(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.ring.register_eventfd(eventfd.as_raw_fd())
    }

    /// Whether what lands from now on is announced. After it is asked for, a turn tells of what has landed before.
    pub fn announce(&mut self, wanted: bool) {
        self.ring.announce(wanted);
    }

    /// When a turn has something to do, if nothing lands before: the next timer is due, or a cancel that the kernel
    /// has missed is asked for again. A turn that waits ends by then.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        earlier(self.timers.next_deadline(), self.missed.at())
    }

    /// For the engine that takes this one's place.
    pub(crate) fn pooled_buffer_bytes(&self) -> u32 {
        self.pooled_buffer_bytes
    }

    /// How long a turn may wait: what the caller says, and not beyond what is due.
    fn limit(&self, wait: Wait) -> Option<Duration> {
        let until = match wait {
            Wait::Until(instant) => Some(instant),
            _ => None,
        };
        let deadline = earlier(self.next_deadline(), until);
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}
