//! The readiness engine: completion made from readiness, over any [`Selector`].
//!
//! An operation is attempted at once. If it would wait it is parked with its descriptor, and
//! attempted again when the selector says so; whoever is parked is served in order.
//!
//! What keeps a wake-up from being lost, on edges:
//!
//! * *Owned* descriptors (see [`descriptors`]) are watched once an epoch. Until then and after,
//!   whoever parks has found nothing first, so what comes later is a new edge.
//! * *Foreign* descriptors are attempted on every submission and watched anew on every park, which
//!   reports readiness that came in between: others may have eaten edges, or changed what the
//!   number stands for.
//! * A receive from an owned descriptor need not be attempted if the last one found it empty. It
//!   did if it landed `EAGAIN`, or if it was short: on TCP only, see `attempt::drains`, and not
//!   once a hang-up, an error or urgent data was seen. (Data and FIN can come in one edge and the
//!   end of the stream is not announced again; and a read stops short of urgent data with more
//!   behind it. Kernel TLS stops at its control records too: do not adopt such a socket.)
//! * An attempt that finds nothing does no harm, so events may be stale, or of a description that
//!   lives on under another number.
//!
//! [`Ready::sweep`] looks for edges that were lost all the same.

mod attempt;
#[cfg(target_os = "linux")]
mod entries;
mod numbers;
mod offloaded;
mod sweep;
mod table;

use std::collections::HashSet;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::attempt::{Attempt, attempt, attempt_announced, drains, interest, is_ordinary};
use self::offloaded::{Carry, Inbox};
use self::table::{Drains, NIL, Place, Side, Table};
use crate::bell::{Bell, BellTower};
use crate::buffers::{Buffers, DEFAULT_BYTES};
use crate::engine::Engine;
use crate::op::{Completion, Completions, Key, Op, Readiness, Submitted, Wait};
use crate::selector::{Event, Selector};
use crate::stats::EngineStats;
use crate::sys::descriptors::Epoch;
use crate::sys::perform;
use crate::timers::Timers;

/// How long a dropped engine waits for its offload threads.
const DRAIN: Duration = Duration::from_secs(10);

/// What a timeout of io_uring lands with.
#[cfg(target_os = "linux")]
const TIME_IS_OVER: i32 = -libc::ETIME;
#[cfg(not(target_os = "linux"))]
const TIME_IS_OVER: i32 = -libc::ETIMEDOUT;

/// Readiness that concerns readers.
const FOR_READERS: Readiness =
    Readiness(libc::POLLIN | libc::POLLPRI | libc::POLLERR | libc::POLLHUP)
        .union(Readiness::READ_CLOSED);
/// Readiness that concerns writers.
const FOR_WRITERS: Readiness = Readiness(libc::POLLOUT | libc::POLLERR | libc::POLLHUP);
/// Readiness after which a short receive proves nothing.
const UNSETTLING: Readiness =
    Readiness(libc::POLLPRI | libc::POLLERR | libc::POLLHUP).union(Readiness::READ_CLOSED);

