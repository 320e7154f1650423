//! Operations as data: what the engines are asked to do, and what they answer.
//!
//! An [`Op`] is plain data and says nothing of how it is carried out. Three interpreters read it:
//! `uring::encode` writes a submission queue entry, [`sys::perform`](crate::sys::perform) makes the
//! system call, and a simulated engine acts it out. Each is one `match`.
//!
//! An [`Op`] borrows memory by raw pointer. Making one is safe, handing it to an engine is not:
//! see [`Engine::submit`](crate::Engine::submit) for the promise that the caller makes.

use std::fmt;
use std::os::fd::RawFd;
use std::time::Instant;

/// The most bytes that one read or write moves: what Linux clamps every transfer to
/// (`MAX_RW_COUNT`, see read(2)). Engines clamp to it everywhere, so a `len` always fits an `i32`.
pub const MAX_TRANSFER: usize = 0x7fff_f000;

/// Names one submitted operation: a slot of the submitter's table, and which use of that slot.
///
/// The engine never looks into it beyond its identity. It is the `user_data` of io_uring, so it
/// survives the kernel unchanged, and a completion that arrives for an earlier use of a slot is
/// told apart by its generation.
///
/// ```text
///  63            32 31             0
/// ┌────────────────┬────────────────┐
/// │  generation    │  slot index    │
/// └────────────────┴────────────────┘
/// ```
///
/// Generation `u32::MAX` is the engines' own (their bell, their cancels): submitters never use it. Slots
/// have indices below 2³⁰ - 2.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    /// The generation that submitters never use.
    pub const RESERVED_GENERATION: u32 = u32::MAX;

    /// The key of the use `generation` of slot `index`.
    #[inline]
    pub const fn new(index: u32, generation: u32) -> Key {
        Key((generation as u64) << 32 | index as u64)
    }

    /// The slot.
    #[inline]
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// Which use of the slot.
    #[inline]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The key as the 64 bits that travel through the kernel.
    #[inline]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The key that [`bits`](Key::bits) came from.
    #[inline]
    pub const fn from_bits(bits: u64) -> Key {
        Key(bits)
    }

    /// The key under which a message from another ring lands: of no operation, and told apart by its
    /// number, which is below 2³¹. See [`Entry::msg_ring`](crate::entry::Entry::msg_ring).
    ///
    /// # Panics
    ///
    /// If the number is too high.
    #[cfg(target_os = "linux")]
    #[inline]
    pub const fn message(number: u32) -> Key {
        assert!(number < Self::MESSAGE, "the number of a message is below 2^31");
        Key::new(number | Self::MESSAGE, Self::RESERVED_GENERATION)
    }

    /// Whether a message lands under this key.
    #[cfg(target_os = "linux")]
    #[inline]
    pub const fn is_message(self) -> bool {
        self.is_reserved() && self.index() & Self::MESSAGE != 0
    }

    /// What tells messages apart from the engines' own keys.
    #[cfg(target_os = "linux")]
    const MESSAGE: u32 = 1 << 31;

    /// Whether this key belongs to an engine and not to a submitter.
    #[inline]
    pub const fn is_reserved(self) -> bool {
        self.generation() == Self::RESERVED_GENERATION
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}#{})", self.index(), self.generation())
    }
}

/// What to wait for on a descriptor, and what was seen on it: the bits of poll(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness(pub i16);

impl Readiness {
    /// Something can be read, or a connection accepted, or the end of the stream is there.
    pub const READABLE: Readiness = Readiness(libc::POLLIN);
    /// Something can be written, or a connect has ended.
    pub const WRITABLE: Readiness = Readiness(libc::POLLOUT);
    /// An error is pending. Reported whether asked for or not.
    pub const ERROR: Readiness = Readiness(libc::POLLERR);
    /// Both directions are closed. Reported whether asked for or not.
    pub const HANG_UP: Readiness = Readiness(libc::POLLHUP);
    /// The peer closed its sending half. io_uring reports it, and ends the wait for it, whether
    /// asked for or not; readiness engines only if asked.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub const READ_CLOSED: Readiness = Readiness(libc::POLLRDHUP);
    /// The peer closed its sending half. (Not told apart from `READABLE` on this platform.)
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub const READ_CLOSED: Readiness = Readiness(0);

