//! What a pool's handles, its futures and its threads share, and the way in.

use std::mem;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use kapok_engine::Op;

use crate::balance::Balance;
use crate::channel::Refused;
use crate::fork::Origin;
use crate::free::home;
use crate::gate::Gate;
use crate::lease::Buffers;
use crate::port::Port;
use crate::primitives::Apart;
use crate::request::Request;
use crate::slot::Slots;

pub(crate) struct Shared {
    pub(crate) slots: Slots,
    /// One for each thread that there may be. The first `active` are handed operations.
    pub(crate) ports: Box<[Port]>,
    pub(crate) active: Apart<AtomicU32>,
    pub(crate) balance: Balance,
    /// Where submitters wait for a slot.
    slots_gate: Apart<Gate>,
    /// Where submitters wait for room in a channel. Apart from the other, for who finds the channels
    /// full gives its slot back, and must not be woken by that itself.
    channels_gate: Apart<Gate>,
    pub(crate) closed: AtomicBool,
    /// The process that the threads are in.
    origin: Origin,
    /// How long operations may go on after the pool was closed, in nanoseconds.
    grace: AtomicU64,
    pub(crate) grown: AtomicU64,
    pub(crate) shrunk: AtomicU64,
    /// What rings are to know.
    pub(crate) buffers: Option<Buffers>,
    /// Whether they do, all of them: see [`Registration`].
    registration: AtomicU32,
}

/// Whether rings know the buffers of the pool. Decided while the pool is built: from then on either every
/// ring does or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Registration {
    Undecided,
    Done,
    Refused,
}

/// A slot that is being filled. It is given back if that panics.
struct Taken<'s> {
    shared: &'s Shared,
    index: u32,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.shared.free(self.index);
    }
}

/// A request that was not taken.
pub(crate) struct NotTaken<R> {
    pub(crate) request: R,
    /// What there is not enough of; `None` if it never will be taken.
    pub(crate) lacks: Option<Lack>,
}

/// What a submitter waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lack {
    Slot,
    Room,
}

/// Where an operation in flight is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) slot: u32,
    pub(crate) thread: u32,
}

impl Shared {
    pub(crate) fn new(slots: u32, threads: usize, channel: usize, balance: Balance) -> Shared {
        let shards = std::thread::available_parallelism().map_or(4, usize::from).min(16);
        Shared {
            slots: Slots::new(slots, shards),
            ports: (0..threads).map(|_| Port::new(channel)).collect(),
            active: Apart(AtomicU32::new(0)),
            balance,
            slots_gate: Apart(Gate::default()),
            channels_gate: Apart(Gate::default()),
            closed: AtomicBool::new(false),
            origin: Origin::here(),
            grace: AtomicU64::new(0),
            grown: AtomicU64::new(0),
            shrunk: AtomicU64::new(0),
            buffers: None,
            registration: AtomicU32::new(Registration::Undecided as u32),
        }
    }

    pub(crate) fn registration(&self) -> Registration {
        match self.registration.load(Ordering::Acquire) {
            0 => Registration::Undecided,
            1 => Registration::Done,
            _ => Registration::Refused,
        }
    }

    /// A ring has refused the buffers while the pool is being built.
    pub(crate) fn refuse_registration(&self) {
        self.registration.store(Registration::Refused as u32, Ordering::Release);
    }

    /// The threads have started that there are at least, each with its ring.
    pub(crate) fn all_have_registered(&self) {
        if self.buffers.is_some() && self.registration() == Registration::Undecided {
            self.registration.store(Registration::Done as u32, Ordering::Release);
        }
    }

    /// Whether the rings know these buffers.
    #[inline]
    pub(crate) fn knows(&self, buffers: &Buffers) -> bool {
        self.buffers.as_ref().is_some_and(|own| own.are(buffers))
            && self.registration() == Registration::Done
    }

    /// Where those wait who lack this.
    pub(crate) fn gate(&self, lack: Lack) -> &Gate {
        match lack {
            Lack::Slot => &self.slots_gate,
            Lack::Room => &self.channels_gate,
        }
    }

    /// How many wait for room of either kind.
    pub(crate) fn waiting(&self) -> u64 {
        u64::from(self.slots_gate.waiting()) + u64::from(self.channels_gate.waiting())
    }

    /// Wakes the next who waits for room, if there is some. Whoever was woken for it has not come: a future
    /// that nobody polls any more, which would hold the turn of all behind it.
    #[cold]
    pub(crate) fn pass_on_turns(&self) {
        if self.slots_gate.waiting() > 0 && self.slots.free.has_some() {
            self.slots_gate.room_given(1);
        }
        let active = self.active.load(Ordering::Acquire).max(1) as usize;
        let has_room = || self.ports.iter().take(active).any(|port| !port.channel.is_full());
        if self.channels_gate.waiting() > 0 && has_room() {
            self.channels_gate.room_given(1);
        }
    }

    /// Hands a request to a thread. `announced` if the caller stands at the gate for slots.
    #[inline]
    pub(crate) fn submit<R: Request>(
        &self,
        request: R,
        announced: bool,
    ) -> Result<InFlight, NotTaken<R>> {
        if self.is_left_behind() {
            return Err(NotTaken { request, lacks: None });
        }
        let home = home();
        let free = &self.slots.free;
        let index = if announced { free.pop_announced(home) } else { free.pop(home) };
        let Some(index) = index else {
            let closed = self.closed.load(Ordering::Acquire);
            return Err(NotTaken { request, lacks: (!closed).then_some(Lack::Slot) });
        };
        let slot = &self.slots[index];
        let taken = Taken { shared: self, index };
        // SAFETY: just taken off the free list.
        unsafe { slot.fill(request) };
        mem::forget(taken);
        let active = self.active.load(Ordering::Acquire).max(1) as usize;
        let first = match active {
            1 => 0,
            // SAFETY: still the submitter's, and filled.
            _ => self.balance.choose(&self.ports, active, unsafe { descriptor(slot.op()) }),
        };
        let mut closed = true;
        for further in 0..active {
            let thread = (first + further) % active;
            match self.ports[thread].push(index) {
                Ok(()) => return Ok(InFlight { slot: index, thread: thread as u32 }),
                Err(refused) => closed &= refused == Refused::Closed,
            }
        }
        // SAFETY: no thread has taken it, so it is still the submitter's.
        let request = unsafe { slot.empty::<R>() };
        self.free(index);
        // The first port closes only with the pool.
        Err(NotTaken { request, lacks: (!closed).then_some(Lack::Room) })
    }

    /// Whether the threads are in another process, which this one was forked from.
    #[inline]
    pub(crate) fn is_left_behind(&self) -> bool {
        self.origin.is_left()
    }

    /// Gives a slot back, and tells who waits for one.
    #[inline]
    pub(crate) fn free(&self, index: u32) {
        self.slots.free.push(index, home());
        self.slots_gate.room_given(1);
    }

    pub(crate) fn set_grace(&self, grace: Duration) {
        self.grace.store(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
    }

    pub(crate) fn grace(&self) -> Duration {
        Duration::from_nanos(self.grace.load(Ordering::Acquire))
    }
}

/// The descriptor that an operation is on, if it is on one.
///
/// # Safety
///
/// What it names may be read.
unsafe fn descriptor(op: Op) -> Option<RawFd> {
    match op {
        #[cfg(target_os = "linux")]
        Op::Entry { entry } => {
            // SAFETY: by the caller.
            let fd = unsafe { (*entry).descriptor() };
            (fd >= 0).then_some(fd)
        }
        op => op.fd(),
    }
}
