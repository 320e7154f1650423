//! A request: what a slot carries for one operation, and what becomes of it.

use std::io;

use kapok_engine::Op;

use crate::cell::Landed;

/// An operation together with everything it needs until it has landed: its buffer, what keeps its
/// descriptor open, the memory that its pointers point to. Plain data and no `dyn`.
///
/// The pool moves a request to where it stays, asks it for its [`op`](Request::op), and gives the
/// outcome to [`finish`](Request::finish), or to [`abandon`](Request::abandon) if nobody waits any
/// more. An [`Op::RecvPooled`] is none of them: the buffer that it lands in would never go back. Every operation of the pool is one; implement it for one that the pool does not have.
///
/// # Safety
///
/// The [`Op`] that `op` returns names only memory that stays valid, unmoved and unaliased as long as
/// the request exists and is not moved, and a descriptor that stays open as long. Memory that the
/// request points to (a vector's) stays where it is even if the request moves.
pub unsafe trait Request: Send + 'static {
    /// What it comes to.
    type Output;

    /// Whether [`abandon`](Request::abandon) neither blocks nor runs code of others, and may run on an
    /// I/O thread. If not, it runs on an [offload](kapok_engine::offload) thread.
    const QUIET: bool;

    /// The operation. May be asked for again after a move, before it is submitted.
    fn op(&mut self) -> Op;

    /// From now on [`op`](Request::op) is to be one that any ring can carry out, and a thread: it names
    /// nothing that the pool's rings alone know.
    fn leave_rings(&mut self) {}

    /// Tries the operation in the calling thread if that never waits: a result as it would land, or
    /// `None`, and nothing was done, or only a part, after which [`op`](Request::op) is the rest.
    ///
    /// `always` if it is to be tried whatever became of earlier tries.
    fn attempt(&mut self, always: bool) -> Option<i32> {
        let _ = always;
        None
    }

    /// A landing that is not the last: of an operation that lands again and again (an [`Op::Entry`] of
    /// that kind). `bytes` are what the kernel put into a buffer of the thread's, of the group
    /// [`BUFFER_GROUP`], also with the last landing; they are gone afterwards. Runs on the I/O thread, whoever waits,
    /// or nobody, and must not block.
    ///
    /// Says whether it is to go on. If not it is cancelled, and may land a few times more.
    fn more(&self, landed: Landed, bytes: &[u8]) -> bool {
        let _ = (landed, bytes);
        false
    }

    /// It will never land: the ring broke, and the kernel may use the memory of it for good. Nothing of it
    /// is dropped, and it is asked nothing more. Runs on the I/O thread, and must not block.
    fn lost(&self) {}

    /// The outcome. `Err` is a negative result as an error, or why it was never submitted.
    fn finish(self, landed: io::Result<Landed>) -> Self::Output;

    /// The outcome of an operation that was never begun, and why. No errno tells: system calls answer
    /// the same ones. By default it is [`finish`](Request::finish) with the error.
    fn finish_unbegun(self, why: io::Error) -> Self::Output
    where
        Self: Sized,
    {
        self.finish(Err(why))
    }

    /// The outcome where nobody waits for it: its parts are dropped, unless it has something to save.
    fn abandon(self, landed: Landed)
    where
        Self: Sized,
    {
        drop(landed.outcome_of(self));
    }
}

/// The group of buffers that each I/O thread with a ring has, for entries
/// [of it](kapok_engine::entry::Entry::with_buffer_group): what was received goes to
/// [`more`](Request::more). Where there is no ring, such an operation lands with `EOPNOTSUPP`.
pub const BUFFER_GROUP: u16 = 1;

impl Landed {
    /// What landed after an operation that never was begun. Its flag is none that a completion has.
    pub(crate) const UNBEGUN: Landed = Landed { res: -libc::ECANCELED, flags: 1 << 14 };

    /// What landed after an operation that was begun and of which nobody will say what became.
    pub(crate) const CANCELLED: Landed = Landed { res: -libc::ECANCELED, flags: 0 };

    /// Instead of a landing that will never be: the ring has broken. No errno is so large.
    pub(crate) const LOST: Landed = Landed { res: i32::MIN, flags: 0 };

    /// What a request comes to that has landed with this.
    #[inline]
    pub(crate) fn outcome_of<R: Request>(self, request: R) -> R::Output {
        match self.into_result() {
            Err(why) if self == Landed::UNBEGUN => request.finish_unbegun(why),
            result => request.finish(result),
        }
    }

    /// The result as the system call has it: `-errno` as an error.
    pub fn into_result(self) -> io::Result<Landed> {
        if self.res < 0 { Err(io::Error::from_raw_os_error(-self.res)) } else { Ok(self) }
    }
}
