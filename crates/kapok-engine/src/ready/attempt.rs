//! One attempt at an operation: is it over, must it wait, or would it block?
//!
//! Nothing here blocks. What has no non-blocking form on the descriptor at hand is not tried but
//! handed to a thread, and only once poll(2) says that it will not keep the thread for long.

use std::os::fd::RawFd;

use crate::op::{Op, Readiness};
use crate::ready::offloaded::Carry;
use crate::sys::{
    ORDINARY, bytes_waiting, connect_outcome, describe_end, is_at_end, is_nonblocking, once,
    perform, poll_one, socket_option,
};

/// What an attempt came to.
pub(super) enum Attempt {
    /// It is over, with this result.
    Done(i32),
    /// It must wait until its descriptor is ready.
    Again,
    /// It has to be carried out by a thread.
    Thread(Carry),
}

/// Whether `op` waits for the ordinary readiness of its side, so that operations like it are
/// served in order and one that finds nothing speaks for those behind it.
pub(super) fn is_ordinary(op: &Op) -> bool {
    match *op {
        // A receive of nothing does not wait for anything.
        Op::Poll { .. } | Op::Recv { len: 0, .. } | Op::Read { len: 0, .. } => false,
        Op::Send { flags, .. } | Op::SendMsg { flags, .. } => flags & libc::MSG_DONTWAIT == 0,
        Op::Recv { flags, .. } | Op::RecvMsg { flags, .. } => flags & !ORDINARY == 0,
        _ => true,
    }
}

/// What `op` waits for.
pub(super) fn interest(op: &Op) -> Readiness {
    match *op {
        Op::Poll { events, .. } => events,
        Op::Recv { flags, .. } | Op::RecvMsg { flags, .. } if flags & libc::MSG_OOB != 0 => {
            Readiness(libc::POLLPRI)
        }
        // The error queue announces itself as an error, which needs no interest.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        Op::RecvMsg { flags, .. } if flags & libc::MSG_ERRQUEUE != 0 => Readiness(0),
        Op::Recv { .. }
        | Op::RecvPooled { .. }
        | Op::RecvMsg { .. }
        | Op::Accept { .. }
        | Op::Read { .. } => Readiness::READABLE,
        _ => Readiness::WRITABLE,
    }
}

