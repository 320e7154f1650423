//! What a ring is given beforehand: tables of descriptors and of buffers, and groups of buffers.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

use linux_raw_sys::io_uring::{self as uapi, io_uring_register_op as register_op};

use super::{Uring, encode};
use crate::buffers::Buffers;

/// The operations that a kernel knows, by number.
#[derive(Clone, Debug)]
pub struct Operations {
    known: [bool; 256],
}

impl Operations {
    /// Whether the kernel knows this operation, `IORING_OP_*`: see
    /// [`Operation::opcode`](crate::entry::Operation). What it knows it may still refuse, for a flag
    /// or for the kind of descriptor.
    pub fn has(&self, opcode: u8) -> bool {
        self.known[usize::from(opcode)]
    }
}

/// `struct io_uring_probe` with room for all there can be.
#[repr(C)]
struct Probe {
    last_op: u8,
    ops_len: u8,
    reserved: [u16; 7],
    ops: [uapi::io_uring_probe_op; 256],
}

const _: () = assert!(std::mem::offset_of!(Probe, ops) == size_of::<uapi::io_uring_probe>());

impl AsRawFd for Uring {
    /// The ring's descriptor, to which other rings send
    /// [messages](crate::entry::Entry::msg_ring). Nobody but this engine enters it.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.descriptor()
    }
}

impl Uring {
    /// Asks the kernel for the operations that it knows.
    ///
    /// # Errors
    ///
    /// What io_uring_register(2) says.
    pub fn operations(&self) -> io::Result<Operations> {
        let none = uapi::io_uring_probe_op { op: 0, resv: 0, flags: 0, resv2: 0 };
        let mut probe =
            Box::new(Probe { last_op: 0, ops_len: 0, reserved: [0; 7], ops: [none; 256] });
        // SAFETY: as many as there is room for, and the probe outlives the call.
        unsafe { self.give(register_op::IORING_REGISTER_PROBE, &raw mut *probe, 256) }?;
        let mut known = [false; 256];
        for operation in &probe.ops[..usize::from(probe.ops_len)] {
            let is_supported = u32::from(operation.flags) & uapi::IO_URING_OP_SUPPORTED != 0;
            known[usize::from(operation.op)] = is_supported;
        }
        Ok(Operations { known })
    }

    /// Makes a table for `count` direct descriptors, all places empty: see
    /// [`entry::Slot`](crate::entry::Slot). The files in it stay open until they are closed or the ring
    /// is gone.
    ///
    /// # Errors
    ///
    /// What io_uring_register(2) says: `EBUSY` if there is one already, `EMFILE` for more than
    /// RLIMIT_NOFILE.
    pub fn register_files_sparse(&mut self, count: u32) -> io::Result<()> {
        let mut table = uapi::io_uring_rsrc_register {
            nr: count,
            flags: uapi::IORING_RSRC_REGISTER_SPARSE,
            resv2: 0,
            data: 0,
            tags: 0,
        };
        let size = size_of_val(&table) as u32;
        // SAFETY: the argument outlives the call, and its size is what this one counts.
        unsafe { self.give(register_op::IORING_REGISTER_FILES2, &raw mut table, size) }
    }

    /// Lets go of the table of direct descriptors.
    ///
    /// # Errors
    ///
    /// What io_uring_register(2) says: `ENXIO` if there is none.
    pub fn unregister_files(&mut self) -> io::Result<()> {
        let nothing = std::ptr::null_mut::<u8>();
        // SAFETY: it has no argument.
        unsafe { self.give(register_op::IORING_UNREGISTER_FILES, nothing, 0) }
    }

    /// Registers memory for the fixed transfers of [`entry`](crate::entry), which name it by its place
    /// in `buffers`: the kernel keeps its pages at hand.
    ///
    /// # Errors
    ///
    /// What io_uring_register(2) says: `EBUSY` if there is some already, `ENOMEM` for more than
    /// RLIMIT_MEMLOCK, `EFAULT`, `EINVAL`.
    ///
    /// # Safety
    ///
    /// The memory stays mapped, and is used by nobody who does not expect its bytes to change, until
    /// [`unregister_buffers`](Uring::unregister_buffers) or the engine is dropped. The kernel reads and
    /// writes it only as operations say that name it; for those [`Engine::submit`] holds.
    ///
    /// [`Engine::submit`]: crate::Engine::submit
    pub unsafe fn register_buffers(&mut self, buffers: &[libc::iovec]) -> io::Result<()> {
        let count = u32::try_from(buffers.len()).unwrap_or(u32::MAX);
        let buffers = buffers.as_ptr().cast_mut();
        // SAFETY: as many as the slice has, which are only read; the memory is by the caller.
        unsafe { self.give(register_op::IORING_REGISTER_BUFFERS, buffers, count) }
    }

    /// Lets go of the registered memory. Operations that use it go on with it.
    ///
    /// # Errors
    ///
    /// What io_uring_register(2) says: `ENXIO` if there is none.
    pub fn unregister_buffers(&mut self) -> io::Result<()> {
        let nothing = std::ptr::null_mut::<u8>();
        // SAFETY: it has no argument.
        unsafe { self.give(register_op::IORING_UNREGISTER_BUFFERS, nothing, 0) }
    }

    /// Makes a group of 128 buffers of this size for entries
    /// [with that group](crate::entry::Entry::with_buffer_group). A landing that has taken one
    /// [names it](crate::Completion::buffer), and it is the submitter's until
    /// [given back](Buffers::give_back); with `-ENOBUFS` there was none left.
    ///
    /// The engine keeps the group until it is dropped.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for group 0, which is the engine's own, and for buffers of no size; `EEXIST` for
    /// one that there is already; no memory.
    pub fn add_buffers(&mut self, group: u16, bytes: u32) -> io::Result<Rc<Buffers>> {
        if group == encode::BUFFER_GROUP || bytes == 0 {
            let message = format!("no group {group} of buffers of {bytes} bytes can be added");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let buffers = Buffers::new(bytes as usize, true)?;
        self.ring.register_buffers(group, buffers.ring(), buffers.count())?;
        self.groups.push(Rc::clone(&buffers));
        Ok(buffers)
    }

    /// # Safety
    ///
    /// That of `Ring::register`.
    unsafe fn give<T>(&self, what: register_op, argument: *mut T, count: u32) -> io::Result<()> {
        // SAFETY: by the caller.
        let given = unsafe { self.ring.register(what as u32, argument.cast(), count) };
        given.map(drop).map_err(io::Error::from_raw_os_error)
    }
}
