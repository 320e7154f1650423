//! Signals: masks, handlers and waiting for them.

pub(crate) mod deferred;
pub(crate) mod handlers;
pub(crate) mod listener;
pub(crate) mod mask;
pub(crate) mod registration;
pub(crate) mod waiters;

use std::ffi::c_int;
use std::future::pending;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use kapok_engine::sys::own::OwnDescriptor;
use libc::{siginfo_t, sigset_t, timespec};

use crate::call::Call;
use crate::errno::Errno;
use crate::hook::hooks;
use crate::kernel::kernel;
use crate::wait::{Stopped, readiness};
pub(crate) use handlers::all_restart;
use mask::{Set, Waiting};

/// Makes handlers that there are already ones of ours, once the hooks work.
pub(crate) fn prepare() {
    crate::handler::prepare();
    kapok::interpose::on_left(deferred::on_left);
    handlers::wrap_those_there_are();
}

/// A program's set as the kernel has it.
unsafe fn set(set: *const sigset_t) -> Set {
    // SAFETY: by the caller; the kernel's signals come first.
    unsafe { set.cast::<Set>().read_unaligned() }
}

/// pthread_sigmask(3) on a fiber: its error.
unsafe fn change_mask(call: &Call, how: c_int, new: *const sigset_t, old: *mut sigset_t) -> c_int {
    /// The C library's own, which it keeps out of masks, and those that cannot be blocked.
    const NEVER: Set = mask::bit(libc::SIGKILL) | mask::bit(libc::SIGSTOP) | mask::RESERVED;
    let before = mask::mine();
    if !new.is_null() {
        // SAFETY: by the caller.
        let asked = unsafe { set(new) } & !NEVER;
        let mask = match how {
            libc::SIG_BLOCK => before | asked,
            libc::SIG_UNBLOCK => before & !asked,
            libc::SIG_SETMASK => asked,
            _ => return libc::EINVAL,
        };
        mask::set_mine(mask, call.inside.is_main());
    }
    if !old.is_null() {
        // SAFETY: by the caller; as much as the C library writes.
        unsafe { old.cast::<Set>().write_unaligned(before) };
    }
    0
}

/// Has the fiber that runs have another mask during a call, if the caller has passed one.
///
/// # Safety
///
/// The pointer is null, or one to a set.
pub(crate) unsafe fn masked(call: &Call, mask: *const sigset_t) -> Option<Waiting> {
    // SAFETY: by the caller.
    let mask = (!mask.is_null()).then(|| unsafe { set(mask) })?;
    Some(Waiting::with_mask(call.fiber(), call.inside.is_main(), mask))
}

/// The signal of a peer that is gone has struck the helper, where all signals are blocked. It is
/// for the thread that made the call.
pub(crate) fn told_of_peer(done: Result<usize, Errno>) -> Result<usize, Errno> {
    if done == Err(Errno(libc::EPIPE)) {
        // SAFETY: no memory is named.
        let _ = unsafe {
            let (process, thread) = (libc::getpid(), libc::gettid());
            kernel!(libc::SYS_tgkill, process, thread, libc::SIGPIPE)
        };
    }
    done
}

/// Takes a signal of the set, by `until`.
fn take(
    call: &Call,
    wanted: Set,
    info: *mut siginfo_t,
    until: Option<Instant>,
) -> Result<c_int, Errno> {
    call.never_restarts();
    let zero = timespec { tv_sec: 0, tv_nsec: 0 };
    let mut blocked = None;
    let mut descriptor = None;
    loop {
        // SAFETY: locals, but for what the caller of the hooked function lends.
        let taken = unsafe {
            let (wanted, zero) = (&raw const wanted, &raw const zero);
            kernel!(libc::SYS_rt_sigtimedwait, wanted, info, zero, size_of::<Set>())
        };
        match taken {
            Err(Errno(libc::EAGAIN)) => {}
            Ok(signal) => return Ok(signal as c_int),
            // Of a handler that ran just now, in a call that does not wait.
            Err(Errno(libc::EINTR)) => continue,
            Err(error) => return Err(error),
        }
        blocked.get_or_insert_with(|| Waiting::for_blocked(call.fiber(), wanted));
        if descriptor.is_none() {
            descriptor = signalfd(wanted).ok();
        }
        let waited = match &descriptor {
            Some(descriptor) => {
                let readable = readiness(descriptor.as_raw_fd(), libc::POLLIN);
                call.wait(readable, until).map(drop)
            }
            // None is to be had, which is no error of these functions.
            None => call.nap(&[], until),
        };
        waited.map_err(Stopped::errno)?;
    }
}

