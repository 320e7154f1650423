//! The system call of every operation: the one `match` that readiness engines, blocking threads and
//! offload threads share.
//!
//! Results are those of the call, or `-errno`. `EINTR` is never answered: the call is made again,
//! except for close(2), whose descriptor is gone by then.

use std::os::fd::RawFd;
use std::ptr;
use std::time::{Duration, Instant};

use crate::op::{MAX_TRANSFER, Op, RawMetadata, Readiness};
use crate::sys::sockets::{accept, socket, socket_pair};
use crate::sys::{is_at_end, landed, now, outcome_of_refused, set_errno};

/// Flags of every send: a peer that is gone is an error here and never a signal.
#[cfg(not(any(target_os = "macos", target_os = "ios")))]
pub(super) const QUIET: i32 = libc::MSG_NOSIGNAL;
/// These platforms have `SO_NOSIGPIPE` instead, which whoever makes the socket sets.
#[cfg(any(target_os = "macos", target_os = "ios"))]
pub(super) const QUIET: i32 = 0;

/// How long to nap where the kernel says that a call would block but has no way to wait for it.
const NAP: Duration = Duration::from_millis(1);

/// Makes the system call of `op` and answers its result, or `-errno`.
///
/// With `blocking` it returns when the operation is over, on descriptors with `O_NONBLOCK` too. (On
/// a blocking socket with `SO_RCVTIMEO` or `SO_SNDTIMEO`, a time-out is `-EAGAIN`, as ever.)
///
/// Without, sockets answer `-EAGAIN` instead of waiting. accept(2) and connect(2) have no flag for
/// that and rely on the descriptor's `O_NONBLOCK`; connect(2) then answers `-EINPROGRESS`, and
/// `connect_outcome` tells later how it went. [`Op::Read`] and [`Op::Write`] answer `-EAGAIN` if
/// they would wait, and `-EOPNOTSUPP` if the kernel cannot promise not to. Operations without
/// a non-blocking form are carried out all the same.
///
/// # Safety
///
/// The memory that `op` names is valid as [`Engine::submit`](crate::Engine::submit) asks, until
/// this returns.
pub unsafe fn perform(op: &Op, blocking: bool) -> i32 {
    // What was refused last was ready, as poll(2) has it.
    let mut was_ready = false;
    loop {
        // SAFETY: the caller's promise about the memory of `op`.
        let res = unsafe { once(op, blocking) };
        match -res {
            libc::EINTR if !matches!(op, Op::Close { .. }) => {}
            libc::EAGAIN if blocking => {
                let Some((fd, events)) = awaited(op) else { return res };
                if !is_nonblocking(fd) {
                    return res;
                }
                match poll_one(fd, events, 0) {
                    0 => {
                        was_ready = false;
                        if poll_one(fd, events, -1) < 0 {
                            return res;
                        }
                    }
                    seen if seen < 0 => return res,
                    // It became ready just now, or somebody else was faster.
                    _ if !was_ready => was_ready = true,
                    // SAFETY: as above.
                    _ if is_at_end(op) => return unsafe { outcome_of_refused(op) },
                    // A full backlog or peer of a Unix socket: poll(2) says "go on" and means nothing.
                    _ => std::thread::sleep(NAP),
                }
            }
            libc::EINPROGRESS if blocking => {
                let Op::Connect { fd, addr, addr_len } = *op else { return res };
                poll_one(fd, Readiness::WRITABLE, -1);
                // SAFETY: as above.
                match unsafe { connect_outcome(fd, addr, addr_len) } {
                    outcome if outcome == -libc::EINPROGRESS => {}
                    outcome => return outcome,
                }
            }
            _ => return res,
        }
    }
}

/// What a blocked `op` waits for.
fn awaited(op: &Op) -> Option<(RawFd, Readiness)> {
    match *op {
        Op::Recv { flags, .. }
        | Op::RecvMsg { flags, .. }
        | Op::Send { flags, .. }
        | Op::SendMsg { flags, .. }
            if flags & libc::MSG_DONTWAIT != 0 =>
        {
            None
        }
        Op::Recv { fd, .. }
        | Op::RecvMsg { fd, .. }
        | Op::Accept { fd, .. }
        | Op::Read { fd, .. } => Some((fd, Readiness::READABLE)),
        Op::Send { fd, .. }
        | Op::SendMsg { fd, .. }
        | Op::Connect { fd, .. }
        | Op::Write { fd, .. } => Some((fd, Readiness::WRITABLE)),
        _ => None,
    }
}

