//! Handlers of signals: where they run, and whose waits they end.
//!
//! Every handler is wrapped, so that calls that it makes go past the fibers. Where it runs:
//!
//! | interrupted | |
//! |---|---|
//! | a plain thread | there, at once |
//! | a fiber, in its own code, whose mask lets the signal | there, at once |
//! | a fiber inside a hooked call, or a loop between fibers | on the main fiber, if that waits and lets the signal; else on the fiber inside the call; else on another that waits. Later: see `deferred` |
//! | the same, and no fiber waits in a way that a signal may end | there, at once; it must return |
//! | whatever, by a fault, or by `SIGPROF` or `SIGURG`, which are about the code that was interrupted | there, at once |
//!
//! A deferred handler ends its fiber's call with `EINTR`, or has it start again (`SA_RESTART`). One that
//! ran on a plain thread, and was not sent to that thread alone, ends the wait of one fiber all the same,
//! and so does one that ran on another fiber than the main one while that waits.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use kapok::interpose::{self, Interruption};
use libc::{sighandler_t, siginfo_t};

use super::mask::{self, Set, bit};
use super::{deferred, listener, waiters};
use crate::{errno, handler, hook, real};

const SIGNALS: usize = 65;

/// What the program would have called, by signal: the address of the handler, and some of its flags
/// above it. Zero: nothing of ours.
static HANDLERS: [AtomicU64; SIGNALS] = [const { AtomicU64::new(0) }; SIGNALS];

/// `SA_RESETHAND`: it is called once. The kernel must not know: it would count deferring as a call.
const ONCE: u64 = 1 << 61;
/// `SA_SIGINFO`: the handler takes three arguments.
const TAKES_INFO: u64 = 1 << 62;
/// `SA_RESTART`: calls that may start again do.
const RESTARTS: u64 = 1 << 63;
const ADDRESS: u64 = (1 << 56) - 1;

type Handler = unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void);

/// Whether a signal's handler has `SA_RESTART`.
pub(super) fn restarts(signal: c_int) -> bool {
    HANDLERS[signal as usize].load(Ordering::Acquire) & RESTARTS != 0
}

/// Whether those of all these signals do.
pub(crate) fn all_restart(signals: Set) -> bool {
    mask::signals(signals).all(restarts)
}

/// Whether a signal is about the code that it interrupts.
fn is_about_the_code(signal: c_int) -> bool {
    mask::SYNCHRONOUS.contains(&signal) || [libc::SIGPROF, libc::SIGURG].contains(&signal)
}

/// The stack pointer of the code that was interrupted.
unsafe fn interrupted_at(context: *const c_void) -> usize {
    let context = context.cast::<libc::ucontext_t>();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: by the caller, it is what the kernel has passed.
    return unsafe { (*context).uc_mcontext.gregs[libc::REG_RSP as usize] as usize };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    return unsafe { (*context).uc_mcontext.sp as usize };
}

/// What to do with a handler.
enum Way {
    /// Run it; nobody is told of it but, perhaps, who waits on other threads.
    OnThread,
    /// Run it here, whether it may jump, and whether the main fiber's wait ends.
    Here { may_jump: bool, tells_main: bool },
    /// Run it on this fiber, and whether that waits.
    Later { fiber: u64, waits: bool },
}

