//! Entries of the caller's own, one by one and in chains.
//!
//! A chain lies in the submission queue, or in the backlog, in one piece: it is pushed whole or not at
//! all, and `Ring::enter` submits it whole. Nothing of it is taken out again, because what is left
//! would hang on whatever comes next; who is to end it asks the kernel.

use std::io;

use linux_raw_sys::io_uring as uapi;

use super::ring::Sqe;
use super::{Form, Uring, encode};
use crate::entry::{BUFFER_SELECT, Entry, HARD_LINK, LINK, abi};
use crate::op::{Key, Submitted};

/// When the next entry of a chain begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// When the one before it has succeeded. If it fails, or a transfer is short, the rest of the chain
    /// lands with `-ECANCELED` (`IOSQE_IO_LINK`).
    OnSuccess,
    /// When the one before it is over (`IOSQE_IO_HARDLINK`).
    Always,
}

/// What an engine cannot have: `Err` is the errno.
fn admit(entry: &Entry) -> Result<(), i32> {
    let buffers = entry.flags & BUFFER_SELECT != 0
        || matches!(entry.opcode, abi::PROVIDE_BUFFERS | abi::REMOVE_BUFFERS);
    if entry.renames() {
        // The old key would never land.
        return Err(libc::EOPNOTSUPP);
    }
    if entry.counterfeits()
        || entry.aims_at_the_engine()
        || (buffers && entry.buf_group == encode::BUFFER_GROUP)
    {
        return Err(libc::EINVAL);
    }
    Ok(())
}

/// What stands in a chain for an entry whose descriptor was closed: it fails, and its key lands.
pub(super) fn bad_descriptor(sqe: &Sqe) -> Sqe {
    Sqe {
        opcode: abi::FSYNC,
        flags: sqe.flags & (LINK | HARD_LINK),
        fd: -1,
        user_data: sqe.user_data,
        ..Sqe::default()
    }
}

impl Uring {
    /// [`Op::Entry`](crate::Op::Entry).
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    #[inline(never)]
    pub(super) unsafe fn submit_entry(&mut self, key: Key, entry: *const Entry) -> Submitted {
        assert!(!key.is_reserved(), "{key:?} is not a key of operations");
        // SAFETY: by the caller.
        let sqe = unsafe { encode::copy(key, entry) };
        if let Err(errno) = admit(&sqe) {
            return Submitted::Done(-errno);
        }
        self.note_entry(key, entry, &sqe, Form::Entry);
        // SAFETY: by the caller.
        unsafe { self.push(sqe) };
        Submitted::Pending
    }

    /// Submits entries of which each begins when the one before it is over. Every key lands.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is none, or more than the submission queue holds; what
    /// [`submit`](crate::Engine::submit) lands with at once, `EINVAL` and `EOPNOTSUPP`, for an entry
    /// that an engine cannot have. Nothing is submitted then.
    ///
    /// Cancel the entry that runs. The kernel does not find one that has not begun: such a cancel is
    /// lost, and the entry begins in its turn.
    ///
    /// # Safety
    ///
    /// For each of them that of [`Engine::submit`](crate::Engine::submit). Its descriptors stay open until
    /// it has landed, also by [`Op::Close`](crate::Op::Close): the kernel looks them up as each begins.
    pub unsafe fn submit_chain(
        &mut self,
        chain: &[(Key, *const Entry)],
        link: Link,
    ) -> io::Result<()> {
        let most = self.ring.capacity() as usize;
        if chain.is_empty() || chain.len() > most {
            let message = format!("a chain has 1 to {most} entries, not {}", chain.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flag = match link {
            Link::OnSuccess => LINK,
            Link::Always => HARD_LINK,
        };
        let mut sqes = Vec::with_capacity(chain.len());
        for (at, &(key, entry)) in chain.iter().enumerate() {
            assert!(!key.is_reserved(), "{key:?} is not a key of operations");
            // SAFETY: by the caller.
            let mut sqe = unsafe { encode::copy(key, entry) };
            admit(&sqe).map_err(io::Error::from_raw_os_error)?;
            if at + 1 < chain.len() {
                sqe.flags |= flag;
            }
            sqes.push(sqe);
        }
        for (&(key, entry), sqe) in chain.iter().zip(&sqes) {
            self.note_entry(key, entry, sqe, Form::Chained);
        }
        let fits = self.backlog.is_empty() && sqes.len() <= self.ring.room() as usize;
        if !fits {
            self.backlogged += sqes.len() as u64;
        }
        self.backlog.extend(sqes);
        if fits {
            self.refill();
        }
        Ok(())
    }

    fn note_entry(&mut self, key: Key, entry: *const Entry, sqe: &Sqe, form: Form) {
        self.in_kernel += 1;
        self.note(key, sqe.descriptor(), sqe.opcode, form);
        let index = key.index() as usize;
        if index >= self.entries.len() {
            self.entries.resize((index + 1).next_power_of_two(), std::ptr::null());
        }
        self.entries[index] = entry;
    }

    /// Whether the entry of this key is one of a chain.
    pub(super) fn is_chained(&self, key: Key) -> bool {
        self.pending.get(key.index() as usize).is_some_and(|pending| {
            pending.generation == key.generation() && pending.form == Form::Chained
        })
    }

    /// Moves the chain at the front of the backlog to the submission queue, if there is room for all
    /// of it.
    #[cold]
    pub(super) fn refill_chain(&mut self) -> bool {
        let linked = self.backlog.iter().take_while(|sqe| sqe.is_linked()).count();
        let len = (linked + 1).min(self.backlog.len());
        if len > self.ring.room() as usize {
            return false;
        }
        for sqe in self.backlog.drain(..len) {
            // SAFETY: whoever queued the entry keeps the contract until its key lands.
            let pushed = unsafe { self.ring.push(sqe) };
            assert!(pushed, "there was room");
        }
        true
    }
}

// What a completion says is the kernel's own word.
const _: () = assert!(uapi::IORING_CQE_F_MORE == crate::op::Completion::MORE);
const _: () = assert!(uapi::IORING_CQE_F_NOTIF == crate::op::Completion::NOTIF);
const _: () = assert!(uapi::IORING_CQE_F_SOCK_NONEMPTY == crate::op::Completion::SOCK_NONEMPTY);
