//! The mechanism: what a hooked function is.
//!
//! [`hooks!`](crate::hook::hooks) makes one from a signature and a body. The body is what happens on
//! a fiber; everywhere else the C library's own function is called, with the same arguments and
//! nothing around it.
//!
//! ```text
//!   recv(fd, …)  ── active? no handler? on a fiber, not inside Kapok? ──no──►  the real recv
//!        │ yes: a Call
//!        ▼
//!   save errno → body: Result<value, Errno> → put errno back, or set it → return
//! ```
//!
//! The ABI is "C-unwind" because the real function may be a cancellation point: pthread_cancel(3)
//! unwinds a thread that blocks in it, through our frame, in which there is nothing to clean up. The
//! body itself never unwinds: a panic in it ends the process.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

use crate::errno;

/// Nothing is hooked yet.
const INACTIVE: u8 = 0;
const ACTIVE: u8 = 1;
/// As [`ACTIVE`], and calls that go past the fibers are counted too.
const COUNTING: u8 = 2;
/// As [`INACTIVE`], and [`COUNTING`] once they are activated.
const TO_COUNT: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(INACTIVE);

pub(crate) fn activate() {
    change(|state| match state {
        INACTIVE => ACTIVE,
        TO_COUNT => COUNTING,
        active => active,
    });
}

pub(crate) fn count_bypasses() {
    change(|state| if works(state) { COUNTING } else { TO_COUNT });
}

fn change(to: impl Fn(u8) -> u8) {
    // Relaxed: what an active hook looks at is constant, or a thread's own. `Err` is impossible: the
    // closure always answers.
    let _ = STATE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| Some(to(state)));
}

/// Whether hooks work in this state.
const fn works(state: u8) -> bool {
    matches!(state, ACTIVE | COUNTING)
}

#[inline]
pub(crate) fn is_active() -> bool {
    works(STATE.load(Ordering::Relaxed))
}

/// A hooked function: its name, its address, the real one, and what came of the calls.
pub struct Hook {
    name: &'static CStr,
    address: *const (),
    /// Null until it is looked up, and [`MISSING`] if the C library has none.
    real: AtomicPtr<c_void>,
    suspended: AtomicU64,
    direct: AtomicU64,
    bypassed: AtomicU64,
}

// SAFETY: the address is that of a function and is only compared and shown; the rest is `Sync`.
unsafe impl Sync for Hook {}

/// Where `Hook::real` points if there is nothing to point to.
static MISSING: u8 = 0;

/// What came of the calls of a hooked function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Calls that suspended their fiber at least once.
    pub suspended: u64,
    /// Calls on a fiber that were answered without suspending it.
    pub direct: u64,
    /// Calls that went straight to the C library, since they were on no fiber or inside Kapok.
    /// Counted from [`count_bypasses`](crate::count_bypasses) on.
    pub bypassed: u64,
}

impl Hook {
    pub(crate) const fn new(name: &'static CStr, address: *const ()) -> Hook {
        Hook {
            name,
            address,
            real: AtomicPtr::new(ptr::null_mut()),
            suspended: AtomicU64::new(0),
            direct: AtomicU64::new(0),
            bypassed: AtomicU64::new(0),
        }
    }

