//! What the close of a number means: to those who wait for it, to whose number it is, and to the thread
//! that makes it. And what its shutdown means to the first of these.
//!
//! Whoever waits for a number that is closed is told ([`wait::close`]). Numbers of Kapok's own (rings,
//! epoll instances, bells) are spared: to the program they are not open.
//!
//! Two processes are not meant. The child of a vfork(2) has its parent's memory and descriptors of its
//! own: what it closes closes nothing here. And in a process that never had an engine nobody waits.

use std::ffi::{c_int, c_uint};
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

use kapok::interpose;
use kapok_engine::sys::{descriptors, own};

use crate::call::Call;
use crate::errno::{self, Errno};
use crate::kernel::kernel;
use crate::sockets::returned;
use crate::{handler, wait};

/// The process whose descriptors these are.
static PROCESS: AtomicI32 = AtomicI32::new(0);

fn process() -> i32 {
    // SAFETY: no memory is named.
    unsafe { kernel!(libc::SYS_getpid) }.map_or(0, |process| process as i32)
}

extern "C" fn in_child() {
    PROCESS.store(process(), Ordering::Relaxed);
}

/// Has the children of fork(2), which have descriptors and memory of their own, be processes like this.
pub(crate) fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        PROCESS.store(process(), Ordering::Relaxed);
        // SAFETY: the handler stores to statics.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// Whether what is closed may be waited for, or Kapok's.
fn concerns_us() -> bool {
    own::were_any() && PROCESS.load(Ordering::Relaxed) == process()
}

/// Tells whoever waits for these numbers. Not by locks if the thread runs a handler of a signal: then
/// they are told as soon as it is over.
fn tell(first: RawFd, last: RawFd) {
    if handler::runs() {
        return wait::close_later(first, last);
    }
    let before = errno::get();
    // Telling takes locks, for which the fiber must not be suspended with others held.
    let _inside = interpose::enter();
    wait::close(first, last);
    returned::forget_closed();
    errno::set(before);
}

/// After a number was shut down, which stays open: whoever waits for room in a Unix socket has none, and no
/// readiness tells of it.
pub(crate) fn shut_down(fd: RawFd) {
    if fd < 0 || !concerns_us() {
        return;
    }
    if handler::runs() {
        return wait::close_later(fd, fd);
    }
    let before = errno::get();
    // As in `tell`.
    let _inside = interpose::enter();
    wait::try_again(fd);
    errno::set(before);
}

/// Before a number is closed: afterwards it may be another file's at once.
///
/// # Errors
///
/// `EBADF` if it is Kapok's own.
pub(crate) fn close(fd: RawFd) -> Result<(), Errno> {
    if fd < 0 || !concerns_us() {
        return Ok(());
    }
    if own::is_own(fd) {
        return Err(Errno(libc::EBADF));
    }
    descriptors::retire(fd);
    tell(fd, fd);
    Ok(())
}

/// Before `new` becomes a duplicate of `old`: what it was is closed, if the call is to succeed.
///
/// # Errors
///
/// `EBADF`, as for a number beyond the limit, if `new` is Kapok's own.
pub(crate) fn replace(old: RawFd, new: RawFd) -> Result<(), Errno> {
    if old == new || new < 0 || !concerns_us() {
        return Ok(());
    }
    // SAFETY: no memory is named.
    let is_open = unsafe { kernel!(libc::SYS_fcntl, old, libc::F_GETFD) }.is_ok();
    if is_open { close(new) } else { Ok(()) }
}

/// Before numbers are closed. If some among them are Kapok's own, the others are closed here, and this is
/// what came of it.
pub(crate) fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> Option<Result<(), Errno>> {
    let low = RawFd::try_from(first).ok()?;
    let high = RawFd::try_from(last).unwrap_or(RawFd::MAX);
    let closes = flags & !libc::CLOSE_RANGE_UNSHARE == 0;
    if low > high || !closes || !concerns_us() {
        return None;
    }
    let mut own = own::first_own(low, high);
    if own.is_none() {
        descriptors::retire_range(low, high);
        tell(low, high);
        return None;
    }
    let (mut next, mut flags) = (low, flags);
    while next <= high {
        // Up to the next of Kapok's, if there is one more.
        let end = own.map_or(high, |own| own - 1);
        if next <= end {
            descriptors::retire_range(next, end);
            tell(next, end);
            let end = if end == RawFd::MAX { c_uint::MAX } else { end as c_uint };
            if let Err(error) = close_some(next, end, flags) {
                return Some(Err(error));
            }
            // Once: from then on they are the thread's own.
            flags = 0;
        }
        let Some(spared) = own else { break };
        next = spared.saturating_add(1);
        own = own::first_own(next, high);
        if spared == RawFd::MAX {
            break;
        }
    }
    Some(Ok(()))
}

/// Closes numbers none of which is Kapok's own. A fiber has a helper wait for what is slow among them, but where
/// the table that is unshared is the calling thread's.
fn close_some(first: RawFd, last: c_uint, flags: c_uint) -> Result<(), Errno> {
    // SAFETY: no memory is named.
    let close = move || unsafe { kernel!(libc::SYS_close_range, first, last, flags) }.map(drop);
    let helped = match flags & libc::CLOSE_RANGE_UNSHARE {
        0 => Call::of_interface(|call| call.offload(close)?),
        _ => None,
    };
    helped.unwrap_or_else(close)
}

/// Whether the close of a number may keep its thread waiting: for a peer that is to have the rest
/// (`SO_LINGER`), for a terminal to write it out, or for what a file system does at the end.
pub(crate) fn takes_long(fd: RawFd) -> bool {
    let mut linger = libc::linger { l_onoff: 0, l_linger: 0 };
    let mut len = size_of_val(&linger) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_LINGER);
    // SAFETY: writes to locals of the sizes that are told.
    let is_socket =
        unsafe { kernel!(libc::SYS_getsockopt, fd, level, name, &raw mut linger, &raw mut len) };
    if is_socket.is_ok() {
        return linger.l_onoff != 0 && linger.l_linger > 0;
    }
    // SAFETY: all zeros is a stat, and a terminal's settings.
    let (mut stat, mut settings): (libc::stat, libc::termios2) = unsafe { (zeroed(), zeroed()) };
    // SAFETY: writes to locals.
    unsafe {
        if kernel!(libc::SYS_fstat, fd, &raw mut stat).is_err() {
            return false;
        }
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFBLK => true,
            libc::S_IFCHR => kernel!(libc::SYS_ioctl, fd, libc::TCGETS2, &raw mut settings).is_ok(),
            _ => false,
        }
    }
}

/// What a hooked function returns that fails before it was begun.
pub(crate) fn failed(error: Errno) -> c_int {
    errno::set(error.0);
    -1
}