/// One call, as the descriptor is: `-EAGAIN` and `-EINTR` come through.
///
/// # Safety
///
/// That of [`perform`].
pub(crate) unsafe fn once(op: &Op, blocking: bool) -> i32 {
    let dont_wait = if blocking { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: every pointer and length is passed on as the caller promised them; lengths are only
    // ever made shorter. Everything else is plain data.
    unsafe {
        match *op {
            Op::Nop => 0,
            Op::Timer { deadline } => sleep_until(deadline, blocking),
            Op::Poll { fd, events } => match poll_one(fd, events, if blocking { -1 } else { 0 }) {
                0 => -libc::EAGAIN,
                res => res,
            },
            Op::Recv { fd, buf, len, flags } => {
                landed(libc::recv(fd, buf.cast(), len.min(MAX_TRANSFER), flags | dont_wait))
            }
            // Only engines have buffers of their own.
            Op::RecvPooled { .. } => -libc::ENOBUFS,
            Op::Send { fd, buf, len, flags } => {
                landed(libc::send(fd, buf.cast(), len.min(MAX_TRANSFER), flags | dont_wait | QUIET))
            }
            Op::RecvMsg { fd, msg, flags } => {
                landed(libc::recvmsg(fd, msg, flags | dont_wait | CLOSE_PASSED_ON_EXEC))
            }
            Op::SendMsg { fd, msg, flags } => {
                landed(libc::sendmsg(fd, msg, flags | dont_wait | QUIET))
            }
            Op::Accept { fd, addr, addr_len } => accept(fd, addr, addr_len),
            Op::Connect { fd, addr, addr_len } => {
                match landed(libc::connect(fd, addr.cast(), addr_len) as isize) {
                    // Interrupted or not, the connection is being made (POSIX).
                    res if res == -libc::EINTR => -libc::EINPROGRESS,
                    res => res,
                }
            }
            Op::Socket { domain, kind, protocol } => socket(domain, kind, protocol),
            Op::SocketPair { kind, fds } => socket_pair(kind, fds),
            Op::Bind { fd, addr, addr_len } => {
                landed(libc::bind(fd, addr.cast(), addr_len) as isize)
            }
            Op::Listen { fd, backlog } => landed(libc::listen(fd, backlog) as isize),
            Op::LocalAddress { fd, addr, addr_len } => {
                landed(libc::getsockname(fd, addr.cast(), addr_len) as isize)
            }
            Op::PeerAddress { fd, addr, addr_len } => {
                landed(libc::getpeername(fd, addr.cast(), addr_len) as isize)
            }
            Op::Duplicate { fd } => landed(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) as isize),
            Op::Shutdown { fd, how } => landed(libc::shutdown(fd, how) as isize),
            Op::Read { fd, buf, len, offset } => {
                let len = len.min(MAX_TRANSFER);
                if !blocking {
                    return now::read(fd, buf, len, offset);
                }
                landed(match offset {
                    Op::CURRENT_POSITION => libc::read(fd, buf.cast(), len),
                    offset => libc::pread(fd, buf.cast(), len, offset as libc::off_t),
                })
            }
            Op::Write { fd, buf, len, offset } => {
                let len = len.min(MAX_TRANSFER);
                let write = || match offset {
                    _ if !blocking => now::write(fd, buf, len, offset),
                    Op::CURRENT_POSITION => landed(libc::write(fd, buf.cast(), len)),
                    offset => landed(libc::pwrite(fd, buf.cast(), len, offset as libc::off_t)),
                };
                // What breaks has no offsets: pipes and sockets answer ESPIPE.
                if offset == Op::CURRENT_POSITION { without_sigpipe(write) } else { write() }
            }
            Op::Sync { fd, data_only } => landed(sync(fd, data_only) as isize),
            Op::Open { dir, path, flags, mode } => {
                let mode = libc::c_uint::from(mode);
                landed(libc::openat(dir, path, flags | libc::O_CLOEXEC, mode) as isize)
            }
            Op::Metadata { fd, out } => metadata(fd, out),
            Op::FutexWait { .. } => -libc::ENOSYS,
            Op::Close { fd } => landed(libc::close(fd) as isize),
            #[cfg(target_os = "linux")]
            Op::Entry { entry } => crate::sys::entry::carry_out(entry, blocking),
        }
    }
}

