//! What an epoll instance watches, which the kernel tells in proc_pid_fdinfo(5). It is asked only while there
//! is something to be announced that the kernel does not know of.

use std::ffi::c_int;
use std::os::fd::RawFd;

use libc::epoll_event;

use crate::kernel::kernel;
use crate::sockets::returned::has_returned;

/// Events that are no events: how the others are told.
const HOW: u32 =
    (libc::EPOLLET | libc::EPOLLONESHOT | libc::EPOLLWAKEUP) as u32 | libc::EPOLLEXCLUSIVE as u32;

/// Announces connections that were accepted and given back, beside the `ready` events that there are. How
/// many there are then.
///
/// # Safety
///
/// There is room for `most`.
pub(super) unsafe fn announce_returned(
    epoll: RawFd,
    events: *mut epoll_event,
    ready: usize,
    most: usize,
) -> usize {
    const WANTED: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM) as u32;
    let mut told = ready;
    for (fd, wanted, data) in all(epoll) {
        let announced = wanted & WANTED;
        if announced == 0 || !has_returned(fd) {
            continue;
        }
        // SAFETY: by the caller; as many as were written.
        let before = (0..ready).map(|index| unsafe { events.add(index) }).find(|event| {
            // SAFETY: as above; the kernel packs them.
            unsafe { (&raw const (**event).u64).read_unaligned() == data }
        });
        match before {
            // SAFETY: as above.
            Some(event) => unsafe {
                let seen = (&raw const (*event).events).read_unaligned();
                (&raw mut (*event).events).write_unaligned(seen | announced);
            },
            None if told < most => {
                // SAFETY: there is room for one more.
                unsafe { events.add(told).write(epoll_event { events: announced, u64: data }) };
                told += 1;
                if wanted & libc::EPOLLONESHOT as u32 != 0 {
                    disarm(epoll, fd, wanted, data);
                }
            }
            None => {}
        }
    }
    told
}

/// Has what is told once be told no more until the program says so.
fn disarm(epoll: RawFd, fd: RawFd, wanted: u32, data: u64) {
    let mut event = epoll_event { events: wanted & HOW, u64: data };
    let modify = libc::EPOLL_CTL_MOD;
    // SAFETY: reads a local.
    let _ = unsafe { kernel!(libc::SYS_epoll_ctl, epoll, modify, fd, &raw mut event) };
}

/// Numbers of descriptors, what is wanted of them, and what the program calls them.
fn all(epoll: c_int) -> Vec<(RawFd, u32, u64)> {
    let text = read(&format!("/proc/self/fdinfo/{epoll}\0")).unwrap_or_default();
    let one = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let fd = words.next()?.parse().ok()?;
        let mut hexadecimal = |name| {
            let word = words.by_ref().skip_while(|word| *word != name).nth(1)?;
            u64::from_str_radix(word, 16).ok()
        };
        Some((fd, hexadecimal("events:")? as u32, hexadecimal("data:")?))
    };
    String::from_utf8_lossy(&text).lines().filter_map(one).collect()
}

/// Reads a file whole, past the hooks.
fn read(path: &str) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    // SAFETY: a name that ends; room of the length that is told.
    unsafe {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let fd = kernel!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0).ok()?;
        let mut part = [0_u8; 4096];
        loop {
            match kernel!(libc::SYS_read, fd, part.as_mut_ptr(), part.len()) {
                Ok(0) | Err(_) => break,
                Ok(count) => text.extend_from_slice(&part[..count]),
            }
        }
        let _ = kernel!(libc::SYS_close, fd);
    }
    Some(text)
}
