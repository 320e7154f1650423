//! Scenes of files and pipes.

use std::ffi::{c_char, c_int};
use std::os::fd::RawFd;
use std::ptr::null_mut;

use super::{Told, close_all, pipe};
use crate::world::{Outcome, outcome};

unsafe extern "C" {
    fn __open_2(path: *const c_char, flags: c_int) -> c_int;
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int;
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
}

pub(super) fn open(way: u8) -> Outcome {
    let mut told = Told::default();
    let path = [c"/dev/null", c"/proc/self/stat", c"/nowhere/at/all", c"/"][way as usize / 16 % 4];
    let flags = [libc::O_RDONLY, libc::O_WRONLY | libc::O_CLOEXEC, libc::O_RDWR | libc::O_NONBLOCK];
    let (path, flags, here) = (path.as_ptr(), flags[way as usize % 3], libc::AT_FDCWD);
    // SAFETY: a name that ends.
    let fd = outcome(|| unsafe {
        i64::from(match way % 10 {
            0 => libc::open(path, flags),
            1 => libc::open64(path, flags),
            2 => libc::openat(here, path, flags),
            3 => libc::openat64(here, path, flags),
            4 => __open_2(path, flags),
            5 => __open64_2(path, flags),
            6 => __openat_2(here, path, flags),
            7 => __openat64_2(here, path, flags),
            // What is there and may be written is a device.
            8 => libc::creat(path, 0o600),
            _ => libc::creat64(path, 0o600),
        })
    });
    told.0.details = vec![fd.result.min(0), i64::from(fd.errno)];
    if fd.result >= 0 {
        let fd = fd.result as c_int;
        // SAFETY: no memory.
        told.call(|| unsafe { i64::from(libc::fcntl(fd, libc::F_GETFL)) });
        // SAFETY: as above.
        told.call(|| unsafe { i64::from(libc::fcntl(fd, libc::F_GETFD)) });
        close_all(&[fd]);
    }
    told.0
}

pub(super) fn tee(way: u8) -> Outcome {
    let (from, to) = (pipe(), pipe());
    let mut told = Told::default();
    let bytes = [way; 40];
    let mut got = [0_u8; 64];
    let flags = if way.is_multiple_of(2) { libc::SPLICE_F_NONBLOCK } else { 0 };
    // SAFETY: bytes and room that are there.
    unsafe {
        if !way.is_multiple_of(3) || flags == 0 {
            told.call(|| libc::write(from[1], bytes.as_ptr().cast(), bytes.len()) as i64);
        }
        let teed = told.call(|| libc::tee(from[0], to[1], usize::from(way), flags) as i64);
        told.call(|| libc::tee(from[0], from[1], 9, flags) as i64);
        if teed > 0 {
            told.call(|| libc::read(to[0], got.as_mut_ptr().cast(), got.len()) as i64);
        }
    }
    close_all(&[from, to].concat());
    told.0.bytes = got.to_vec();
    told.0
}

fn memory(bytes: &[u8]) -> RawFd {
    // SAFETY: a name that ends, and bytes that are there.
    unsafe {
        let fd = libc::memfd_create(c"scene".as_ptr(), 0);
        assert_eq!(libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), 0), bytes.len() as isize);
        fd
    }
}

pub(super) fn copy_file_range(way: u8) -> Outcome {
    let (from, to) = (memory(&[way; 300]), memory(b"before"));
    let mut told = Told::default();
    let (mut at, mut to_at) = (i64::from(way), 3_i64);
    let mut got = [0_u8; 400];
    let at = if way.is_multiple_of(2) { &raw mut at } else { null_mut() };
    // SAFETY: locals, and room that is there.
    unsafe {
        let (to_at, len) = (&raw mut to_at, usize::from(way) * 2);
        told.call(|| libc::copy_file_range(from, at, to, to_at, len, 0) as i64);
        told.call(|| libc::copy_file_range(from, at, to, to_at, len, 1) as i64);
        told.call(|| libc::lseek(from, 0, libc::SEEK_CUR));
        told.call(|| libc::pread(to, got.as_mut_ptr().cast(), got.len(), 0) as i64);
        told.0.details.push(*to_at);
    }
    close_all(&[from, to]);
    told.0.bytes = got.to_vec();
    told.0
}

/// Between pipes, and files and pipes, where there is something to move.
pub(super) fn splice(way: u8) -> Outcome {
    let (from, to, file) = (pipe(), pipe(), memory(&[way; 100]));
    let mut told = Told::default();
    let mut got = [0_u8; 200];
    let mut at = i64::from(way % 120);
    // SAFETY: bytes, room and an offset that are there.
    unsafe {
        told.call(|| libc::write(from[1], [way; 50].as_ptr().cast(), 50) as i64);
        let len = 1 + usize::from(way);
        told.call(|| libc::splice(from[0], null_mut(), to[1], null_mut(), len, 0) as i64);
        told.call(|| libc::splice(file, &raw mut at, to[1], null_mut(), len, 0) as i64);
        told.call(|| libc::splice(to[0], null_mut(), file, null_mut(), 70, 0) as i64);
        told.call(|| libc::splice(file, null_mut(), file, null_mut(), 70, 0) as i64);
        told.call(|| libc::splice(from[0], &raw mut at, to[1], null_mut(), 1, 0) as i64);
        told.call(|| libc::lseek(file, 0, libc::SEEK_CUR));
        told.call(|| libc::pread(file, got.as_mut_ptr().cast(), got.len(), 0) as i64);
    }
    told.0.details.push(at);
    close_all(&[from, to].concat());
    close_all(&[file]);
    told.0.bytes = got.to_vec();
    told.0
}

