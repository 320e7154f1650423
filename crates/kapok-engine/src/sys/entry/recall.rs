//! Entries that wait without a limit, on a thread that can be called back.
//!
//! Such a thread has a word that changes when it is called back. Who waits at futex words waits at that
//! one as well; the rest wait in slices and look at it in between. Nothing is lost by that: what ends a
//! slice takes nothing.

use std::sync::atomic::{AtomicU32, Ordering};

use super::calls::{call, result, system_call};
use super::is_refused;
use crate::entry::{Entry, FutexWait, abi};
use crate::op::Readiness;
use crate::sys::{landed, perform, poll_one};

/// How long a thread waits before it looks whether it was called back.
const SLICE_MS: i32 = 20;

/// Between two looks at a child, at first and at most, in nanoseconds; and where poll(2) says "go on" and the
/// call says "wait".
const NAPS: std::ops::RangeInclusive<u32> = 100_000..=10_000_000;

/// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`.
const OWN_WORD: u32 = 2 | 128;

/// The most words that the kernel waits for at once.
const MOST_WORDS: usize = 128;

/// The word of a thread that can be called back.
#[derive(Clone, Copy)]
pub(crate) struct Recall<'w> {
    word: &'w AtomicU32,
    /// What is in it until then.
    held: u32,
}

impl<'w> Recall<'w> {
    pub(crate) fn new(word: &'w AtomicU32, held: u32) -> Recall<'w> {
        Recall { word, held }
    }

    /// Has the thread look at its word, which has been changed.
    pub(crate) fn ring(word: &AtomicU32) {
        let command = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: nothing is read or written by a wake-up; the word is there.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), command, 1) };
    }

    fn is_called(self) -> bool {
        self.word.load(Ordering::Acquire) != self.held
    }

    /// Waits for so long, at most until it is called back.
    fn nap(self, nanoseconds: u32) {
        let time = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds.into() };
        let command = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the word and the time outlive the call.
        unsafe {
            libc::syscall(libc::SYS_futex, self.word.as_ptr(), command, self.held, &raw const time)
        };
    }
}

/// Whether `entry` is to be carried out by [`wait`]. A futex word that is waited for by a part of its mask
/// is not: the kernel has no way to wait for it and another.
pub(crate) fn is_unlimited(entry: &Entry) -> bool {
    let can_be_called_back = match entry.opcode {
        abi::EPOLL_WAIT | abi::WAITID | abi::SPLICE | abi::TEE => true,
        abi::FUTEX_WAIT => entry.addr3 == u64::from(u32::MAX) && entry.op_flags == 0,
        abi::FUTEX_WAITV => (entry.len as usize) < MOST_WORDS && entry.op_flags == 0,
        _ => false,
    };
    can_be_called_back && !is_refused(entry)
}

/// Carries `entry` out by its system call, as [`perform`](perform()) does, or answers `-ECANCELED` once the
/// thread is called back.
///
/// # Safety
///
/// That of [`perform`](perform()).
pub(crate) unsafe fn wait(entry: *const Entry, recall: Recall<'_>) -> i32 {
    // SAFETY: by the caller, here and below.
    let entry = unsafe { entry.read() };
    let mut nap = *NAPS.start();
    loop {
        if recall.is_called() {
            return -libc::ECANCELED;
        }
        // SAFETY: as above.
        let res = unsafe {
            match entry.opcode {
                abi::EPOLL_WAIT => epoll_slice(&entry),
                abi::SPLICE | abi::TEE => pipe_slice(&entry),
                abi::WAITID => waitid_now(&entry),
                _ => futexes(&entry, recall),
            }
        };
        match res {
            Some(res) if res != -libc::EINTR => return res,
            Some(_) => {}
            None if matches!(entry.opcode, abi::EPOLL_WAIT) => {}
            None => {
                recall.nap(nap);
                nap = (nap * 2).min(*NAPS.end());
            }
        }
    }
}

/// # Safety
///
/// That of [`wait`]. So for those below.
unsafe fn epoll_slice(entry: &Entry) -> Option<i32> {
    let events = std::ptr::with_exposed_provenance_mut(entry.addr as usize);
    // SAFETY: by the caller.
    match result(unsafe { libc::epoll_wait(entry.fd, events, entry.len as i32, SLICE_MS) }) {
        0 => None,
        res => Some(res),
    }
}