fn way(signal: c_int, is_for_thread: bool, at: Interruption) -> Way {
    let is_ours = |fiber| handler::may_jump() && !mask::is_aside(fiber);
    if is_about_the_code(signal) {
        return match at {
            Interruption::Thread => Way::Here { may_jump: true, tells_main: false },
            Interruption::Fiber { inside, id } => {
                Way::Here { may_jump: !inside && is_ours(id), tells_main: false }
            }
            _ => Way::Here { may_jump: false, tells_main: false },
        };
    }
    let is_forced = deferred::take(signal);
    if at == Interruption::Thread {
        return Way::OnThread;
    }
    if handler::runs() {
        return Way::Here { may_jump: handler::may_jump(), tells_main: true };
    }
    if is_forced {
        let may_jump = matches!(at, Interruption::Fiber { inside: false, .. });
        return Way::Here { may_jump, tells_main: may_jump };
    }
    let lets = mask::lets(signal);
    let inside = match at {
        Interruption::Fiber { inside: false, .. } if lets => {
            return Way::Here { may_jump: true, tells_main: true };
        }
        // What was sent to the thread, or by itself, is for who runs.
        Interruption::Fiber { id, inside: true } if lets && !mask::is_aside(id) => Some(id),
        _ => None,
    };
    let waiting = if listener::listens() { waiters::first(signal, restarts(signal)) } else { None };
    // It may be about to wait, and have looked for signals already.
    let inside = inside.map(|fiber| Way::Later { fiber, waits: waiters::is_listed(fiber) });
    match (waiting, inside) {
        (_, Some(later)) if is_for_thread => later,
        (Some((fiber, true)), _) => Way::Later { fiber, waits: true },
        (_, Some(later)) => later,
        (Some((fiber, false)), None) => Way::Later { fiber, waits: true },
        (None, None) => Way::Here { may_jump: false, tells_main: false },
    }
}

/// What the kernel calls. Runs the handler, or defers it.
unsafe extern "C-unwind" fn run(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let before = errno::get();
    // SAFETY: the kernel has passed both.
    let (is_for_thread, pointer) =
        unsafe { ((*info).si_code == libc::SI_TKILL, interrupted_at(context)) };
    match way(signal, is_for_thread, interpose::interrupted(pointer)) {
        Way::Later { fiber, waits } => {
            // SAFETY: as above.
            if unsafe { deferred::defer(signal, info, context, fiber) } {
                if waits {
                    waiters::strike(fiber);
                    listener::call();
                }
            } else {
                // SAFETY: as above.
                handler::run(pointer, false, || unsafe { call(signal, info, context) });
            }
        }
        Way::Here { may_jump, tells_main } => {
            let restarts = restarts(signal);
            // SAFETY: as above.
            handler::run(pointer, may_jump, || unsafe { call(signal, info, context) });
            if tells_main && waiters::tell_main(signal, restarts) {
                listener::call();
            }
        }
        Way::OnThread => {
            // It may have interrupted a table of ours that is locked.
            // SAFETY: as above.
            handler::run(pointer, true, || unsafe { call(signal, info, context) });
            if !is_for_thread {
                listener::tell(bit(signal));
            }
        }
    }
    errno::set(before);
}

/// Calls the program's handler.
///
/// # Safety
///
/// The pointers are those that the kernel has passed.
unsafe fn call(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let slot = &HANDLERS[signal as usize];
    let handler = slot.load(Ordering::Acquire);
    let address = (handler & ADDRESS) as usize;
    if address == 0 {
        return;
    }
    if handler & ONCE != 0
        && slot.compare_exchange(handler, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    {
        // SAFETY: plain data, for which zero is a value: the default.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            real::sigaction(signal, &raw const default, ptr::null_mut());
        }
    }
    // SAFETY: what the program has registered is such a function; those of one argument leave the
    // others alone.
    unsafe {
        let call: Handler = std::mem::transmute(ptr::with_exposed_provenance::<()>(address));
        call(signal, info, context);
    }
}

