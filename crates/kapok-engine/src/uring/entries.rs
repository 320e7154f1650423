//! Entries of the caller's own, one by one and in chains.
//!
//! A chain lies in the submission queue, or in the backlog, in one piece: it is pushed whole or not at
//! all, and `Ring::enter` submits it whole. Nothing of it is taken out again, because what is left
//! would hang on whatever comes next; who is to end it asks the kernel.
//!
//! The engine makes chains of its own, of writes and syncs:
//!
//! ```text
//!   write ── hard link ──► nop         Holding ── write lands: noted ──► LettingGo ── nop lands: told ──►
//!                                         └─────── nop lands ──► Op ── write lands: told ──►
//! ```
//!
//! A worker of the kernel that carries an operation out tells the ring of its end, and lets go of it after
//! that. By then whoever waits may have closed the file and looked whether it is closed. What is linked to
//! an operation begins when all have let go of it (`io_req_find_next` in the kernel's `io_uring.c`). Where
//! the kernel has no memory for the second it has cut the chain, and that comes when it may.

use std::io;

use linux_raw_sys::io_uring as uapi;

use super::ring::Sqe;
use super::{FOLLOWERS, Form, NO_DESCRIPTOR, Pending, Uring, cancel, encode};
use crate::entry::{BUFFER_SELECT, Entry, HARD_LINK, LINK, abi};
use crate::op::{Completion, Key, Op, Submitted};
use crate::sys;

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

/// Whether one of the kernel's workers may carry it out, and what is closed after it is to be closed. What
/// follows costs half a microsecond. A write past the page cache takes ten, and has a worker only where it makes
/// the file larger.
#[inline]
pub(super) fn may_have_a_worker(op: &Op) -> bool {
    match *op {
        Op::Write { offset: Op::CURRENT_POSITION, .. } | Op::Sync { .. } => true,
        Op::Write { fd, .. } => !sys::is_direct(fd),
        _ => false,
    }
}

/// The key of what follows this operation. There is one at most for a slot: whoever has the slot next has
/// waited for both.
pub(super) fn follower(key: Key) -> Key {
    Key::new(FOLLOWERS + key.index(), Key::RESERVED_GENERATION)
}

/// The slot of the operation that this one follows.
pub(super) fn followed(key: Key) -> Option<u32> {
    key.index().checked_sub(FOLLOWERS).filter(|&index| (index as usize) < cancel::MOST_SLOTS)
}

/// Notes that what follows has landed. What there is to tell then.
#[inline]
pub(super) fn let_go(pending: &mut Pending, index: u32) -> Option<Completion> {
    match pending.form {
        Form::LettingGo => {
            pending.fd = NO_DESCRIPTOR;
            let key = Key::new(index, pending.generation);
            Some(Completion { key, res: pending.res, flags: 0 })
        }
        _ => {
            pending.form = Form::Op;
            None
        }
    }
}

impl Uring {
    /// [`Op::Entry`].
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
    /// The kernel does not find an entry that has not begun: a cancel of one is asked for again until it has landed,
    /// after a millisecond at first, and each time after twice as long, up to an eighth of a second. It ends if it
    /// has begun and not landed by then.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is none, or more than the submission queue holds; what
    /// [`submit`](crate::Engine::submit) lands with at once, `EINVAL` and `EOPNOTSUPP`, for an entry
    /// that an engine cannot have. Nothing is submitted then.
    ///
    /// # Safety
    ///
    /// For each of them that of [`Engine::submit`](crate::Engine::submit). Its descriptors stay open until
    /// it has landed, also by [`Op::Close`]: the kernel looks them up as each begins.
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
        // SAFETY: by the caller.
        unsafe { self.push_chain(&sqes) };
        Ok(())
    }

    /// Queues a chain, behind what waits already.
    ///
    /// # Safety
    ///
    /// That of [`push`](Uring::push), for each.
    #[inline]
    unsafe fn push_chain(&mut self, chain: &[Sqe]) {
        if self.backlog.is_empty() && chain.len() <= self.ring.room() as usize {
            for &sqe in chain {
                // SAFETY: by the caller.
                let pushed = unsafe { self.ring.push(sqe) };
                assert!(pushed, "there was room");
            }
            return;
        }
        self.backlogged += chain.len() as u64;
        self.backlog.extend(chain);
    }

    /// Queues an operation that lands when the kernel has let go of its file.
    ///
    /// # Safety
    ///
    /// That of [`push`](Uring::push).
    #[inline]
    pub(super) unsafe fn push_to_let_go(&mut self, mut sqe: Sqe) {
        sqe.flags |= HARD_LINK;
        let after = encode::nop(follower(Key::from_bits(sqe.user_data)));
        // SAFETY: by the caller; the other names nothing.
        unsafe { self.push_chain(&[sqe, after]) };
    }

    fn note_entry(&mut self, key: Key, entry: *const Entry, sqe: &Sqe, form: Form) {
        self.note(key, sqe.descriptor(), sqe.opcode, form);
        self.in_kernel += 1;
        let index = key.index() as usize;
        if index >= self.entries.len() {
            self.entries.resize((index + 1).next_power_of_two(), std::ptr::null());
        }
        self.entries[index] = entry;
    }

    /// Whether the operation of this key has this form.
    pub(super) fn is_of(&self, key: Key, form: Form) -> bool {
        self.pending
            .get(key.index() as usize)
            .is_some_and(|pending| pending.generation == key.generation() && pending.form == form)
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
