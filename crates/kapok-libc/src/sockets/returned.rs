//! Connections that were accepted for calls that had been told to stop, and could not wait for them.
//!
//! Nobody was told, so they still are the listener's: whoever accepts there next has them, on a fiber or on
//! a plain thread, by whichever number of the listener, and the child of a fork as well as its parent. So
//! they lie where the backlog lies, in the kernel: in a pair of sockets beside the listener, over which
//! descriptors are passed. Each is taken once, by one process.
//!
//! The kernel does not announce them at the listener; poll(2), select(2) and epoll_wait(2) ask here. A
//! plain thread that waits already when one comes back, and a process that forked before there was a pair,
//! are not told.

use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kapok_engine::sys::own::OwnDescriptor;

use crate::errno::Errno;
use crate::fork;
use crate::kernel::kernel;
use crate::patience::seen;
use crate::signals::mask::Blocked;
use crate::wait::{self, Descriptor};

/// The second backlog of a listener.
struct Backlog {
    /// The number by which it was accepted from. When that is closed this is.
    listener: Descriptor,
    cookie: u64,
    /// Whether there may be another process that has it.
    is_shared: bool,
    put: OwnDescriptor,
    take: OwnDescriptor,
}

static BACKLOGS: Mutex<Vec<Backlog>> = Mutex::new(Vec::new());

/// How many there are.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The list, for a moment in which no handler of a signal runs that might ask for it too.
struct Backlogs {
    all: MutexGuard<'static, Vec<Backlog>>,
    _blocked: Blocked,
}

impl Backlogs {
    fn lock() -> Backlogs {
        let blocked = Blocked::all();
        let all = BACKLOGS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut backlogs = Backlogs { all, _blocked: blocked };
        backlogs.all.retain(|backlog| !backlog.listener.is_closed());
        COUNT.store(backlogs.all.len(), Ordering::Release);
        backlogs
    }

    fn of(&self, listener: RawFd) -> Option<&Backlog> {
        self.index_of(listener).map(|index| &self.all[index])
    }

    fn index_of(&self, listener: RawFd) -> Option<usize> {
        let cookie = cookie(listener)?;
        self.all.iter().position(|backlog| backlog.cookie == cookie)
    }

    /// Lets go of one into which nobody else puts anything, if it is empty: as long as there is any, calls
    /// look for more than they would.
    fn let_go_if_empty(&mut self, index: usize) {
        if !self.all[index].is_shared && !self.all[index].has_some() {
            self.all.swap_remove(index);
            COUNT.store(self.all.len(), Ordering::Release);
        }
    }
}

/// Whether it is worth asking for any.
#[inline]
pub(crate) fn any() -> bool {
    COUNT.load(Ordering::Acquire) > 0
}

/// What the kernel calls a socket, by whatever number.
fn cookie(fd: RawFd) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_COOKIE);
    // SAFETY: writes to locals of the sizes that are told.
    unsafe { kernel!(libc::SYS_getsockopt, fd, level, name, &raw mut cookie, &raw mut len) }
        .ok()?;
    Some(cookie)
}

/// Keeps a connection that was accepted from a listener for whoever accepts there next.
pub(super) fn give_back(listener: Descriptor, connection: RawFd) {
    let is_kept = keep(listener, connection);
    // What is passed on has a life of its own; the rest ends as what waits at a listener that is closed.
    // SAFETY: nobody else has ever heard of the number.
    let _ = unsafe { kernel!(libc::SYS_close, connection) };
    if is_kept {
        wait::look_again(listener.fd);
    }
}

