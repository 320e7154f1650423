//! A loop's side of a dump: it shows its fibers, each with its own backtrace.
//!
//! A fiber that is suspended is resumed for a report: the code right behind its suspension walks the
//! frames and suspends again. Nothing else happens on it. What it waits for, its park word, what it
//! has lent and what has landed for it are left as they are, so this is sound at every suspension,
//! also while a cancel is under way. The walk itself runs on the loop's stack: a fiber may be
//! suspended with little room left, and pages that it never touched stay untouched.
//!
//! A loop with many fibers answers in parts, one each time it attends to what others have left, so
//! its fibers are kept waiting by one part at most. Those that begin or end meanwhile may or may
//! not be shown.

use std::collections::{HashMap, HashSet};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use corosensei::Yielder;
use kapok_engine::{Key, Op};

use super::event_loop::Loop;
use super::slots::Waiter;
use crate::fiber::{Fiber, FiberRef, Resume, Waiting};
use crate::observe::{Descriptor, walk};
use crate::stack;

/// How many fibers are shown in one part.
const FIBERS_PER_PART: usize = 64;

/// Asks a loop for its fibers. Answered until the last part, or dropped if the loop ends.
pub(crate) struct Request {
    pub(crate) answers: mpsc::Sender<Answer>,
}

pub(crate) struct Answer {
    pub(crate) fibers: Vec<Reported>,
    /// No more will come.
    pub(crate) last: bool,
}

/// What suspended code knows of why it is.
pub(crate) enum About {
    /// It lets others run.
    Yield,
    Operation {
        name: &'static str,
        fd: Option<RawFd>,
        /// When a sleep ends.
        until: Option<Instant>,
    },
    /// It waits for a future of this type.
    Future(&'static str),
}

impl About {
    // Out of the way of operations that nobody asks about.
    #[cold]
    #[inline(never)]
    pub(crate) fn operation(op: &Op) -> About {
        let until = if let Op::Timer { deadline } = *op { Some(deadline) } else { None };
        About::Operation { name: op.name(), fd: op.fd(), until }
    }
}

/// A fiber as its loop shows it.
pub(crate) struct Reported {
    pub(crate) id: u64,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) state: State,
    pub(crate) age: Duration,
    /// Since it was suspended.
    pub(crate) suspended: Duration,
    pub(crate) canceled: bool,
    /// Addresses of calls, the innermost first.
    pub(crate) frames: Arc<[usize]>,
}