/// The engine that makes completion from readiness, over the selector `S`.
///
/// Beyond what [`Engine`] says of all engines:
///
/// * Files, `Sync`, `Open`, `Metadata` and what cannot be done without blocking are carried out by
///   [`offload`](crate::offload) threads. A cancel does not reach an operation that a thread has
///   taken up: it lands with what it came to. But the opening of a FIFO lands as cancelled, if its path
///   does not begin at a descriptor; its thread stays until somebody opens the other end, and closes it.
/// * [`Op::Close`] lands the operations parked on its descriptor with `-EBADF`, and so does
///   [retiring](crate::sys::descriptors::retire) it, at its number's next use. A foreign descriptor that is
///   closed by others under a parked operation is noticed by poll(2) and select(2) at once, and on
///   edges by [`sweep`](Ready::sweep) only.
/// * [`Op::RecvMsg`] with `MSG_WAITALL` may land short.
/// * With a selector that does not sleep, a turn returns at once whatever its [`Wait`] says.
///
/// Dropped, it waits up to ten seconds for operations that threads have taken up.
pub struct Ready<S: Selector> {
    selector: S,
    tower: BellTower,
    table: Table,
    timers: Timers,
    /// The timers that are timeouts of io_uring, which land with `-ETIME`.
    timeouts: HashSet<Key>,
    landed: Completions,
    in_flight: usize,
    inbox: Arc<Inbox>,
    /// How many operations threads have that were not called back.
    offloaded: usize,
    /// What the selector saw last, and results from the inbox: kept for their capacity.
    events: Vec<Event>,
    results: Vec<(Key, i32)>,
    lost_edges: u64,
    /// How often the selector was asked.
    waits: u64,
    /// What the last sweep found ready for an operation, and not announced.
    suspects: Vec<(RawFd, Key)>,
    pooled_buffer_bytes: u32,
    /// Made when they are first asked for.
    buffers: Option<Rc<Buffers>>,
    /// Drops the next event of this descriptor, for tests of the sweep.
    #[cfg(test)]
    swallow: Option<RawFd>,
}

impl<S: Selector> Ready<S> {
    /// An engine for the calling thread.
    ///
    /// # Errors
    ///
    /// If the system refuses the descriptors that the selector and the bell need (`EMFILE`,
    /// `ENFILE`), or if select(2) cannot hold the bell's.
    pub fn new() -> io::Result<Ready<S>> {
        Ready::with_pooled_buffers(DEFAULT_BYTES)
    }

    /// The same, with buffers of its own of this size ([`Op::RecvPooled`]).
    ///
    /// # Errors
    ///
    /// As for [`new`](Ready::new).
    pub fn with_pooled_buffers(bytes: u32) -> io::Result<Ready<S>> {
        Ready::with_tower(BellTower::new()?, bytes)
    }

    /// An engine for the calling thread under a tower that has its bells out already.
    pub(crate) fn with_tower(tower: BellTower, pooled_buffer_bytes: u32) -> io::Result<Ready<S>> {
        let mut selector = S::new()?;
        if S::SLEEPS {
            selector.watch(tower.fd(), Readiness::READABLE, false)?;
        }
        Ok(Ready {
            selector,
            inbox: Inbox::new(tower.bell()),
            tower,
            table: Table::default(),
            timers: Timers::default(),
            timeouts: HashSet::new(),
            landed: Completions::new(),
            in_flight: 0,
            offloaded: 0,
            events: Vec::new(),
            results: Vec::new(),
            lost_edges: 0,
            waits: 0,
            suspects: Vec::new(),
            pooled_buffer_bytes,
            buffers: None,
            #[cfg(test)]
            swallow: None,
        })
    }

    fn land(&mut self, key: Key, res: i32) {
        self.landed.push(Completion { key, res, flags: 0 });
    }

