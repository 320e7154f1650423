//! The calls on threads, where some are fibers. Joining is with what waits.

use std::ffi::{CStr, c_char, c_int, c_void};

use libc::{pthread_attr_t, pthread_t};

use super::{Start, fiber_of};
use crate::hook::{Hook, hooks};
use crate::real;

/// What a thread of C11 runs.
type C11Start = unsafe extern "C-unwind" fn(*mut c_void) -> c_int;

/// `thrd_error`.
const ERROR: c_int = 2;

hooks! {
    /// pthread_create(3).
    fn pthread_create(
        thread: *mut pthread_t,
        attributes: *const pthread_attr_t,
        start: Start,
        argument: *mut c_void,
    ) -> c_int = |_call| {
        if !super::becomes_fiber(start as *const c_void) {
            return Ok(real::pthread_create(thread, attributes, start, argument));
        }
        Ok(super::create(thread, attributes, move || start(argument)))
    }

    /// thrd_create(3).
    fn thrd_create(thread: *mut pthread_t, start: C11Start, argument: *mut c_void) -> c_int
        = |_call| {
            if !super::becomes_fiber(start as *const c_void) {
                return Ok(real::thrd_create(thread, start, argument));
            }
            Ok(super::create(thread, std::ptr::null(), move || {
                std::ptr::without_provenance_mut(start(argument) as isize as usize)
            }))
        }

    /// pthread_tryjoin_np(3).
    fn pthread_tryjoin_np(thread: pthread_t, value: *mut *mut c_void) -> c_int
        = before {
            if let Some(fiber) = fiber_of(thread)
                && !kapok::on_fiber()
            {
                // SAFETY: by the caller.
                return unsafe { super::try_join(fiber, value) };
            }
        }
        |_call| {
            Ok(match fiber_of(thread) {
                Some(fiber) => super::try_join(fiber, value),
                None => real::pthread_tryjoin_np(thread, value),
            })
        }
}

/// Defines hooks that do something else with a thread that is a fiber, whoever calls, and `FORWARDED` of
/// them.
macro_rules! about_threads {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($thread:ident: pthread_t $(, $argument:ident: $type:ty)* $(,)?) -> c_int
            = |$fiber:ident, $real:ident| $body:block
    )*) => {
        pub(crate) static FORWARDED: &[&Hook] = &[$(&$name::HOOK),*];
        $(
            /// Beside the function of this name.
            pub(crate) mod $name {
                pub(crate) static HOOK: crate::hook::Hook = crate::hook::Hook::new(
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
            pub(crate) unsafe extern "C-unwind" fn $name(
                $thread: pthread_t $(, $argument: $type)*
            ) -> c_int {
                let Some(real) = $name::HOOK.real() else { return libc::ENOSYS };
                type Real = unsafe extern "C-unwind" fn(pthread_t $(, $type)*) -> c_int;
                // SAFETY: the function of this name has this signature.
                let real = unsafe { std::mem::transmute::<*mut c_void, Real>(real) };
                // SAFETY: by the caller.
                let $real = |$thread: pthread_t| unsafe { real($thread $(, $argument)*) };
                match fiber_of($thread) {
                    None => {
                        $name::HOOK.count_bypass();
                        $real($thread)
                    }
                    Some($fiber) => {
                        $name::HOOK.count_call(false);
                        $body
                    }
                }
            }
        )*
    };
}

about_threads! {
    /// pthread_detach(3).
    fn pthread_detach(thread: pthread_t) -> c_int = |fiber, _real| { super::detach(fiber) }

    /// thrd_detach(3).
    fn thrd_detach(thread: pthread_t) -> c_int = |fiber, _real| {
        if super::detach(fiber) == 0 { 0 } else { ERROR }
    }

    /// pthread_cancel(3), which a fiber has no way to obey: it is refused.
    fn pthread_cancel(thread: pthread_t) -> c_int = |_fiber, _real| { libc::ENOTSUP }

    /// pthread_kill(3): the signal goes to the thread of all fibers.
    fn pthread_kill(thread: pthread_t, signal: c_int) -> c_int = |fiber, real| {
        if !super::is_alive(fiber) {
            libc::ESRCH
        } else if signal == 0 {
            0
        } else {
            real(super::carrier(thread))
        }
    }

    /// pthread_sigqueue(3), likewise.
    fn pthread_sigqueue(thread: pthread_t, signal: c_int, value: libc::sigval) -> c_int
        = |_fiber, real| { real(super::carrier(thread)) }

    /// pthread_setname_np(3).
    fn pthread_setname_np(thread: pthread_t, name: *const c_char) -> c_int = |fiber, _real| {
        // SAFETY: by the caller.
        super::set_name(fiber, unsafe { CStr::from_ptr(name) })
    }

    /// pthread_getname_np(3).
    fn pthread_getname_np(thread: pthread_t, name: *mut c_char, room: libc::size_t) -> c_int
        = |fiber, _real| {
            // SAFETY: by the caller.
            unsafe { super::get_name(fiber, name, room) }
        }

    /// pthread_getschedparam(3), of the thread of all fibers; as those below.
    fn pthread_getschedparam(
        thread: pthread_t,
        policy: *mut c_int,
        parameters: *mut libc::sched_param,
    ) -> c_int = |_fiber, real| { real(super::carrier(thread)) }

    /// pthread_setschedparam(3).
    fn pthread_setschedparam(
        thread: pthread_t,
        policy: c_int,
        parameters: *const libc::sched_param,
    ) -> c_int = |_fiber, real| { real(super::carrier(thread)) }

    /// pthread_setschedprio(3).
    fn pthread_setschedprio(thread: pthread_t, priority: c_int) -> c_int
        = |_fiber, real| { real(super::carrier(thread)) }

    /// pthread_getaffinity_np(3).
    fn pthread_getaffinity_np(
        thread: pthread_t,
        bytes: libc::size_t,
        processors: *mut libc::cpu_set_t,
    ) -> c_int = |_fiber, real| { real(super::carrier(thread)) }

    /// pthread_setaffinity_np(3).
    fn pthread_setaffinity_np(
        thread: pthread_t,
        bytes: libc::size_t,
        processors: *const libc::cpu_set_t,
    ) -> c_int = |_fiber, real| { real(super::carrier(thread)) }

    /// pthread_getcpuclockid(3).
    fn pthread_getcpuclockid(thread: pthread_t, clock: *mut libc::clockid_t) -> c_int
        = |_fiber, real| { real(super::carrier(thread)) }
}

static SELF: Hook = Hook::new(c"pthread_self", pthread_self as *const ());
static CURRENT: Hook = Hook::new(c"thrd_current", thrd_current as *const ());

/// Those that are not made by the macros.
pub(crate) static BY_HAND: &[&Hook] = &[&SELF, &CURRENT];

/// pthread_self(3). Not counted: it is called very often.
#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn pthread_self() -> pthread_t {
    super::current()
}

/// thrd_current(3).
#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn thrd_current() -> pthread_t {
    super::current()
}
