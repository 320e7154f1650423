//! Waiting for words of memory: futex(2) as Linux 6.7 has it.

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};

/// `FUTEX2_SIZE_U32`, the only size there is.
pub(crate) const FUTEX_OF_32_BITS: i32 = 2;
/// `FUTEX2_PRIVATE`.
pub(crate) const FUTEX_PRIVATE: i32 = 128;

/// One of the words of [`Entry::futex_waitv`], `struct futex_waitv`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FutexWait {
    value: u64,
    word: u64,
    flags: u32,
    reserved: u32,
}

impl FutexWait {
    /// Wait while `word` has this value. `flags` are `FUTEX2_*`, as of [`Entry::futex_wait`].
    pub fn new(word: *const u32, value: u32, flags: u32) -> FutexWait {
        FutexWait { value: u64::from(value), word: address(word), flags, reserved: 0 }
    }
}

/// `futex_flags` are `FUTEX2_SIZE_U32` (2), the only size there is, and `FUTEX2_PRIVATE` (128);
/// `flags` is 0. `mask` says who is woken: it has a bit in common with that of the wait.
impl Entry {
    /// Waits until somebody wakes it, and lands with 0; with `-EAGAIN` if the word has not this value.
    pub fn futex_wait(
        word: *const u32,
        value: u64,
        mask: u64,
        futex_flags: u32,
        flags: u32,
    ) -> Entry {
        let entry = Entry::new(abi::FUTEX_WAIT, futex_flags as i32, address(word), 0, value);
        Entry { op_flags: flags, addr3: mask, ..entry }
    }

    /// Wakes up to `count` of those who wait, and lands with how many there were.
    pub fn futex_wake(
        word: *const u32,
        count: u64,
        mask: u64,
        futex_flags: u32,
        flags: u32,
    ) -> Entry {
        let entry = Entry::new(abi::FUTEX_WAKE, futex_flags as i32, address(word), 0, count);
        Entry { op_flags: flags, addr3: mask, ..entry }
    }

    /// Waits for the first of several words, and lands with its index.
    pub fn futex_waitv(waits: *const FutexWait, count: u32, flags: u32) -> Entry {
        Entry { op_flags: flags, ..Entry::new(abi::FUTEX_WAITV, 0, address(waits), count, 0) }
    }
}

operations! {
    futex_wait = futex_wait, FUTEX_WAIT, "6.7", "futex::waits_and_is_woken",
        Elsewhere::Call("futex(2)");
    futex_wake = futex_wake, FUTEX_WAKE, "6.7", "futex::waits_and_is_woken",
        Elsewhere::Call("futex(2)");
    futex_waitv = futex_waitv, FUTEX_WAITV, "6.7", "futex::waits_for_several",
        Elsewhere::Call("futex_waitv(2)");
}
