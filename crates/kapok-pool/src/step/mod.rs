//! The five steps of an I/O thread.
//!
//! ```text
//!   1 take      up to N operations from the channel                          none ─► 3
//!   2 submit    prepare them, enter the kernel                                    ─► 3
//!   3 spin      at most M looks: completions? ─► 5   channel? ─► 1     all in vain ─► 4
//!   4 wait      in flight > 0: for completions, else on the channel;
//!               a new operation, a limit and a shutdown end either     landed ─► 5, else ─► 1
//!   5 complete  at most COMPLETION_BATCH, then: channel not empty ─► 1   more landed ─► 5   else ─► 3
//! ```
//!
//! The last action decides where step 3 looks first: after submitting at completions, after completing
//! at the channel. Submitting goes before completing: what has landed waits while there is something to
//! submit, but not for longer than one batch of submissions.
//!
//! It is generic over [`Engine`], so that a scripted one can test each step.

mod event;
mod patience;
mod recover;
mod rest;
#[cfg(all(test, not(loom)))]
mod tests;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use kapok_engine::{Buffers, Completion, Completions, Engine, Key, Op, Submitted, Wait};

use crate::cell::{Landed, Landing, undisturbed};
use crate::port::{Order, Port};
#[cfg(target_os = "linux")]
use crate::request::BUFFER_GROUP;
use crate::shared::{Lack, Shared};
use crate::slot::Slot;
use crate::stats::add;
pub(crate) use event::{Event, Found, Woken};
use patience::Patience;
pub(crate) use rest::Rest;

/// The numbers of the loop. Each is an option of [`Builder`](crate::Builder), where it is documented.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    pub(crate) take: usize,
    pub(crate) spin: u32,
    pub(crate) adaptive: bool,
    pub(crate) completion_batch: usize,
    pub(crate) device_batch: usize,
    pub(crate) most_in_flight: usize,
    pub(crate) completion_wait: Duration,
    pub(crate) channel_wait: Duration,
}

/// A wait on the channel that is over so soon would have been spun away: with 1,000 looks, which take about
/// 50 µs, and without the way to sleep and back, which is in it.
const SHORT_CHANNEL_WAIT: Duration = Duration::from_micros(80);

/// The same of a wait for completions. Nobody else has to be woken for them, and a device takes longer:
/// only the shortest waits are worth it.
const SHORT_COMPLETION_WAIT: Duration = Duration::from_micros(5);

/// How long a thread sleeps at most while somebody waits for room: then it looks whether who was woken for
/// that has come.
const CROWDED_WAIT: Duration = Duration::from_millis(10);

/// So many times fewer looks are taken for completions at most: as long as such a wait.
const COMPLETION_LOOKS: u32 = 8;

/// So many batches are submitted before the engine looks at what has happened, whatever it says: where all
/// of them are over at once it has no other reason to, and what waits would wait for their end.
const MOST_UNSEEN: u32 = 8;

/// A device that has so many operations is not kept waiting by the next.
const BUSY_DEVICE: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Take,
    Submit,
    Spin,
    Wait,
    Complete,
}

/// What the loop did last, and so where it looks first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Last {
    Submitted,
    Completed,
}

fn landing(key: Key, landed: Landed) -> Completion {
    Completion { key, res: landed.res, flags: landed.flags }
}

/// Asks for an operation to land soon. But for a close, which does by itself: of one that was cancelled
/// nobody could tell whether the descriptor is still there.
///
/// # Safety
///
/// The slot is the calling thread's, and its operation is in flight.
unsafe fn cancel(engine: &mut impl Engine, slot: &Slot, index: u32, generation: u32) {
    // SAFETY: by the caller.
    if !matches!(unsafe { slot.op() }, Op::Close { .. }) {
        engine.cancel(Key::new(index, generation));
    }
}

/// Whether the kernel is to take a buffer of the thread's for it.
///
/// # Safety
///
/// The operation is in a slot of the calling thread's.
#[inline]
unsafe fn takes_from_group(op: &Op) -> bool {
    match *op {
        #[cfg(target_os = "linux")]
        // SAFETY: by the caller the request is there, which keeps the entry.
        Op::Entry { entry } => unsafe { (*entry).buffer_group() == Some(BUFFER_GROUP) },
        _ => false,
    }
}