fn sleep_until(deadline: Instant, blocking: bool) -> i32 {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return 0;
    }
    if !blocking {
        return -libc::EAGAIN;
    }
    std::thread::sleep(left);
    0
}

/// Descriptors that arrive as ancillary data are close-on-exec like all others.
#[cfg(not(any(target_os = "macos", target_os = "ios")))]
const CLOSE_PASSED_ON_EXEC: i32 = libc::MSG_CMSG_CLOEXEC;
#[cfg(any(target_os = "macos", target_os = "ios"))]
const CLOSE_PASSED_ON_EXEC: i32 = 0;

/// How a connect that answered `-EINPROGRESS` went: 0, `-errno`, or `-EINPROGRESS` still.
///
/// # Safety
///
/// `addr` points to `addr_len` readable bytes.
pub(crate) unsafe fn connect_outcome(
    fd: RawFd,
    addr: *const libc::sockaddr_storage,
    addr_len: libc::socklen_t,
) -> i32 {
    match poll_one(fd, Readiness::WRITABLE, 0) {
        0 => return -libc::EINPROGRESS,
        res if res < 0 => return res,
        _ => {}
    }
    // Elsewhere another connect starts afresh. On Linux it reports the error, and only it makes the
    // socket fit for the next attempt.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    match socket_option(fd, libc::SO_ERROR) {
        Ok(0) => {}
        Ok(error) => return -error,
        Err(res) => return res,
    }
    // SAFETY: the caller's promise. This tells "connected" from "not yet".
    match landed(unsafe { libc::connect(fd, addr.cast(), addr_len) } as isize) {
        res if res == -libc::EISCONN => 0,
        res if [-libc::EALREADY, -libc::EINTR].contains(&res) => -libc::EINPROGRESS,
        res => res,
    }
}

/// An integer option of level `SOL_SOCKET`, or `-errno`.
pub(crate) fn socket_option(fd: RawFd, option: i32) -> Result<i32, i32> {
    let mut value: i32 = 0;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: writes at most `len` bytes to a local of that size.
    let res = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len)
    };
    if res < 0 { Err(landed(res as isize)) } else { Ok(value) }
}

/// How many bytes a receive from `fd` would find, or `-errno`.
pub(crate) fn bytes_waiting(fd: RawFd) -> Result<i32, i32> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to a local.
    let res = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut count) };
    if res < 0 { Err(landed(res as isize)) } else { Ok(count) }
}

/// poll(2) on one descriptor: what was seen, 0 if nothing was in `timeout_ms` (-1: no limit), or
/// `-errno`; `-EBADF` for a number that is not open.
pub(crate) fn poll_one(fd: RawFd, events: Readiness, timeout_ms: i32) -> i32 {
    if fd < 0 {
        // poll(2) passes over negative numbers, and would wait for nothing.
        return -libc::EBADF;
    }
    let mut one = libc::pollfd { fd, events: events.0, revents: 0 };
    loop {
        // SAFETY: one pollfd, a local.
        match landed(unsafe { libc::poll(&raw mut one, 1, timeout_ms) } as isize) {
            res if res == -libc::EINTR => {}
            _ if one.revents & libc::POLLNVAL != 0 => return -libc::EBADF,
            res if res < 0 => return res,
            _ => return i32::from(one.revents),
        }
    }
}

/// Whether `fd` is open.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl with integer arguments.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Whether `fd` has `O_NONBLOCK`. A number that is not open has: its calls fail at once.
pub(crate) fn is_nonblocking(fd: RawFd) -> bool {
    has_flag(fd, libc::O_NONBLOCK)
}

/// Whether `fd` goes past the page cache.
#[cfg(target_os = "linux")]
pub(crate) fn is_direct(fd: RawFd) -> bool {
    has_flag(fd, libc::O_DIRECT)
}