/// Without room for it, it goes the way of what comes to a backlog that is full.
fn keep(listener: Descriptor, connection: RawFd) -> bool {
    let mut backlogs = Backlogs::lock();
    let known = backlogs.index_of(listener.fd);
    let index = known.or_else(|| {
        backlogs.all.push(Backlog::new(listener).ok()?);
        Some(backlogs.all.len() - 1)
    });
    // Before the look at the listener: see `forget_closed`.
    COUNT.store(backlogs.all.len(), Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let is_kept = !listener.is_closed()
        && index.is_some_and(|index| send(backlogs.all[index].put.as_raw_fd(), connection).is_ok());
    if listener.is_closed() {
        backlogs.all.retain(|backlog| backlog.listener != listener);
        COUNT.store(backlogs.all.len(), Ordering::Release);
    }
    is_kept
}

/// Whether somebody who accepts from this listener has a connection at once, of which the kernel knows
/// nothing any more.
pub(crate) fn has_returned(listener: RawFd) -> bool {
    any() && Backlogs::lock().of(listener).is_some_and(Backlog::has_some)
}

/// A connection that was kept. It is close-on-exec.
pub(super) fn take(listener: RawFd) -> Option<RawFd> {
    if !any() {
        return None;
    }
    let mut backlogs = Backlogs::lock();
    let index = backlogs.index_of(listener)?;
    let taken = receive(backlogs.all[index].take.as_raw_fd());
    backlogs.let_go_if_empty(index);
    taken
}

/// Lets go of those whose listeners are closed.
pub(crate) fn forget_closed() {
    // The close is before this, and whoever keeps one looks for closes after the count.
    fence(Ordering::SeqCst);
    if any() {
        drop(Backlogs::lock());
    }
}

/// Locks the list, for a fork: the child has what its parent has.
pub(crate) fn hold(tables: &mut Vec<Box<dyn fork::Held>>) {
    let mut backlogs = BACKLOGS.lock().unwrap_or_else(PoisonError::into_inner);
    for backlog in &mut *backlogs {
        backlog.is_shared = true;
    }
    fork::kept(tables, backlogs);
}

impl Backlog {
    fn new(listener: Descriptor) -> Result<Backlog, Errno> {
        let cookie = cookie(listener.fd).ok_or(Errno(libc::EBADF))?;
        let mut fds = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: writes to a local; the descriptors are new, and nobody else knows of them.
        let [put, take] = unsafe {
            kernel!(libc::SYS_socketpair, libc::AF_UNIX, kind, 0, fds.as_mut_ptr())?;
            fds.map(|fd: RawFd| OwnDescriptor::new(OwnedFd::from_raw_fd(fd)))
        };
        Ok(Backlog { listener, cookie, is_shared: false, put, take })
    }

    fn has_some(&self) -> bool {
        seen(self.take.as_raw_fd(), libc::POLLIN) & libc::POLLIN != 0
    }
}

/// Room for one descriptor beside a message, aligned as its header.
#[repr(C, align(8))]
struct Room([u8; 64]);

/// A message of one byte, with room for a descriptor beside it.
fn with_message<R>(room: &mut Room, f: impl FnOnce(*mut libc::msghdr) -> R) -> R {
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut room.0).cast();
    // SAFETY: a computation.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as _;
    f(&raw mut message)
}

fn send(over: RawFd, fd: RawFd) -> Result<(), Errno> {
    let mut room = Room([0; 64]);
    with_message(&mut room, |message| {
        // SAFETY: there is room for the header and the number.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
            kernel!(libc::SYS_sendmsg, over, message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        }
        .map(drop)
    })
}

fn receive(over: RawFd) -> Option<RawFd> {
    // Where there is no number left the kernel would throw away what it has no number for.
    // SAFETY: integer arguments; the number is nobody else's.
    unsafe {
        let spare = kernel!(libc::SYS_fcntl, over, libc::F_DUPFD_CLOEXEC, 0).ok()?;
        let _ = kernel!(libc::SYS_close, spare);
    }
    let mut room = Room([0; 64]);
    with_message(&mut room, |message| {
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: locals; what the kernel has written there, if it has.
        unsafe {
            kernel!(libc::SYS_recvmsg, over, message, flags).ok()?;
            let header = libc::CMSG_FIRSTHDR(message);
            let is_there = !ptr::eq(header, ptr::null()) && (*header).cmsg_type == libc::SCM_RIGHTS;
            is_there.then(|| libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned())
        }
    })
}