/// A descriptor that is readable while a signal of the set is there to be taken.
fn signalfd(wanted: Set) -> Result<OwnDescriptor, Errno> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: a local of the size that is told; the descriptor is new.
    unsafe {
        let fd = kernel!(libc::SYS_signalfd4, -1_i32, &raw const wanted, size_of::<Set>(), flags)?;
        Ok(OwnDescriptor::new(OwnedFd::from_raw_fd(fd as c_int)))
    }
}

/// Waits until a handler has run, with another mask if there is one.
unsafe fn wait_for_handler(call: &Call, blocked: *const sigset_t) -> Result<c_int, Errno> {
    call.never_restarts();
    // SAFETY: by the caller.
    let _masked = unsafe { masked(call, blocked) };
    match call.wait(pending::<()>(), None) {
        Ok(()) => Err(Errno(libc::EINTR)),
        Err(stopped) => Err(stopped.errno()),
    }
}

hooks! {
    /// sigprocmask(2).
    fn sigprocmask(how: c_int, new: *const sigset_t, old: *mut sigset_t) -> c_int = |call| {
        match change_mask(call, how, new, old) {
            0 => Ok(0),
            error => Err(Errno(error)),
        }
    }

    /// pthread_sigmask(3).
    fn pthread_sigmask(how: c_int, new: *const sigset_t, old: *mut sigset_t) -> c_int = |call| {
        Ok(change_mask(call, how, new, old))
    }

    /// sigwait(3).
    fn sigwait(wanted: *const sigset_t, signal: *mut c_int) -> c_int = |call| {
        call.always_restarts();
        match take(call, set(wanted), std::ptr::null_mut(), None) {
            Ok(taken) => {
                *signal = taken;
                Ok(0)
            }
            Err(Errno(libc::EINTR)) => Err(Errno(libc::EINTR)),
            Err(Errno(error)) => Ok(error),
        }
    }

    /// sigwaitinfo(2).
    fn sigwaitinfo(wanted: *const sigset_t, info: *mut siginfo_t) -> c_int = |call| {
        take(call, set(wanted), info, None)
    }

    /// sigtimedwait(2).
    fn sigtimedwait(
        wanted: *const sigset_t,
        info: *mut siginfo_t,
        limit: *const timespec,
    ) -> c_int = |call| {
        let until = match limit.as_ref() {
            None => None,
            Some(limit) if limit.tv_sec < 0 || !(0..1_000_000_000).contains(&limit.tv_nsec) => {
                return Err(Errno(libc::EINVAL));
            }
            Some(limit) => Instant::now()
                .checked_add(Duration::new(limit.tv_sec as u64, limit.tv_nsec as u32)),
        };
        take(call, set(wanted), info, until)
    }

    /// sigsuspend(2).
    fn sigsuspend(blocked: *const sigset_t) -> c_int = |call| {
        wait_for_handler(call, blocked)
    }

    /// The same, by the C library's own name.
    fn __sigsuspend(blocked: *const sigset_t) -> c_int = |call| {
        wait_for_handler(call, blocked)
    }

    /// pause(2).
    fn pause() -> c_int = |call| {
        wait_for_handler(call, std::ptr::null())
    }
}