    /// Whether any bit of `other` is set.
    #[inline]
    pub const fn intersects(self, other: Readiness) -> bool {
        self.0 & other.0 != 0
    }

    /// Both.
    #[inline]
    pub const fn union(self, other: Readiness) -> Readiness {
        Readiness(self.0 | other.0)
    }
}

/// Metadata of an open file as the kernel writes it: `statx` on Linux, `stat` elsewhere.
#[cfg(target_os = "linux")]
pub type RawMetadata = libc::statx;
/// Metadata of an open file as the kernel writes it: `statx` on Linux, `stat` elsewhere.
#[cfg(not(target_os = "linux"))]
pub type RawMetadata = libc::stat;

/// One operation, as plain data.
///
/// Every pointer must satisfy the contract of [`Engine::submit`](crate::Engine::submit). Results
/// are those of the system call of the same name: a count, a descriptor or 0, and `-errno` on
/// failure. No operation raises `SIGPIPE`, and every descriptor it makes is close-on-exec.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Does nothing and lands with 0 after the next turn.
    Nop,
    /// Lands with 0 once the engine's clock has reached `deadline`.
    Timer {
        /// When.
        deadline: Instant,
    },
    /// Lands with the bits of [`Readiness`] once one of `events` (or an error) holds. Takes
    /// nothing out of the descriptor: this is what may lose a race without losing data. Bits that
    /// were not asked for are not reported, but for those of which [`Readiness`] says so.
    Poll {
        /// Any descriptor poll(2) accepts. Need not be one of Kapok's own.
        fd: RawFd,
        /// What to wait for.
        events: Readiness,
    },
    /// recv(2) on a socket. 0 with `len > 0` is the end of the stream. With `len == 0` it is what
    /// recv(2) makes of it, which on an empty stream is to wait: who reads streams answers an empty
    /// buffer without an operation.
    ///
    /// With `MSG_WAITALL` it lands once all of `len` is there, or with less at the end of the stream
    /// or an error, which the next receive tells. On io_uring, and on Unix streams as recv(2) has it,
    /// an error that comes after the first bytes may be lost: then the next receive lands with 0.
    Recv {
        /// A socket.
        fd: RawFd,
        /// Where the bytes go.
        buf: *mut u8,
        /// Room at `buf`, in bytes.
        len: usize,
        /// `MSG_*` of recv(2). `MSG_WAITALL` is for streams: with boundaries between messages, and
        /// together with `MSG_PEEK`, it has no effect.
        flags: i32,
    },
    /// recv(2) on a socket into one of the engine's own [`Buffers`](crate::Buffers), which is taken
    /// when bytes have come: until then nothing is lent and nothing is held.
    ///
    /// It lands with a [`buffer`](Completion::buffer) if bytes were received, and without one for 0 or
    /// an error; at once, as [`Submitted::DoneIn`] or [`Submitted::Done`]. `-ENOBUFS` if every buffer
    /// is taken, or the engine has none (`sim`, kernels that refuse to register them): nothing was
    /// received, and [`Op::Recv`] with memory of one's own will do it.
    RecvPooled {
        /// A socket.
        fd: RawFd,
    },
    /// send(2) on a socket.
    Send {
        /// A socket.
        fd: RawFd,
        /// Where the bytes are.
        buf: *const u8,
        /// How many.
        len: usize,
        /// `MSG_*` of send(2).
        flags: i32,
    },
    /// recvmsg(2): scattered, with addresses or with ancillary data.
    RecvMsg {
        /// A socket.
        fd: RawFd,
        /// The message header and all it points to.
        msg: *mut libc::msghdr,
        /// `MSG_*` of recvmsg(2).
        flags: i32,
    },
    /// sendmsg(2): gathered, to an address or with ancillary data.
    SendMsg {
        /// A socket.
        fd: RawFd,
        /// The message header and all it points to.
        msg: *const libc::msghdr,
        /// `MSG_*` of sendmsg(2).
        flags: i32,
    },
    /// accept4(2). Lands with the new descriptor.
    Accept {
        /// A listening socket; on a readiness engine it has `O_NONBLOCK`.
        fd: RawFd,
        /// Where the peer's address goes, or null.
        addr: *mut libc::sockaddr_storage,
        /// The room at `addr` and, after, the length of the address; null if `addr` is.
        addr_len: *mut libc::socklen_t,
    },
    /// connect(2).
    Connect {
        /// A socket; on a readiness engine it has `O_NONBLOCK`.
        fd: RawFd,
        /// The address.
        addr: *const libc::sockaddr_storage,
        /// Its length in bytes.
        addr_len: libc::socklen_t,
    },
    /// socket(2). Lands with the new descriptor.
    Socket {
        /// `AF_*`.
        domain: i32,
        /// `SOCK_*`, without flags.
        kind: i32,
        /// `IPPROTO_*`, or 0.
        protocol: i32,
    },
    /// socketpair(2) of Unix sockets.
    SocketPair {
        /// `SOCK_*`, without flags.
        kind: i32,
        /// Where the two descriptors go.
        fds: *mut [RawFd; 2],
    },
    /// bind(2).
    Bind {
        /// A socket.
        fd: RawFd,
        /// The address.
        addr: *const libc::sockaddr_storage,
        /// Its length in bytes.
        addr_len: libc::socklen_t,
    },
    /// listen(2).
    Listen {
        /// A bound socket.
        fd: RawFd,
        /// How many connections may wait to be accepted; the kernel has a limit of its own.
        backlog: i32,
    },
    /// getsockname(2).
    LocalAddress {
        /// A socket.
        fd: RawFd,
        /// Where the address goes.
        addr: *mut libc::sockaddr_storage,
        /// The room at `addr` and, after, the length of the address.
        addr_len: *mut libc::socklen_t,
    },
    /// getpeername(2).
    PeerAddress {
        /// A connected socket.
        fd: RawFd,
        /// Where the address goes.
        addr: *mut libc::sockaddr_storage,
        /// The room at `addr` and, after, the length of the address.
        addr_len: *mut libc::socklen_t,
    },
    /// dup(2). Lands with the new descriptor.
    Duplicate {
        /// Any descriptor.
        fd: RawFd,
    },
    /// shutdown(2).
    Shutdown {
        /// A connected socket.
        fd: RawFd,
        /// `SHUT_RD`, `SHUT_WR` or `SHUT_RDWR`.
        how: i32,
    },
    /// pread(2), or read(2) at the current position if `offset` is [`Op::CURRENT_POSITION`]. With
    /// `len == 0` it waits for nothing.
    Read {
        /// A file, pipe or terminal.
        fd: RawFd,
        /// Where the bytes go.
        buf: *mut u8,
        /// Room at `buf`, in bytes.
        len: usize,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// pwrite(2), or write(2) at the current position if `offset` is [`Op::CURRENT_POSITION`].
    Write {
        /// A file, pipe or terminal.
        fd: RawFd,
        /// Where the bytes are.
        buf: *const u8,
        /// How many.
        len: usize,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// fsync(2), or fdatasync(2) if `data_only`.
    Sync {
        /// A file.
        fd: RawFd,
        /// Leave out metadata that is not needed to read the data back.
        data_only: bool,
    },
    /// openat(2). Lands with the new descriptor.
    Open {
        /// The directory that a relative path starts from, or `AT_FDCWD`.
        dir: RawFd,
        /// NUL-terminated.
        path: *const libc::c_char,
        /// `O_*`; `O_CLOEXEC` is added.
        flags: i32,
        /// Permission bits of a file that is made.
        mode: libc::mode_t,
    },
    /// Metadata of an open file.
    Metadata {
        /// Any descriptor.
        fd: RawFd,
        /// Where it goes.
        out: *mut RawMetadata,
    },
    /// futex(2): lands with 0 once somebody wakes those who wait at `word`, threads that know nothing of
    /// Kapok included, or at once with `-EAGAIN` if the word is not `expected`. Lands with 0 for no reason
    /// now and then, as futex(2) does. On io_uring only, from Linux 6.7 on: older kernels answer
    /// `-EINVAL`, the other engines `-ENOSYS`.
    FutexWait {
        /// A futex word, aligned to 4 bytes, of which nothing is read after it has landed.
        word: *const u32,
        /// What it is when the wait begins.
        expected: u32,
        /// Which wakers end the wait, as of `FUTEX_WAIT_BITSET`; not 0.
        mask: u32,
        /// Whether wakers may be of another process.
        shared: bool,
    },
    /// close(2). Never retried: on Linux the descriptor is gone whatever the result.
    Close {
        /// The descriptor; nobody else may use its number any more.
        fd: RawFd,
    },
    /// Any other operation of io_uring, or one of these as io_uring has it: see
    /// [`entry`](crate::entry), also for what becomes of it on other engines.
    ///
    /// The entry is copied, but counts as lent: it stays until the key has landed for the last time
    /// ([`Completion::is_terminal`]), like all that it points to.
    #[cfg(target_os = "linux")]
    Entry {
        /// The entry.
        entry: *const crate::entry::Entry,
    },
}

impl Op {
    /// The offset that stands for the file's current position.
    pub const CURRENT_POSITION: u64 = u64::MAX;

    /// The system call's name, for traces and reports.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Nop => "nop",
            Op::Timer { .. } => "timer",
            Op::Poll { .. } => "poll",
            Op::Recv { .. } | Op::RecvPooled { .. } => "recv",
            Op::Send { .. } => "send",
            Op::RecvMsg { .. } => "recvmsg",
            Op::SendMsg { .. } => "sendmsg",
            Op::Accept { .. } => "accept",
            Op::Connect { .. } => "connect",
            Op::Socket { .. } => "socket",
            Op::SocketPair { .. } => "socketpair",
            Op::Bind { .. } => "bind",
            Op::Listen { .. } => "listen",
            Op::LocalAddress { .. } => "getsockname",
            Op::PeerAddress { .. } => "getpeername",
            Op::Duplicate { .. } => "dup",
            Op::Shutdown { .. } => "shutdown",
            Op::Read { .. } => "read",
            Op::Write { .. } => "write",
            Op::Sync { .. } => "fsync",
            Op::Open { .. } => "open",
            Op::Metadata { .. } => "statx",
            Op::FutexWait { .. } => "futex",
            Op::Close { .. } => "close",
            #[cfg(target_os = "linux")]
            Op::Entry { .. } => "an entry",
        }
    }

    /// Whether it moves bytes from or to a file, by the memory it names or by registered memory.
    ///
    /// # Safety
    ///
    /// The entry may be read, if it is one.
    #[inline]
    pub unsafe fn is_transfer(&self) -> bool {
        match *self {
            Op::Read { .. } | Op::Write { .. } => true,
            #[cfg(target_os = "linux")]
            // SAFETY: by the caller.
            Op::Entry { entry } => unsafe { (*entry).is_transfer() },
            _ => false,
        }
    }

    /// Whether it never waits. Every engine carries such an operation out as it is submitted and
    /// answers [`Submitted::Done`].
    pub const fn is_immediate(&self) -> bool {
        matches!(
            self,
            Op::Socket { .. }
                | Op::SocketPair { .. }
                | Op::Bind { .. }
                | Op::Listen { .. }
                | Op::LocalAddress { .. }
                | Op::PeerAddress { .. }
                | Op::Duplicate { .. }
                | Op::Shutdown { .. }
                | Op::Close { .. }
        )
    }

    /// The descriptor it works on, if it works on one.
    pub const fn fd(&self) -> Option<RawFd> {
        match *self {
            Op::Nop
            | Op::Timer { .. }
            | Op::Open { .. }
            | Op::FutexWait { .. }
            | Op::Socket { .. }
            | Op::SocketPair { .. } => None,
            // It is asked for what it names where it may be read.
            #[cfg(target_os = "linux")]
            Op::Entry { .. } => None,
            Op::Poll { fd, .. }
            | Op::Recv { fd, .. }
            | Op::RecvPooled { fd, .. }
            | Op::Send { fd, .. }
            | Op::RecvMsg { fd, .. }
            | Op::SendMsg { fd, .. }
            | Op::Accept { fd, .. }
            | Op::Connect { fd, .. }
            | Op::Bind { fd, .. }
            | Op::Listen { fd, .. }
            | Op::LocalAddress { fd, .. }
            | Op::PeerAddress { fd, .. }
            | Op::Duplicate { fd }
            | Op::Shutdown { fd, .. }
            | Op::Read { fd, .. }
            | Op::Write { fd, .. }
            | Op::Sync { fd, .. }
            | Op::Metadata { fd, .. }
            | Op::Close { fd } => Some(fd),
        }
    }
}