/// No operation: the generation that submitters never use.
const IDLE: u32 = Key::RESERVED_GENERATION;

pub(crate) struct Loop<E> {
    pub(crate) engine: E,
    shared: Arc<Shared>,
    number: usize,
    pace: Pace,
    next: Next,
    last: Last,
    /// M, as it is now: with nothing in flight, and with something.
    patience: [Patience; 2],
    /// Taken and not yet submitted, from `begun` on.
    batch: Vec<u32>,
    begun: usize,
    /// Batches since the engine has looked.
    unseen: u32,
    /// What has landed; up to `handed` it is completed.
    landed: Completions,
    handed: usize,
    /// Who is to be told of a batch, once all of it has been handed out. Empty between two steps.
    wakers: Vec<Waker>,
    /// By slot: which use of it the engine was given, or `IDLE`.
    carried: Box<[u32]>,
    /// Taken and not yet completed.
    in_flight: usize,
    /// Abandoned slots that have landed before their entry in the list of cancels was seen.
    lingering: usize,
    /// When what is in flight is cancelled. Set when the pool closes.
    cancel_at: Option<Instant>,
    cancelling: bool,
    /// The order that the channel was opened or closed by.
    obeyed: Order,
    /// Buffers that the kernel takes from, made when an operation first asks for them.
    group: Option<Rc<Buffers>>,
    /// Makes them, if the engine is one that has some.
    pub(crate) provide: fn(&mut E) -> Option<Rc<Buffers>>,
}

/// With nothing in flight, and with something.
fn patience(pace: &Pace) -> [Patience; 2] {
    if !pace.adaptive {
        return [Patience::fixed(pace.spin), Patience::fixed(pace.spin)];
    }
    let for_completions = pace.spin / COMPLETION_LOOKS;
    [
        Patience::adaptive(pace.spin, pace.spin, SHORT_CHANNEL_WAIT),
        Patience::adaptive(0, for_completions, SHORT_COMPLETION_WAIT),
    ]
}

impl<E: Engine> Loop<E> {
    pub(crate) fn new(engine: E, shared: Arc<Shared>, number: usize, pace: Pace) -> Loop<E> {
        Loop {
            engine,
            number,
            next: Next::Take,
            last: Last::Completed,
            patience: patience(&pace),
            batch: Vec::with_capacity(pace.take),
            begun: 0,
            unseen: 0,
            landed: Completions::with_capacity(pace.most_in_flight),
            handed: 0,
            wakers: Vec::with_capacity(pace.completion_batch),
            carried: vec![IDLE; shared.slots.len()].into(),
            in_flight: 0,
            lingering: 0,
            cancel_at: None,
            cancelling: false,
            obeyed: Order::Serve,
            group: None,
            provide: |_| None,
            pace,
            shared,
        }
    }

    #[inline]
    fn port(&self) -> &Port {
        &self.shared.ports[self.number]
    }

    /// Takes one step.
    ///
    /// # Errors
    ///
    /// The engine is broken for good.
    #[inline]
    pub(crate) fn step(&mut self) -> std::io::Result<Event> {
        match self.next {
            Next::Take => Ok(self.take()),
            Next::Submit => self.submit(),
            Next::Spin => self.spin(),
            Next::Wait if self.handed < self.landed.len() => Ok(self.complete()),
            Next::Wait => self.wait(),
            Next::Complete => Ok(self.complete()),
        }
    }

    /// Step 1.
    fn take(&mut self) -> Event {
        self.attend();
        let room = self.pace.most_in_flight - self.in_flight;
        let most = self.pace.take.min(room);
        while self.batch.len() < most
            && let Some(index) = self.port().channel.pop()
        {
            self.batch.push(index);
        }
        let taken = self.batch.len();
        if taken > 0 {
            self.in_flight += taken;
            self.shared.gate(Lack::Room).room_made(taken);
            self.publish();
            self.next = Next::Submit;
        } else {
            self.next = Next::Spin;
        }
        Event::Took(taken)
    }

