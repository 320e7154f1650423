//! Calls that wait: for a time, for a word of memory, for the other end of a pipe.

use std::ptr;
use std::thread;
use std::time::Duration;

use linux_raw_sys::io_uring as uapi;

use super::REFUSED;
use super::calls::system_call;
use crate::entry::{Entry, FutexWait, Timespec, abi};
use crate::op::Readiness;
use crate::sys::perform::without_sigpipe;
use crate::sys::{is_nonblocking, landed, poll_one};

/// How long to nap where poll(2) says "go on" and the call says "wait".
const NAP: Duration = Duration::from_millis(1);

/// Waits for what `entry` was refused for, if one of its descriptors has `O_NONBLOCK`; otherwise it
/// asked to be refused. Says whether to try again.
pub(super) fn await_descriptors(entry: &Entry) -> bool {
    const READ: [u8; 4] = [abi::READ, abi::READV, abi::READ_FIXED, abi::READV_FIXED];
    const WRITE: [u8; 4] = [abi::WRITE, abi::WRITEV, abi::WRITE_FIXED, abi::WRITEV_FIXED];
    let (fd, flags) = (entry.fd, entry.op_flags as i32);
    let asked = match entry.opcode {
        abi::SEND => flags & libc::MSG_DONTWAIT != 0,
        abi::SPLICE | abi::TEE => entry.op_flags & libc::SPLICE_F_NONBLOCK != 0,
        abi::ACCEPT => false,
        opcode if READ.contains(&opcode) || WRITE.contains(&opcode) => {
            flags & libc::RWF_NOWAIT != 0
        }
        _ => true,
    };
    if asked {
        return false;
    }
    let from = entry.file_index as i32;
    let is_splice = matches!(entry.opcode, abi::SPLICE | abi::TEE);
    if !(is_nonblocking(fd) || is_splice && is_nonblocking(from)) {
        return false;
    }
    let mut ends = vec![match entry.opcode {
        abi::ACCEPT => (fd, Readiness::READABLE),
        opcode if READ.contains(&opcode) => (fd, Readiness::READABLE),
        _ => (fd, Readiness::WRITABLE),
    }];
    if is_splice {
        ends.push((from, Readiness::READABLE));
    }
    if ends.iter().all(|&(fd, events)| poll_one(fd, events, 0) != 0) {
        thread::sleep(NAP);
        return true;
    }
    ends.iter().all(|&(fd, events)| poll_one(fd, events, -1) >= 0)
}

/// splice(2), whose offsets are -1 where there is none.
///
/// # Safety
///
/// That of [`perform`](crate::sys::perform).
pub(super) unsafe fn splice(entry: &Entry) -> i32 {
    let (mut from_offset, mut to_offset) = (entry.addr as i64, entry.off as i64);
    let at = |offset: &mut i64| if *offset == -1 { ptr::null_mut() } else { ptr::from_mut(offset) };
    let (from, to) = (at(&mut from_offset), at(&mut to_offset));
    let (len, flags) = (entry.len as usize, entry.op_flags);
    without_sigpipe(|| {
        // SAFETY: offsets are locals or null.
        landed(unsafe { libc::splice(entry.file_index as i32, from, entry.fd, to, len, flags) })
    })
}

/// The word of a futex, as futex(2) calls have it, and what they add to their command. io_uring knows
/// one size.
fn word_of(entry: &Entry) -> Result<(*mut u32, i32), i32> {
    const SIZE_U32: i32 = 2;
    let private = entry.fd & libc::FUTEX_PRIVATE_FLAG;
    if entry.fd & !private != SIZE_U32 || entry.op_flags != 0 {
        return Err(-libc::EINVAL);
    }
    Ok((ptr::with_exposed_provenance_mut(entry.addr as usize), private))
}

