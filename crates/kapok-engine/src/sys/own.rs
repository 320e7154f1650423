//! Descriptors of Kapok's own: a ring, an epoll instance, the descriptor in a bell.
//!
//! The program has never heard of their numbers, and does as it likes with numbers: `exec 3>log` in a
//! shell, closefrom(3) in a daemon. So they are moved up, to where programs do not reach for them by
//! number, and remembered: who comes before the C library's close(2) and dup2(2) spares them.
//!
//! What is remembered is a bit a number, so that it can be asked for in a handler of a signal.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The number from which on they are. Below `FD_SETSIZE`, with room for some loops; and low enough that
/// a process's table of descriptors stays small.
const HIGH: RawFd = 900;

/// How many numbers are left above them where the process may not have so many.
const ROOM: RawFd = 64;

/// Numbers that are remembered: the usual ceiling of `fs.nr_open`.
const NUMBERS: usize = 1 << 20;
const BITS: usize = u64::BITS as usize;

static OWN: [AtomicU64; NUMBERS / BITS] = [const { AtomicU64::new(0) }; NUMBERS / BITS];

/// One more than the highest that there ever was.
static BOUND: AtomicUsize = AtomicUsize::new(0);

/// Whether there ever was one.
static ANY: AtomicBool = AtomicBool::new(false);

/// A descriptor of Kapok's own, closed when this is dropped.
#[derive(Debug)]
pub struct OwnDescriptor(RawFd);

impl OwnDescriptor {
    /// Takes a descriptor that was just made, moves it up and remembers it. One that cannot be moved
    /// keeps its number.
    pub fn new(made: OwnedFd) -> OwnDescriptor {
        OwnDescriptor::below(made, RawFd::MAX)
    }

    /// The same, with a number less than `limit`, if `made` has one.
    pub fn below(made: OwnedFd, limit: RawFd) -> OwnDescriptor {
        let (fd, other) = match moved_up(made.as_raw_fd()) {
            Some(high) if high.as_raw_fd() < limit => (high, Some(made)),
            high => (made, high),
        };
        let fd = fd.into_raw_fd();
        if let Some(other) = other {
            // Not by the C library's close(2), before which a caller may have put its own.
            close(other.into_raw_fd());
        }
        remember(fd);
        OwnDescriptor(fd)
    }
}

impl AsRawFd for OwnDescriptor {
    #[inline]
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Drop for OwnDescriptor {
    fn drop(&mut self) {
        // In this order: once it is closed the number may be the program's.
        forget(self.0);
        super::descriptors::retire(self.0);
        close(self.0);
    }
}

/// Whether the number is that of a descriptor of Kapok's own. Async-signal-safe.
#[inline]
pub fn is_own(fd: RawFd) -> bool {
    ANY.load(Ordering::Relaxed)
        && word(fd).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
}

/// Whether there ever was one, which there is as soon as there is an engine.
#[inline]
pub fn were_any() -> bool {
    ANY.load(Ordering::Relaxed)
}

/// The first number of Kapok's own from `first` to `last`.
pub fn first_own(first: RawFd, last: RawFd) -> Option<RawFd> {
    let bound = BOUND.load(Ordering::Acquire).min(usize::try_from(last).ok()?.saturating_add(1));
    let mut number = first.max(0) as usize;
    while number < bound {
        let rest = OWN[number / BITS].load(Ordering::Acquire) >> (number % BITS);
        if rest != 0 {
            number += rest.trailing_zeros() as usize;
            return (number < bound).then_some(number as RawFd);
        }
        number = (number / BITS + 1) * BITS;
    }
    None
}

fn word(fd: RawFd) -> Option<(&'static AtomicU64, u64)> {
    let number = usize::try_from(fd).ok()?;
    Some((OWN.get(number / BITS)?, 1 << (number % BITS)))
}

fn remember(fd: RawFd) {
    if let Some((word, bit)) = word(fd) {
        BOUND.fetch_max(fd as usize + 1, Ordering::AcqRel);
        word.fetch_or(bit, Ordering::AcqRel);
    }
    ANY.store(true, Ordering::Release);
}

fn forget(fd: RawFd) {
    if let Some((word, bit)) = word(fd) {
        word.fetch_and(!bit, Ordering::AcqRel);
    }
}

/// A duplicate with a high number.
fn moved_up(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl with integer arguments.
    let from = |least: RawFd| unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) };
    let mut high = from(HIGH);
    if high < 0 {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes to a local of its type.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
        let limit = RawFd::try_from(limit.rlim_cur).unwrap_or(RawFd::MAX);
        high = from(HIGH.min(limit.saturating_sub(ROOM)).max(0));
    }
    // SAFETY: a descriptor that was just made and that nobody else knows.
    (high >= 0).then(|| unsafe { OwnedFd::from_raw_fd(high) })
}

fn close(fd: RawFd) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: no memory is named; a number of ours, of which nobody else knows.
    unsafe {
        super::kernel::call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    // SAFETY: as above.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// What a system call that makes a descriptor has answered.
///
/// # Errors
///
/// That of the call, from errno.
///
/// # Safety
///
/// A number that is not negative is that of a descriptor that was just made.
pub(crate) unsafe fn made(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: by the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn is_open(fd: RawFd) -> bool {
        // SAFETY: fcntl with integer arguments.
        unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
    }

    #[test]
    fn it_is_moved_up_remembered_and_forgotten_at_its_end() {
        let is_forgotten = || {
            let low = OwnedFd::from(File::open("/dev/null").unwrap());
            let before = low.as_raw_fd();
            let own = OwnDescriptor::new(low);
            let fd = own.as_raw_fd();
            assert!(fd >= HIGH && before < HIGH, "{before} became {fd}");
            assert!(is_open(fd) && is_own(fd) && were_any());
            assert_eq!(first_own(fd, fd), Some(fd));
            assert!(first_own(0, RawFd::MAX).is_some_and(|first| first <= fd));
            assert_eq!(first_own(fd + 1, fd), None);
            drop(own);
            !is_own(fd) && first_own(fd, fd).is_none()
        };
        // Another test's engine may be given the number at once, but not every time.
        assert!((0..100).any(|_| is_forgotten()));
    }

    #[test]
    fn where_a_number_must_be_low_it_stays_low() {
        let low = OwnedFd::from(File::open("/dev/null").unwrap());
        let own = OwnDescriptor::below(low, HIGH);
        assert!(own.as_raw_fd() < HIGH && is_own(own.as_raw_fd()));
    }

    #[test]
    fn numbers_that_there_are_not_are_nobodys() {
        assert!(!is_own(-1) && !is_own(RawFd::MAX));
        assert_eq!(first_own(RawFd::MAX, RawFd::MAX), None);
        assert_eq!(first_own(0, -1), None);
    }
}
