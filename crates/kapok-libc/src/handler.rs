//! Handlers of signals that run on a loop's thread: such code borrows the stack of whatever it
//! interrupted, and must not suspend it. And how it leaves: by returning, or by siglongjmp(3).
//!
//! ```text
//!   a fiber's code ──signal──► run: Frame { interrupted, entered, may_jump } ──► the handler
//!         ▲                                                                        │
//!         └────────── returns: the frame is taken off ◄────────────────────────────┤
//!         └────────── jumps: those are taken off that the target is not within ◄───┘
//! ```
//!
//! A jump over Kapok's own frames would leave the engine borrowed, a table locked, a fiber suspended
//! that runs: so handlers run in the code of a fiber where they can (see `signals::handlers`), and
//! where they cannot a jump ends the process, and says why. So does one to another stack.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use kapok::interpose;

use crate::hook::{self, Hook};
use crate::kernel::kernel;
use crate::signals::mask;

/// A handler that runs, on its stack.
struct Frame {
    /// The one that it has interrupted, if it has.
    below: *const Frame,
    /// The stack pointer of the code that it has interrupted.
    interrupted: usize,
    may_jump: bool,
}

thread_local! {
    /// The last handler that began. Const and without destructor, so that a handler may read it.
    static TOP: Cell<*const Frame> = const { Cell::new(ptr::null()) };
}

/// Whether a handler runs on this thread.
#[inline]
pub(crate) fn runs() -> bool {
    !TOP.get().is_null()
}

/// Whether a handler that interrupts the one that runs may leave by a jump.
pub(crate) fn may_jump() -> bool {
    // SAFETY: what is on the list is on a stack below us, until it is taken off.
    unsafe { TOP.get().as_ref() }.is_none_or(|top| top.may_jump)
}

/// Runs a handler, which may leave by unwinding.
pub(crate) fn run(interrupted: usize, may_jump: bool, handler: impl FnOnce()) {
    struct Taken<'a>(&'a Frame);
    impl Drop for Taken<'_> {
        fn drop(&mut self) {
            TOP.set(self.0.below);
        }
    }
    let frame = Frame { below: TOP.get(), interrupted, may_jump };
    TOP.set(&raw const frame);
    let _taken = Taken(&frame);
    handler();
}

/// Where the C library keeps the stack pointer in a `jmp_buf`, in words.
#[cfg(target_arch = "x86_64")]
const STACK_POINTER: usize = 6;
#[cfg(target_arch = "aarch64")]
const STACK_POINTER: usize = 13;

/// What the C library makes illegible there with what.
fn scrambled(word: usize, with: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    return word.rotate_right(17) ^ with;
    #[cfg(target_arch = "aarch64")]
    return word ^ with;
}

static GUARD: AtomicUsize = AtomicUsize::new(0);

const UNKNOWN: u8 = 0;
const KNOWN: u8 = 1;

/// Whether `GUARD` is what the C library has.
static GUARD_IS: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Finds out how the C library keeps stack pointers.
pub(crate) fn prepare() {
    #[inline(never)]
    fn deeper() -> usize {
        let room = [0_u8; 512];
        std::hint::black_box(&room);
        let guard = guard();
        std::hint::black_box(&room);
        guard
    }
    let found = guard();
    if found == deeper() {
        GUARD.store(found, Ordering::Relaxed);
        GUARD_IS.store(KNOWN, Ordering::Release);
    }
}

/// Has the C library keep this function's stack pointer, which is known.
#[inline(never)]
fn guard() -> usize {
    unsafe extern "C" {
        fn _setjmp(buffer: *mut usize) -> std::ffi::c_int;
    }
    // More than a `jmp_buf` has.
    let mut buffer = [0_usize; 64];
    let pointer: usize;
    // SAFETY: a function that fills the buffer and returns, as any other: nobody jumps to it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!(
            "mov r12, rsp",
            "call rax",
            in("rax") _setjmp as *const (),
            in("rdi") buffer.as_mut_ptr(),
            out("r12") pointer,
            clobber_abi("C"),
        );
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!(
            "mov x20, sp",
            "blr x8",
            in("x8") _setjmp as *const (),
            in("x0") buffer.as_mut_ptr(),
            out("x20") pointer,
            clobber_abi("C"),
        );
    }
    scrambled(buffer[STACK_POINTER], 0) ^ pointer
}