fn has_flag(fd: RawFd, flag: i32) -> bool {
    // SAFETY: fcntl with integer arguments.
    unsafe { libc::fcntl(fd, libc::F_GETFL) & flag != 0 }
}

/// write(2) has no flag against `SIGPIPE`, so the signal is held back around it and, if this write
/// raised it, taken away. `write` answers a result in landed form.
pub(super) fn without_sigpipe(write: impl FnOnce() -> i32) -> i32 {
    // SAFETY: signal sets are locals, written by sigemptyset, pthread_sigmask and sigpending before
    // they are read; only the calling thread's mask is changed, and changed back.
    unsafe {
        let mut sigpipe: libc::sigset_t = std::mem::zeroed();
        let mut mask_before: libc::sigset_t = std::mem::zeroed();
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut sigpipe);
        libc::sigaddset(&raw mut sigpipe, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const sigpipe, &raw mut mask_before);
        // One that was not blocked cannot have been pending, which saves a call.
        let was_pending = libc::sigismember(&raw const mask_before, libc::SIGPIPE) == 1
            && libc::sigpending(&raw mut pending) == 0
            && libc::sigismember(&raw const pending, libc::SIGPIPE) == 1;
        let res = write();
        if res == -libc::EPIPE && !was_pending {
            libc::sigpending(&raw mut pending);
            if libc::sigismember(&raw const pending, libc::SIGPIPE) == 1 {
                let mut signal = 0;
                libc::sigwait(&raw const sigpipe, &raw mut signal);
            }
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask_before, ptr::null_mut());
        set_errno(if res < 0 { -res } else { 0 });
        res
    }
}

#[cfg(not(any(target_os = "macos", target_os = "ios")))]
unsafe fn sync(fd: RawFd, data_only: bool) -> i32 {
    // SAFETY: no memory is passed.
    unsafe { if data_only { libc::fdatasync(fd) } else { libc::fsync(fd) } }
}

#[cfg(any(target_os = "macos", target_os = "ios"))]
unsafe fn sync(fd: RawFd, _data_only: bool) -> i32 {
    // SAFETY: no memory is passed.
    unsafe { libc::fsync(fd) }
}

#[cfg(target_os = "linux")]
unsafe fn metadata(fd: RawFd, out: *mut RawMetadata) -> i32 {
    let wanted = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    // SAFETY: the empty path is a literal; `out` is the caller's promise.
    let res = unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, wanted, out) };
    landed(res as isize)
}

