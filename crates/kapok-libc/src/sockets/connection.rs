//! Connecting and accepting: the two calls that no flag tells not to wait.
//!
//! A ring carries them out without blocking; a readiness engine waits until the kernel announces
//! them and then lets a thread make the call, which blocks if somebody else was faster. Either way
//! the operation's memory is on the heap and not on the fiber's stack: who is told to stop leaves at
//! once, and what lands later is taken by an heir.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kapok::Kind;
use kapok::interpose::{self, Operation};
use kapok_engine::{Op, sys::descriptors};
use libc::{sockaddr, sockaddr_storage, socklen_t};

use super::returned::{self, give_back};
use crate::call::Call;
use crate::errno::{self, Errno};
use crate::handler;
use crate::kernel::kernel;
use crate::patience::{Patience, Side, is_nonblocking, option, seen, time_out};
use crate::wait::{Descriptor, Stopped};

/// How long it takes at most until an operation that was cancelled has landed, where no thread has it.
const A_TURN: Duration = Duration::from_millis(20);

/// How long a thread has at most to begin a connect whose time is over.
const GRACE: Duration = Duration::from_secs(1);

/// connect(2).
///
/// # Safety
///
/// The arguments are as connect(2) asks.
pub(super) unsafe fn connect(
    call: &Call,
    fd: RawFd,
    addr: *const sockaddr,
    addr_len: socklen_t,
) -> Result<c_int, Errno> {
    let direct = || {
        // SAFETY: by the caller.
        unsafe { kernel!(libc::SYS_connect, fd, addr, addr_len) }.map(|_| 0)
    };
    if !connecting_waits(fd, addr, addr_len) || is_nonblocking(fd)? {
        return direct();
    }
    let descriptor = Descriptor::new(fd);
    let limit = time_out(fd, Side::Sending).and_then(|limit| Instant::now().checked_add(limit));
    // Asked for before: once the time is over it is under way in any case.
    let was_connecting = limit.is_some() && is_connecting(fd);
    // SAFETY: by the caller, and it fits.
    let landed = match unsafe { connected(call, descriptor, (addr, addr_len), limit) } {
        Ok(landed) => landed,
        // What was begun goes on, and the next connect(2) tells.
        // SAFETY: by the caller, an address that fits has a family; it may be unaligned.
        Err(Stopped::TimedOut) if unsafe { family(addr, addr_len) } == libc::AF_UNIX => {
            -libc::EAGAIN
        }
        // By an earlier call, for which a readiness engine has waited before it made this one.
        Err(Stopped::TimedOut) if was_connecting => return Err(Errno(libc::EALREADY)),
        Err(Stopped::TimedOut) => -libc::EINPROGRESS,
        Err(stopped) => return Err(stopped.errno()),
    };
    match landed {
        0.. => Ok(0),
        // Begun by an earlier call, which somebody has interrupted: this one waits for it.
        _ if landed == -libc::EALREADY => match outcome(call, descriptor, limit, direct) {
            Err(Stopped::TimedOut) => Err(Errno(libc::EALREADY)),
            Err(stopped) => Err(stopped.errno()),
            Ok(outcome) => outcome,
        },
        _ => Err(refused(landed)),
    }
}