    /// Starts an operation that its descriptor may make wait.
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`].
    unsafe fn submit_waiting(&mut self, key: Key, op: Op, fd: RawFd) -> Submitted {
        if fd < 0 {
            return Submitted::Done(-libc::EBADF);
        }
        let is_transfer = matches!(op, Op::Read { .. } | Op::Write { .. });
        if !is_transfer && S::LIMIT.is_some_and(|limit| fd >= limit) {
            return Submitted::Done(-libc::EMFILE);
        }
        let epoch = self.renew_if_stale(fd);
        let side = Side::of(&op);
        if epoch.is_owned() {
            let entry = self.table.make_entry(fd);
            entry.epoch = epoch;
            let known_empty = side == Side::Readers && !entry.readable && !entry.unsettled;
            let head = entry.head(side);
            let queued = head != NIL && is_ordinary(&self.table.slot(head).op);
            if is_ordinary(&op) && (queued || known_empty) {
                return self.park(key, op, 0, epoch);
            }
        } else if self.table.entry(fd).is_some_and(|entry| entry.head(side) != NIL) {
            // First come, first served, but not on the strength of what was known before.
            self.serve(fd, side);
            self.settle(fd);
            if is_ordinary(&op) && self.table.entry(fd).is_some_and(|entry| entry.head(side) != NIL)
            {
                return self.park(key, op, 0, epoch);
            }
        }
        let mut progress = 0;
        // What an owned descriptor has announced is not announced again.
        let announced = self.table.entry(fd).is_some_and(|entry| entry.unsettled);
        let attempt = if announced { attempt_announced } else { attempt };
        let (tried, buffer) = match self.with_memory(op) {
            Ok(tried) => tried,
            Err(res) => return Submitted::Done(res),
        };
        // SAFETY: the caller's promise.
        let attempted = unsafe { attempt(&tried, &mut progress) };
        let buffer = self.keep_if_filled(buffer, &attempted);
        match attempted {
            Attempt::Done(res) => {
                self.note(fd, &tried, Some(res));
                buffer.map_or(Submitted::Done(res), |buffer| Submitted::DoneIn(res, buffer))
            }
            Attempt::Again => {
                self.note(fd, &tried, None);
                self.park(key, op, progress, epoch)
            }
            Attempt::Thread(carry) => self.offload(key, op, carry),
        }
    }

    /// Parks an operation that found nothing, or is known to.
    fn park(&mut self, key: Key, op: Op, progress: i32, epoch: Epoch) -> Submitted {
        let Some(fd) = op.fd() else { return Submitted::Done(-libc::EBADF) };
        let entry = self.table.make_entry(fd);
        entry.epoch = epoch;
        let wanted = entry.interest.union(interest(&op));
        let is_watched = if S::EDGES {
            entry.watched && epoch.is_owned()
        } else {
            entry.watched && wanted == entry.interest
        };
        if !is_watched {
            if let Err(error) = self.selector.watch(fd, wanted, entry.watched) {
                entry.watched = false;
                return match (error.raw_os_error(), &op) {
                    // A device without readiness: only a thread can wait for it.
                    (Some(libc::EPERM), Op::Read { .. } | Op::Write { .. }) => {
                        self.offload(key, op, Carry::Blocking)
                    }
                    // What a `MSG_WAITALL` has received so far is out of the socket.
                    (_, Op::Recv { .. }) if progress > 0 => Submitted::Done(progress),
                    (errno, _) => Submitted::Done(-errno.unwrap_or(libc::EIO)),
                };
            }
            entry.watched = true;
        }
        entry.interest = wanted;
        self.table.park(key, op, progress);
        self.in_flight += 1;
        Submitted::Pending
    }

    /// Hands an operation that is not in flight yet to a thread.
    fn offload(&mut self, key: Key, op: Op, carry: Carry) -> Submitted {
        match self.inbox.hand_out(key, op, carry) {
            Ok(ticket) => {
                self.table.hand_out(key, op, ticket);
                self.offloaded += 1;
                self.in_flight += 1;
                Submitted::Pending
            }
            Err(res) => Submitted::Done(res),
        }
    }

    /// Takes in what an attempt told of a descriptor: a result, or that it found nothing.
    #[inline]
    fn note(&mut self, fd: RawFd, op: &Op, res: Option<i32>) {
        let Some(entry) = self.table.entry_mut(fd).filter(|entry| entry.epoch.is_owned()) else {
            return;
        };
        match (*op, res) {
            (Op::Recv { .. } | Op::RecvMsg { .. } | Op::Accept { .. }, None) if is_ordinary(op) => {
                entry.readable = false;
            }
            (Op::Recv { len, flags, .. }, Some(res))
                if res > 0 && (res as usize) < len && flags & !libc::MSG_DONTWAIT == 0 =>
            {
                if entry.drains == Drains::NotAsked {
                    entry.drains = if drains(fd) { Drains::Yes } else { Drains::No };
                }
                if entry.drains == Drains::Yes {
                    entry.readable = false;
                }
            }
            _ => {}
        }
    }

    /// The operation to attempt for `op`, with a buffer of ours if it brings none. `-ENOBUFS` if
    /// there is none left.
    #[inline]
    fn with_memory(&mut self, op: Op) -> Result<(Op, Option<u16>), i32> {
        let Op::RecvPooled { fd } = op else { return Ok((op, None)) };
        if self.buffers.is_none() {
            let made = Buffers::new(self.pooled_buffer_bytes as usize, false);
            self.buffers = Some(made.map_err(|_| -libc::ENOBUFS)?);
        }
        let buffers = self.buffers.as_ref().ok_or(-libc::ENOBUFS)?;
        let id = buffers.take().ok_or(-libc::ENOBUFS)?;
        let (buf, len) = (buffers.start(id).as_ptr(), buffers.bytes());
        Ok((Op::Recv { fd, buf, len, flags: 0 }, Some(id)))
    }

    /// The buffer, if something was received into it. Otherwise it is free again.
    #[inline]
    fn keep_if_filled(&self, buffer: Option<u16>, attempted: &Attempt) -> Option<u16> {
        let id = buffer?;
        if matches!(attempted, Attempt::Done(1..)) {
            return Some(id);
        }
        if let Some(buffers) = &self.buffers {
            // SAFETY: taken for this attempt, and nobody was told of it.
            unsafe { buffers.give_back(id) };
        }
        None
    }

    /// Attempts what is parked on one side of a descriptor, each once, in order.
    fn serve(&mut self, fd: RawFd, side: Side) {
        let Some(entry) = self.table.entry(fd) else { return };
        let mut at = entry.head(side);
        let mut found_nothing = false;
        while at != NIL {
            let slot = self.table.slot(at);
            let (op, next, ordinary) = (slot.op, slot.next, is_ordinary(&slot.op));
            if found_nothing && ordinary {
                at = next;
                continue;
            }
            let (attempted, tried, buffer) = match self.with_memory(op) {
                Ok((tried, buffer)) => {
                    let progress = &mut self.table.slot_mut(at).progress;
                    // SAFETY: the operation is parked, so its key has not landed, and its memory is
                    // lent (`Engine::submit`).
                    let attempted = unsafe { attempt_announced(&tried, progress) };
                    let buffer = self.keep_if_filled(buffer, &attempted);
                    (attempted, tried, buffer)
                }
                Err(res) => (Attempt::Done(res), op, None),
            };
            match attempted {
                Attempt::Done(res) => {
                    let slot = self.table.unpark(at);
                    let flags = buffer.map_or(0, |id| Completion::BUFFER | u32::from(id) << 16);
                    self.landed.push(Completion { key: slot.key, res, flags });
                    self.note(fd, &tried, Some(res));
                    let known_empty = |entry: &table::Entry| !entry.readable && !entry.unsettled;
                    found_nothing |=
                        side == Side::Readers && self.table.entry(fd).is_some_and(known_empty);
                }
                Attempt::Again => {
                    self.note(fd, &tried, None);
                    found_nothing |= ordinary;
                }
                Attempt::Thread(carry) => {
                    let slot = self.table.unpark(at);
                    // It is counted again if it is handed out.
                    self.in_flight -= 1;
                    if let Submitted::Done(res) = self.offload(slot.key, op, carry) {
                        self.in_flight += 1;
                        self.land(slot.key, res);
                    }
                }
            }
            at = next;
        }
    }

    fn take_in(&mut self, event: Event) {
        let Event { fd, seen } = event;
        if fd == self.tower.fd() {
            if S::EDGES {
                self.tower.heard_an_edge();
            } else {
                self.tower.drain();
            }
            return;
        }
        if self.table.entry(fd).is_none() {
            return;
        }
        let owned = self.renew_if_stale(fd).is_owned();
        if seen.0 & libc::POLLNVAL != 0 {
            self.land_all(fd, -libc::EBADF);
        }
        let Some(entry) = self.table.entry_mut(fd) else { return };
        if owned {
            entry.readable |= seen.intersects(FOR_READERS);
            entry.unsettled |= seen.intersects(UNSETTLING);
        } else if S::EDGES && entry.is_idle() && entry.watched {
            // Somebody else's traffic: one wake-up for nothing is enough.
            entry.watched = false;
            self.selector.unwatch(fd);
            return;
        }
        let mut waiting = Side::ALL.map(|side| entry.head(side) != NIL);
        waiting[Side::Readers as usize] &= seen.intersects(FOR_READERS);
        waiting[Side::Writers as usize] &= seen.intersects(FOR_WRITERS);
        for side in Side::ALL {
            if waiting[side as usize] {
                self.serve(fd, side);
            }
        }
        self.settle(fd);
    }

    fn expire(&mut self) {
        if self.timers.next_deadline().is_some() {
            let now = self.now();
            while let Some(key) = self.timers.pop_expired(now) {
                let res = if self.forget_timeout(key) { TIME_IS_OVER } else { 0 };
                self.land(key, res);
            }
        }
    }

    /// Whether the timer of this key, which is gone, was a timeout of io_uring.
    #[inline]
    fn forget_timeout(&mut self, key: Key) -> bool {
        !self.timeouts.is_empty() && self.timeouts.remove(&key)
    }

    fn collect(&mut self) {
        self.inbox.collect(&mut self.results);
        self.offloaded -= self.results.len();
        for (key, res) in self.results.drain(..) {
            self.table.take_back(key);
            self.landed.push(Completion { key, res, flags: 0 });
        }
    }

    /// How long a turn may wait. `None`: without limit.
    fn timeout(&self, wait: Wait) -> Option<Duration> {
        if wait == Wait::No || !self.landed.is_empty() {
            return Some(Duration::ZERO);
        }
        let until = if let Wait::Until(until) = wait { Some(until) } else { None };
        let end = match (until, self.timers.next_deadline()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        end.map(|end| end.saturating_duration_since(self.now()))
    }

    /// Lets the selector wait, and takes in what it saw.
    fn select(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let is_zero = !S::SLEEPS || timeout == Some(Duration::ZERO);
        let timeout =
            if is_zero || !self.tower.fall_asleep() { Some(Duration::ZERO) } else { timeout };
        let mut events = std::mem::take(&mut self.events);
        let waited = if self.table.parked == 0 && timeout == Some(Duration::ZERO) {
            Ok(())
        } else {
            self.waits += 1;
            self.selector.wait(timeout, &mut events)
        };
        self.tower.wake_up();
        for event in events.drain(..) {
            #[cfg(test)]
            if self.swallow == Some(event.fd) {
                self.swallow = None;
                continue;
            }
            self.take_in(event);
        }
        self.events = events;
        waited
    }
}

impl<S: Selector> Engine for Ready<S> {
    unsafe fn submit(&mut self, key: Key, op: Op) -> Submitted {
        match op {
            Op::Nop => {
                self.in_flight += 1;
                self.land(key, 0);
                Submitted::Pending
            }
            Op::Timer { deadline } => {
                self.in_flight += 1;
                self.timers.insert(key, deadline);
                Submitted::Pending
            }
            Op::Close { fd } => Submitted::Done(self.close(fd)),
            Op::Socket { .. }
            | Op::SocketPair { .. }
            | Op::Bind { .. }
            | Op::Listen { .. }
            | Op::LocalAddress { .. }
            | Op::PeerAddress { .. }
            | Op::Duplicate { .. }
            // SAFETY: the caller's promise.
            | Op::Shutdown { .. } => Submitted::Done(unsafe { perform(&op, false) }),
            // A thread would be needed for as long as somebody waits.
            Op::FutexWait { .. } => Submitted::Done(-libc::ENOSYS),
            Op::Sync { .. } | Op::Open { .. } | Op::Metadata { .. } => {
                self.offload(key, op, Carry::Blocking)
            }
            Op::Poll { fd, .. }
            | Op::Recv { fd, .. }
            | Op::RecvPooled { fd }
            | Op::Send { fd, .. }
            | Op::RecvMsg { fd, .. }
            | Op::SendMsg { fd, .. }
            | Op::Accept { fd, .. }
            | Op::Connect { fd, .. }
            | Op::Read { fd, .. }
            // SAFETY: the caller's promise.
            | Op::Write { fd, .. } => unsafe { self.submit_waiting(key, op, fd) },
            #[cfg(target_os = "linux")]
            // SAFETY: the caller's promise.
            Op::Entry { entry } => unsafe { self.submit_entry(key, entry) },
        }
    }

    fn cancel(&mut self, key: Key) {
        if self.timers.remove(key) {
            self.forget_timeout(key);
            self.land(key, -libc::ECANCELED);
            return;
        }
        let Some(slot) = self.table.find(key) else { return };
        if slot.place == Place::Parked {
            let slot = self.table.unpark(key.index());
            self.land(key, slot.ended(-libc::ECANCELED));
            if let Some(fd) = slot.op.fd() {
                self.settle(fd);
            }
        } else if slot.ticket.as_ref().is_some_and(|ticket| ticket.call_back()) {
            self.table.take_back(key);
            self.offloaded -= 1;
            self.land(key, -libc::ECANCELED);
        }
    }

    fn disarm(&mut self, key: Key) -> bool {
        let pending = self.timers.remove(key);
        self.forget_timeout(key);
        self.in_flight -= usize::from(pending);
        pending
    }

    fn turn(&mut self, wait: Wait, out: &mut Completions) -> io::Result<()> {
        self.collect();
        self.expire();
        let timeout = self.timeout(wait);
        let waited = self.select(timeout);
        self.collect();
        if timeout != Some(Duration::ZERO) {
            self.expire();
        }
        self.in_flight -= self.landed.len();
        out.append(&mut self.landed);
        waited
    }

    fn bell(&self) -> Bell {
        self.tower.bell()
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    #[inline]
    fn wants_turn(&self) -> bool {
        !self.landed.is_empty()
    }

    #[inline]
    fn sends_at_once(&self, fd: RawFd) -> bool {
        S::LIMIT.is_none_or(|limit| fd < limit)
            && self.table.entry(fd).is_none_or(|entry| entry.head(Side::Writers) == NIL)
    }

    #[inline]
    fn buffers(&self) -> Option<&Rc<Buffers>> {
        self.buffers.as_ref()
    }

    #[inline]
    fn stats(&self) -> EngineStats {
        EngineStats {
            system_calls: self.waits,
            lost_edges: self.lost_edges,
            ..EngineStats::default()
        }
    }

    fn descriptor_limit(&self) -> Option<i32> {
        S::LIMIT
    }
}

impl<S: Selector> Drop for Ready<S> {
    fn drop(&mut self) {
        // Parked operations are tried by nobody but this engine. Those that threads have taken up
        // touch their memory until they are done.
        for slot in self.table.slots() {
            if slot.ticket.as_ref().is_some_and(|ticket| ticket.call_back()) {
                self.offloaded -= 1;
            }
        }
        if self.offloaded > 0 && !self.inbox.await_results(self.offloaded, Instant::now() + DRAIN) {
            tracing::warn!(
                operations = self.offloaded,
                "an engine was dropped while offload threads still carried out its operations"
            );
        }
    }
}

#[cfg(test)]
mod tests;
