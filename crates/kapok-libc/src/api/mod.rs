//! The C interface: `kapok_*`, declared in `include/kapok.h`, which is generated from here.
//!
//! Every function is a few lines around the Rust interface, in the shape that C expects: -1 and
//! `errno` for a failure, `errno` untouched otherwise. None of them needs
//! [`install`](crate::install).
//!
//! - `serve`: listeners with their handlers, and the loop.
//! - `fiber`: spawning, joining, cancelling, yielding.
//! - `limits`: deadlines and shields, which Rust has as closures.
//! - `transfer`: reading and writing.
//! - `socket`: accepting, connecting, waiting for readiness, closing.
//! - `options`: structures that grow without breaking who was compiled before.
//!
//! No function is a cancellation point (pthreads(7)), on plain threads neither: a thread that is cancelled
//! meanwhile ends at its next one.
//!
//! No panic leaves a function, see `answer`. What the program's own functions throw (C++) or
//! unwind with (pthread_exit(3)) must end in them: a fiber's first frame is Rust's, which ends the
//! process.

#![allow(non_camel_case_types, reason = "the names are C's")]
#![deny(clippy::missing_safety_doc)]

mod fiber;
mod limits;
mod options;
mod serve;
mod socket;
mod transfer;

use std::error::Error;
use std::ffi::{c_char, c_void};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use kapok::{Canceled, net};

use crate::errno;

pub use fiber::*;
pub use limits::*;
pub use options::*;
pub use serve::*;
pub use socket::*;
pub use transfer::*;

/// A nanosecond, in which all durations are given.
pub const KAPOK_NANOSECOND: u64 = 1;
/// A microsecond.
pub const KAPOK_MICROSECOND: u64 = 1_000;
/// A millisecond.
pub const KAPOK_MILLISECOND: u64 = 1_000_000;
/// A second.
pub const KAPOK_SECOND: u64 = 1_000_000_000;

/// What a fiber runs: it gets the argument that was given with it, and its result is what
/// kapok_join() gives. It must not end otherwise than by returning.
pub type kapok_entry = Option<unsafe extern "C-unwind" fn(arg: *mut c_void) -> *mut c_void>;

/// One that is there.
type Entry = unsafe extern "C-unwind" fn(arg: *mut c_void) -> *mut c_void;

/// The version of the library, as in "0.1.0". The header's is KAPOK_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn kapok_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// A pointer of the program's, which the program itself answers for.
#[derive(Clone, Copy)]
struct Pointer(*mut c_void);

// SAFETY: it is carried and handed back, never looked into: whoever gave it knows on which thread the
// function runs that gets it (that of the loop, or one that `kapok_blocking` says).
unsafe impl Send for Pointer {}

impl Pointer {
    fn get(self) -> *mut c_void {
        self.0
    }
}

/// Has the children of this process begin the tables of this interface anew.
fn prepare() {
    static PREPARED: Once = Once::new();
    extern "C" fn in_child() {
        serve::forget();
        fiber::forget();
    }
    PREPARED.call_once(|| {
        // SAFETY: the handler allocates and stores to atomics.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

unsafe extern "C" {
    fn pthread_setcancelstate(state: libc::c_int, before: *mut libc::c_int) -> libc::c_int;
}

/// Keeps pthread_cancel(3) from ending the thread until it is dropped: it would unwind through frames that
/// are not C's.
struct NotCancelled(libc::c_int);

impl NotCancelled {
    fn new() -> NotCancelled {
        /// `PTHREAD_CANCEL_DISABLE`.
        const DISABLE: libc::c_int = 1;
        let mut before = 0;
        // SAFETY: writes to a local.
        unsafe { pthread_setcancelstate(DISABLE, &raw mut before) };
        NotCancelled(before)
    }
}

impl Drop for NotCancelled {
    fn drop(&mut self) {
        // SAFETY: no place to write to is named.
        unsafe { pthread_setcancelstate(self.0, std::ptr::null_mut()) };
    }
}

/// Runs the body of a function and answers as C does. A panic, which would be a bug of Kapok's, has
/// been reported by the panic hook and becomes `ENOTRECOVERABLE`.
#[inline]
fn answer<T>(failure: T, f: impl FnOnce() -> io::Result<T>) -> T {
    // A fiber that waits lets others run, which have errno for themselves meanwhile.
    let before = errno::get();
    // What a fiber waits by is no cancellation point.
    let _not_cancelled = (!kapok::on_fiber()).then(NotCancelled::new);
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => {
            errno::set(before);
            value
        }
        Ok(Err(error)) => {
            errno::set(number_of(&error));
            failure
        }
        Err(panic) => {
            // Its destructor is somebody's code too.
            std::mem::forget(panic);
            errno::set(libc::ENOTRECOVERABLE);
            failure
        }
    }
}

/// [`answer`] for functions that give no more than 0.
#[inline]
fn status(f: impl FnOnce() -> io::Result<()>) -> libc::c_int {
    answer(-1, || f().map(|()| 0))
}

fn failed<T>(number: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(number))
}

/// The number of the system's error that `error` is, or that is the reason for it.
fn system_error(error: &io::Error) -> Option<i32> {
    if let Some(number) = error.raw_os_error() {
        return Some(number);
    }
    let mut reason: Option<&(dyn Error + 'static)> = error.get_ref().map(|error| error as _);
    while let Some(error) = reason {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(system_error) {
            return Some(number);
        }
        reason = error.source();
    }
    None
}

/// The error number that says what `error` says.
fn number_of(error: &io::Error) -> i32 {
    if let Some(number) = system_error(error) {
        return number;
    }
    if Canceled::is(error) {
        return libc::ECANCELED;
    }
    if net::DescriptorLimit::is(error) {
        return libc::EMFILE;
    }
    match error.kind() {
        io::ErrorKind::TimedOut => libc::ETIMEDOUT,
        io::ErrorKind::ConnectionReset => libc::ECONNRESET,
        io::ErrorKind::OutOfMemory => libc::ENOMEM,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        io::ErrorKind::Unsupported => libc::ENOSYS,
        io::ErrorKind::PermissionDenied => libc::EPERM,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_is_set_by_failures_only() {
        errno::set(libc::E2BIG);
        let fine = answer(-1, || {
            errno::set(libc::EPERM);
            Ok(5)
        });
        assert_eq!((fine, errno::get()), (5, libc::E2BIG));
        assert_eq!((answer(-1, || failed(libc::EBADF)), errno::get()), (-1, libc::EBADF));
    }

    #[test]
    fn a_panic_is_an_error_number() {
        assert_eq!(status(|| panic!("on purpose")), -1);
        assert_eq!(errno::get(), libc::ENOTRECOVERABLE);
    }

    #[test]
    fn interruptions_have_error_numbers_of_their_own() {
        use kapok::Interrupted::{Canceled, DeadlineElapsed, PeerGone};
        let numbers = [Canceled, DeadlineElapsed, PeerGone].map(|one| number_of(&one.into()));
        assert_eq!(numbers, [libc::ECANCELED, libc::ETIMEDOUT, libc::ECONNRESET]);
    }
}
