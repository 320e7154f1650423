//! The calls that move bytes and do not wait, past the C library where the kernel is Linux: its functions
//! are points of cancellation, and in a process of several threads that is two atomic exchanges a call.

use std::os::fd::RawFd;

use crate::op::MAX_TRANSFER;
use crate::sys::perform::QUIET;

/// [`perform`](crate::sys::perform) of an [`Op::Send`](crate::Op::Send) that does not wait, without the way
/// there: `-EAGAIN` if there is no room.
#[inline]
pub fn send_now(fd: RawFd, buf: &[u8], flags: i32) -> i32 {
    let flags = flags | libc::MSG_DONTWAIT | QUIET;
    // SAFETY: pointer and length are those of a slice that outlives the call.
    again(|| unsafe { send(fd, buf.as_ptr(), buf.len().min(MAX_TRANSFER), flags) })
}

/// [`perform`](crate::sys::perform) of an [`Op::Recv`](crate::Op::Recv) that does not wait, without the way
/// there: `-EAGAIN` if there is nothing.
#[inline]
pub fn recv_now(fd: RawFd, buf: &mut [u8]) -> i32 {
    let (at, len) = (buf.as_mut_ptr(), buf.len().min(MAX_TRANSFER));
    // SAFETY: pointer and length are those of a slice that outlives the call.
    again(|| unsafe { recv(fd, at, len, libc::MSG_DONTWAIT) })
}

/// [`perform`](crate::sys::perform) of an [`Op::Read`](crate::Op::Read) that does not wait, without the way
/// there: `-EAGAIN` if it would, `-EOPNOTSUPP` if the kernel cannot promise not to.
///
/// # Safety
///
/// `buf` is valid for writes of `len` bytes.
#[inline]
pub unsafe fn read_now(fd: RawFd, buf: *mut u8, len: usize, offset: u64) -> i32 {
    // SAFETY: by the caller.
    again(|| unsafe { read(fd, buf, len.min(MAX_TRANSFER), offset) })
}

/// [`perform`](crate::sys::perform) of an [`Op::Write`](crate::Op::Write) at an offset that does not wait,
/// without the way there: `-EAGAIN` if it would, `-EOPNOTSUPP` if the kernel cannot promise not to.
///
/// At an offset nothing raises `SIGPIPE`: pipes and sockets have none, and answer `-ESPIPE`.
///
/// # Safety
///
/// `buf` is valid for reads of `len` bytes.
#[inline]
pub unsafe fn write_now(fd: RawFd, buf: *const u8, len: usize, offset: u64) -> i32 {
    debug_assert_ne!(offset, crate::Op::CURRENT_POSITION);
    // SAFETY: by the caller.
    again(|| unsafe { write(fd, buf, len.min(MAX_TRANSFER), offset) })
}

#[inline]
fn again(mut call: impl FnMut() -> i32) -> i32 {
    loop {
        let res = call();
        if res != -libc::EINTR {
            return res;
        }
    }
}

/// The calls by their numbers. An offset of -1 is the current position.
#[cfg(all(any(target_os = "linux", target_os = "android"), target_pointer_width = "64"))]
mod calls {
    use std::os::fd::RawFd;

    use crate::sys::kernel::call;

    #[inline]
    pub(super) unsafe fn send(fd: RawFd, buf: *const u8, len: usize, flags: i32) -> i32 {
        let arguments = [fd as usize, buf as usize, len, flags as usize, 0, 0];
        // SAFETY: no address follows; of the bytes, by the caller.
        unsafe { call(libc::SYS_sendto, arguments) as i32 }
    }

    #[inline]
    pub(super) unsafe fn recv(fd: RawFd, buf: *mut u8, len: usize, flags: i32) -> i32 {
        let arguments = [fd as usize, buf as usize, len, flags as usize, 0, 0];
        // SAFETY: no address is asked for; of the bytes, by the caller.
        unsafe { call(libc::SYS_recvfrom, arguments) as i32 }
    }

    #[inline]
    pub(in crate::sys) unsafe fn read(fd: RawFd, buf: *mut u8, len: usize, offset: u64) -> i32 {
        // SAFETY: by the caller.
        unsafe { vectored(libc::SYS_preadv2, fd, buf.cast(), len, offset) }
    }

    #[inline]
    pub(in crate::sys) unsafe fn write(fd: RawFd, buf: *const u8, len: usize, offset: u64) -> i32 {
        // SAFETY: by the caller; the memory is only read.
        unsafe { vectored(libc::SYS_pwritev2, fd, buf.cast_mut().cast(), len, offset) }
    }

    #[inline]
    unsafe fn vectored(
        number: libc::c_long,
        fd: RawFd,
        iov_base: *mut libc::c_void,
        iov_len: usize,
        offset: u64,
    ) -> i32 {
        let part = libc::iovec { iov_base, iov_len };
        // The upper half of the offset has an argument of its own, for kernels whose numbers are shorter.
        let flags = libc::RWF_NOWAIT as usize;
        let arguments =
            [fd as usize, (&raw const part).expose_provenance(), 1, offset as usize, 0, flags];
        // SAFETY: one part, a local, over the memory the caller promised.
        match unsafe { call(number, arguments) as i32 } {
            // As the C library has it: where there is no such call nothing can promise not to wait.
            res if res == -libc::ENOSYS => -libc::EOPNOTSUPP,
            res => res,
        }
    }
}

/// The calls by the C library.
#[cfg(not(all(any(target_os = "linux", target_os = "android"), target_pointer_width = "64")))]
mod calls {
    use std::os::fd::RawFd;

    use crate::sys::landed;

    pub(super) unsafe fn send(fd: RawFd, buf: *const u8, len: usize, flags: i32) -> i32 {
        // SAFETY: by the caller.
        landed(unsafe { libc::send(fd, buf.cast(), len, flags) })
    }

    pub(super) unsafe fn recv(fd: RawFd, buf: *mut u8, len: usize, flags: i32) -> i32 {
        // SAFETY: by the caller.
        landed(unsafe { libc::recv(fd, buf.cast(), len, flags) })
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(in crate::sys) unsafe fn read(fd: RawFd, buf: *mut u8, len: usize, offset: u64) -> i32 {
        let part = libc::iovec { iov_base: buf.cast(), iov_len: len };
        // SAFETY: one part, over the memory the caller promised.
        landed(unsafe { libc::preadv2(fd, &raw const part, 1, offset as i64, libc::RWF_NOWAIT) })
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(in crate::sys) unsafe fn write(fd: RawFd, buf: *const u8, len: usize, offset: u64) -> i32 {
        let part = libc::iovec { iov_base: buf.cast_mut().cast(), iov_len: len };
        // SAFETY: as in `read`; the memory is only read.
        landed(unsafe { libc::pwritev2(fd, &raw const part, 1, offset as i64, libc::RWF_NOWAIT) })
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(in crate::sys) unsafe fn read(_: RawFd, _: *mut u8, _: usize, _: u64) -> i32 {
        -libc::EOPNOTSUPP
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(in crate::sys) unsafe fn write(_: RawFd, _: *const u8, _: usize, _: u64) -> i32 {
        -libc::EOPNOTSUPP
    }
}

pub(super) use calls::{read, write};
use calls::{recv, send};