/// The answer of [`Engine::submit`](crate::Engine::submit).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a pending operation still borrows its memory"]
pub enum Submitted {
    /// The operation is over; its memory is free again and its key will not land.
    Done(i32),
    /// [`Op::RecvPooled`] is over with this result, in the buffer of this number.
    DoneIn(i32, u16),
    /// The key will land exactly once (multishot operations aside) in a later turn.
    Pending,
}

/// An operation that has landed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The key it was submitted under.
    pub key: Key,
    /// The result of the system call, or `-errno`.
    pub res: i32,
    /// [`Completion::MORE`], and the engine's own bits.
    pub flags: u32,
}

impl Completion {
    /// The key will land again: this completion is not its last. Without it the memory named by
    /// the operation belongs to the submitter again.
    pub const MORE: u32 = 1 << 1;

    /// [`Op::RecvPooled`] has received into a buffer, whose number is the upper half of the flags.
    pub const BUFFER: u32 = 1 << 0;

    /// The number of the buffer that holds what was received; see [`Op::RecvPooled`].
    #[inline]
    pub const fn buffer(&self) -> Option<u16> {
        if self.flags & Self::BUFFER == 0 { None } else { Some((self.flags >> 16) as u16) }
    }

    /// The kernel has let go of the memory of a zero-copy send: its second completion.
    pub const NOTIF: u32 = 1 << 3;

    /// There was more in the socket than the receive took. A hint: only io_uring says so, and not of
    /// every socket.
    pub const SOCK_NONEMPTY: u32 = 1 << 2;

    /// Whether this says that a zero-copy send has let go of its memory.
    #[inline]
    pub const fn is_notification(&self) -> bool {
        self.flags & Self::NOTIF != 0
    }

    /// Whether this is the key's last completion.
    #[inline]
    pub const fn is_terminal(&self) -> bool {
        self.flags & Self::MORE == 0
    }
}

/// How long a turn may wait for the first completion. Timers of the engine end it in any case, and what else it
/// has to do by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all: take what is there.
    No,
    /// Until this instant.
    Until(Instant),
    /// Until something lands or the bell rings.
    Forever,
}

/// The completions of a turn, in the order in which they landed. Reused from turn to turn.
pub type Completions = Vec<Completion>;