    /// Step 2.
    fn submit(&mut self) -> std::io::Result<Event> {
        let taken = self.batch.len();
        let mut for_device = 0;
        while self.begun < taken {
            let index = self.batch[self.begun];
            self.begun += 1;
            let slot = &self.shared.slots[index];
            // SAFETY: this thread has taken the slot out of its channel, whose one consumer it is, since
            // a port's thread is started only to wait for the end of the one before.
            let (key, op) = unsafe { (Key::new(index, slot.generation()), slot.op()) };
            let is_wanted = self.is_wanted(index);
            self.carried[index as usize] = key.generation();
            if !is_wanted {
                self.landed.push(landing(key, Landed::UNBEGUN));
                continue;
            }
            // SAFETY: as above.
            if unsafe { takes_from_group(&op) } && !self.has_group() {
                let refused = Landed { res: -libc::EOPNOTSUPP, flags: 0 };
                self.landed.push(landing(key, refused));
                continue;
            }
            // SAFETY: the request in the slot keeps what the operation names, and does not move before
            // the landing; see `Request`. The key is its slot's, whose last operation has landed.
            unsafe { self.give(key, op) };
            // A device is kept waiting while a batch is prepared; other operations are not.
            // SAFETY: as above.
            for_device += usize::from(unsafe { op.is_transfer() });
            if for_device == self.pace.device_batch {
                for_device = 0;
                // What is not begun the device does not have.
                if self.in_flight.saturating_sub(taken - self.begun) >= BUSY_DEVICE {
                    continue;
                }
                self.look()?;
            }
        }
        self.batch.clear();
        self.begun = 0;
        self.port().counters.batch(taken);
        self.unseen += 1;
        if self.engine.wants_turn() || self.unseen >= MOST_UNSEEN {
            self.look()?;
        }
        self.last = Last::Submitted;
        self.next = Next::Spin;
        Ok(Event::Submitted(taken))
    }

    /// Whether an operation that this thread has taken is still to be carried out.
    fn is_wanted(&self, index: u32) -> bool {
        !self.cancelling && !self.shared.slots[index].cell.is_abandoned()
    }

