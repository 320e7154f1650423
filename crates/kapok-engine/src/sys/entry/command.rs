//! Commands: what a socket or a block device is told by ioctl(2) and its like.

use std::ptr;

use super::REFUSED;
use super::calls::result;
use crate::entry::{
    BLOCK_DISCARD, Entry, SOCKET_GETSOCKNAME, SOCKET_GETSOCKOPT, SOCKET_SETSOCKOPT, SOCKET_SIOCINQ,
    SOCKET_SIOCOUTQ, split,
};
use crate::sys::socket_option;

/// `BLKDISCARD`, `_IO(0x12, 119)` (include/uapi/linux/fs.h).
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Whether it works on a disk.
pub(super) fn may_block(entry: &Entry) -> bool {
    split(entry.off).0 == BLOCK_DISCARD
}

/// # Safety
///
/// That of [`perform`](crate::sys::perform).
pub(super) unsafe fn command(entry: &Entry) -> i32 {
    let Entry { fd, addr, addr3, .. } = *entry;
    let (command, _) = split(entry.off);
    let (level, option) = split(addr);
    let mut len = entry.file_index as libc::socklen_t;
    let value = ptr::with_exposed_provenance_mut::<libc::c_void>(addr3 as usize);
    if command == BLOCK_DISCARD {
        // SAFETY: the caller's promise.
        return unsafe { discard(entry) };
    }
    let is_known =
        [SOCKET_SIOCINQ, SOCKET_SIOCOUTQ, SOCKET_GETSOCKOPT, SOCKET_SETSOCKOPT, SOCKET_GETSOCKNAME]
            .contains(&command);
    if !is_known {
        return REFUSED;
    }
    match socket_option(fd, libc::SO_TYPE) {
        Err(res) if res == -libc::ENOTSOCK => return REFUSED,
        Err(res) => return res,
        Ok(_) => {}
    }
    // SAFETY: pointers and lengths as the caller promised them; counts go to a local.
    unsafe {
        match command {
            SOCKET_SIOCINQ => count(fd, libc::FIONREAD as libc::c_ulong),
            SOCKET_SIOCOUTQ => count(fd, libc::TIOCOUTQ as libc::c_ulong),
            SOCKET_GETSOCKOPT => {
                match libc::getsockopt(fd, level as i32, option as i32, value, &raw mut len) {
                    0 => len as i32,
                    res => result(res),
                }
            }
            SOCKET_SETSOCKOPT => {
                result(libc::setsockopt(fd, level as i32, option as i32, value, len))
            }
            SOCKET_GETSOCKNAME => {
                let name = ptr::with_exposed_provenance_mut(addr as usize);
                match entry.file_index {
                    0 => result(libc::getsockname(fd, name, value.cast())),
                    1 => result(libc::getpeername(fd, name, value.cast())),
                    _ => -libc::EINVAL,
                }
            }
            _ => REFUSED,
        }
    }
}

fn count(fd: i32, request: libc::c_ulong) -> i32 {
    let mut count: libc::c_int = 0;
    // SAFETY: these requests write one int, to a local.
    match unsafe { libc::ioctl(fd, request as _, &raw mut count) } {
        0 => count,
        res => result(res),
    }
}

/// # Safety
///
/// What is on the range of the device is nobody's.
unsafe fn discard(entry: &Entry) -> i32 {
    // SAFETY: all zeros is a stat, and fstat only writes it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: writes to a local.
    match unsafe { libc::fstat(entry.fd, &raw mut stat) } {
        0 if stat.st_mode & libc::S_IFMT != libc::S_IFBLK => return REFUSED,
        0 => {}
        res => return result(res),
    }
    let range = [entry.addr, entry.addr3];
    // SAFETY: the request reads two integers, of a local.
    result(unsafe { libc::ioctl(entry.fd, BLKDISCARD as _, &raw const range) })
}
