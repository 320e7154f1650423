//! Whether an operation on a file is worth a try in the caller.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::descriptor::Descriptor;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// What is known of a file's tries in the caller: whether they are worth it.
///
/// For each direction the number of tries to leave out, and how many it will be after the next one in
/// vain: twice as many and one. Changed without care for other threads, for it is a guess.
#[derive(Debug, Default)]
pub struct Hint {
    /// Tries may wait all the same: `O_DIRECT`.
    never: bool,
    /// Writes go to the end of the file: `O_APPEND`.
    writes_wait: bool,
    /// There are no offsets in it.
    is_stream: bool,
    tries: [AtomicU32; 2],
}

/// The most tries that are left out after one in vain.
const MOST_LEFT_OUT: u32 = 63;
/// Tries never succeed: the file system has none.
const UNSUPPORTED: u32 = u32::MAX;

impl Hint {
    /// Of a descriptor with no hint yet.
    pub(crate) fn of(fd: i32) -> Hint {
        let flags = flags(fd);
        Hint {
            never: !never_waits(flags),
            writes_wait: writes_wait(flags),
            is_stream: has_no_offsets(fd),
            tries: Default::default(),
        }
    }

    fn may_try(&self, direction: Direction, always: bool) -> bool {
        let tries = &self.tries[direction as usize];
        let seen = tries.load(Ordering::Relaxed);
        let waits = self.writes_wait && direction == Direction::Write;
        if self.never || waits || seen == UNSUPPORTED {
            return false;
        }
        if always || seen & 0xffff == 0 {
            return true;
        }
        tries.store(seen - 1, Ordering::Relaxed);
        false
    }

    /// Takes note of what a try came to.
    pub(crate) fn learn(&self, direction: Direction, res: i32) {
        let tries = &self.tries[direction as usize];
        let seen = tries.load(Ordering::Relaxed);
        let next = match -res {
            libc::EOPNOTSUPP | libc::ENOSYS => UNSUPPORTED,
            libc::EAGAIN | libc::EINVAL => {
                let leave_out = ((seen >> 16) * 2 + 1).min(MOST_LEFT_OUT);
                leave_out << 16 | leave_out
            }
            _ => 0,
        };
        if next != seen {
            tries.store(next, Ordering::Relaxed);
        }
    }
}

/// Whether an operation on this descriptor is to be tried in the caller.
pub(crate) fn may_try<D: Descriptor>(file: &D, direction: Direction, always: bool) -> bool {
    match file.hint() {
        Some(hint) => hint.may_try(direction, always),
        None => {
            let flags = flags(file.raw());
            never_waits(flags) && !(direction == Direction::Write && writes_wait(flags))
        }
    }
}

/// Whether there are no offsets in what this descriptor is of: a pipe, a socket.
pub(crate) fn is_stream<D: Descriptor>(file: &D) -> bool {
    match file.hint() {
        Some(hint) => hint.is_stream,
        None => has_no_offsets(file.raw()),
    }
}

/// Asks as pread(2) does, for nothing: no driver is reached.
fn has_no_offsets(fd: i32) -> bool {
    // SAFETY: no vector is read.
    let res = unsafe { libc::preadv(fd, std::ptr::null(), 0, 0) };
    res < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESPIPE)
}

/// The `O_*` flags, or a negative number.
fn flags(fd: i32) -> i32 {
    // SAFETY: fcntl with integer arguments.
    unsafe { libc::fcntl(fd, libc::F_GETFL) }
}

/// Whether writes are not to be tried: if they go to the end whatever their offset, where a try that moved a
/// part of one would let others in between; or if they end with a flush of the device (`O_SYNC` has the bit
/// of `O_DSYNC`), which a try waits for as well.
fn writes_wait(flags: i32) -> bool {
    flags >= 0 && flags & (libc::O_APPEND | libc::O_DSYNC) != 0
}

/// Whether a try never waits: not with `O_DIRECT`, where the kernel has the try wait for the device.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn never_waits(flags: i32) -> bool {
    flags >= 0 && flags & libc::O_DIRECT == 0
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn never_waits(_flags: i32) -> bool {
    false
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn tried(hint: &Hint, res: i32, operations: usize) -> usize {
        (0..operations)
            .filter(|_| {
                let may = hint.may_try(Direction::Read, false);
                if may {
                    hint.learn(Direction::Read, res);
                }
                may
            })
            .count()
    }

    #[test]
    fn tries_in_vain_get_rare_and_one_success_brings_them_back() {
        let hint = Hint::default();
        assert_eq!(tried(&hint, 4096, 100), 100);
        assert!(tried(&hint, -libc::EAGAIN, 640) < 20);
        // Sooner or later there is one, which succeeds.
        assert!(tried(&hint, 4096, 200) > 100);
        // Each direction for itself, and who insists is heard.
        tried(&hint, -libc::EAGAIN, 10);
        assert!(hint.may_try(Direction::Write, false));
        assert!(hint.may_try(Direction::Read, true));
    }

    #[test]
    fn what_the_file_system_does_not_have_is_not_asked_for_again() {
        let hint = Hint::default();
        assert_eq!(tried(&hint, -libc::EOPNOTSUPP, 1000), 1);
        assert!(!hint.may_try(Direction::Read, true));
    }

    #[test]
    fn appends_and_writes_that_flush_are_never_tried_and_reads_of_the_same_file_are() {
        use std::os::unix::fs::OpenOptionsExt;
        for flags in [libc::O_APPEND, libc::O_DSYNC, libc::O_SYNC] {
            let path = std::env::temp_dir()
                .join(format!("kapok-pool-hint-{flags}-{}", std::process::id()));
            let mut options = std::fs::File::options();
            options.write(true).read(true).create(true).custom_flags(flags);
            let file = options.open(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let plain = std::sync::Arc::new(file.try_clone().unwrap());
            let kept = crate::OpenFile::from(file);
            for always in [false, true] {
                assert!(!may_try(&plain, Direction::Write, always));
                assert!(!may_try(&kept, Direction::Write, always));
                assert!(may_try(&plain, Direction::Read, always));
                assert!(may_try(&kept, Direction::Read, always));
            }
        }
    }
}
