//! Structures of options. Their first member is their size as the program was compiled, so that
//! members can be added at the end: a shorter structure lacks the new ones, which are then zero and
//! mean the default, and a longer one is taken if what this library does not know is zero.

use std::ffi::c_char;
use std::io;

use super::failed;

/// How kapok_loop() runs. Set everything to zero, then the size: what is zero is the default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kapok_loop_options {
    /// sizeof(struct kapok_loop_options)
    pub size: usize,
    /// "uring", "epoll", "poll", "select", "busy" or "auto"; NULL: what the environment variable
    /// KAPOK_ENGINE says, and else the best there is.
    pub engine: *const c_char,
    /// Nanoseconds between two sweeps over the connections. Default 2 s.
    pub sweep_interval: u64,
    /// Nanoseconds that fibers have for ending when the loop ends. Default 10 s.
    pub close_limit: u64,
    /// Nanoseconds after which a fiber that does not wait is reported, on standard error. Default: what
    /// the environment variable KAPOK_WATCHDOG_MS says, and else never.
    pub watchdog: u64,
    /// Not 0: SIGUSR2 prints every fiber to standard error, from now on.
    pub dump_on_signal: u32,
}

/// How kapok_spawn() makes a fiber. Set everything to zero, then the size: what is zero is the
/// default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kapok_spawn_options {
    /// sizeof(struct kapok_spawn_options)
    pub size: usize,
    /// The name by which reports call the fiber, in UTF-8; copied. NULL: none.
    pub name: *const c_char,
    /// Bytes of stack, of which memory is used as it is touched. Default 192 KiB, at most 1 GiB.
    pub stack_size: usize,
}

/// What a loop has counted. Set the size.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kapok_loop_counters {
    /// sizeof(struct kapok_loop_counters)
    pub size: usize,
    /// Connections accepted.
    pub accepted: u64,
    /// Times that a connection could not be accepted for want of descriptors or memory.
    pub refused: u64,
    /// Handlers that returned something other than 0.
    pub failed: u64,
    /// Connections whose peer had reset them, as a sweep found.
    pub reaped: u64,
    /// Edges that the engine lost and a sweep found. Anything but 0 is a bug in the engine.
    pub lost_edges: u64,
    /// Sweeps made.
    pub sweeps: u64,
}

/// A structure that the program gave, as this library knows it.
///
/// # Errors
///
/// `EINVAL` if it is smaller than the first version of it, `E2BIG` if it has members that this
/// library does not know and that are not zero.
///
/// # Safety
///
/// `given` is null, or points to as many bytes as it says in its first word; all zeros is a `T`, and
/// a `T` starts with that word.
pub(super) unsafe fn read<T: Copy>(given: *const T, first_bytes: usize) -> io::Result<Option<T>> {
    if given.is_null() {
        return Ok(None);
    }
    // SAFETY: by the caller; here and below the bytes may be unaligned.
    let size = unsafe { given.cast::<usize>().read_unaligned() };
    if size < first_bytes {
        return failed(libc::EINVAL);
    }
    let known = size_of::<T>();
    let beyond = known..size.max(known);
    // SAFETY: by the caller there are `size` bytes.
    if beyond.into_iter().any(|at| unsafe { given.cast::<u8>().add(at).read() } != 0) {
        return failed(libc::E2BIG);
    }
    // SAFETY: all zeros is a `T`, by the caller, and so is what the program has in its members; the
    // copy is no longer than either.
    unsafe {
        let mut value: T = std::mem::zeroed();
        let bytes = (&raw mut value).cast::<u8>();
        std::ptr::copy_nonoverlapping(given.cast::<u8>(), bytes, size.min(known));
        Ok(Some(value))
    }
}

/// Fills in a structure of the program's, as much of it as the program knows. The size stays.
///
/// # Errors
///
/// `EINVAL` if it is smaller than the first version of it.
///
/// # Safety
///
/// As for [`read`]; and the bytes may be written to.
pub(super) unsafe fn write<T: Copy>(
    given: *mut T,
    value: &T,
    first_bytes: usize,
) -> io::Result<()> {
    if given.is_null() {
        return Ok(());
    }
    let word = size_of::<usize>();
    // SAFETY: by the caller.
    let size = unsafe { given.cast::<usize>().read_unaligned() };
    if size < first_bytes {
        return failed(libc::EINVAL);
    }
    let known = size_of::<T>().min(size);
    // SAFETY: by the caller there are `size` bytes, of which the first word is left alone; the value
    // has at least as many as are copied. What this library does not know is zero.
    unsafe {
        let from = std::ptr::from_ref(value).cast::<u8>();
        let to = given.cast::<u8>();
        std::ptr::copy_nonoverlapping(from.add(word), to.add(word), known - word);
        std::ptr::write_bytes(to.add(known), 0, size - known);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Now {
        size: usize,
        old: u64,
        new: u64,
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Later {
        now: Now,
        newer: u64,
    }

    const FIRST: usize = 16;

    fn number<T>(result: io::Result<T>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    #[test]
    fn older_and_newer_structures_are_understood() {
        let mut later = Later { now: Now { size: FIRST, old: 7, new: 9 }, newer: 0 };
        // SAFETY: a local with at least as many bytes as it says, here and below.
        let read_one = |later: &Later| unsafe { read(&raw const later.now, FIRST) };
        // The member that the program did not know is the default.
        assert_eq!(read_one(&later).unwrap(), Some(Now { size: FIRST, old: 7, new: 0 }));
        later.now.size = size_of::<Now>();
        assert_eq!(read_one(&later).unwrap(), Some(later.now));
        later.now.size = size_of::<Later>();
        assert_eq!(read_one(&later).unwrap(), Some(later.now));
        later.newer = 1;
        assert_eq!(number(read_one(&later)), Some(libc::E2BIG));
        later.now.size = FIRST - 1;
        assert_eq!(number(read_one(&later)), Some(libc::EINVAL));
        // SAFETY: null says that there is none.
        assert_eq!(unsafe { read::<Now>(std::ptr::null(), FIRST) }.unwrap(), None);
    }

    #[test]
    fn no_more_is_filled_in_than_the_program_knows() {
        let value = Now { size: 999, old: 1, new: 2 };
        let mut later = Later { now: Now { size: FIRST, old: 0, new: 55 }, newer: 66 };
        // SAFETY: a local with at least as many bytes as it says, here and below.
        let write_one = |later: &mut Later| unsafe { write(&raw mut later.now, &value, FIRST) };
        write_one(&mut later).unwrap();
        assert_eq!((later.now, later.newer), (Now { size: FIRST, old: 1, new: 55 }, 66));
        // What this library does not know is zero.
        later.now.size = size_of::<Later>();
        // SAFETY: the whole of `later`, which is as large as it says.
        unsafe { write((&raw mut later).cast(), &value, FIRST) }.unwrap();
        assert_eq!((later.now.new, later.newer), (2, 0));
        later.now.size = 8;
        assert_eq!(number(write_one(&mut later)), Some(libc::EINVAL));
    }
}