/// What the engine has to say of a connect, once it has: it is not begun anew for those who are to look
/// again.
///
/// # Safety
///
/// As for [`connecting`].
unsafe fn connected(
    call: &Call,
    descriptor: Descriptor,
    (addr, addr_len): (*const sockaddr, socklen_t),
    limit: Option<Instant>,
) -> Result<i32, Stopped> {
    // SAFETY: by the caller.
    let mut operation = pin!(unsafe { connecting(descriptor.fd, addr, addr_len) });
    loop {
        return match call.wait_with(&[descriptor], operation.as_mut(), limit) {
            Err(Stopped::LookAgain) => continue,
            // However late this fiber is: what is said to be under way was begun, and may be over.
            Err(Stopped::TimedOut) if call.inside.engine() == Kind::Uring => {
                call.inside.submit_now();
                operation.as_mut().cancel();
                match call.wait_out(operation.as_mut(), Instant::now() + A_TURN) {
                    // What blocks a worker of the kernel's is ended like a signal ends it.
                    Some(landed) if !is_cancelled(landed) => Ok(landed),
                    _ => Err(Stopped::TimedOut),
                }
            }
            Err(Stopped::TimedOut) => handed_over(call, descriptor.fd, operation.as_mut()),
            // Whoever is told to stop may close the number, so it is not left to be tried again.
            Err(stopped) if is_nonblocking(descriptor.fd).is_ok_and(|nonblocking| nonblocking) => {
                operation.as_mut().cancel();
                let _landed = call.wait_out(operation.as_mut(), Instant::now() + A_TURN);
                Err(stopped)
            }
            landed => landed,
        };
    }
}

/// Waits, at the end of a time limit, until the thread that is to make a connect has begun: off io_uring the
/// engine hands it over, and it would take it back untried.
fn handed_over(call: &Call, fd: RawFd, mut operation: Pin<&mut Operation>) -> Result<i32, Stopped> {
    let mut grace = Duration::from_millis(1);
    while grace < GRACE {
        let state = tcp_state(fd);
        if state.is_some_and(|state| state != CLOSE) {
            return Err(Stopped::TimedOut);
        }
        if let Some(landed) = call.wait_out(operation.as_mut(), Instant::now() + grace) {
            return Ok(landed);
        }
        // Of what is no TCP nobody can ask.
        if state.is_none() {
            return Err(Stopped::TimedOut);
        }
        grace *= 2;
    }
    // All threads are busy: it is taken back.
    Ok(-libc::EAGAIN)
}

/// Whether an operation has landed because it was cancelled.
fn is_cancelled(landed: i32) -> bool {
    landed == -libc::ECANCELED || landed == -libc::EINTR
}

/// connect(2) for the C interface: it waits until the socket is connected, whatever that has been told of
/// waiting.
///
/// # Safety
///
/// The arguments are as connect(2) asks.
pub(crate) unsafe fn connect_at_last(
    call: &Call,
    fd: RawFd,
    addr: *const sockaddr,
    addr_len: socklen_t,
) -> Result<(), Errno> {
    let direct = || {
        // SAFETY: by the caller.
        unsafe { kernel!(libc::SYS_connect, fd, addr, addr_len) }.map(|_| 0)
    };
    if !connecting_waits(fd, addr, addr_len) {
        return direct().map(drop);
    }
    let descriptor = Descriptor::new(fd);
    let done = loop {
        // SAFETY: by the caller, and it fits.
        let landed = match unsafe { connected(call, descriptor, (addr, addr_len), None) } {
            Ok(landed) => landed,
            Err(stopped) => break Err(stopped),
        };
        match landed.wrapping_neg() {
            // The backlog of a Unix listener is full, and nothing tells when it is not.
            libc::EAGAIN => match call.nap(&[descriptor], None) {
                Ok(()) => {}
                Err(stopped) => break Err(stopped),
            },
            libc::EINTR => {}
            libc::EINPROGRESS | libc::EALREADY => break outcome(call, descriptor, None, direct),
            _ if landed >= 0 => return Ok(()),
            _ => return Err(refused(landed)),
        }
    };
    match done {
        Ok(outcome) => outcome.map(drop),
        Err(stopped) => {
            // Nothing can be done with the socket any more, and a thread may wait for it in the kernel,
            // for as long as TCP goes on trying.
            if !descriptor.is_closed() {
                // SAFETY: no memory is named.
                let _ = unsafe { kernel!(libc::SYS_shutdown, fd, libc::SHUT_RDWR) };
            }
            Err(stopped.errno())
        }
    }
}

