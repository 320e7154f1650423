//! Every operation of io_uring as plain data.
//!
//! An [`Entry`] is what io_uring_enter(2) reads: 64 bytes. There is one constructor for each
//! `io_uring_prep_*` of liburing, which writes the same fields; they are sorted into families, a file
//! each, and beside the constructors of a family stands its part of [`OPERATIONS`], the table from
//! which `docs/operations.md` is rendered.
//!
//! [`Op`](crate::Op) has what fibers need, shaped alike for all engines. An entry is for the rest of
//! io_uring: it goes to an engine as [`Op::Entry`](crate::Op::Entry), and to a ring alone, several at
//! once and one after the other, by [`Uring::submit_chain`](crate::uring::Uring::submit_chain).
//!
//! # What an entry does and does not do
//!
//! * It is as raw as liburing's. Nothing is added to the flags: who wants a descriptor that is
//!   close-on-exec passes `O_CLOEXEC` or `SOCK_CLOEXEC`. (Off io_uring descriptors are always
//!   close-on-exec, as of all of Kapok.) No entry raises `SIGPIPE` off io_uring, and no send does on
//!   it.
//! * Results are those of the system call of the same name, or `-errno`.
//! * A kernel that does not have an operation lands it with `-EINVAL` (commands with
//!   `-EOPNOTSUPP`). [`Uring::operations`](crate::uring::Uring::operations) says beforehand.
//! * Off io_uring, on readiness engines and on plain threads, what has a system call is carried out by
//!   it, and what has none lands with `-EOPNOTSUPP`. The table says which. What may block is handed to
//!   an [`offload`](crate::offload) thread, which a cancel does not reach once it has begun.
//! * Some entries land more than once: see [`Completion::MORE`](crate::Completion::MORE). Off io_uring
//!   all of them land once, so who uses them must be ready to start them again, as with io_uring
//!   itself, which may end them at any time.
//! * In a simulated world every entry lands with `-EOPNOTSUPP`.

pub(crate) mod abi;
mod buffers;
mod cancel;
mod command;
pub(crate) mod decode;
mod direct;
mod files;
mod futex;
mod message;
mod multishot;
mod open;
mod paths;
mod pipes;
mod poll;
mod sockets;
mod table;
mod timeout;
mod transfers;
mod waitid;
mod xattr;
mod zero_copy;

pub(crate) use poll::poll_field;
pub(crate) use table::name;

pub use command::{
    BLOCK_DISCARD, BLOCK_ZONE_RESET_ALL, SOCKET_GETSOCKNAME, SOCKET_GETSOCKOPT, SOCKET_SETSOCKOPT,
    SOCKET_SIOCINQ, SOCKET_SIOCOUTQ,
};
pub use direct::Slot;
pub use futex::FutexWait;
pub(crate) use futex::{FUTEX_OF_32_BITS, FUTEX_PRIVATE};
pub use table::{Elsewhere, OPERATIONS, Operation, render};
pub use timeout::Timespec;

use std::os::fd::RawFd;

use linux_raw_sys::io_uring::io_uring_sqe_flags_bit as bit;

use crate::op::MAX_TRANSFER;

/// The descriptor is an index into the table of direct descriptors.
pub(crate) const FIXED_FILE: u8 = 1 << bit::IOSQE_FIXED_FILE_BIT as u8;
/// The next entry begins when this one has succeeded.
pub(crate) const LINK: u8 = 1 << bit::IOSQE_IO_LINK_BIT as u8;
/// The next entry begins when this one is over.
pub(crate) const HARD_LINK: u8 = 1 << bit::IOSQE_IO_HARDLINK_BIT as u8;
/// Do not try first what may block.
pub(crate) const ASYNC: u8 = 1 << bit::IOSQE_ASYNC_BIT as u8;
/// The kernel is to take a buffer of the entry's group.
pub(crate) const BUFFER_SELECT: u8 = 1 << bit::IOSQE_BUFFER_SELECT_BIT as u8;