/// Whether a short receive from `fd` means that it is empty: TCP only. A Unix stream stops at
/// passed descriptors and a change of credentials, MPTCP and others make no promise at all.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn drains(fd: RawFd) -> bool {
    socket_option(fd, libc::SO_TYPE) == Ok(libc::SOCK_STREAM)
        && socket_option(fd, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn drains(_fd: RawFd) -> bool {
    false
}

/// Tries `op`, which was tried before if `progress` says so. Whether a descriptor has `O_NONBLOCK` is asked
/// where it matters, also of owned ones: whoever shares the description may have taken it away.
///
/// # Safety
///
/// The memory named by `op` is valid as [`Engine::submit`](crate::Engine::submit) asks.
pub(super) unsafe fn attempt(op: &Op, progress: &mut i32) -> Attempt {
    // SAFETY: the caller's promise, passed on, here and below.
    let tried = || unsafe { perform(op, false) };
    match *op {
        // Whoever asks not to wait is told so.
        Op::Recv { flags, .. }
        | Op::RecvMsg { flags, .. }
        | Op::Send { flags, .. }
        | Op::SendMsg { flags, .. }
            if flags & libc::MSG_DONTWAIT != 0 =>
        {
            Attempt::Done(tried())
        }
        Op::Recv { flags, .. } if flags & libc::MSG_WAITALL != 0 && flags & libc::MSG_PEEK == 0 => {
            // SAFETY: as above.
            unsafe { receive_all(op, progress) }
        }
        Op::Connect { fd, addr, addr_len } => {
            let res = if *progress > 0 {
                // SAFETY: as above.
                unsafe { connect_outcome(fd, addr, addr_len) }
            } else if !is_nonblocking(fd) {
                return Attempt::Thread(Carry::Blocking);
            } else {
                tried()
            };
            match -res {
                libc::EINPROGRESS => {
                    *progress = 1;
                    Attempt::Again
                }
                // The backlog of a Unix listener is full, and no readiness tells when it is not.
                libc::EAGAIN => Attempt::Thread(Carry::Retrying),
                _ => Attempt::Done(res),
            }
        }
        Op::Accept { fd, .. } if !is_nonblocking(fd) => when_ready(op, fd),
        Op::Read { fd, .. } | Op::Write { fd, .. } if waits_for_device(op, fd) => {
            Attempt::Thread(Carry::Blocking)
        }
        Op::Read { fd, len, .. } | Op::Write { fd, len, .. } => {
            match tried() {
                res if res == -libc::EAGAIN => match file_type(fd) {
                    Ok(libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR) => {
                        Attempt::Thread(Carry::Blocking)
                    }
                    Ok(_) => Attempt::Again,
                    Err(res) => Attempt::Done(res),
                },
                // No promise not to wait, or an error that the call without it reports as well.
                res if [-libc::EOPNOTSUPP, -libc::EINVAL, -libc::ENOSYS].contains(&res) => {
                    // SAFETY: as above.
                    unsafe { transfer(op, fd, len) }
                }
                res => Attempt::Done(res),
            }
        }
        Op::SendMsg { msg, .. } => match tried() {
            // The peer of an unconnected Unix datagram is full, and poll(2) does not know of it.
            // SAFETY: as above.
            res if res == -libc::EAGAIN && unsafe { names_unix_peer(msg) } => {
                Attempt::Thread(Carry::Retrying)
            }
            res if res == -libc::EAGAIN => Attempt::Again,
            res => Attempt::Done(res),
        },
        _ => match tried() {
            res if res == -libc::EAGAIN => Attempt::Again,
            res => Attempt::Done(res),
        },
    }
}

/// Tries `op` on a descriptor that has been announced as ready. A receive that finds nothing all the
/// same may be [at the end](is_at_end).
///
/// # Safety
///
/// That of [`attempt`].
pub(super) unsafe fn attempt_announced(op: &Op, progress: &mut i32) -> Attempt {
    // SAFETY: the caller's promise, here and below.
    let tried = unsafe { attempt(op, progress) };
    if !matches!(tried, Attempt::Again) || !is_at_end(op) {
        return tried;
    }
    // What came before that is still to be had; after it nothing comes.
    // SAFETY: as above.
    match unsafe { attempt(op, progress) } {
        Attempt::Again => {
            // SAFETY: as above: the header is lent for writing.
            unsafe { describe_end(op) };
            Attempt::Done(*progress)
        }
        tried => tried,
    }
}

/// A receive that wants all of its buffer, continued from where it stands.
///
/// # Safety
///
/// That of [`attempt`].
unsafe fn receive_all(op: &Op, progress: &mut i32) -> Attempt {
    let Op::Recv { fd, buf, len, flags } = *op else { return Attempt::Done(-libc::EINVAL) };
    let len = len.min(crate::MAX_TRANSFER);
    loop {
        let done = *progress as usize;
        if done > 0 {
            // The call that meets an error takes it out of the socket, and what lands here is the
            // bytes. So it is left there, for the next receive, as recv(2) does on TCP.
            match poll_one(fd, Readiness::READABLE, 0) {
                0 => return Attempt::Again,
                res if res < 0 || (is_failing(res) && is_drained_tcp(fd)) => {
                    return Attempt::Done(*progress);
                }
                _ => {}
            }
        }
        // SAFETY: `done` is at most `len`, so the rest lies in the caller's memory.
        let rest = Op::Recv { fd, buf: unsafe { buf.add(done) }, len: len - done, flags };
        // SAFETY: as above.
        match unsafe { perform(&rest, false) } {
            res if res == -libc::EAGAIN => return Attempt::Again,
            res if res < 0 => return Attempt::Done(if done > 0 { done as i32 } else { res }),
            res => {
                *progress += res;
                let over = res == 0 || *progress as usize >= len;
                // The flag says nothing on sockets with message boundaries.
                if over || socket_option(fd, libc::SO_TYPE) != Ok(libc::SOCK_STREAM) {
                    return Attempt::Done(*progress);
                }
            }
        }
    }
}

/// Whether what poll(2) saw may come with an error. What ends a TCP connection hangs it up as well;
/// `POLLERR` alone is a message in the error queue, and of no concern to who receives.
fn is_failing(seen: i32) -> bool {
    Readiness(seen as i16).intersects(Readiness::HANG_UP)
}

/// Whether there is nothing left to receive on a TCP connection of Linux.
///
/// Unix streams are another matter: under `MSG_WAITALL` recv(2) takes their error along with bytes.
fn is_drained_tcp(fd: RawFd) -> bool {
    bytes_waiting(fd) == Ok(0) && drains(fd)
}

/// Whether a transfer that is asked not to wait (`RWF_NOWAIT`) waits for a device all the same: past the page
/// cache (`O_DIRECT`) what is not waited for are locks, and a write that is to be on the device when it
/// returns (`O_DSYNC`, `O_SYNC`) is flushed there in between.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn waits_for_device(op: &Op, fd: RawFd) -> bool {
    let waits = match op {
        Op::Write { .. } => libc::O_DIRECT | libc::O_DSYNC,
        _ => libc::O_DIRECT,
    };
    // SAFETY: fcntl with integer arguments.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // Of a pipe the flag is another one.
    flags >= 0 && flags & waits != 0 && matches!(file_type(fd), Ok(libc::S_IFREG | libc::S_IFBLK))
}