/// Whether connect(2) may wait. What is wrong with its arguments the kernel says at once.
fn connecting_waits(fd: RawFd, addr: *const sockaddr, addr_len: socklen_t) -> bool {
    let waits = matches!(option(fd, libc::SO_TYPE), Ok(libc::SOCK_STREAM | libc::SOCK_SEQPACKET));
    let fits = addr_len as usize <= size_of::<sockaddr_storage>() && addr_len > 0;
    waits && fits && !addr.is_null()
}

/// The operation, with an address of its own.
///
/// # Safety
///
/// The address is as connect(2) asks, and not larger than any.
unsafe fn connecting(fd: RawFd, addr: *const sockaddr, addr_len: socklen_t) -> Operation {
    // SAFETY: all zeros is an address of no family.
    let mut storage: Box<sockaddr_storage> = Box::new(unsafe { zeroed() });
    // SAFETY: by the caller; as many bytes as there is room for.
    unsafe {
        let storage: *mut sockaddr_storage = &raw mut *storage;
        storage.cast::<u8>().copy_from_nonoverlapping(addr.cast(), addr_len as usize);
    }
    let op = Op::Connect { fd, addr: &raw const *storage, addr_len };
    // SAFETY: the address is the heir's.
    unsafe { Operation::new(op, Some(Box::new(move |_| drop(storage)))) }
}

/// The family of an address.
///
/// # Safety
///
/// The address is as connect(2) asks.
unsafe fn family(addr: *const sockaddr, addr_len: socklen_t) -> c_int {
    if (addr_len as usize) < size_of::<libc::sa_family_t>() {
        return libc::AF_UNSPEC;
    }
    // SAFETY: by the caller; it may be unaligned.
    unsafe { (&raw const (*addr).sa_family).read_unaligned() }.into()
}

/// How the connecting has ended that an earlier call has begun.
fn outcome(
    call: &Call,
    descriptor: Descriptor,
    limit: Option<Instant>,
    direct: impl Fn() -> Result<c_int, Errno>,
) -> Result<Result<c_int, Errno>, Stopped> {
    loop {
        call.wait_ready(descriptor, libc::POLLOUT, limit)?;
        // Over, one way or the other: the call does not wait any more.
        match direct() {
            Err(Errno(libc::EALREADY)) => {}
            done => return Ok(done),
        }
    }
}

/// Whether a TCP socket is being connected already. Of others nobody can ask.
fn is_connecting(fd: RawFd) -> bool {
    const SYN_SENT: u8 = 2;
    const SYN_RECV: u8 = 3;
    tcp_state(fd).is_some_and(|state| [SYN_SENT, SYN_RECV].contains(&state))
}

/// The state of a TCP socket that is not connected and not being connected.
const CLOSE: u8 = 7;

/// The state of a TCP socket (`TCP_SYN_SENT` and so on of the kernel's `net/tcp_states.h`); `None` of others.
fn tcp_state(fd: RawFd) -> Option<u8> {
    // Of `struct tcp_info`, as much as is asked for; the state comes first.
    let mut state = [0_u8; 8];
    let mut len = state.len() as socklen_t;
    let (tcp, info) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: writes to locals of the sizes that are told.
    let asked =
        unsafe { kernel!(libc::SYS_getsockopt, fd, tcp, info, state.as_mut_ptr(), &raw mut len) };
    asked.is_ok().then_some(state[0])
}

/// The error that an operation has landed with. One that a dead ring has kept is an error of the device.
fn refused(landed: i32) -> Errno {
    Errno(landed.checked_neg().unwrap_or(libc::EIO))
}

/// Where the engine writes a peer's address.
struct Peer {
    addr: sockaddr_storage,
    len: socklen_t,
}

