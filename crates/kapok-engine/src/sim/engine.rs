//! The engine over a world: who waits for what, what lands when, and the clock.

use std::io;
use std::time::{Duration, Instant};

use crate::bell::{Bell, BellTower};
use crate::engine::Engine;
use crate::op::{Completion, Completions, Key, Op, Submitted, Wait};
use crate::sim::config::Config;
use crate::sim::digest::Digest;
use crate::sim::loan::Loan;
use crate::sim::memory::Regions;
use crate::sim::pending::{Pending, Side, Stage, Table};
use crate::sim::random::Random;
use crate::sim::schedule::Event;
use crate::sim::world::{Attempt, Id, Try, World, flags_of};

/// What a turn takes.
const TURN: u64 = 1_000;

/// A simulated world: see the [module](crate::sim).
///
/// ```
/// use std::time::Duration;
/// use kapok_engine::sim::{Config, Sim};
/// use kapok_engine::{Engine, Key, Op, Wait};
///
/// let mut sim = Sim::new(Config::new(1))?;
/// let deadline = sim.now() + Duration::from_secs(3600);
/// // SAFETY: a timer names no memory.
/// let _ = unsafe { sim.submit(Key::new(0, 0), Op::Timer { deadline }) };
/// let mut landed = Vec::new();
/// sim.turn(Wait::Forever, &mut landed)?;
/// assert_eq!(landed[0].key, Key::new(0, 0));
/// assert!(sim.now() >= deadline);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Sim {
    pub(super) world: World,
    pub(super) table: Table,
    landed: Completions,
    pub(super) in_flight: usize,
    pub(super) tower: BellTower,
    began: Instant,
    digest: Digest,
    /// Rings come from other threads too: they must not change what the world draws.
    pub(super) bell_random: Random,
    /// A ring that was held back is heard now.
    is_rung: bool,
}

impl Sim {
    /// A world with nothing in it, for the calling thread.
    ///
    /// # Errors
    ///
    /// If the system refuses the descriptors of the bell.
    pub fn new(config: Config) -> io::Result<Sim> {
        Ok(Sim {
            tower: BellTower::new()?,
            digest: Digest::new(config.seed),
            bell_random: Random::new(!config.seed),
            world: World::new(config),
            table: Table::default(),
            landed: Completions::new(),
            in_flight: 0,
            began: Instant::now(),
            is_rung: false,
        })
    }

    /// The seed from which this world is made.
    pub fn seed(&self) -> u64 {
        self.world.config.seed
    }

