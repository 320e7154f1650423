//! Descriptors: closing and duplicating them, and locks on what they stand for.
//!
//! A number that is closed, by whatever thread, gets a new epoch, and whoever waits for it is woken
//! with `EBADF`: see [`closing`]. (Linux alone would leave them waiting for a file that has no number any
//! more.) Closes that the C library makes by itself, such as that of fclose(3), are not seen.

use std::ffi::{c_int, c_uint, c_ulong};
use std::os::fd::RawFd;

use kapok_engine::sys::descriptors;
use libc::off64_t;

use crate::call::Call;
use crate::closing;
use crate::errno::Errno;
use crate::hook::hooks;
use crate::kernel::kernel;
use crate::wait::{self, Descriptor};

hooks! {
    /// close(2).
    fn close(fd: c_int) -> c_int
        = before {
            if let Err(error) = closing::close(fd) {
                return closing::failed(error);
            }
        }
        |call| {
            if closing::takes_long(fd) {
                let closed = call.offload(move || kernel!(libc::SYS_close, fd))?;
                // Whoever has begun to wait meanwhile was told nothing: the number was open.
                wait::look_again(fd);
                return closed.map(|_| 0);
            }
            // By way of the engine, which may have operations that name the number.
            match call.inside.close(fd) {
                Ok(()) => Ok(0),
                Err(error) => Err(Errno(error.raw_os_error().unwrap_or(libc::EIO))),
            }
        }

    /// close_range(2).
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int
        = before {
            match closing::close_range(first, last, flags as c_uint) {
                None => {}
                Some(Ok(())) => return 0,
                Some(Err(error)) => return closing::failed(error),
            }
        }
        |call| {
            // The table that it unshares is the calling thread's.
            if flags as c_uint & libc::CLOSE_RANGE_UNSHARE != 0 {
                return kernel!(libc::SYS_close_range, first, last, flags).map(|_| 0);
            }
            call.offload(move || kernel!(libc::SYS_close_range, first, last, flags))?.map(|_| 0)
        }

    /// closefrom(3).
    fn closefrom(first: c_int) -> ()
        = before {
            if let Some(Ok(())) = closing::close_range(first.max(0) as c_uint, c_uint::MAX, 0) {
                return;
            }
        }
        |call| {
            let (first, last) = (first.max(0), c_uint::MAX);
            call.offload(move || kernel!(libc::SYS_close_range, first, last, 0))?.map(|_| ())
        }

    /// dup2(2).
    fn dup2(old: c_int, new: c_int) -> c_int
        = before {
            if let Err(error) = closing::replace(old, new) {
                return closing::failed(error);
            }
        }
        |call| {
            if old == new {
                return kernel!(libc::SYS_fcntl, old, libc::F_GETFD).map(|_| new);
            }
            duplicate(call, old, new, 0)
        }

    /// dup3(2).
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int
        = before {
            // With other flags it is refused, and nothing is closed.
            if flags & !libc::O_CLOEXEC == 0
                && let Err(error) = closing::replace(old, new)
            {
                return closing::failed(error);
            }
        }
        |call| {
            duplicate(call, old, new, flags)
        }

    /// fcntl(2). What it does not know it passes on.
    fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int = |call| {
        control(call, fd, command, argument)
    }

    /// fcntl(2) of large files.
    fn fcntl64(fd: c_int, command: c_int, argument: c_ulong) -> c_int = |call| {
        control(call, fd, command, argument)
    }

    /// flock(2).
    fn flock(fd: c_int, operation: c_int) -> c_int = |call| {
        let attempt = || kernel!(libc::SYS_flock, fd, operation | libc::LOCK_NB);
        if operation & libc::LOCK_NB != 0 {
            return attempt().map(|_| 0);
        }
        retry(call, fd, attempt)
    }

    /// lockf(3).
    fn lockf(fd: c_int, command: c_int, len: libc::off_t) -> c_int = |call| {
        lock_section(call, fd, command, len)
    }

    /// lockf(3) of large files.
    fn lockf64(fd: c_int, command: c_int, len: off64_t) -> c_int = |call| {
        lock_section(call, fd, command, len)
    }
}

/// dup3(2), which closes what `new` was.
fn duplicate(call: &Call, old: RawFd, new: RawFd, flags: c_int) -> Result<c_int, Errno> {
    // SAFETY: no memory is named.
    let duplicate = move || unsafe { kernel!(libc::SYS_dup3, old, new, flags) };
    let done = if closing::takes_long(new) { call.offload(duplicate)? } else { duplicate() };
    done.map(|fd| fd as c_int)
}

/// # Safety
///
/// The arguments are as fcntl(2) asks.
unsafe fn control(
    call: &Call,
    fd: RawFd,
    command: c_int,
    argument: c_ulong,
) -> Result<c_int, Errno> {
    let without_wait = match command {
        libc::F_SETLKW => libc::F_SETLK,
        libc::F_OFD_SETLKW => libc::F_OFD_SETLK,
        _ => {
            // SAFETY: by the caller.
            let done = unsafe { kernel!(libc::SYS_fcntl, fd, command, argument) }? as c_int;
            if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
                descriptors::retire(done);
            }
            return Ok(done);
        }
    };
    retry(call, fd, || {
        // SAFETY: by the caller.
        unsafe { kernel!(libc::SYS_fcntl, fd, without_wait, argument) }
    })
}

/// # Safety
///
/// As for lockf(3).
unsafe fn lock_section(
    call: &Call,
    fd: RawFd,
    command: c_int,
    len: off64_t,
) -> Result<c_int, Errno> {
    // SAFETY: integers, for which zero is a value.
    let mut section: libc::flock64 = unsafe { std::mem::zeroed() };
    section.l_whence = libc::SEEK_CUR as _;
    section.l_len = len;
    section.l_type = libc::F_WRLCK as _;
    let argument = (&raw mut section) as c_ulong;
    match command {
        // SAFETY: a section of ours.
        libc::F_LOCK => unsafe { control(call, fd, libc::F_SETLKW, argument) },
        // SAFETY: as above.
        libc::F_TLOCK => unsafe { control(call, fd, libc::F_SETLK, argument) },
        libc::F_ULOCK => {
            section.l_type = libc::F_UNLCK as _;
            // SAFETY: as above.
            unsafe { control(call, fd, libc::F_SETLK, (&raw mut section) as c_ulong) }
        }
        libc::F_TEST => {
            section.l_type = libc::F_RDLCK as _;
            // SAFETY: as above.
            unsafe { control(call, fd, libc::F_GETLK, (&raw mut section) as c_ulong) }?;
            // SAFETY: no memory is named.
            let own = section.l_pid == unsafe { libc::getpid() };
            match i32::from(section.l_type) == libc::F_UNLCK || own {
                true => Ok(0),
                false => Err(Errno(libc::EACCES)),
            }
        }
        _ => Err(Errno(libc::EINVAL)),
    }
}

/// Tries for a lock until it is to be had. A helper thread could block for it, but those who hold
/// locks may need helpers to get on, and there is a limit to these.
fn retry(
    call: &Call,
    fd: RawFd,
    mut attempt: impl FnMut() -> Result<usize, Errno>,
) -> Result<c_int, Errno> {
    let descriptor = Descriptor::new(fd);
    loop {
        match attempt() {
            // `EACCES` is a refusal here, although POSIX has it mean this too.
            Err(Errno(libc::EAGAIN)) => {}
            done => return done.map(|_| 0),
        }
        call.nap(&[descriptor], None).map_err(|stopped| stopped.errno())?;
    }
}
