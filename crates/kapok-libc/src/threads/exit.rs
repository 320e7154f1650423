//! The end of a thread that is a fiber: pthread_exit(3), and clean-up handlers.
//!
//! The C library keeps handlers of pthread_cleanup_push(3) in a list of the thread, which would be mixed up
//! by fibers; so those of fibers are here. To run one is to jump back to where it was pushed, from where
//! the C library's macro calls it and comes back by `__pthread_unwind_next`. When none is left the stack is
//! unwound as by a panic: destructors of C++ run, frames of C are passed over by their unwind tables.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use kapok::FiberLocal;
use kapok::interpose;

use super::{Caller, caller, wait_for_all};
use crate::ending;
use crate::hook::Hook;

/// What a fiber that ends is unwound with.
struct Exit;

/// The value that it ends with, and its handlers: where to jump to.
#[derive(Default)]
struct Ending {
    value: Cell<usize>,
    handlers: RefCell<Vec<*mut c_void>>,
}

static ENDING: FiberLocal<Ending> = FiberLocal::new(Ending::default);

unsafe extern "C" {
    fn _longjmp(to: *mut c_void, value: c_int) -> !;
}

/// Runs what a thread runs, up to its end or to its pthread_exit(3).
pub(super) fn catch(run: impl FnOnce() -> *mut c_void) -> *mut c_void {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => value,
        Err(unwound) => match (unwound as Box<dyn Any>).downcast::<Exit>() {
            Ok(_) => {
                ENDING.with(|ending| std::ptr::with_exposed_provenance_mut(ending.value.get()))
            }
            // A panic of Rust's, which no thread of C survives.
            Err(_) => std::process::abort(),
        },
    }
}

/// Runs the handler that was pushed last, or ends the fiber if there is none.
fn go_on() -> ! {
    match ENDING.with(|ending| ending.handlers.borrow_mut().pop()) {
        // SAFETY: the place is on this stack, in a frame that is still there: its code takes a handler out
        // of the list before it returns. Between are frames of C, and this one, with nothing to drop.
        Some(handler) => unsafe { _longjmp(handler, 1) },
        None => resume_unwind(Box::new(Exit)),
    }
}

/// Ends a thread that is a fiber.
fn leave(value: *mut c_void) -> ! {
    ENDING.with(|ending| ending.value.set(value.expose_provenance()));
    go_on()
}

/// Ends the main thread: the process goes on until the last of the others has ended.
fn leave_main() -> ! {
    if let Some(inside) = interpose::enter() {
        wait_for_all(&inside);
    }
    // SAFETY: as the C library does when the last thread has ended.
    unsafe { libc::exit(0) }
}

static EXIT: Hook = Hook::new(c"pthread_exit", pthread_exit as *const ());
static THRD_EXIT: Hook = Hook::new(c"thrd_exit", thrd_exit as *const ());
static PUSH: Hook = Hook::new(c"__pthread_register_cancel", __pthread_register_cancel as *const ());
static POP: Hook =
    Hook::new(c"__pthread_unregister_cancel", __pthread_unregister_cancel as *const ());
static NEXT: Hook = Hook::new(c"__pthread_unwind_next", __pthread_unwind_next as *const ());

/// All of them.
pub(crate) static BY_HAND: &[&Hook] = &[&EXIT, &THRD_EXIT, &PUSH, &POP, &NEXT];

/// The C library's function, which takes one argument.
///
/// # Safety
///
/// As for that function.
unsafe fn pass_on(hook: &Hook, argument: usize) {
    hook.count_bypass();
    let Some(real) = hook.real() else { std::process::abort() };
    // SAFETY: these functions take one argument, a pointer or an integer, in the same register.
    let real =
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(usize)>(real) };
    // SAFETY: by the caller.
    unsafe { real(argument) };
}

/// pthread_exit(3).
///
/// # Safety
///
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn pthread_exit(value: *mut c_void) -> ! {
    match caller() {
        Some(Caller::Thread(_)) if kapok::on_fiber() => leave(value),
        Some(Caller::Main) if kapok::on_fiber() => leave_main(),
        None if ending::is_main() => {
            EXIT.count_call(true);
            ending::leave()
        }
        _ => {
            // SAFETY: by the caller.
            unsafe { pass_on(&EXIT, value.expose_provenance()) };
            unreachable!("the thread has ended")
        }
    }
}

/// thrd_exit(3).
///
/// # Safety
///
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn thrd_exit(value: c_int) -> ! {
    // SAFETY: by the caller; the C library has them as one too.
    unsafe { pthread_exit(std::ptr::without_provenance_mut(value as isize as usize)) }
}

/// Whether handlers are those of a fiber that is a thread.
fn is_ours() -> bool {
    matches!(caller(), Some(Caller::Thread(_))) && kapok::on_fiber()
}

/// What pthread_cleanup_push(3) calls.
///
/// # Safety
///
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn __pthread_register_cancel(handler: *mut c_void) {
    if is_ours() {
        ENDING.with(|ending| ending.handlers.borrow_mut().push(handler));
    } else {
        // SAFETY: by the caller.
        unsafe { pass_on(&PUSH, handler.expose_provenance()) };
    }
}

/// What pthread_cleanup_pop(3) calls.
///
/// # Safety
///
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn __pthread_unregister_cancel(handler: *mut c_void) {
    if is_ours() {
        ENDING.with(|ending| {
            let mut handlers = ending.handlers.borrow_mut();
            if let Some(at) = handlers.iter().rposition(|other| *other == handler) {
                handlers.truncate(at);
            }
        });
    } else {
        // SAFETY: by the caller.
        unsafe { pass_on(&POP, handler.expose_provenance()) };
    }
}

/// Where a handler comes back to.
///
/// # Safety
///
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn __pthread_unwind_next(handler: *mut c_void) -> ! {
    if is_ours() {
        go_on()
    }
    // SAFETY: by the caller.
    unsafe { pass_on(&NEXT, handler.expose_provenance()) };
    unreachable!("the thread has ended")
}