/// Nothing is tried that may wait.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn waits_for_device(_op: &Op, _fd: RawFd) -> bool {
    false
}

/// A read or write that the kernel makes no promise about.
///
/// # Safety
///
/// That of [`attempt`].
unsafe fn transfer(op: &Op, fd: RawFd, len: usize) -> Attempt {
    match file_type(fd) {
        Err(res) => Attempt::Done(res),
        Ok(libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR) => Attempt::Thread(Carry::Blocking),
        Ok(libc::S_IFSOCK)
            if matches!(*op, Op::Read { offset, .. } | Op::Write { offset, .. }
                if offset != Op::CURRENT_POSITION) =>
        {
            Attempt::Done(-libc::ESPIPE)
        }
        // read(2) of nothing waits for nothing. (recv(2) of nothing takes a datagram.)
        Ok(_) if matches!(op, Op::Read { .. }) && len == 0 => Attempt::Done(0),
        Ok(libc::S_IFSOCK) => {
            let op = match *op {
                Op::Read { buf, .. } => Op::Recv { fd, buf, len, flags: 0 },
                Op::Write { buf, .. } => Op::Send { fd, buf, len, flags: 0 },
                op => op,
            };
            // SAFETY: the same memory as that of the caller's operation.
            match unsafe { perform(&op, false) } {
                res if res == -libc::EAGAIN => Attempt::Again,
                res => Attempt::Done(res),
            }
        }
        Ok(_) if is_nonblocking(fd) => loop {
            // SAFETY: the caller's promise. The descriptor itself does not block.
            match unsafe { once(op, true) } {
                res if res == -libc::EINTR => {}
                res if res == -libc::EAGAIN => return Attempt::Again,
                res => return Attempt::Done(res),
            }
        },
        Ok(_) => when_ready(op, fd),
    }
}

/// An operation that may block although its descriptor is ready, if another is faster: not here.
fn when_ready(op: &Op, fd: RawFd) -> Attempt {
    match poll_one(fd, interest(op), 0) {
        0 => Attempt::Again,
        res if res < 0 => Attempt::Done(res),
        _ => Attempt::Thread(Carry::Blocking),
    }
}

/// # Safety
///
/// `msg` and the name that it points to are readable.
unsafe fn names_unix_peer(msg: *const libc::msghdr) -> bool {
    // SAFETY: the caller's promise; a name of at least two bytes starts with its family, but may be
    // unaligned.
    unsafe {
        let name = (*msg).msg_name.cast::<libc::sockaddr>();
        !name.is_null()
            && (*msg).msg_namelen as usize >= size_of::<libc::sa_family_t>()
            && i32::from((&raw const (*name).sa_family).read_unaligned()) == libc::AF_UNIX
    }
}

/// The file's type (`S_IF*`), or `-errno`. Anonymous inodes have none.
fn file_type(fd: RawFd) -> Result<libc::mode_t, i32> {
    // SAFETY: all zeros is a stat, and fstat only writes it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: writes to a local.
    match unsafe { libc::fstat(fd, &raw mut stat) } {
        0 => Ok(stat.st_mode & libc::S_IFMT),
        res => Err(crate::sys::landed(res as isize)),
    }
}
