//! A ring that can no longer be entered: its thread goes on with a readiness engine.

use std::io;
use std::sync::Arc;

use kapok_engine::{AnyEngine, Engine, Key, Op};

use super::{IDLE, Loop, landing};
use crate::cell::{Landed, Landing, undisturbed};

impl Loop<AnyEngine> {
    /// Puts another engine in the place of one that has failed with `error`.
    ///
    /// What the ring had not begun, and what changes nothing, is begun again. What the kernel has
    /// memory of never lands: its slot and its request are left to it, and its waiter is told.
    ///
    /// # Errors
    ///
    /// If there is no other engine.
    #[cold]
    pub(crate) fn recover(&mut self, error: &io::Error) -> io::Result<()> {
        let broken = self.engine.kind();
        let salvage = self.engine.replace_broken()?;
        tracing::warn!(
            %error,
            held = salvage.held.len(),
            "the {broken} engine of I/O thread {} can no longer be entered, going on with {}",
            self.number,
            self.engine.kind(),
        );
        self.landed.extend(salvage.landed);
        for (key, op) in salvage.unseen {
            // SAFETY: the slot still keeps what it names, and the ring refers to nothing of it.
            unsafe { self.give_again(key, op, Landed::UNBEGUN) };
        }
        let shared = Arc::clone(&self.shared);
        let mut leaves_memory = false;
        for held in salvage.held {
            let index = held.key.index();
            let slot = &shared.slots[index];
            if !held.lends {
                // SAFETY: as above; it is this thread's, for it has not landed.
                unsafe { self.give_again(held.key, slot.op(), Landed::CANCELLED) };
                continue;
            }
            leaves_memory = true;
            self.carried[index as usize] = IDLE;
            self.in_flight -= 1;
            // SAFETY: the slot is this thread's until the landing below.
            unsafe { slot.more(Landed::LOST, &[]) };
            // SAFETY: the thread is the lander, and `carried` says that this is the only landing.
            if let Landing::Delivered(Some(waker)) = unsafe { slot.cell.land(Landed::LOST) } {
                undisturbed(|| waker.wake());
            }
        }
        if leaves_memory {
            // Requests that own memory which the kernel may write to lie in the slots.
            std::mem::forget(shared);
        }
        self.publish();
        Ok(())
    }
}

impl<E: Engine> Loop<E> {
    /// Gives an operation to the engine that has come in the place of its own, or lets it land with
    /// `cancelled`, if it was asked to land soon: that the broken one was told so died with it, and
    /// nobody asks again.
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`]. The slot is this thread's, and `carried` has the key.
    unsafe fn give_again(&mut self, key: Key, op: Op, cancelled: Landed) {
        if self.is_wanted(key.index()) {
            // SAFETY: by the caller.
            unsafe { self.give(key, op) };
        } else {
            self.landed.push(landing(key, cancelled));
        }
    }
}

#[cfg(all(test, not(loom)))]
impl<E: Engine> Loop<E> {
    /// What [`recover`](Loop::recover) does with an operation that names no memory.
    pub(super) fn give_nop_again(&mut self, key: Key) {
        // SAFETY: no memory is named.
        unsafe { self.give_again(key, Op::Nop, Landed::CANCELLED) };
    }
}
