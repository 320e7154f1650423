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
mod offloaded;
mod sweep;
mod table;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::attempt::{Attempt, attempt, attempt_announced, drains, interest, is_ordinary};
use self::offloaded::{Carry, Inbox};
use self::table::{Drains, NIL, Place, Side, Table};
use crate::bell::{Bell, BellTower};
use crate::engine::Engine;
use crate::op::{Completion, Completions, Key, Op, Readiness, Submitted, Wait};
use crate::selector::{Event, Selector};
use crate::stats::EngineStats;
use crate::sys::descriptors::{self, Epoch};
use crate::sys::perform;
use crate::timers::Timers;

/// How long a dropped engine waits for its offload threads.
const DRAIN: Duration = Duration::from_secs(10);

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
///   taken up: it lands with what it came to.
/// * [`Op::Close`] lands the operations parked on its descriptor with `-EBADF`, and so does
///   [retiring](descriptors::retire) it, at its number's next use. A foreign descriptor that is
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
        Ready::with_tower(BellTower::new()?)
    }

    /// An engine for the calling thread under a tower that has its bells out already.
    pub(crate) fn with_tower(tower: BellTower) -> io::Result<Ready<S>> {
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
            landed: Completions::new(),
            in_flight: 0,
            offloaded: 0,
            events: Vec::new(),
            results: Vec::new(),
            lost_edges: 0,
            waits: 0,
            suspects: Vec::new(),
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
        // SAFETY: the caller's promise.
        match unsafe { attempt(&op, &mut progress, epoch.is_owned()) } {
            Attempt::Done(res) => {
                self.note(fd, &op, Some(res));
                Submitted::Done(res)
            }
            Attempt::Again => {
                self.note(fd, &op, None);
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

    /// Attempts what is parked on one side of a descriptor, each once, in order.
    fn serve(&mut self, fd: RawFd, side: Side) {
        let Some(entry) = self.table.entry(fd) else { return };
        let owned = entry.epoch.is_owned();
        let mut at = entry.head(side);
        let mut found_nothing = false;
        while at != NIL {
            let slot = self.table.slot_mut(at);
            let (op, next, ordinary) = (slot.op, slot.next, is_ordinary(&slot.op));
            if found_nothing && ordinary {
                at = next;
                continue;
            }
            // SAFETY: the operation is parked, so its key has not landed, and its memory is lent
            // (`Engine::submit`).
            match unsafe { attempt_announced(&op, &mut slot.progress, owned) } {
                Attempt::Done(res) => {
                    let slot = self.table.unpark(at);
                    self.land(slot.key, res);
                    self.note(fd, &op, Some(res));
                    let known_empty = |entry: &table::Entry| !entry.readable && !entry.unsettled;
                    found_nothing |=
                        side == Side::Readers && self.table.entry(fd).is_some_and(known_empty);
                }
                Attempt::Again => {
                    self.note(fd, &op, None);
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

    /// All that is waited for on a descriptor.
    fn wanted(&self, fd: RawFd) -> Readiness {
        let mut wanted = Readiness(0);
        for side in Side::ALL {
            let mut at = self.table.entry(fd).map_or(NIL, |entry| entry.head(side));
            while at != NIL {
                let slot = self.table.slot(at);
                wanted = wanted.union(interest(&slot.op));
                at = slot.next;
            }
        }
        wanted
    }

    /// Tells a selector of levels what is still waited for on a descriptor.
    fn settle(&mut self, fd: RawFd) {
        if S::EDGES {
            return;
        }
        let Some(entry) = self.table.entry(fd) else { return };
        let was = entry.watched.then_some(entry.interest);
        let wanted = (!entry.is_idle()).then(|| self.wanted(fd));
        if wanted == was {
            return;
        }
        let watched = match wanted {
            Some(wanted) => self.selector.watch(fd, wanted, was.is_some()).is_ok(),
            None => {
                self.selector.unwatch(fd);
                false
            }
        };
        if let Some(entry) = self.table.entry_mut(fd) {
            entry.watched = watched;
            entry.interest = wanted.unwrap_or_default();
        }
    }

    /// The present epoch of `fd`, after forgetting what was known of an earlier one. Those parked
    /// on that one land with `-EBADF`: to let them try would be to let them take what belongs to
    /// the number's new owner.
    #[inline]
    fn renew_if_stale(&mut self, fd: RawFd) -> Epoch {
        let epoch = descriptors::epoch(fd);
        if self.table.entry(fd).is_some_and(|entry| entry.epoch != epoch) {
            self.renew(fd, epoch);
        }
        epoch
    }

    #[cold]
    fn renew(&mut self, fd: RawFd, epoch: Epoch) {
        self.land_all(fd, -libc::EBADF);
        self.settle(fd);
        if let Some(entry) = self.table.entry_mut(fd) {
            // An old registration may live on, if the number was not closed: only a hint is lost.
            entry.renew(epoch);
        }
    }

    /// Lands everything that is parked on a descriptor.
    fn land_all(&mut self, fd: RawFd, res: i32) {
        for side in Side::ALL {
            while let Some(head) = self.table.entry(fd).map(|entry| entry.head(side))
                && head != NIL
            {
                let slot = self.table.unpark(head);
                self.land(slot.key, slot.ended(res));
            }
        }
    }

    fn close(&mut self, fd: RawFd) -> i32 {
        self.land_all(fd, -libc::EBADF);
        if let Some(entry) = self.table.entry_mut(fd) {
            if entry.watched {
                // The description may live on under another number, and so would its registration.
                self.selector.unwatch(fd);
            }
            entry.renew(Epoch::NONE);
        }
        // SAFETY: close names no memory. The caller says that the number is nobody else's.
        unsafe { perform(&Op::Close { fd }, false) }
    }

    fn take_in(&mut self, event: Event) {
        let Event { fd, seen } = event;
        if fd == self.tower.fd() {
            self.tower.drain();
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
                self.land(key, 0);
            }
        }
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
            Op::Sync { .. } | Op::Open { .. } | Op::Metadata { .. } => {
                self.offload(key, op, Carry::Blocking)
            }
            Op::Poll { fd, .. }
            | Op::Recv { fd, .. }
            | Op::Send { fd, .. }
            | Op::RecvMsg { fd, .. }
            | Op::SendMsg { fd, .. }
            | Op::Accept { fd, .. }
            | Op::Connect { fd, .. }
            | Op::Read { fd, .. }
            // SAFETY: the caller's promise.
            | Op::Write { fd, .. } => unsafe { self.submit_waiting(key, op, fd) },
        }
    }

    fn cancel(&mut self, key: Key) {
        if self.timers.remove(key) {
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
