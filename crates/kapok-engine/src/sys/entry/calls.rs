//! The call of each entry that is no other operation of `Op`.

use std::ptr;

use super::{REFUSED, command, waiting};
use crate::entry::{Entry, abi, first_half_of};
use crate::sys::landed;
use crate::sys::perform::{QUIET, without_sigpipe};

/// The pointer of a field.
fn pointer<T>(field: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(field as usize)
}

/// One call, as the descriptor is: `-EAGAIN` and `-EINTR` come through. Descriptors that it makes are
/// close-on-exec.
///
/// # Safety
///
/// That of [`perform`](crate::sys::perform).
pub(super) unsafe fn call(entry: &Entry, blocking: bool) -> i32 {
    let Entry { opcode, fd, off, addr, len, op_flags, addr3, .. } = *entry;
    let flags = op_flags as i32;
    let one = libc::iovec { iov_base: pointer(addr), iov_len: len as usize };
    // SAFETY: every pointer and length is passed on as the caller promised them. Everything else is
    // plain data.
    unsafe {
        match opcode {
            abi::READV | abi::READV_FIXED => {
                landed(libc::preadv2(fd, pointer(addr), len as i32, off as i64, flags))
            }
            abi::READ | abi::READ_FIXED => {
                landed(libc::preadv2(fd, &raw const one, 1, off as i64, flags))
            }
            abi::WRITEV | abi::WRITEV_FIXED => without_sigpipe(|| {
                landed(libc::pwritev2(fd, pointer(addr), len as i32, off as i64, flags))
            }),
            abi::WRITE | abi::WRITE_FIXED => {
                without_sigpipe(|| landed(libc::pwritev2(fd, &raw const one, 1, off as i64, flags)))
            }
            abi::SYNC_FILE_RANGE => result(libc::sync_file_range(
                fd,
                off as libc::off64_t,
                libc::off64_t::from(len),
                op_flags,
            )),
            abi::FALLOCATE => result(libc::fallocate64(fd, len as i32, off as i64, addr as i64)),
            abi::FTRUNCATE => result(libc::ftruncate64(fd, off as i64)),
            abi::FADVISE => {
                let len = if addr == 0 { i64::from(len) } else { addr as i64 };
                // It returns its errno.
                -libc::posix_fadvise64(fd, off as i64, len, flags)
            }
            abi::MADVISE => {
                let len = if off == 0 { len as usize } else { off as usize };
                result(libc::madvise(pointer(addr), len, flags))
            }
            abi::STATX => result(libc::statx(fd, pointer(addr), flags, len, pointer(off))),
            abi::OPENAT => {
                let flags = flags | libc::O_CLOEXEC;
                result(libc::openat(fd, pointer(addr), flags, len as libc::c_uint))
            }
            abi::OPENAT2 => {
                let mut how: libc::open_how = pointer::<libc::open_how>(off).read();
                how.flags |= libc::O_CLOEXEC as u64;
                let path = pointer::<libc::c_char>(addr);
                let size = size_of::<libc::open_how>();
                system_call(libc::syscall(libc::SYS_openat2, fd, path, &raw const how, size))
            }
            abi::UNLINKAT => result(libc::unlinkat(fd, pointer(addr), flags)),
            abi::RENAMEAT => {
                let (old, new) = (pointer::<u8>(addr), pointer::<u8>(off));
                system_call(libc::syscall(libc::SYS_renameat2, fd, old, len as i32, new, op_flags))
            }
            abi::MKDIRAT => result(libc::mkdirat(fd, pointer(addr), len)),
            abi::SYMLINKAT => result(libc::symlinkat(pointer(addr), fd, pointer(off))),
            abi::LINKAT => result(libc::linkat(fd, pointer(addr), len as i32, pointer(off), flags)),
            abi::GETXATTR => {
                landed(libc::getxattr(pointer(addr3), pointer(addr), pointer(off), len as usize))
            }
            abi::SETXATTR => result(libc::setxattr(
                pointer(addr3),
                pointer(addr),
                pointer(off),
                len as usize,
                flags,
            )),
            abi::FGETXATTR => {
                landed(libc::fgetxattr(fd, pointer(addr), pointer(off), len as usize))
            }
            abi::FSETXATTR => {
                result(libc::fsetxattr(fd, pointer(addr), pointer(off), len as usize, flags))
            }
            abi::ACCEPT => {
                let flags = flags | libc::SOCK_CLOEXEC;
                result(libc::accept4(fd, pointer(addr), pointer(off), flags))
            }
            abi::SEND => {
                let dont_wait = if blocking { 0 } else { libc::MSG_DONTWAIT };
                let flags = flags | dont_wait | QUIET;
                let addr_len = libc::socklen_t::from(first_half_of(entry.file_index));
                let bytes = pointer::<libc::c_void>(addr);
                landed(libc::sendto(fd, bytes, len as usize, flags, pointer(off), addr_len))
            }
            abi::SPLICE => waiting::splice(entry),
            abi::TEE => without_sigpipe(|| {
                landed(libc::tee(entry.file_index as i32, fd, len as usize, op_flags))
            }),
            abi::PIPE => result(libc::pipe2(pointer(addr), flags | libc::O_CLOEXEC)),
            abi::EPOLL_CTL => {
                result(libc::epoll_ctl(fd, len as i32, off as u32 as i32, pointer(addr)))
            }
            abi::EPOLL_WAIT => {
                let timeout_ms = if blocking { -1 } else { 0 };
                match result(libc::epoll_wait(fd, pointer(addr), len as i32, timeout_ms)) {
                    0 if !blocking => -libc::EAGAIN,
                    res => res,
                }
            }
            abi::WAITID => {
                let options = entry.file_index as i32;
                result(libc::waitid(len, fd as libc::id_t, pointer(off), options))
            }
            abi::FUTEX_WAIT => waiting::futex_wait(entry),
            abi::FUTEX_WAKE => waiting::futex_wake(entry),
            abi::FUTEX_WAITV => waiting::futex_waitv(entry),
            abi::TIMEOUT => waiting::sleep(entry, blocking),
            abi::URING_CMD => command::command(entry),
            _ => REFUSED,
        }
    }
}

/// The result of a call that answers an `int`.
pub(super) fn result(res: i32) -> i32 {
    landed(res as isize)
}

/// The result of a call without a name in libc.
pub(super) fn system_call(res: libc::c_long) -> i32 {
    landed(res as isize)
}
