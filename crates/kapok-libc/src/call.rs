//! A call that was made on a fiber and may suspend it.

use std::cell::Cell;

use kapok::interpose::{self, Inside};

use crate::allocator;
use crate::errno::{self, Errno};
use crate::hook::{self, Failing, Hook};
use crate::signals::{deferred, mask};
use crate::{handler, signals, wait};

/// A hooked call on a fiber, from its beginning to its end. As long as it lives, further calls of
/// the same fiber go straight to the C library.
pub(crate) struct Call {
    /// None: it is one of the C interface, which no signal ends.
    hook: Option<&'static Hook>,
    pub(crate) inside: Inside,
    /// errno at the beginning, which a call that succeeds leaves alone.
    errno: Cell<i32>,
    pub(crate) suspended: Cell<bool>,
    never_restarted: Cell<bool>,
    always_restarted: Cell<bool>,
    /// How often anybody had been told to look again when this call last looked, if it does.
    looked: Cell<Option<usize>>,
    knows_not_all: Cell<bool>,
}

impl Call {
    /// `None` if the call is to go straight to the C library.
    #[inline]
    pub(crate) fn begin(hook: &'static Hook) -> Option<Call> {
        if !hook::is_active() {
            return None;
        }
        let entered = if handler::runs() || allocator::runs() { None } else { interpose::enter() };
        let Some(inside) = entered else {
            hook.count_bypass();
            return None;
        };
        Some(Call::new(Some(hook), inside))
    }

    /// The body of a function of the C interface, which is no hook and needs none. `None` if it is not to
    /// suspend.
    pub(crate) fn of_interface<T>(
        body: impl FnOnce(&Call) -> Result<T, Errno>,
    ) -> Option<Result<T, Errno>> {
        if handler::runs() || allocator::runs() {
            return None;
        }
        let call = Call::new(None, interpose::enter()?);
        let done = body(&call);
        call.give_way();
        // Handlers of signals that were put off run here.
        drop(call);
        Some(done)
    }

    #[inline]
    fn new(hook: Option<&'static Hook>, inside: Inside) -> Call {
        Call {
            hook,
            inside,
            errno: Cell::new(errno::get()),
            suspended: Cell::new(false),
            never_restarted: Cell::new(false),
            always_restarted: Cell::new(false),
            looked: Cell::new(None),
            knows_not_all: Cell::new(false),
        }
    }

    /// Whether a signal may end the call's waits.
    pub(crate) fn ends_by_signals(&self) -> bool {
        self.hook.is_some()
    }

    /// Who never waits lets others run all the same.
    #[inline]
    fn give_way(&self) {
        if !self.suspended.get() && self.inside.has_had_its_share() {
            self.aside(|| self.inside.give_way());
        }
    }

    /// Runs a wait during which the thread has not the fiber's mask of signals. Without hooks fibers have
    /// none of their own.
    pub(crate) fn aside<R>(&self, wait: impl FnOnce() -> R) -> R {
        if hook::is_active() { mask::aside(wait) } else { wait() }
    }

    /// Runs the body of the function and does what its result says with errno. Handlers of signals that
    /// were put off until the end of the call run in here, last of all: they may jump away. `None`: the
    /// call is to be made again after them.
    #[inline]
    pub(crate) fn end<T: Failing>(self, body: impl FnOnce(&Call) -> Result<T, Errno>) -> Option<T> {
        let unwinding = AbortOnUnwind;
        let done = body(&self);
        if let Some(hook) = self.hook {
            hook.count_call(self.suspended.get());
        }
        self.give_way();
        let (value, errno) = match done {
            Ok(value) => (Some(value), self.errno.get()),
            Err(Errno(libc::EINTR)) if self.starts_again() => (None, self.errno.get()),
            Err(Errno(errno)) => (Some(T::FAILED), errno),
        };
        std::mem::forget(unwinding);
        drop(self);
        errno::set(errno);
        value
    }

    /// Whether the call, which a signal has ended, is made again.
    #[cold]
    fn starts_again(&self) -> bool {
        let struck = deferred::of(self.fiber());
        self.always_restarted.get()
            || !self.never_restarted.get() && struck != 0 && signals::all_restart(struck)
    }

    /// Has a call that succeeds, or whose result is an error of another kind, set errno to this.
    pub(crate) fn leave_errno(&self, errno: i32) {
        self.errno.set(errno);
    }

    /// Has the call end with `EINTR` for every handler that runs, also for those with `SA_RESTART`: as
    /// poll(2), sleeps, waits for signals and sockets with a time-out do. See signal(7).
    pub(crate) fn never_restarts(&self) {
        self.never_restarted.set(true);
    }

    /// Has the call made again after every handler, as sigwait(3) is.
    pub(crate) fn always_restarts(&self) {
        self.always_restarted.set(true);
    }

    pub(crate) fn is_never_restarted(&self) -> bool {
        self.never_restarted.get()
    }

    /// Whether a handler of a signal is to run as the call ends.
    pub(crate) fn is_struck(&self) -> bool {
        deferred::of(self.fiber()) != 0
    }

    /// Says that the call is about to look at what no readiness tells of. If there is more by the time it
    /// waits, the wait ends with `LookAgain`.
    pub(crate) fn looks(&self) {
        self.looked.set(Some(wait::looks()));
    }

    pub(crate) fn has_missed_a_look(&self) -> bool {
        self.looked.get().is_some_and(|looked| looked != wait::looks())
    }

    /// Says that the call looks at more than the descriptors that it waits for.
    pub(crate) fn looks_at_others(&self) {
        self.knows_not_all.set(true);
    }

    pub(crate) fn knows_not_all(&self) -> bool {
        self.knows_not_all.get()
    }

    /// Counts the call among those that suspended their fiber, which is about to happen.
    pub(crate) fn note_suspension(&self) {
        self.suspended.set(true);
    }

    /// Runs code of the user's that this function calls back.
    #[allow(dead_code, reason = "for the subjects that have callbacks")]
    pub(crate) fn outside<R>(&self, f: impl FnOnce() -> R) -> R {
        self.inside.outside(f)
    }

    /// The number of the fiber.
    pub(crate) fn fiber(&self) -> u64 {
        self.inside.fiber()
    }
}

/// C callers have no frames to unwind through.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}