    /// The function's name.
    pub fn name(&self) -> &'static str {
        self.name.to_str().unwrap_or("?")
    }

    /// Where the hook is, for comparison with what a loaded object calls.
    pub fn address(&self) -> *const () {
        self.address
    }

    /// What came of the calls so far.
    pub fn counts(&self) -> Counts {
        Counts {
            suspended: self.suspended.load(Ordering::Relaxed),
            direct: self.direct.load(Ordering::Relaxed),
            bypassed: self.bypassed.load(Ordering::Relaxed),
        }
    }

    /// The function that this one came before: the C library's, or that of another library in
    /// between. `None` if there is none, as on a system that is older than the function.
    #[inline]
    pub(crate) fn real(&self) -> Option<*mut c_void> {
        let mut real = self.real.load(Ordering::Relaxed);
        if real.is_null() {
            real = self.look_up();
        }
        (!ptr::eq(real.cast_const().cast(), &raw const MISSING)).then_some(real)
    }

    /// Neither allocates nor locks anything of ours, so it may run before the C library is ready.
    #[cold]
    fn look_up(&self) -> *mut c_void {
        let errno = errno::get();
        // The next after that of the object we are in.
        let found = crate::real::next_definition(self.name);
        errno::set(errno);
        let found = if found.is_null() { (&raw const MISSING).cast_mut().cast() } else { found };
        self.real.store(found, Ordering::Relaxed);
        found
    }

    #[inline]
    pub(crate) fn count_bypass(&self) {
        if STATE.load(Ordering::Relaxed) == COUNTING {
            self.bypassed.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn count_call(&self, suspended: bool) {
        let counter = if suspended { &self.suspended } else { &self.direct };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("name", &self.name()).field("counts", &self.counts()).finish()
    }
}

unsafe extern "C" {
    fn __chk_fail() -> !;
}

/// What the C library's functions for checked buffers do first: ends the process if there is not
/// room for `len` bytes.
pub(crate) fn check_room(len: usize, room: usize) {
    if len > room {
        // SAFETY: it takes nothing, and does not return.
        unsafe { __chk_fail() }
    }
}

/// What a function returns when it fails and has set errno.
pub(crate) trait Failing {
    const FAILED: Self;
}

macro_rules! failing {
    ($($type:ty = $failed:expr),*) => {
        $(impl Failing for $type { const FAILED: $type = $failed; })*
    };
}

failing!(i32 = -1, isize = -1, i64 = -1, u32 = u32::MAX, () = ());

impl<T> Failing for *mut T {
    const FAILED: *mut T = ptr::null_mut();
}

/// Defines hooked functions, and the list `HOOKS` of them, which the module has once.
///
/// ```ignore
/// hooks! {
///     /// recv(2).
///     fn recv(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int) -> ssize_t = |call| { … }
/// }
/// ```
///
/// In the body `call` is a `&Call`, and `?` ends it with an [`Errno`](crate::errno::Errno): the
/// function then returns [`Failing::FAILED`] and sets errno. The value of the body, a
/// `Result<_, Errno>`, leaves errno as it was. Functions that return their error number return it as
/// `Ok`. A block after `before` runs whoever calls, once hooks are active, and then comes what would
/// come without it. One after `after` follows the C library's own function, where that is called, and
/// leaves errno as it is. The body is an unsafe context: its pointers are as good as the C caller's.
macro_rules! hooks {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $returned:ty
            = $(before $before:block)? |$call:ident| $body:block $(after $after:block)?
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
            pub(crate) unsafe extern "C-unwind" fn $name(
                $($argument: $type),*
            ) -> $returned {
                $(if $crate::hook::is_active() {
                    $before
                })?
                while let Some(call) = $crate::call::Call::begin(&$name::HOOK) {
                    // SAFETY: what the body does with its arguments the C library's function may do
                    // too: they are good by the caller's promise.
                    #[allow(unused_unsafe, reason = "not every body needs it")]
                    if let Some(value) = call.end(|$call: &$crate::call::Call| unsafe { $body }) {
                        return value;
                    }
                }
                match $name::HOOK.real() {
                    Some(real) => {
                        type Real = unsafe extern "C-unwind" fn($($type),*) -> $returned;
                        // SAFETY: the function of this name has this signature.
                        let real = unsafe {
                            std::mem::transmute::<*mut std::ffi::c_void, Real>(real)
                        };
                        // SAFETY: by the caller.
                        let value = unsafe { real($($argument),*) };
                        $(if $crate::hook::is_active() {
                            $after
                        })?
                        value
                    }
                    None => {
                        $crate::errno::set(libc::ENOSYS);
                        <$returned as $crate::hook::Failing>::FAILED
                    }
                }
            }
        )*
    };
}

pub(crate) use hooks;