pub(super) fn close(way: u8) -> Outcome {
    let fds = pipe();
    let mut told = Told::default();
    let [one, other] = fds;
    // SAFETY: numbers of ours, or of nobody.
    unsafe {
        match way % 4 {
            0 => told.call(|| i64::from(libc::close(one))),
            1 => told.call(|| {
                let (one, cloexec) = (one as u32, libc::CLOSE_RANGE_CLOEXEC as c_int);
                i64::from(libc::close_range(one, one, cloexec) + libc::close_range(one, one, 0))
            }),
            2 => told.call(|| i64::from(libc::dup2(other, one) - one)),
            _ => told.call(|| i64::from(libc::dup3(other, one, libc::O_CLOEXEC) - one)),
        };
        if way % 4 >= 2 {
            told.call(|| i64::from(libc::fcntl(one, libc::F_GETFD)));
            told.call(|| i64::from(libc::dup3(other, other, 0)));
            told.call(|| i64::from(libc::dup2(other, other) - other));
            told.call(|| i64::from(libc::dup2(-1, other)));
            told.call(|| i64::from(libc::dup2(other, -1)));
            told.call(|| i64::from(libc::close(one)));
        }
        told.call(|| i64::from(libc::close(one)));
        told.call(|| i64::from(libc::close_range(9, 3, 0)));
        told.call(|| i64::from(libc::close(-1)));
    }
    close_all(&[other]);
    told.0
}

/// Calls with more than one thing wrong: which of them is told is part of the answer.
pub(super) fn refused(way: u8) -> Outcome {
    let fds = pipe();
    let mut got = [0_u8; 8];
    let part = libc::iovec { iov_base: got.as_mut_ptr().cast(), iov_len: got.len() };
    let (fd, len) = ([-1, 1 << 20, fds[0], fds[1]][usize::from(way) % 4], usize::from(way / 4 % 2));
    let (at, out) = (got.as_mut_ptr().cast(), fds[usize::from(way / 8 % 2)]);
    // SAFETY: no memory.
    let (socket, event) = unsafe {
        (libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0), libc::eventfd(0, libc::EFD_NONBLOCK))
    };
    let mut told = Told::default();
    // SAFETY: room of the length that is told.
    unsafe {
        told.call(|| libc::pread(fd, at, len, -2) as i64);
        told.call(|| libc::pwrite(fd, at, len, -2) as i64);
        told.call(|| libc::preadv(fd, &raw const part, 1, -2) as i64);
        told.call(|| libc::pwritev(fd, &raw const part, 1, -2) as i64);
        told.call(|| libc::preadv2(fd, &raw const part, 1, -2, 1 << 20) as i64);
        told.call(|| libc::preadv2(fd, &raw const part, -1, -1, 1 << 20) as i64);
        told.call(|| libc::readv(fd, &raw const part, -1) as i64);
        told.call(|| libc::writev(fd, &raw const part, 1 << 20) as i64);
        told.call(|| libc::splice(fd, null_mut(), -1, null_mut(), len, 0) as i64);
        told.call(|| libc::splice(fd, null_mut(), -1, null_mut(), len, 1 << 20) as i64);
        told.call(|| libc::splice(-1, null_mut(), out, null_mut(), len, 0) as i64);
        told.call(|| libc::splice(fds[1], null_mut(), out, null_mut(), 1, 0) as i64);
        told.call(|| libc::splice(fds[1], null_mut(), socket, null_mut(), 1, 0) as i64);
        told.call(|| libc::splice(event, null_mut(), socket, null_mut(), 1, 0) as i64);
        told.call(|| libc::splice(event, null_mut(), fds[0], null_mut(), 1, 0) as i64);
        told.call(|| libc::splice(fds[0], null_mut(), event, null_mut(), 1, 0) as i64);
        told.call(|| libc::sendfile(socket, fds[1], null_mut(), 1) as i64);
        told.call(|| libc::sendfile(fds[0], event, null_mut(), 1) as i64);
        told.call(|| libc::tee(fd, -1, len, 0) as i64);
        told.call(|| libc::sendfile(out, fd, &mut -2, len) as i64);
        told.call(|| libc::sendfile(-1, fd, &mut -2, len) as i64);
        told.call(|| libc::fsync(fd).into());
        told.call(|| libc::fallocate(fd, 0, -1, 0).into());
        told.call(|| libc::posix_fallocate(fd, -1, 0).into());
        told.call(|| libc::flock(fd, 1 << 20).into());
    }
    close_all(&[fds[0], fds[1], socket, event]);
    told.0
}