/// futex(2), `FUTEX_WAIT_BITSET`.
///
/// # Safety
///
/// That of [`perform`](crate::sys::perform).
pub(super) unsafe fn futex_wait(entry: &Entry) -> i32 {
    let (word, private) = match word_of(entry) {
        Ok(word) => word,
        Err(res) => return res,
    };
    let (Ok(value), Ok(mask)) = (u32::try_from(entry.off), u32::try_from(entry.addr3)) else {
        return -libc::EINVAL;
    };
    let command = libc::FUTEX_WAIT_BITSET | private;
    let none = ptr::null_mut::<u8>();
    // SAFETY: the word is the caller's promise.
    system_call(unsafe { libc::syscall(libc::SYS_futex, word, command, value, none, none, mask) })
}

/// futex(2), `FUTEX_WAKE_BITSET`.
///
/// # Safety
///
/// That of [`perform`](crate::sys::perform).
pub(super) unsafe fn futex_wake(entry: &Entry) -> i32 {
    let (word, private) = match word_of(entry) {
        Ok(word) => word,
        Err(res) => return res,
    };
    let Ok(mask) = u32::try_from(entry.addr3) else { return -libc::EINVAL };
    let most = entry.off.min(i32::MAX as u64) as i32;
    let command = libc::FUTEX_WAKE_BITSET | private;
    let none = ptr::null_mut::<u8>();
    // SAFETY: the word is the caller's promise.
    system_call(unsafe { libc::syscall(libc::SYS_futex, word, command, most, none, none, mask) })
}

/// futex_waitv(2).
///
/// # Safety
///
/// That of [`perform`](crate::sys::perform).
pub(super) unsafe fn futex_waitv(entry: &Entry) -> i32 {
    let waits = ptr::with_exposed_provenance_mut::<FutexWait>(entry.addr as usize);
    let (count, flags, no_limit) = (entry.len, entry.op_flags, ptr::null_mut::<u8>());
    let clock = libc::CLOCK_MONOTONIC;
    // SAFETY: the words are the caller's promise.
    system_call(unsafe {
        libc::syscall(libc::SYS_futex_waitv, waits, count, flags, no_limit, clock)
    })
}

/// How long a timeout is to wait from now on. `Err` is `-errno`: [`REFUSED`] for one that counts
/// completions.
///
/// # Safety
///
/// `time` may be read.
pub(crate) unsafe fn time_limit(time: u64, count: u64, flags: u32) -> Result<Duration, i32> {
    const KNOWN: u32 = uapi::IORING_TIMEOUT_ABS
        | uapi::IORING_TIMEOUT_BOOTTIME
        | uapi::IORING_TIMEOUT_REALTIME
        | uapi::IORING_TIMEOUT_UPDATE
        | uapi::IORING_TIMEOUT_ETIME_SUCCESS;
    if count != 0 || flags & !KNOWN != 0 {
        return Err(REFUSED);
    }
    let time = ptr::with_exposed_provenance::<Timespec>(time as usize);
    // SAFETY: by the caller.
    let Timespec { seconds, nanoseconds } = unsafe { time.read() };
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u64::try_from(nanoseconds))
    else {
        return Err(-libc::EINVAL);
    };
    // More than any clock counts to, and little enough to be added to one.
    let seconds = seconds.min(u64::from(u32::MAX));
    let time = Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds);
    if flags & uapi::IORING_TIMEOUT_ABS == 0 {
        return Ok(time);
    }
    let clock = match flags & uapi::IORING_TIMEOUT_CLOCK_MASK {
        0 => libc::CLOCK_MONOTONIC,
        uapi::IORING_TIMEOUT_BOOTTIME => libc::CLOCK_BOOTTIME,
        uapi::IORING_TIMEOUT_REALTIME => libc::CLOCK_REALTIME,
        _ => return Err(-libc::EINVAL),
    };
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    Ok(time.saturating_sub(Duration::new(now.tv_sec as u64, now.tv_nsec as u32)))
}

/// # Safety
///
/// That of [`perform`](crate::sys::perform).
pub(super) unsafe fn sleep(entry: &Entry, blocking: bool) -> i32 {
    // SAFETY: by the caller.
    match unsafe { time_limit(entry.addr, entry.off, entry.op_flags) } {
        Ok(_) if !blocking => -libc::EAGAIN,
        Ok(left) => {
            thread::sleep(left);
            -libc::ETIME
        }
        Err(res) => res,
    }
}