/// sigaction(2), with the handler wrapped.
///
/// # Safety
///
/// As for sigaction(2).
pub(super) unsafe fn register(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    if !hook::is_active() || !(1..SIGNALS as c_int).contains(&signal) {
        // SAFETY: by the caller.
        return unsafe { real::sigaction(signal, new, old) };
    }
    // SAFETY: by the caller.
    let wrapped = unsafe { new.as_ref() }.map(|new| {
        let mut wrapped = *new;
        let mut handler = 0;
        if ![libc::SIG_DFL, libc::SIG_IGN].contains(&new.sa_sigaction) {
            let flag = |flag, as_ours| if new.sa_flags & flag != 0 { as_ours } else { 0 };
            handler = new.sa_sigaction as u64 & ADDRESS
                | flag(libc::SA_SIGINFO, TAKES_INFO)
                | flag(libc::SA_RESTART, RESTARTS)
                | flag(libc::SA_RESETHAND, ONCE);
            wrapped.sa_sigaction = run as *const () as usize;
            wrapped.sa_flags |= libc::SA_SIGINFO;
            wrapped.sa_flags &= !libc::SA_RESETHAND;
        }
        (wrapped, handler)
    });
    let slot = &HANDLERS[signal as usize];
    let before = slot.load(Ordering::Acquire);
    let new = match &wrapped {
        Some((wrapped, handler)) => {
            if *handler != 0 {
                listener::has_handlers();
                slot.store(*handler, Ordering::Release);
            }
            ptr::from_ref(wrapped)
        }
        None => ptr::null(),
    };
    // SAFETY: by the caller; the new one is a local.
    let res = unsafe { real::sigaction(signal, new, old) };
    if res != 0 {
        slot.store(before, Ordering::Release);
        return res;
    }
    // SAFETY: by the caller, and it was just written.
    if let Some(old) = unsafe { old.as_mut() }
        && old.sa_sigaction == run as *const () as usize
    {
        old.sa_sigaction = (before & ADDRESS) as usize;
        if before & TAKES_INFO == 0 {
            old.sa_flags &= !libc::SA_SIGINFO;
        }
        if before & ONCE != 0 {
            old.sa_flags |= libc::SA_RESETHAND;
        }
    }
    0
}

/// Wraps what was registered before the hooks worked.
pub(crate) fn wrap_those_there_are() {
    for signal in 1..SIGNALS as c_int {
        // SAFETY: plain data, for which zero is a value; written before it is read.
        unsafe {
            let mut there: libc::sigaction = std::mem::zeroed();
            if real::sigaction(signal, ptr::null(), &raw mut there) == 0
                && ![libc::SIG_DFL, libc::SIG_IGN, run as *const () as usize]
                    .contains(&there.sa_sigaction)
            {
                register(signal, &raw const there, ptr::null_mut());
            }
        }
    }
}

/// A registration by a handler alone, with flags, and with nothing blocked meanwhile but perhaps the
/// signal itself. Gives the handler of before.
///
/// # Safety
///
/// As for signal(2).
pub(super) unsafe fn register_simply(
    signal: c_int,
    handler: sighandler_t,
    flags: c_int,
) -> sighandler_t {
    // SAFETY: integers, for which zero is a value.
    let (mut new, mut old): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    new.sa_sigaction = handler;
    new.sa_flags = flags;
    // SAFETY: a local; and by the caller.
    let res = unsafe {
        if flags & libc::SA_NODEFER == 0 && (1..SIGNALS as c_int).contains(&signal) {
            libc::sigaddset(&raw mut new.sa_mask, signal);
        }
        register(signal, &raw const new, &raw mut old)
    };
    if res == 0 { old.sa_sigaction } else { libc::SIG_ERR }
}

/// siginterrupt(3): whether the signal's handler lets calls start again, from now on also for those that
/// signal(2) registers.
///
/// # Safety
///
/// The signal's handler is a handler.
pub(super) unsafe fn interrupt(signal: c_int, interrupts: bool) -> c_int {
    // SAFETY: plain data; written before it is read.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: locals.
    if unsafe { register(signal, ptr::null(), &raw mut action) } != 0 {
        return -1;
    }
    if interrupts {
        INTERRUPTS.fetch_or(bit(signal), Ordering::Relaxed);
        action.sa_flags &= !libc::SA_RESTART;
    } else {
        INTERRUPTS.fetch_and(!bit(signal), Ordering::Relaxed);
        action.sa_flags |= libc::SA_RESTART;
    }
    // SAFETY: as above; what was registered.
    unsafe { register(signal, &raw const action, ptr::null_mut()) }
}

/// Signals of which siginterrupt(3) has said so.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// The flags with which signal(2) registers a signal's handler.
pub(super) fn flags_of_simple(signal: c_int) -> c_int {
    let is_known = (1..SIGNALS as c_int).contains(&signal);
    let interrupts = is_known && INTERRUPTS.load(Ordering::Relaxed) & bit(signal) != 0;
    if interrupts { 0 } else { libc::SA_RESTART }
}
