//! The seam: what an engine is.

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Instant;

use crate::bell::Bell;
use crate::buffers::Buffers;
use crate::op::{Completions, Key, Op, Submitted, Wait};
use crate::stats::EngineStats;

/// Carries out operations and says when they have landed.
///
/// An engine belongs to the thread that made it; only its [`Bell`] leaves that thread. In the child
/// of a fork(2) it is neither used nor dropped: what it stands on is its parent's. It never calls
/// back: what lands is returned by [`turn`](Engine::turn).
///
/// # What every engine promises
///
/// * A key that was answered with [`Submitted::Pending`] lands exactly once without
///   [`MORE`](crate::Completion::MORE), whatever happens: success, failure, cancel, its descriptor
///   closed under it. Until then the engine or the kernel may touch the operation's memory; from
///   then on neither does.
/// * [`cancel`](Engine::cancel) is a hint. The key lands with what the operation came to: if it had
///   succeeded by then, with its result, and with `-ECANCELED` only if it did nothing.
/// * Nothing is lost for want of room: a submission that does not fit is kept and submitted later.
/// * Dropping an engine cancels what is in flight and waits, bounded, for it to land. If something
///   does not, the engine's own memory that the kernel may still write to is leaked, not freed. The
///   caller's memory is the caller's to keep, which is why a loop drains before it drops.
pub trait Engine {
    /// Starts an operation.
    ///
    /// # Safety
    ///
    /// Memory named by `op` stays valid, unmoved and unaliased (shared, for memory that is only
    /// read) until this returns [`Submitted::Done`] or [`turn`](Engine::turn) yields `key` without
    /// `MORE`. `key` is not in flight and not [reserved](Key::is_reserved). Descriptors named by
    /// `op` are open, and if they are closed before the key lands, by nobody but a caller who
    /// accepts that the operation may still act on the old one. (Buffers that an entry provides to the
    /// kernel, [`provide_buffers`](crate::entry::Entry::provide_buffers), stay lent beyond its landing:
    /// until they are removed, or the engine is gone.)
    unsafe fn submit(&mut self, key: Key, op: Op) -> Submitted;

    /// Asks for `key` to land soon. Unknown keys, and keys that have landed, are ignored.
    fn cancel(&mut self, key: Key);

    /// Takes back a timer. `true`: it had not gone off, and its key will not land any more.
    /// `false`: it lands, or has landed, or never was.
    fn disarm(&mut self, key: Key) -> bool;

    /// Submits what was kept, waits as `wait` says for something to land or the bell to ring, and
    /// appends what has landed to `out`.
    ///
    /// If something lands at once it does not wait. It may return without anything: a bell, a
    /// signal, a spurious wake-up.
    ///
    /// # Errors
    ///
    /// Only if the engine is broken for good, as when a seccomp filter installed in mid-run denies
    /// its system calls. What has landed by then is in `out` all the same; what a broken ring holds
    /// never lands, see [`AnyEngine::replace_broken`](crate::AnyEngine::replace_broken). Failures of
    /// operations land with the operation.
    fn turn(&mut self, wait: Wait, out: &mut Completions) -> io::Result<()>;

    /// The bell that ends a turn early.
    fn bell(&self) -> Bell;

    /// How many keys are pending.
    fn in_flight(&self) -> usize;

    /// What the engine has counted of itself. Cheap enough for every turn.
    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }

    /// The engine's clock, which [`Op::Timer`] is read against. Real engines return
    /// [`Instant::now`].
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Hands over what was submitted, if it is `at_least` so many operations and fewer than `busy` are under
    /// way, and takes nothing in: so that a device begins while others are still being prepared. Otherwise
    /// that is for the next turn.
    #[inline]
    fn flush(&mut self, at_least: usize, busy: usize) {
        let _ = (at_least, busy);
    }

    /// Whether there is something that only a turn gets on with, as far as can be told without a
    /// system call.
    #[inline]
    fn wants_turn(&self) -> bool {
        false
    }

    /// Whether a send on `fd` that does not wait may be made beside the engine, because nothing that
    /// it has would have to come first.
    #[inline]
    fn sends_at_once(&self, fd: RawFd) -> bool {
        let _ = fd;
        false
    }

    /// The buffers that [`Op::RecvPooled`] lands in, once it has landed in one.
    fn buffers(&self) -> Option<&Rc<Buffers>> {
        None
    }

    /// The smallest descriptor number that this engine can *not* wait for, if there is one:
    /// `FD_SETSIZE` for select(2). Operations on such a descriptor land with `-EMFILE`.
    fn descriptor_limit(&self) -> Option<i32> {
        None
    }
}