#[cfg(not(target_os = "linux"))]
unsafe fn metadata(fd: RawFd, out: *mut RawMetadata) -> i32 {
    // SAFETY: `out` is the caller's promise.
    landed(unsafe { libc::fstat(fd, out) } as isize)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_recv_that_would_wait_says_so_and_one_that_may_wait_waits() {
        let (mut near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let mut buf = [0u8; 8];
        let op = Op::Recv { fd: far.as_raw_fd(), buf: buf.as_mut_ptr(), len: 8, flags: 0 };
        // SAFETY: the buffer is a local that outlives each call.
        assert_eq!(unsafe { perform(&op, false) }, -libc::EAGAIN);
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            near.write_all(b"hello").unwrap();
            near
        });
        // SAFETY: as above.
        assert_eq!(unsafe { perform(&op, true) }, 5);
        drop(writer.join().unwrap());
        assert_eq!(&buf[..5], b"hello");
        // SAFETY: as above.
        assert_eq!(unsafe { perform(&op, false) }, 0);
    }

    #[test]
    fn who_waits_for_what_poll_can_tell_goes_on_as_soon_as_it_is_there() {
        const ROUNDS: usize = 40;
        let (near, far) = UnixStream::pair().unwrap();
        for end in [&near, &far] {
            end.set_nonblocking(true).unwrap();
        }
        let recv = |from: &UnixStream| {
            let mut byte = 0u8;
            let op = Op::Recv { fd: from.as_raw_fd(), buf: &raw mut byte, len: 1, flags: 0 };
            // SAFETY: the byte is a local that outlives the call.
            assert_eq!(unsafe { perform(&op, true) }, 1);
        };
        let mut rounds: Vec<Duration> = std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    recv(&far);
                    (&far).write_all(b"b").unwrap();
                }
            });
            let round = || {
                std::thread::sleep(2 * NAP);
                let begun = Instant::now();
                (&near).write_all(b"a").unwrap();
                recv(&near);
                begun.elapsed()
            };
            (0..ROUNDS).map(|_| round()).collect()
        });
        rounds.sort();
        // The machine may be busy, but not in three rounds of four.
        assert!(rounds[ROUNDS / 4] < NAP, "{rounds:?}");
    }

    #[test]
    fn who_is_refused_by_what_poll_calls_ready_gets_there_and_does_not_spin() {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        drop(near);
        let name = std::env::temp_dir().join(format!("kapok-perform-{}", std::process::id()));
        let _ = std::fs::remove_file(&name);
        let full = std::os::unix::net::UnixDatagram::bind(&name).unwrap();
        far.set_nonblocking(true).unwrap();
        while far.send_to(b"x", &name).is_ok() {}
        // SAFETY: all zeros is an empty name.
        let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in addr.sun_path.iter_mut().zip(name.as_os_str().as_encoded_bytes()) {
            *to = *from as libc::c_char;
        }
        let mut part = libc::iovec { iov_base: b"y".as_ptr().cast_mut().cast(), iov_len: 1 };
        // SAFETY: all zeros is an empty header.
        let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
        msg.msg_name = (&raw mut addr).cast();
        msg.msg_namelen = size_of_val(&addr) as libc::socklen_t;
        msg.msg_iov = &raw mut part;
        msg.msg_iovlen = 1;
        let op = Op::SendMsg { fd: far.as_raw_fd(), msg: &raw const msg, flags: 0 };
        let wait = Duration::from_millis(100);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(wait);
                full.recv(&mut [0]).unwrap();
            });
            let before = cpu_of_this_thread();
            // SAFETY: the header and what it names are locals that outlive the call.
            assert_eq!(unsafe { perform(&op, true) }, 1);
            let burnt = cpu_of_this_thread() - before;
            assert!(burnt < wait / 4, "{burnt:?}");
        });
        std::fs::remove_file(&name).unwrap();
    }

    fn cpu_of_this_thread() -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to a local.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    #[test]
    fn writing_to_a_pipe_without_readers_raises_no_signal() {
        static RAISED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        extern "C" fn note(_: i32) {
            RAISED.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        // SAFETY: a handler that only stores to an atomic; the old disposition is put back.
        let before = unsafe { libc::signal(libc::SIGPIPE, note as *const () as usize) };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let op = Op::Write {
            fd: writer.as_raw_fd(),
            buf: b"x".as_ptr(),
            len: 1,
            offset: Op::CURRENT_POSITION,
        };
        for blocking in [false, true] {
            // SAFETY: the buffer is static.
            let res = unsafe { perform(&op, blocking) };
            assert!(res == -libc::EPIPE || (!blocking && res == -libc::EOPNOTSUPP), "{res}");
        }
        // SAFETY: restores what was there.
        unsafe { libc::signal(libc::SIGPIPE, before) };
        assert!(!RAISED.load(std::sync::atomic::Ordering::Relaxed));
    }

    #[test]
    fn a_read_that_would_wait_on_a_pipe_never_waits() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let mut byte = 0u8;
        let op = Op::Read {
            fd: reader.as_raw_fd(),
            buf: &raw mut byte,
            len: 1,
            offset: Op::CURRENT_POSITION,
        };
        // SAFETY: the byte is a local that outlives the calls.
        let res = unsafe { perform(&op, false) };
        assert!([-libc::EAGAIN, -libc::EOPNOTSUPP].contains(&res), "{res}");
        writer.write_all(b"z").unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { perform(&op, true) }, 1);
        assert_eq!(byte, b'z');
        writer.write_all(b"y").unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap(), 1);
    }

    #[test]
    fn numbers_that_are_not_open_are_bad_descriptors() {
        for fd in [-1, 1_000_000_000] {
            let poll = Op::Poll { fd, events: Readiness::READABLE };
            // SAFETY: no memory is named.
            assert_eq!(unsafe { perform(&poll, true) }, -libc::EBADF);
            // SAFETY: no memory is named.
            assert_eq!(unsafe { perform(&Op::Close { fd }, false) }, -libc::EBADF);
        }
    }
}
