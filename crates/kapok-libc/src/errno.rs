//! The calling thread's errno, which its fibers share: whoever suspends one gives it back as it was.

/// An error number of errno(3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Errno(pub(crate) i32);

/// The thread's errno as it is.
#[inline]
pub(crate) fn get() -> i32 {
    // SAFETY: the address of the calling thread's own errno.
    unsafe { *libc::__errno_location() }
}

/// Sets the thread's errno.
#[inline]
pub(crate) fn set(value: i32) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}
