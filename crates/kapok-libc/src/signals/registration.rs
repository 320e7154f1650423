//! The functions that register handlers, by all the names that they have had. They have something to do
//! on every thread.

use std::ffi::c_int;
use std::ptr;

use libc::{SIG_ERR, sighandler_t, sigset_t};

use super::handlers::{self, flags_of_simple, register_simply};
use crate::errno;
use crate::hook::Hook;

macro_rules! registrations {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $returned:ty = $body:block
    )*) => {
        pub(crate) static HOOKS: &[&Hook] = &[$(&$name::HOOK),*];
        $(
            /// Beside the function of this name.
            mod $name {
                pub(super) static HOOK: crate::hook::Hook = crate::hook::Hook::new(
                    // SAFETY: the one NUL is at the end.
                    unsafe {
                        std::ffi::CStr::from_bytes_with_nul_unchecked(
                            concat!(stringify!($name), "\0").as_bytes(),
                        )
                    },
                    super::$name as *const (),
                );
            }

            $(#[$attribute])*
            ///
            /// # Safety
            ///
            /// As for the C library's function of this name.
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C-unwind" fn $name($($argument: $type),*) -> $returned {
                $name::HOOK.count_bypass();
                // SAFETY: what the body does with its arguments the C library's function may do too:
                // they are good by the caller's promise.
                #[allow(unused_unsafe, reason = "not every body needs it")]
                unsafe { $body }
            }
        )*
    };
}

/// As System V had it: once, and with nothing blocked.
const ONCE: c_int = libc::SA_RESETHAND | libc::SA_NODEFER;

/// `SIG_HOLD`.
const HELD: sighandler_t = 2;

registrations! {
    /// sigaction(2).
    fn sigaction(
        signal: c_int,
        new: *const libc::sigaction,
        old: *mut libc::sigaction,
    ) -> c_int = {
        handlers::register(signal, new, old)
    }

    /// The same, by the C library's own name.
    fn __sigaction(
        signal: c_int,
        new: *const libc::sigaction,
        old: *mut libc::sigaction,
    ) -> c_int = {
        handlers::register(signal, new, old)
    }

    /// signal(2), as glibc has it by default: the handler stays, and calls start again.
    fn signal(signal: c_int, handler: sighandler_t) -> sighandler_t = {
        register_simply(signal, handler, flags_of_simple(signal))
    }

    /// signal(2), by a name of 4.3BSD.
    fn bsd_signal(signal: c_int, handler: sighandler_t) -> sighandler_t = {
        register_simply(signal, handler, flags_of_simple(signal))
    }

    /// signal(2), by a name of old.
    fn ssignal(signal: c_int, handler: sighandler_t) -> sighandler_t = {
        register_simply(signal, handler, flags_of_simple(signal))
    }

    /// signal(2) as System V had it: what a program that is compiled for C99 calls.
    fn __sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t = {
        register_simply(signal, handler, ONCE)
    }

    /// The same, by its public name.
    fn sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t = {
        register_simply(signal, handler, ONCE)
    }

    /// siginterrupt(3).
    fn siginterrupt(signal: c_int, interrupts: c_int) -> c_int = {
        handlers::interrupt(signal, interrupts != 0)
    }

    /// sigset(3).
    fn sigset(signal: c_int, handler: sighandler_t) -> sighandler_t = {
        if handler == HELD {
            let Some(was_held) = hold(libc::SIG_BLOCK, signal) else { return SIG_ERR };
            if was_held {
                return HELD;
            }
            let mut now: libc::sigaction = std::mem::zeroed();
            let res = handlers::register(signal, ptr::null(), &raw mut now);
            return if res == 0 { now.sa_sigaction } else { SIG_ERR };
        }
        let mut new: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = handler;
        if handlers::register(signal, &raw const new, &raw mut old) != 0 {
            return SIG_ERR;
        }
        match hold(libc::SIG_UNBLOCK, signal) {
            Some(true) => HELD,
            Some(false) => old.sa_sigaction,
            None => SIG_ERR,
        }
    }

    /// sighold(3).
    fn sighold(signal: c_int) -> c_int = {
        if hold(libc::SIG_BLOCK, signal).is_some() { 0 } else { -1 }
    }

    /// sigrelse(3).
    fn sigrelse(signal: c_int) -> c_int = {
        if hold(libc::SIG_UNBLOCK, signal).is_some() { 0 } else { -1 }
    }

    /// sigpause(3) of System V and X/Open.
    fn __xpg_sigpause(signal: c_int) -> c_int = {
        let mut mask: sigset_t = std::mem::zeroed();
        super::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut mask);
        if libc::sigdelset(&raw mut mask, signal) != 0 {
            return -1;
        }
        super::sigsuspend(&raw const mask)
    }

    /// Both, as headers of old have them.
    fn __sigpause(signal_or_mask: c_int, is_signal: c_int) -> c_int = {
        if is_signal != 0 { __xpg_sigpause(signal_or_mask) } else { sigpause(signal_or_mask) }
    }

    /// sigpause(3) of BSD.
    fn sigpause(mask: c_int) -> c_int = {
        let mut set: sigset_t = std::mem::zeroed();
        (&raw mut set).cast::<u64>().write(u64::from(mask as u32));
        super::sigsuspend(&raw const set)
    }

    /// sigvec(3), which programs of old have.
    fn sigvec(signal: c_int, new: *const Vector, old: *mut Vector) -> c_int = {
        const ON_STACK: c_int = 1;
        const INTERRUPTS: c_int = 2;
        const ONCE: c_int = 4;
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        let mut at = ptr::null();
        if let Some(new) = new.as_ref() {
            let flag = |ours, theirs| if new.flags & ours != 0 { theirs } else { 0 };
            action.sa_sigaction = new.handler;
            action.sa_flags = flag(ON_STACK, libc::SA_ONSTACK) | flag(ONCE, libc::SA_RESETHAND);
            action.sa_flags |= if new.flags & INTERRUPTS == 0 { libc::SA_RESTART } else { 0 };
            (&raw mut action.sa_mask).cast::<u64>().write(u64::from(new.mask as u32));
            at = &raw const action;
        }
        if handlers::register(signal, at, &raw mut before) != 0 {
            return -1;
        }
        if let Some(old) = old.as_mut() {
            let flag = |theirs, ours| if before.sa_flags & theirs != 0 { ours } else { 0 };
            old.handler = before.sa_sigaction;
            old.mask = (&raw const before.sa_mask).cast::<u32>().read() as c_int;
            old.flags = flag(libc::SA_ONSTACK, ON_STACK) | flag(libc::SA_RESETHAND, ONCE);
            old.flags |= if before.sa_flags & libc::SA_RESTART == 0 { INTERRUPTS } else { 0 };
        }
        0
    }
}

/// `struct sigvec`.
#[repr(C)]
pub(crate) struct Vector {
    handler: sighandler_t,
    mask: c_int,
    flags: c_int,
}

/// Blocks one signal, or lets it. Whether it was blocked; `None`, with errno, if it is none.
fn hold(how: c_int, signal: c_int) -> Option<bool> {
    // SAFETY: plain data, filled before it is read.
    unsafe {
        let mut one: sigset_t = std::mem::zeroed();
        let mut before: sigset_t = std::mem::zeroed();
        if libc::sigaddset(&raw mut one, signal) != 0 {
            return None;
        }
        let error = super::pthread_sigmask(how, &raw const one, &raw mut before);
        if error != 0 {
            errno::set(error);
            return None;
        }
        Some(libc::sigismember(&raw const before, signal) == 1)
    }
}