/// Whether a child has changed its state by now.
unsafe fn waitid_now(entry: &Entry) -> Option<i32> {
    let options = entry.file_index as i32;
    // The kernel fills one in also where nobody wants it, and says by it whether there was a child.
    // SAFETY: all zeros is a siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: a local.
    let res = unsafe {
        libc::waitid(entry.len, entry.fd as libc::id_t, &raw mut info, options | libc::WNOHANG)
    };
    // SAFETY: filled in for a child, or zeros.
    let is_somebody = unsafe { info.si_pid() } != 0;
    match landed(res as isize) {
        0 if !is_somebody && options & libc::WNOHANG == 0 => None,
        0 if entry.off != 0 => {
            let target =
                std::ptr::with_exposed_provenance_mut::<libc::siginfo_t>(entry.off as usize);
            // SAFETY: by the caller there is room.
            unsafe { target.write(info) };
            Some(0)
        }
        res => Some(res),
    }
}

/// Moves what there is between two descriptors, once both are ready.
unsafe fn pipe_slice(entry: &Entry) -> Option<i32> {
    let (from, to) = (entry.file_index as i32, entry.fd);
    if entry.op_flags & libc::SPLICE_F_NONBLOCK == 0 {
        for (fd, events) in [(from, Readiness::READABLE), (to, Readiness::WRITABLE)] {
            match poll_one(fd, events, SLICE_MS) {
                0 => return None,
                // The call says what is wrong with it.
                res if res < 0 => break,
                _ => {}
            }
        }
    }
    let mut at_once = *entry;
    at_once.op_flags |= libc::SPLICE_F_NONBLOCK;
    // SAFETY: by the caller.
    match unsafe { call(&at_once, false) } {
        res if res == -libc::EAGAIN && entry.op_flags & libc::SPLICE_F_NONBLOCK == 0 => None,
        res => Some(res),
    }
}

/// futex_waitv(2), for the thread's own word as well. Before Linux 5.16 there is none, and then nobody is
/// called back.
unsafe fn futexes(entry: &Entry, recall: Recall<'_>) -> Option<i32> {
    let mut words = Vec::with_capacity(MOST_WORDS);
    // First: of several that are woken the kernel names the last, and a wake-up at a word of the caller's
    // must not be lost by a recall.
    words.push(FutexWait::new(recall.word.as_ptr(), recall.held, OWN_WORD));
    if entry.opcode == abi::FUTEX_WAIT {
        let Ok(value) = u32::try_from(entry.off) else { return Some(-libc::EINVAL) };
        let word = std::ptr::with_exposed_provenance(entry.addr as usize);
        words.push(FutexWait::new(word, value, entry.fd as u32));
    } else {
        let given = std::ptr::with_exposed_provenance::<FutexWait>(entry.addr as usize);
        for at in 0..entry.len as usize {
            // SAFETY: by the caller there are so many.
            words.push(unsafe { given.add(at).read() });
        }
    }
    if words.len() == 1 {
        return Some(-libc::EINVAL);
    }
    let no_limit = std::ptr::null_mut::<u8>();
    let (start, count, clock) = (words.as_ptr(), words.len(), libc::CLOCK_MONOTONIC);
    // SAFETY: the words are the caller's promise, and this thread's own outlives the call.
    let res = system_call(unsafe {
        libc::syscall(libc::SYS_futex_waitv, start, count, 0, no_limit, clock)
    });
    match res {
        res if res == -libc::ENOSYS => {
            // SAFETY: by the caller.
            Some(unsafe { perform(&crate::op::Op::Entry { entry }, true) })
        }
        res if recall.is_called() && (res == 0 || res == -libc::EAGAIN) => Some(-libc::ECANCELED),
        // Nobody has changed the thread's own word.
        0 => None,
        // Among several it is the number of the word, and no result where there is one.
        res if res > 0 && entry.opcode == abi::FUTEX_WAITV => Some(res - 1),
        res if res > 0 => Some(0),
        res => Some(res),
    }
}
