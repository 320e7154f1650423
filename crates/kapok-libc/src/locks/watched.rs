//! Hooks that have something to do on plain threads too, or whose outcome on a fiber must not depend
//! on whether that may be suspended: who holds a lock is the fiber, suspended or not.

use std::cell::Cell;

use kapok::interpose;

use super::futex::keeping_errno;
use crate::hook::{self, Hook};
use crate::signals::mask::aside;

thread_local! {
    /// How often a fiber of this thread was suspended here. It can change during a call only if that
    /// call was suspended.
    static SUSPENSIONS: Cell<u64> = const { Cell::new(0) };
}

/// Notes that the fiber that runs is about to be suspended.
pub(crate) fn note_suspension() {
    SUSPENSIONS.set(SUSPENSIONS.get() + 1);
}

/// Lets other fibers run, if the one that runs has had its share: after an attempt that has failed, which
/// may come again and again until another fiber has done something.
pub(super) fn give_way() {
    if !crate::allocator::has_called()
        && let Some(inside) = interpose::enter()
    {
        aside(|| inside.give_way());
    }
}

/// Whether a call goes past the hook: before it is installed, and in handlers of signals.
#[inline]
pub(crate) fn is_past(hook: &Hook) -> bool {
    let past = !hook::is_active()
        || crate::handler::runs()
        || crate::allocator::runs()
        || !super::are_known();
    if past && hook::is_active() {
        hook.count_bypass();
    }
    past
}

/// Makes a call on a fiber: counts it and leaves errno alone.
#[inline]
pub(crate) fn on_fiber<R>(hook: &Hook, call: impl FnOnce() -> R) -> R {
    struct AbortOnUnwind;
    impl Drop for AbortOnUnwind {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
    // C callers have no frames to unwind through.
    let unwinding = AbortOnUnwind;
    let before = SUSPENSIONS.get();
    let result = keeping_errno(call);
    hook.count_call(SUSPENSIONS.get() != before);
    std::mem::forget(unwinding);
    result
}

/// Defines such hooks, and `HOOKS` of them, which the module has once.
///
/// ```ignore
/// watched! {
///     /// pthread_mutex_unlock(3).
///     fn pthread_mutex_unlock(mutex: *mut pthread_mutex_t) -> c_int
///         = |me| { mutex::unlock(mutex, me) }, |real| { real(mutex) };
/// }
/// ```
///
/// The first body is for fibers, where `me` is the number of the holder (see `owner`); the second for
/// plain threads, with the C library's function. Both are unsafe contexts: their pointers are as good
/// as the C caller's.
macro_rules! watched {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $returned:ty
            = |$me:ident| $fiber:block, |$real:ident| $thread:block;
    )*) => {
        pub(crate) static HOOKS: &[&$crate::hook::Hook] = &[$(&$name::HOOK),*];
        $(
            /// Beside the function of this name.
            pub(crate) mod $name {
                pub(crate) static HOOK: $crate::hook::Hook = $crate::hook::Hook::new(
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
            #[allow(unused_unsafe, reason = "not every body needs it")]
            pub(crate) unsafe extern "C-unwind" fn $name($($argument: $type),*) -> $returned {
                let Some(real) = $name::HOOK.real() else {
                    return <$returned as $crate::hook::Failing>::FAILED;
                };
                type Real = unsafe extern "C-unwind" fn($($type),*) -> $returned;
                let $real = {
                    // SAFETY: the function of this name has this signature.
                    unsafe { std::mem::transmute::<*mut std::ffi::c_void, Real>(real) }
                };
                if $crate::locks::watched::is_past(&$name::HOOK) {
                    // SAFETY: by the caller.
                    return unsafe { $real($($argument),*) };
                }
                match $crate::locks::owner::current() {
                    Some($me) => $crate::locks::watched::on_fiber(&$name::HOOK, || {
                        // SAFETY: what the body does with its arguments the C library's function may
                        // do too: they are good by the caller's promise.
                        unsafe { $fiber }
                    }),
                    None => {
                        $name::HOOK.count_bypass();
                        // SAFETY: as above.
                        unsafe { $thread }
                    }
                }
            }
        )*
    };
}

pub(crate) use watched;