    /// Gives an operation to the engine. One that is over at once is completed like the rest.
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`].
    #[inline]
    unsafe fn give(&mut self, key: Key, op: Op) {
        // SAFETY: by the caller.
        let landed = match unsafe { self.engine.submit(key, op) } {
            Submitted::Pending => return,
            Submitted::Done(res) => Landed { res, flags: 0 },
            Submitted::DoneIn(res, buffer) => {
                Landed { res, flags: Completion::BUFFER | u32::from(buffer) << 16 }
            }
        };
        self.landed.push(landing(key, landed));
    }

    /// Step 3.
    fn spin(&mut self) -> std::io::Result<Event> {
        let mut looks = 0;
        let mut found = Found::Nothing;
        let for_completions = usize::from(self.in_flight > 0);
        let most = self.patience[for_completions].looks();
        while looks < most && found == Found::Nothing {
            looks += 1;
            found = match self.last {
                Last::Submitted => match self.has_landed()? {
                    true => Found::Completions,
                    false if self.is_called() => Found::Operations,
                    false => Found::Nothing,
                },
                Last::Completed => match self.is_called() {
                    true => Found::Operations,
                    false if self.has_landed()? => Found::Completions,
                    false => Found::Nothing,
                },
            };
            if found == Found::Nothing {
                std::hint::spin_loop();
            }
        }
        if found != Found::Nothing {
            self.patience[for_completions].found(looks);
        }
        let counters = &self.port().counters;
        add(&counters.spins, 1);
        add(&counters.spins_that_found, u64::from(found != Found::Nothing));
        self.next = match found {
            Found::Completions => Next::Complete,
            Found::Operations => Next::Take,
            Found::Nothing => Next::Wait,
        };
        Ok(Event::Spun { looks, found })
    }

    /// Step 4.
    fn wait(&mut self) -> std::io::Result<Event> {
        let for_completions = self.in_flight > 0;
        let event =
            if for_completions { Event::WaitedForCompletions } else { Event::WaitedOnChannel };
        match self.fall_asleep() {
            Rest::Goes => return Ok(event(Woken::Called)),
            Rest::Over => return Ok(Event::Ended),
            Rest::Asleep => {}
        }
        let limit =
            if for_completions { self.pace.completion_wait } else { self.pace.channel_wait };
        let is_crowded = self.shared.waiting() > 0;
        let limit = if is_crowded { limit.min(CROWDED_WAIT) } else { limit };
        let began = self.engine.now();
        let until = match self.cancel_at {
            Some(cancel_at) if !self.cancelling => cancel_at.min(began + limit),
            _ => began + limit,
        };
        self.unseen = 0;
        let turned = self.engine.turn(Wait::Until(until), &mut self.landed);
        self.port().sleep().wake_up();
        turned?;
        let now = self.engine.now();
        let woken = if !self.landed.is_empty() {
            Woken::Landed
        } else if self.is_called() {
            Woken::Called
        } else if now >= until {
            Woken::Limit
        } else {
            Woken::ForNothing
        };
        if woken == Woken::Limit && self.shared.waiting() > 0 {
            self.shared.pass_on_turns();
        }
        let called = matches!(woken, Woken::Landed | Woken::Called);
        let waited = now.saturating_duration_since(began);
        self.patience[usize::from(for_completions)].waited(waited, called);
        let counters = &self.port().counters;
        add(&counters.sleeps, 1);
        add(&counters.sleeps_to_the_limit, u64::from(woken == Woken::Limit));
        counters.system_calls.store(self.engine.stats().system_calls, Ordering::Relaxed);
        self.next = if woken == Woken::Landed { Next::Complete } else { Next::Take };
        Ok(event(woken))
    }

    /// Sets the flag by which submitters know that they have to wake it, unless there is something to do.
    fn fall_asleep(&mut self) -> Rest {
        self.port().sleep().fall_asleep();
        // The second look: from here on whoever calls sees the flag.
        let rest = if self.is_called() {
            self.next = Next::Take;
            Rest::Goes
        } else if self.is_over() && self.port().may_end() {
            Rest::Over
        } else {
            return Rest::Asleep;
        };
        self.port().sleep().wake_up();
        rest
    }

    /// Step 5.
    fn complete(&mut self) -> Event {
        let most = self.landed.len().min(self.handed + self.pace.completion_batch);
        let count = most - self.handed;
        // Counted before anybody can know of them otherwise.
        add(&self.port().counters.completed, count as u64);
        while self.handed < most {
            let completion = self.landed[self.handed];
            self.handed += 1;
            self.deliver(completion);
        }
        // Waking a thread takes longer than handing out the whole batch. So who is woken first finds all
        // of it, and comes back with as many operations, and not with one at a time.
        for waker in self.wakers.drain(..) {
            undisturbed(|| waker.wake());
        }
        if self.handed == self.landed.len() {
            self.landed.clear();
            self.handed = 0;
        }
        self.publish();
        self.last = Last::Completed;
        self.next = if self.is_called() {
            Next::Take
        } else if self.landed.is_empty() {
            Next::Spin
        } else {
            Next::Complete
        };
        Event::Completed(count)
    }

    fn deliver(&mut self, completion: Completion) {
        let Completion { key, res, mut flags } = completion;
        let index = key.index();
        if self.carried[index as usize] != key.generation() {
            tracing::error!(?completion, "a completion that nobody waits for");
            return;
        }
        if flags & (Completion::MORE | Completion::BUFFER) != 0 {
            flags = self.deliver_more(completion);
            if !completion.is_terminal() {
                return;
            }
        }
        self.carried[index as usize] = IDLE;
        self.in_flight -= 1;
        let slot = &self.shared.slots[index];
        let landed = Landed { res, flags };
        // SAFETY: this thread is the lander, and the key has just been taken off `carried`.
        match unsafe { slot.cell.land(landed) } {
            Landing::Delivered(waker) => self.wakers.extend(waker),
            Landing::Abandoned => {
                // SAFETY: abandoned, so the slot is this thread's; it has landed just now.
                let cancelled = unsafe {
                    slot.abandon(landed);
                    slot.carried(|carried| {
                        carried.ended = true;
                        carried.cancelled
                    })
                };
                add(&self.port().counters.cancelled, 1);
                if cancelled {
                    self.shared.free(index);
                } else {
                    self.lingering += 1;
                }
            }
        }
    }

    /// Delivers a landing that is not the last, or that brought bytes. Answers the flags that are left.
    #[cold]
    fn deliver_more(&mut self, completion: Completion) -> u32 {
        let Completion { key, res, flags } = completion;
        let slot = &self.shared.slots[key.index()];
        // SAFETY: the slot is this thread's until the last landing.
        let is_ours = unsafe { takes_from_group(&slot.op()) };
        let buffer = completion.buffer().filter(|_| is_ours).zip(self.group.as_ref());
        let bytes = match buffer {
            // SAFETY: the kernel has taken this one for so many bytes, and it is not given back yet.
            Some((id, group)) => unsafe {
                std::slice::from_raw_parts(group.start(id).as_ptr(), res.max(0) as usize)
            },
            None => &[],
        };
        // SAFETY: as above.
        let goes_on = unsafe { slot.more(Landed { res, flags }, bytes) };
        if let Some((id, group)) = buffer {
            // SAFETY: this landing named it, and nobody looks at it any more.
            unsafe { group.give_back(id) };
        }
        if !completion.is_terminal() {
            // It was counted, and is not over.
            let completed = &self.port().counters.completed;
            completed.store(completed.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
            if !goes_on {
                self.engine.cancel(key);
            }
        }
        if is_ours { flags & 0xffff & !Completion::BUFFER } else { flags }
    }

    /// Whether there are buffers for the kernel to take from.
    #[cold]
    fn has_group(&mut self) -> bool {
        if self.group.is_none() {
            self.group = (self.provide)(&mut self.engine);
        }
        self.group.is_some()
    }

    /// Takes orders, and the cancels of those who went away.
    fn attend(&mut self) {
        let Loop { shared, engine, carried, lingering, obeyed, .. } = self;
        let port = &shared.ports[self.number];
        port.take_cancels(&shared.slots, |index| {
            let slot = &shared.slots[index];
            // SAFETY: whoever put it on the list has abandoned it to this thread, which gives it back
            // below or after its landing.
            let (ended, generation) = unsafe {
                let ended = slot.carried(|carried| {
                    carried.cancelled = true;
                    carried.ended
                });
                (ended, slot.generation())
            };
            if ended {
                *lingering -= 1;
                shared.free(index);
            } else if carried[index as usize] == generation {
                // SAFETY: the thread has it, and it has not landed.
                unsafe { cancel(engine, slot, index, generation) };
            }
        });
        let order = port.order();
        if order != *obeyed {
            *obeyed = order;
            if order == Order::Serve {
                port.channel.open();
            } else {
                port.channel.close();
            }
            // Who waits for room finds it here again, or elsewhere, or hears that there will be none.
            shared.gate(Lack::Room).wake_all();
        }
        if order == Order::Close && !self.cancelling {
            let now = engine.now();
            // A grace without end is one.
            let far = Duration::from_secs(1 << 32);
            let cancel_at = *self.cancel_at.get_or_insert_with(|| now + shared.grace().min(far));
            if now >= cancel_at {
                self.cancelling = true;
                for (index, &generation) in (0..).zip(carried.iter()) {
                    if generation != IDLE {
                        // SAFETY: as above: it is carried.
                        unsafe { cancel(engine, &shared.slots[index], index, generation) };
                    }
                }
            }
        }
    }

    /// Has the engine look at what has happened, and does not wait.
    fn look(&mut self) -> std::io::Result<()> {
        self.unseen = 0;
        self.engine.turn(Wait::No, &mut self.landed)
    }

    /// Whether something has landed, as far as can be told without a system call.
    #[inline]
    fn has_landed(&mut self) -> std::io::Result<bool> {
        if self.landed.is_empty() && self.engine.wants_turn() {
            self.look()?;
        }
        Ok(!self.landed.is_empty())
    }

    /// Whether step 1 has something to do.
    #[inline]
    fn is_called(&self) -> bool {
        let port = self.port();
        let has_room = self.in_flight < self.pace.most_in_flight;
        has_room && !port.channel.is_empty()
            || port.has_cancels()
            || (port.order() != self.obeyed || self.obeyed == Order::Close) && self.has_orders()
    }

    #[cold]
    fn has_orders(&self) -> bool {
        let port = self.port();
        port.order() != self.obeyed
            || port.order() == Order::Close && !self.cancelling && {
                self.cancel_at.is_none_or(|cancel_at| self.engine.now() >= cancel_at)
            }
    }

    /// Whether the thread may end.
    fn is_over(&self) -> bool {
        self.in_flight == 0 && self.lingering == 0 && self.port().channel.is_finished()
    }

    #[inline]
    fn publish(&self) {
        self.port().in_flight.store(self.in_flight as u32, Ordering::Relaxed);
    }
}