pub(crate) enum State {
    Unstarted,
    Ready,
    Operation { name: &'static str, descriptor: Option<Descriptor>, left: Option<Duration> },
    Future { name: &'static str, descriptors: Vec<Descriptor> },
}

/// What a fiber leaves when it was resumed for a report.
pub(crate) struct Captured {
    about: About,
    frames: Vec<usize>,
}

/// A request and how far it is answered.
pub(crate) struct Answering {
    request: Request,
    /// The next place in the table of fibers; none before the first part.
    next: Option<usize>,
    /// The keys that futures on fibers wait for, by the data of the wakers. Keys that have landed
    /// since name nothing any more.
    tasks: HashMap<*const (), Vec<Key>>,
    /// Many fibers wait in the same place.
    frames: HashSet<Arc<[usize]>>,
}

impl Loop {
    /// On a fiber that was resumed for a report: leaves what there is to say.
    #[cold]
    #[inline(never)]
    pub(super) fn capture(&self, yielder: NonNull<Yielder<Resume, ()>>, about: About) {
        let here = 0u8;
        let bounds = stack::bounds_of((&raw const here).addr());
        // SAFETY: the yielder lives on this stack, which runs.
        let frames = unsafe { yielder.as_ref() }
            .on_parent_stack(move || bounds.map_or_else(Vec::new, |bounds| walk(&bounds)));
        self.captured.replace(Some(Captured { about, frames }));
    }

    /// Answers a part of what was asked for.
    pub(super) fn answer_requests(&self) {
        let new = self.remote.take_requests();
        let mut answering = self.answering.take();
        answering.extend(new.into_iter().map(|request| Answering {
            request,
            next: None,
            tasks: HashMap::new(),
            frames: HashSet::new(),
        }));
        answering.retain_mut(|one| self.answer(one));
        if !answering.is_empty() {
            self.remote.call_attention();
        }
        self.answering.replace(answering);
    }

    /// `false`: that was the last part, or nobody wants it any more.
    fn answer(&self, answering: &mut Answering) -> bool {
        let now = self.now();
        let mut fibers = Vec::new();
        let from = match answering.next {
            Some(next) => next,
            None => {
                for (waker, key) in self.slots.borrow().tasks() {
                    answering.tasks.entry(waker).or_default().push(key);
                }
                for one in self.unstarted.borrow().iter() {
                    fibers.push(unstarted(&one.fiber, now));
                }
                if self.index == 0 {
                    self.group.visit_offered(|one| fibers.push(unstarted(&one.fiber, now)));
                }
                0
            }
        };
        let (part, next): (Vec<FiberRef>, usize) = {
            let table = self.fibers.borrow();
            let mut next = from;
            let mut part = Vec::new();
            while part.len() < FIBERS_PER_PART && next < table.slots.len() {
                part.extend(table.slots[next].clone());
                next += 1;
            }
            (part, next)
        };
        fibers.extend(part.iter().filter_map(|fiber| self.report(fiber, now, answering)));
        answering.next = Some(next);
        let last = next >= self.fibers.borrow().slots.len();
        answering.request.answers.send(Answer { fibers, last }).is_ok() && !last
    }

    /// A started fiber, which is suspended.
    fn report(
        &self,
        fiber: &FiberRef,
        now: Instant,
        answering: &mut Answering,
    ) -> Option<Reported> {
        debug_assert!(self.running.get().is_none(), "a loop reports between fibers");
        // SAFETY: our own fiber; plain fields, copied.
        let (waiting, since) = unsafe { ((*fiber.local()).waiting, (*fiber.local()).since) };
        // SAFETY: `fiber` is held here, and its label never changes.
        unsafe { stack::set_running(&raw const fiber.label) };
        // SAFETY: a fiber of the table is suspended while no fiber runs, so nothing else refers to
        // its coroutine. Resumed for a report it suspends again at once, in `Loop::suspend`.
        unsafe {
            let coroutine = &mut (*fiber.local()).coroutine;
            coroutine.as_mut()?.resume(Resume::Report);
        }
        // SAFETY: null is no label.
        unsafe { stack::set_running(std::ptr::null()) };
        let Captured { about, frames } = self.captured.take()?;
        let state = match (waiting, about) {
            (Waiting::Operation(_), About::Operation { name, fd, until }) => State::Operation {
                name,
                // The call that waits borrows what owns the descriptor, so it is open.
                descriptor: fd.and_then(describe),
                left: until.map(|until| until.saturating_duration_since(now)),
            },
            (Waiting::Park, About::Future(name)) if fiber.is_parked() => {
                let waker = Fiber::pointer(fiber).as_ptr().cast_const().cast();
                let keys = answering.tasks.get(&waker).map_or(&[][..], Vec::as_slice);
                State::Future { name, descriptors: self.descriptors_of(keys) }
            }
            (Waiting::Join, About::Future(name)) => State::Future { name, descriptors: Vec::new() },
            _ => State::Ready,
        };
        let frames = match answering.frames.get(&frames[..]) {
            Some(known) => Arc::clone(known),
            None => {
                let frames: Arc<[usize]> = frames.into();
                answering.frames.insert(Arc::clone(&frames));
                frames
            }
        };
        Some(Reported {
            id: fiber.label.id,
            name: fiber.label.name.clone(),
            state,
            age: now.saturating_duration_since(fiber.born),
            suspended: now.saturating_duration_since(since),
            canceled: fiber.cancel_requested(),
            frames,
        })
    }

    fn descriptors_of(&self, keys: &[Key]) -> Vec<Descriptor> {
        let mut slots = self.slots.borrow_mut();
        let fds = keys.iter().filter_map(|&key| match slots.get_mut(key) {
            Some(&mut Waiter::Task(_, fd)) => fd,
            _ => None,
        });
        fds.filter_map(describe).collect()
    }
}

fn unstarted(fiber: &Fiber, now: Instant) -> Reported {
    let age = now.saturating_duration_since(fiber.born);
    Reported {
        id: fiber.label.id,
        name: fiber.label.name.clone(),
        state: State::Unstarted,
        age,
        suspended: age,
        canceled: fiber.cancel_requested(),
        frames: Arc::new([]),
    }
}

/// Who is at the other end of a descriptor, or what it listens on. Asks about the number, whatever
/// it stands for: reads nothing and changes nothing.
fn describe(fd: RawFd) -> Option<Descriptor> {
    if fd < 0 {
        return None;
    }
    // SAFETY: used for two look-ups in the kernel, which fail if the number is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let socket = socket2::SockRef::from(&borrowed);
    let text = |address: socket2::SockAddr| match address.as_socket() {
        Some(address) => Some(address.to_string()),
        None => address.as_pathname().map(|path| path.display().to_string()),
    };
    let peer = socket.peer_addr().ok();
    let local = if peer.is_none() { socket.local_addr().ok().and_then(text) } else { None };
    Some(Descriptor { fd, peer: peer.and_then(text), local })
}