/// A submission queue entry, with its unions flattened to the widest form of each field.
///
/// Made by one of its constructors, each of which is an `io_uring_prep_*` of liburing and documented
/// by its man page (io_uring_prep_read(3) and so on). Making an entry is safe; submitting it is not:
/// every pointer in it obeys [`Engine::submit`](crate::Engine::submit). It has no `user_data`: the
/// engine writes the key there.
///
/// ```
/// use kapok_engine::entry::Entry;
///
/// let entry = Entry::fallocate(3, libc::FALLOC_FL_KEEP_SIZE, 0, 4096);
/// assert_eq!(entry.to_bytes()[0], 17, "IORING_OP_FALLOCATE");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    pub(crate) opcode: u8,
    /// `IOSQE_*`.
    pub(crate) flags: u8,
    /// Priority, or the `IORING_RECVSEND_*` and `IORING_ACCEPT_*` flags.
    pub(crate) ioprio: u16,
    pub(crate) fd: i32,
    /// Offset, or a second address, or the number of a command.
    pub(crate) off: u64,
    pub(crate) addr: u64,
    pub(crate) len: u32,
    /// `msg_flags`, `fsync_flags`, `poll32_events`, `cancel_flags`, …
    pub(crate) op_flags: u32,
    pub(crate) user_data: u64,
    /// The group of provided buffers, or the index of a registered one.
    pub(crate) buf_group: u16,
    pub(crate) personality: u16,
    /// The place of a new direct descriptor plus one, a second descriptor, the length of an option.
    pub(crate) file_index: u32,
    pub(crate) addr3: u64,
    pub(crate) reserved: u64,
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Entry {
    /// What `io_uring_prep_rw` writes.
    #[inline]
    fn new(opcode: u8, fd: RawFd, addr: u64, len: u32, off: u64) -> Entry {
        Entry { opcode, fd, addr, len, off, ..Entry::default() }
    }

    /// Has the descriptor stand for an index into the ring's table of
    /// [direct descriptors](crate::uring::Uring::register_files_sparse) (`IOSQE_FIXED_FILE`).
    #[must_use]
    pub fn on_direct_descriptor(mut self) -> Entry {
        self.flags |= FIXED_FILE;
        self
    }

    /// Has the kernel take a buffer of `group` when bytes have come (`IOSQE_BUFFER_SELECT`): see
    /// [`Entry::provide_buffers`] and [`Uring::add_buffers`](crate::uring::Uring::add_buffers).
    /// Group 0 is the engine's own; an entry that names it is refused with `-EINVAL`.
    #[must_use]
    pub fn with_buffer_group(mut self, group: u16) -> Entry {
        self.flags |= BUFFER_SELECT;
        self.buf_group = group;
        self
    }

    /// Has one of the kernel's worker threads do it at once, without a first attempt that may not
    /// block (`IOSQE_ASYNC`).
    #[must_use]
    pub fn by_worker(mut self) -> Entry {
        self.flags |= ASYNC;
        self
    }

    /// The number of its operation, `IORING_OP_*`.
    pub const fn opcode(&self) -> u8 {
        self.opcode
    }

    /// The name of its operation, that of the system call where there is one.
    pub fn name(&self) -> &'static str {
        table::name(self.opcode)
    }

    /// The bytes that the kernel reads, but for the `user_data` (bytes 32 to 40), which is zero.
    pub fn to_bytes(&self) -> [u8; 64] {
        // SAFETY: `repr(C)`, integers only, and as large as the sum of its fields: every byte of it
        // is initialized.
        unsafe { std::mem::transmute::<Entry, [u8; 64]>(*self) }
    }

    /// The descriptor that it works on, or a negative number: none, the current directory, an index
    /// into the table of direct descriptors. Of a splice that is the one it writes to.
    pub const fn descriptor(&self) -> RawFd {
        let names_none = matches!(
            self.opcode,
            abi::NOP
                | abi::NOP128
                | abi::POLL_REMOVE
                | abi::TIMEOUT
                | abi::TIMEOUT_REMOVE
                | abi::LINK_TIMEOUT
                | abi::ASYNC_CANCEL
                | abi::FILES_UPDATE
                | abi::MADVISE
                | abi::PROVIDE_BUFFERS
                | abi::REMOVE_BUFFERS
                | abi::GETXATTR
                | abi::SETXATTR
                | abi::SOCKET
                | abi::WAITID
                | abi::FUTEX_WAIT
                | abi::FUTEX_WAKE
                | abi::FUTEX_WAITV
                | abi::PIPE
        ) || matches!(self.opcode, abi::CLOSE) && self.file_index != 0
            || self.flags & FIXED_FILE != 0;
        // With an absolute path any number is right. -1 stands for all that are none.
        if names_none || self.fd < -1 { -1 } else { self.fd }
    }

    /// The group that the kernel is to take a buffer from: see
    /// [`with_buffer_group`](Entry::with_buffer_group).
    pub const fn buffer_group(&self) -> Option<u16> {
        if self.flags & BUFFER_SELECT != 0 { Some(self.buf_group) } else { None }
    }

    /// Whether it moves bytes between memory and a file.
    pub(crate) const fn is_transfer(&self) -> bool {
        matches!(
            self.opcode,
            abi::READ
                | abi::WRITE
                | abi::READ_FIXED
                | abi::WRITE_FIXED
                | abi::READV
                | abi::WRITEV
                | abi::READV_FIXED
                | abi::WRITEV_FIXED
        )
    }

    /// Whether `fd` is one of the descriptors that it works on.
    pub(crate) fn works_on(&self, fd: RawFd) -> bool {
        let takes_from = matches!(self.opcode, abi::SPLICE | abi::TEE)
            && self.op_flags & pipes::IN_IS_DIRECT == 0
            && self.file_index as i32 == fd;
        self.descriptor() == fd || takes_from
    }

    /// Whether the one that follows waits for it.
    pub(crate) const fn is_linked(&self) -> bool {
        self.flags & (LINK | HARD_LINK) != 0
    }
}

/// An address as an entry carries it. The kernel, or `sys::entry`, makes a pointer of it again.
#[inline]
fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// What one transfer may move.
#[inline]
fn transfer(len: usize) -> u32 {
    len.min(MAX_TRANSFER) as u32
}

/// Two 32-bit fields where an entry has one of 64.
fn halves(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// The two 32-bit fields again.
pub(crate) fn split(field: u64) -> (u32, u32) {
    let bytes = field.to_ne_bytes();
    let half =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (half(0), half(4))
}

/// A 16-bit field that shares its place with one of 32.
fn first_half(value: u16) -> u32 {
    let [first, second] = value.to_ne_bytes();
    u32::from_ne_bytes([first, second, 0, 0])
}

/// That field again.
pub(crate) fn first_half_of(field: u32) -> u16 {
    let [first, second, ..] = field.to_ne_bytes();
    u16::from_ne_bytes([first, second])
}