/// What happens before a jump.
///
/// # Safety
///
/// `buffer` is a `jmp_buf` that was filled.
unsafe fn before_jump(buffer: *const usize) {
    let top = TOP.get();
    if top.is_null() {
        return;
    }
    let here = 0_u8;
    let target = (GUARD_IS.load(Ordering::Acquire) == KNOWN).then(|| {
        // SAFETY: by the caller; it is longer.
        scrambled(unsafe { buffer.add(STACK_POINTER).read() }, GUARD.load(Ordering::Relaxed))
    });
    let mut lower = (&raw const here).addr();
    let mut frame = top;
    // SAFETY: as in `may_jump`.
    while let Some(one) = unsafe { frame.as_ref() } {
        // Not out of it.
        if target.is_some_and(|target| (lower..=frame.addr()).contains(&target)) {
            break;
        }
        if !one.may_jump {
            refuse(
                "kapok: a handler of a signal jumps (siglongjmp) that had no fiber to run on: it has \
                 interrupted the loop, to which the program must return\n",
            );
        }
        lower = one.interrupted;
        frame = one.below;
    }
    if ptr::eq(frame, top) {
        return;
    }
    if frame.is_null() && target.is_some_and(|to| !interpose::are_on_one_stack(to, lower)) {
        refuse(
            "kapok: a handler of a signal jumps (siglongjmp) from the fiber that it has interrupted \
             to the stack of another\n",
        );
    }
    TOP.set(frame);
    // Nobody says what becomes of it.
    mask::may_be_another();
}

#[cold]
fn refuse(why: &str) -> ! {
    // SAFETY: the bytes of a string. By a system call, since it is a handler that calls.
    let _ = unsafe { kernel!(libc::SYS_write, 2, why.as_ptr(), why.len()) };
    std::process::abort()
}

/// The functions that jump. Each is jumped to with the stack as it was found: there is no frame that
/// could be in the way.
macro_rules! jumps {
    ($($(#[$attribute:meta])* $name:ident: $hook:ident, $before:ident;)*) => {
        /// All of them.
        pub(crate) static JUMPS: &[&Hook] = &[$(&$hook),*];
        $(
            static $hook: Hook = Hook::new(
                // SAFETY: the one NUL is at the end.
                unsafe {
                    std::ffi::CStr::from_bytes_with_nul_unchecked(
                        concat!(stringify!($name), "\0").as_bytes(),
                    )
                },
                $name as *const (),
            );

            unsafe extern "C" fn $before(buffer: *const usize) -> *const () {
                if hook::is_active() {
                    $hook.count_bypass();
                    // SAFETY: by the program, which jumps by it.
                    unsafe { before_jump(buffer) };
                }
                match $hook.real() {
                    Some(real) => real.cast_const().cast(),
                    None => refuse(concat!("kapok: the C library has no ", stringify!($name), "\n")),
                }
            }

            $(#[$attribute])*
            ///
            /// # Safety
            ///
            /// As for the C library's function of this name.
            #[cfg(target_arch = "x86_64")]
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C" fn $name(buffer: *const usize, value: std::ffi::c_int) -> ! {
                std::arch::naked_asm!(
                    "push rdi",
                    "push rsi",
                    "sub rsp, 8",
                    "call {before}",
                    "add rsp, 8",
                    "pop rsi",
                    "pop rdi",
                    "jmp rax",
                    before = sym $before,
                )
            }

            $(#[$attribute])*
            ///
            /// # Safety
            ///
            /// As for the C library's function of this name.
            #[cfg(target_arch = "aarch64")]
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C" fn $name(buffer: *const usize, value: std::ffi::c_int) -> ! {
                std::arch::naked_asm!(
                    "stp x29, x30, [sp, -32]!",
                    "stp x0, x1, [sp, 16]",
                    "bl {before}",
                    "mov x16, x0",
                    "ldp x0, x1, [sp, 16]",
                    "ldp x29, x30, [sp], 32",
                    "br x16",
                    before = sym $before,
                )
            }
        )*
    };
}

jumps! {
    /// siglongjmp(3).
    siglongjmp: SIGLONGJMP, before_siglongjmp;
    /// longjmp(3).
    longjmp: LONGJMP, before_longjmp;
    /// longjmp(3), by its name of old.
    _longjmp: UNDERSCORE_LONGJMP, before_underscore_longjmp;
    /// longjmp(3), as programs with checks call it.
    __longjmp_chk: CHECKED_LONGJMP, before_checked_longjmp;
}