/// accept4(2).
///
/// # Safety
///
/// The arguments are as accept4(2) asks.
pub(super) unsafe fn accept(
    call: &Call,
    fd: RawFd,
    addr: *mut sockaddr,
    addr_len: *mut socklen_t,
    flags: c_int,
) -> Result<c_int, Errno> {
    let descriptor = Descriptor::new(fd);
    let flags_are_known = flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) == 0;
    let is_listener = option(fd, libc::SO_ACCEPTCONN) == Ok(1);
    if !flags_are_known || !is_listener || is_nonblocking(fd)? {
        // SAFETY: by the caller.
        return unsafe { kernel!(libc::SYS_accept4, fd, addr, addr_len, flags) }
            .map(|fd| fd as c_int);
    }
    let limit = Patience::new(call, fd, Side::Receiving).limit()?;
    let (connection, told) = wait_for_connection(call, descriptor, limit)?;
    // SAFETY: by the caller.
    unsafe { hand_over(connection, told, addr, addr_len, flags) }
}

/// accept(2) for the C interface: it waits until there is a connection, which is close-on-exec, whatever
/// the listener has been told of waiting.
///
/// # Safety
///
/// The arguments are as accept(2) asks.
pub(crate) unsafe fn accept_at_last(
    call: &Call,
    fd: RawFd,
    addr: *mut sockaddr,
    addr_len: *mut socklen_t,
) -> Result<c_int, Errno> {
    let listener = Descriptor::new(fd);
    if option(fd, libc::SO_ACCEPTCONN) != Ok(1) {
        // SAFETY: by the caller.
        return unsafe { kernel!(libc::SYS_accept4, fd, addr, addr_len, libc::SOCK_CLOEXEC) }
            .map(|fd| fd as c_int);
    }
    loop {
        match wait_for_connection(call, listener, None) {
            // SAFETY: by the caller.
            Ok((connection, told)) => unsafe {
                return hand_over(connection, told, addr, addr_len, libc::SOCK_CLOEXEC);
            },
            // The listener does not block, or not for long.
            Err(Errno(libc::EAGAIN)) => {
                call.wait_ready(listener, libc::POLLIN, None).map_err(Stopped::errno)?;
            }
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What accept4(2) returns without waiting, whoever calls, if there is a connection of which the kernel
/// knows nothing any more.
///
/// # Safety
///
/// The arguments are as accept4(2) asks.
pub(super) unsafe fn accept_returned(
    fd: RawFd,
    addr: *mut sockaddr,
    addr_len: *mut socklen_t,
    flags: c_int,
) -> Option<c_int> {
    let flags_are_known = flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) == 0;
    if !returned::any() || !flags_are_known || handler::runs() {
        return None;
    }
    // Nobody is suspended in here.
    let _inside = interpose::enter();
    let connection = returned::take(fd)?;
    // SAFETY: by the caller.
    Some(match unsafe { hand_over(connection, None, addr, addr_len, flags) } {
        Ok(connection) => connection,
        Err(error) => {
            errno::set(error.0);
            -1
        }
    })
}

/// Gives a connection that was accepted the flags that its program wants, and tells whose it is.
///
/// # Safety
///
/// The arguments are as accept4(2) asks.
unsafe fn hand_over(
    connection: RawFd,
    told: Option<Peer>,
    addr: *mut sockaddr,
    addr_len: *mut socklen_t,
    flags: c_int,
) -> Result<c_int, Errno> {
    descriptors::retire(connection);
    // The engine has made it close-on-exec; nothing else is inherited.
    // SAFETY: no memory is named; a descriptor of ours whose description nobody shares yet.
    unsafe {
        if flags & libc::SOCK_CLOEXEC == 0 {
            kernel!(libc::SYS_fcntl, connection, libc::F_SETFD, 0)?;
        }
        if flags & libc::SOCK_NONBLOCK != 0 {
            kernel!(libc::SYS_fcntl, connection, libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK)?;
        }
    }
    if !addr.is_null() {
        // What is wrong with the room is found when there is something to put there, and the connection
        // is lost: so it is with the system call.
        // SAFETY: by the caller, where it is not null.
        let wrong = match unsafe { addr_len.as_ref() } {
            None => Some(libc::EFAULT),
            Some(&room) => (room > i32::MAX as socklen_t).then_some(libc::EINVAL),
        };
        if let Some(error) = wrong {
            // SAFETY: no memory is named; nobody else has heard of the number.
            let _ = unsafe { kernel!(libc::SYS_close, connection) };
            return Err(Errno(error));
        }
        let peer = told.unwrap_or_else(|| peer_of(connection));
        // As accept(2) does: cut off at the room there is, with the whole length.
        // SAFETY: by the caller there is room; at most what is there.
        unsafe {
            let bytes = (*addr_len).min(peer.len) as usize;
            let from = (&raw const peer.addr).cast::<u8>();
            addr.cast::<u8>().copy_from_nonoverlapping(from, bytes);
            *addr_len = peer.len;
        }
    }
    Ok(connection)
}

/// Waits for a connection. Its peer's address too, if it came with it.
fn wait_for_connection(
    call: &Call,
    listener: Descriptor,
    limit: Option<Instant>,
) -> Result<(RawFd, Option<Peer>), Errno> {
    let fd = listener.fd;
    let room = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: all zeros is an address of no family.
    let peer = Rc::new(UnsafeCell::new(Peer { addr: unsafe { zeroed() }, len: room }));
    let at = peer.get();
    // SAFETY: in the allocation that was just made.
    let (to, len) = unsafe { (&raw mut (*at).addr, &raw mut (*at).len) };
    let op = Op::Accept { fd, addr: to, addr_len: len };
    let lent = Rc::clone(&peer);
    let heir = move |landed: i32| {
        drop(lent);
        if landed >= 0 {
            give_back(listener, landed);
        }
    };
    // SAFETY: the room for the address is the heir's too.
    let mut operation = pin!(unsafe { Operation::new(op, Some(Box::new(heir))) });
    // SAFETY: the operation is over, so nobody writes there any more.
    let of_peer = || Some(unsafe { peer.get().read() });
    // By another number of the listener something may come back too.
    call.looks_at_others();
    loop {
        call.looks();
        if let Some(connection) = returned::take(fd) {
            return Ok((connection, None));
        }
        let mut waited = call.wait_with(&[listener], operation.as_mut(), limit);
        if waited == Err(Stopped::TimedOut) && call.inside.engine() != Kind::Uring {
            // It may be with a thread by now, for which the same limit holds.
            let announced = seen(fd, libc::POLLIN) != 0;
            let grace = Duration::from_millis(if announced { 1000 } else { 5 });
            let limit = Instant::now().checked_add(grace);
            waited = call.wait_with(&[listener], operation.as_mut(), limit);
        }
        let stopped = match waited {
            Ok(connection @ 0..) => return Ok((connection, of_peer())),
            Ok(landed) => return Err(refused(landed)),
            Err(Stopped::LookAgain) => continue,
            // What is accepted now goes the way of what the listener has in its backlog.
            Err(Stopped::Closed) => return Err(Errno(libc::EBADF)),
            Err(stopped) => stopped,
        };
        // However late this fiber is: a connection that waits is taken.
        if stopped == Stopped::TimedOut {
            call.inside.submit_now();
        }
        // A connection that comes just now is this call's. A thread that was too slow for it waits for
        // another, and has an heir.
        operation.as_mut().cancel();
        return match call.wait_out(operation.as_mut(), Instant::now() + A_TURN) {
            Some(connection @ 0..) => Ok((connection, of_peer())),
            Some(landed) if stopped == Stopped::TimedOut && !is_cancelled(landed) => {
                Err(refused(landed))
            }
            _ => Err(stopped.errno()),
        };
    }
}

/// Asks for the address of a peer. One that is gone has none any more.
fn peer_of(connection: RawFd) -> Peer {
    let room = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: all zeros is an address of no family.
    let mut peer = Peer { addr: unsafe { zeroed() }, len: room };
    let (addr, len) = (&raw mut peer.addr, &raw mut peer.len);
    // SAFETY: writes to locals.
    if unsafe { kernel!(libc::SYS_getpeername, connection, addr, len) }.is_err() {
        peer.len = 0;
    }
    peer
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