    /// How long this world has lasted, by its own clock.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.world.now)
    }

    /// A digest of everything that was submitted and that landed so far: the keys, the results, the
    /// bytes, the times. Two runs that differ in anything differ in this.
    pub fn trace_hash(&self) -> u64 {
        self.digest.value()
    }

    /// How many events [`trace_hash`](Sim::trace_hash) is made of.
    pub fn events(&self) -> u64 {
        self.digest.events()
    }

    /// Whether nothing can happen any more unless somebody submits, cancels or rings: nothing has
    /// landed and nothing is on its way. With operations in flight, that is a deadlock.
    pub fn is_stuck(&self) -> bool {
        self.landed.is_empty() && self.world.schedule.next().is_none()
    }

    /// Acts out an operation at once, without faults and without waiting: for the side of a test
    /// that is not tested. Results are those of a non-blocking call: `-EAGAIN` for what would wait.
    /// Bytes and datagrams still take the latency of the network to arrive; a connect does not.
    ///
    /// # Safety
    ///
    /// Memory named by `op` is valid, and unaliased (shared, if it is only read), for this call.
    pub unsafe fn perform(&mut self, op: &Op) -> i32 {
        let faults = std::mem::take(&mut self.world.config.faults);
        let latency = self.world.config.latency.clone();
        if matches!(op, Op::Connect { .. }) {
            self.world.config.latency = Duration::ZERO..=Duration::ZERO;
        }
        let res = match op {
            Op::Nop => 0,
            Op::Timer { deadline } if *deadline > self.now() => -libc::EAGAIN,
            Op::Timer { .. } => 0,
            Op::FutexWait { .. } => -libc::ENOSYS,
            // SAFETY: the caller's promise, here and below.
            _ if op.is_immediate() => unsafe { self.world.act(op) },
            _ => {
                let mut progress = 0;
                let attempt = Try { op, progress: &mut progress, most: usize::MAX };
                // SAFETY: as above.
                match unsafe { self.world.attempt(attempt) } {
                    Attempt::Done(res) => res,
                    Attempt::Again => {
                        if let Some(id) = op.fd().and_then(|fd| self.world.object_of(fd))
                            && matches!(op, Op::Connect { .. })
                        {
                            self.world.give_up_connect(id);
                        }
                        if progress > 0 && !matches!(op, Op::Connect { .. }) {
                            progress
                        } else {
                            -libc::EAGAIN
                        }
                    }
                }
            }
        };
        self.world.config.faults = faults;
        self.world.config.latency = latency;
        self.settle();
        res
    }

    fn note(&mut self, what: u64, key: Key, op: &Op, res: i32) {
        // Which number a descriptor has is the process's affair.
        let makes_descriptor = matches!(
            op,
            Op::Accept { .. } | Op::Open { .. } | Op::Socket { .. } | Op::Duplicate { .. }
        );
        let res = if makes_descriptor { res.min(0) } else { res };
        let name = op.name().bytes().fold(0, |name, byte| name << 8 | u64::from(byte));
        self.digest.event(&[what, key.bits(), name, res as u64, self.world.now]);
        tracing::trace!(what, ?key, op = op.name(), res, at = ?self.elapsed(), "sim");
    }

    /// Takes in what an operation has received.
    ///
    /// # Safety
    ///
    /// The memory is lent, and the operation is over with this result.
    unsafe fn note_bytes(&mut self, op: &Op, res: i32) {
        if res > 0 && Side::of(op) == Side::Readers && !matches!(op, Op::Accept { .. }) {
            // SAFETY: the caller's promise. Datagrams may say that they were longer than the room.
            let bytes = unsafe { Regions::of(op).get(res as usize) };
            self.digest.event(&[Digest::of(&bytes)]);
        }
    }

    pub(super) fn land(&mut self, pending: &Pending, res: i32) {
        self.note(2, pending.key, &pending.op, res);
        // SAFETY: the key lands now, so its memory was lent up to here.
        unsafe { self.note_bytes(&pending.op, res) };
        self.landed.push(Completion { key: pending.key, res, flags: 0 });
    }

    /// Ends a loan, and reports one that was broken.
    fn take_back(&self, loan: Loan, key: Key, op: &Op) {
        // SAFETY: only called for operations that have not landed: their memory is lent.
        if !unsafe { loan.take_back() } {
            panic!(
                "the memory that {} lent as {key:?} was written to by somebody else while the \
                 operation was pending (simulation with seed {})",
                op.name(),
                self.seed()
            );
        }
    }

    /// Begins a loan.
    ///
    /// # Safety
    ///
    /// The memory of `op` is lent until `key` lands.
    unsafe fn lend(&self, op: &Op, progress: i32, key: Key) -> Loan {
        if !self.world.config.check_loans {
            return Loan::None;
        }
        // SAFETY: the caller's promise.
        unsafe { Loan::of(op, progress, key, self.seed()) }
    }

    /// Tries an operation, with whatever goes wrong this time.
    ///
    /// # Safety
    ///
    /// The memory of `op` is lent.
    unsafe fn attempt(&mut self, op: &Op, progress: &mut i32, id: Option<Id>) -> Attempt {
        let (world, flags) = (&mut self.world, flags_of(op));
        let faults = world.config.faults.clone();
        let is_send = matches!(op, Op::Send { .. } | Op::SendMsg { .. });
        let is_transfer = !matches!(Side::of(op), Side::Neither)
            && !matches!(op, Op::Accept { .. } | Op::Connect { .. });
        if is_send && world.random.happens(faults.no_buffers) {
            return Attempt::Done(-libc::ENOBUFS);
        }
        let is_tcp = id.and_then(|id| world.peek_stream(id)).is_some_and(|stream| {
            !stream.is_unix() && stream.is_connected() && stream.peer.is_some()
        });
        if let Some(id) = id
            && is_tcp
            && is_transfer
            && world.random.happens(faults.reset)
        {
            world.break_connection(id);
        }
        if let Some(id) = id
            && !matches!(op, Op::Metadata { .. } | Op::Sync { .. })
            && world.random.happens(faults.would_block)
        {
            if flags & libc::MSG_DONTWAIT != 0 {
                return Attempt::Done(-libc::EAGAIN);
            }
            let delay = world.random.nanos(&world.config.delay).max(1);
            world.schedule.add(world.now + delay, Event::Wake(id));
            return Attempt::Again;
        }
        let mut most = usize::MAX;
        if is_transfer {
            let is_read = Side::of(op) == Side::Readers;
            let chance = if is_read { faults.short_read } else { faults.short_write };
            // Who asks for all of it gets all of it.
            if flags & libc::MSG_WAITALL == 0 && world.random.happens(chance) {
                // SAFETY: the caller's promise.
                let len = unsafe { Regions::of(op) }.len().min(world.config.buffer_bytes).max(1);
                most = 1 + world.random.below(len as u64) as usize;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { world.attempt(Try { op, progress, most }) }
    }

    /// Starts an operation that may wait.
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`].
    unsafe fn start(&mut self, key: Key, op: Op) -> Submitted {
        let id = op.fd().and_then(|fd| self.world.object_of(fd));
        let side = Side::of(&op);
        if let (Some(fd), None) = (op.fd(), id) {
            if matches!(op, Op::Poll { .. }) && crate::sys::is_open(fd) {
                self.park(key, op, 0, Stage::Outside, Loan::None);
                return Submitted::Pending;
            }
            return Submitted::Done(-libc::EBADF);
        }
        let dont_wait = flags_of(&op) & libc::MSG_DONTWAIT != 0;
        // Operations are served in order.
        let is_queued = !dont_wait
            && side != Side::Neither
            && id.is_some_and(|id| self.table.is_waited_for(id, side));
        let mut progress = 0;
        let attempt = if is_queued {
            Attempt::Again
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.attempt(&op, &mut progress, id) }
        };
        match (attempt, id) {
            (Attempt::Done(res), _) => {
                if self.world.random.happens(self.world.config.faults.late_completion) {
                    self.park(key, op, progress, Stage::Over(res), Loan::None);
                    self.hold_back(key, res);
                    return Submitted::Pending;
                }
                Submitted::Done(res)
            }
            // What a `MSG_WAITALL` has received so far is out of the socket.
            (Attempt::Again, _) if dont_wait && progress > 0 => Submitted::Done(progress),
            (Attempt::Again, _) if dont_wait => Submitted::Done(-libc::EAGAIN),
            (Attempt::Again, Some(id)) => {
                let is_connect = matches!(op, Op::Connect { .. });
                let interrupted = self.world.config.faults.interrupted;
                if !is_connect && progress == 0 && self.world.random.happens(interrupted) {
                    return Submitted::Done(-libc::EINTR);
                }
                // SAFETY: the caller's promise: it is lent until the key lands.
                let loan = unsafe { self.lend(&op, progress, key) };
                self.park(key, op, progress, Stage::Waiting(id), loan);
                Submitted::Pending
            }
            (Attempt::Again, None) => Submitted::Done(-libc::EAGAIN),
        }
    }

    fn park(&mut self, key: Key, op: Op, progress: i32, stage: Stage, loan: Loan) {
        self.in_flight += 1;
        self.table.insert(Pending { key, op, progress, stage, loan, is_cancelled: false });
    }

    /// Has an operation that is over land later. Its memory stays lent.
    fn hold_back(&mut self, key: Key, res: i32) {
        self.table.end(key, res);
        let watched = self.world.config.check_loans;
        if let Some(pending) = self.table.get(key)
            && watched
        {
            let op = pending.op;
            let is_read = Side::of(&op) == Side::Readers && !matches!(op, Op::Accept { .. });
            let is_write = Side::of(&op) == Side::Writers && !matches!(op, Op::Connect { .. });
            // SAFETY: the key has not landed.
            pending.loan = unsafe {
                if is_read {
                    Loan::of_result(&op, res.max(0) as usize)
                } else if is_write {
                    Loan::of(&op, 0, key, 0)
                } else {
                    Loan::None
                }
            };
        }
        let at = self.world.now + self.world.random.nanos(&self.world.config.delay);
        self.world.schedule.add(at, Event::Land(key));
    }

    /// Tries again those who wait on an object.
    fn serve(&mut self, id: Id) {
        let mut blocked = [false; 2];
        for key in self.table.waiting(id) {
            let Some(pending) = self.table.get(key) else { continue };
            let (op, mut progress, side) = (pending.op, pending.progress, Side::of(&pending.op));
            let behind = match side {
                Side::Neither => false,
                side => blocked[side as usize],
            };
            if behind {
                continue;
            }
            let loan = std::mem::replace(&mut pending.loan, Loan::None);
            self.take_back(loan, key, &op);
            // SAFETY: the key has not landed, so its memory is lent.
            match unsafe { self.attempt(&op, &mut progress, Some(id)) } {
                Attempt::Done(res) => self.finish(key, res),
                Attempt::Again => {
                    // SAFETY: as above.
                    let loan = unsafe { self.lend(&op, progress, key) };
                    if let Some(pending) = self.table.get(key) {
                        pending.loan = loan;
                        pending.progress = progress;
                    }
                    if side != Side::Neither {
                        blocked[side as usize] = true;
                    }
                }
            }
        }
    }

    /// An operation that was pending is over.
    fn finish(&mut self, key: Key, res: i32) {
        if self.world.random.happens(self.world.config.faults.late_completion) {
            self.hold_back(key, res);
        } else if let Some(pending) = self.table.remove(key) {
            self.land(&pending, res);
        }
    }

    /// Serves all that was woken, and those it wakes in turn.
    fn settle(&mut self) {
        loop {
            for (fd, id) in self.world.take_closed() {
                for key in self.table.waiting(id) {
                    if self.table.get(key).is_some_and(|pending| pending.op.fd() == Some(fd)) {
                        self.give_up(key, -libc::EBADF);
                    }
                }
            }
            match self.world.next_woken() {
                Some(id) => self.serve(id),
                None => return,
            }
        }
    }

    /// Ends an operation that waits, with what it has come to or else `res`.
    fn give_up(&mut self, key: Key, res: i32) {
        let Some(mut pending) = self.table.remove(key) else { return };
        let loan = std::mem::replace(&mut pending.loan, Loan::None);
        self.take_back(loan, key, &pending.op);
        let is_connect = matches!(pending.op, Op::Connect { .. });
        let res = if pending.progress > 0 && !is_connect { pending.progress } else { res };
        self.land(&pending, res);
    }

    fn cancel_now(&mut self, key: Key) {
        let Some(pending) = self.table.get(key) else { return };
        match pending.stage {
            Stage::Over(_) => return,
            Stage::Timer(at) => self.world.schedule.remove(at),
            Stage::Waiting(id) if matches!(pending.op, Op::Connect { .. }) => {
                if !self.world.give_up_connect(id) {
                    return;
                }
            }
            Stage::Waiting(_) | Stage::Outside => {}
        }
        self.give_up(key, -libc::ECANCELED);
    }

    /// Has everything happen that is due.
    fn run_due(&mut self) {
        while let Some(event) = self.world.schedule.due(self.world.now) {
            match event {
                Event::Timer(key) => {
                    if let Some(pending) = self.table.remove(key) {
                        self.land(&pending, 0);
                    }
                }
                Event::Land(key) => {
                    if let Some(mut pending) = self.table.remove(key)
                        && let Stage::Over(res) = pending.stage
                    {
                        let loan = std::mem::replace(&mut pending.loan, Loan::None);
                        self.take_back(loan, key, &pending.op);
                        self.land(&pending, res);
                    }
                }
                Event::Cancel(key) => self.cancel_now(key),
                Event::Bell => self.is_rung = true,
                event => self.world.happen(event),
            }
            self.settle();
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Lets the world go on until something has landed, the bell rings or the wait is over.
    fn advance(&mut self, wait: Wait) {
        let end = match wait {
            Wait::No => Some(self.world.now),
            Wait::Until(until) => Some(self.nanos(until)),
            Wait::Forever => None,
        };
        while self.landed.is_empty() && !self.is_rung {
            match self.world.schedule.next() {
                Some(at) if end.is_none_or(|end| at <= end) => {
                    self.world.now = self.world.now.max(at);
                    self.run_due();
                }
                _ => {
                    match end {
                        Some(end) => self.world.now = self.world.now.max(end),
                        None => self.wait_outside(),
                    }
                    return;
                }
            }
        }
    }
}

impl Engine for Sim {
    unsafe fn submit(&mut self, key: Key, op: Op) -> Submitted {
        self.note(1, key, &op, 0);
        let submitted = match op {
            Op::Nop => {
                self.in_flight += 1;
                self.landed.push(Completion { key, res: 0, flags: 0 });
                Submitted::Pending
            }
            Op::Timer { deadline } => {
                let late = self.world.delay(self.world.config.faults.late_completion);
                let at = self.nanos(deadline).saturating_add(late);
                let at = self.world.schedule.add(at, Event::Timer(key));
                self.park(key, op, 0, Stage::Timer(at), Loan::None);
                Submitted::Pending
            }
            // Loans are what is simulated: a buffer that nobody lends shows nothing.
            Op::RecvPooled { .. } => Submitted::Done(-libc::ENOBUFS),
            // Nobody in there has threads.
            Op::FutexWait { .. } => Submitted::Done(-libc::ENOSYS),
            // The simulated kernel has no io_uring.
            #[cfg(target_os = "linux")]
            Op::Entry { .. } => Submitted::Done(-libc::EOPNOTSUPP),
            // SAFETY: the caller's promise, here and below.
            _ if op.is_immediate() => Submitted::Done(unsafe { self.world.act(&op) }),
            // SAFETY: as above.
            _ => unsafe { self.start(key, op) },
        };
        if let Submitted::Done(res) = submitted {
            self.note(3, key, &op, res);
            // SAFETY: as above: it is lent until this returns.
            unsafe { self.note_bytes(&op, res) };
        }
        self.settle();
        submitted
    }

    fn cancel(&mut self, key: Key) {
        let Some(pending) = self.table.get(key) else { return };
        if matches!(pending.stage, Stage::Over(_)) || pending.is_cancelled {
            return;
        }
        pending.is_cancelled = true;
        if self.world.random.happens(self.world.config.faults.late_cancel) {
            let at = self.world.now + self.world.random.nanos(&self.world.config.delay);
            self.world.schedule.add(at, Event::Cancel(key));
        } else {
            self.cancel_now(key);
            self.settle();
        }
    }

    fn disarm(&mut self, key: Key) -> bool {
        match self.table.get(key) {
            Some(Pending { stage: Stage::Timer(at), .. }) => {
                let at = *at;
                self.world.schedule.remove(at);
                self.table.remove(key);
                self.in_flight -= 1;
                true
            }
            _ => false,
        }
    }

    fn turn(&mut self, wait: Wait, out: &mut Completions) -> io::Result<()> {
        self.world.now += TURN;
        if self.landed.is_empty() {
            self.world.notice_closed();
            self.settle();
        }
        self.is_rung = self.hears();
        self.run_due();
        self.look_outside();
        self.advance(wait);
        if self.world.random.happens(self.world.config.faults.reorder) {
            self.world.random.shuffle(&mut self.landed);
        }
        self.in_flight -= self.landed.len();
        out.append(&mut self.landed);
        Ok(())
    }

    fn bell(&self) -> Bell {
        self.tower.bell()
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn now(&self) -> Instant {
        self.began + self.elapsed()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let unwinding = std::thread::panicking();
        for pending in self.table.drain() {
            if let (Stage::Over(fd @ 0..), Op::Accept { .. } | Op::Open { .. }) =
                (pending.stage, pending.op)
            {
                // Nobody has been told of it.
                crate::sim::numbers::close(fd);
            }
            if !unwinding {
                // The memory is the caller's to keep until the engine is gone. Whether it was kept
                // well no longer matters.
                // SAFETY: the key has not landed.
                unsafe { pending.loan.take_back() };
            }
        }
    }
}
