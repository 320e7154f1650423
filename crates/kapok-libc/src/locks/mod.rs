//! Locks of the C library: a wait parks the fiber, and the fiber is the owner.
//!
//! [`mutexes`], [`others`] and [`waits`] are the calls. Behind them, an object a module; below those
//! the three ways to wait: at the object's own futex word, in the kernel's queue ([`futex`]); in a queue
//! beside the object ([`queue`]), where its own is not for fibers; and by trying again
//! ([`kernel_owned`]).
//!
//! What the C library keeps in its objects is looked at, at [`prepare`]: where it is not what these
//! modules know, they leave locks to it.

mod abandoned;
mod barrier;
mod condition;
pub(crate) mod deadline;
mod futex;
mod join;
mod kernel_owned;
mod mutex;
pub(crate) mod mutexes;
mod once;
pub(crate) mod others;
pub(crate) mod owner;
mod parker;
mod per_process;
mod queue;
mod read_write;
mod semaphore;
mod several;
mod stand_in;
mod system;
pub(crate) mod waits;
pub(crate) mod watched;

use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use per_process::PerProcess;
pub(crate) use watched::note_suspension;

/// Whether the objects of this C library are those that these modules know.
static KNOWN: AtomicBool = AtomicBool::new(false);

/// Whether locks are hooked.
#[inline]
pub(crate) fn are_known() -> bool {
    KNOWN.load(Ordering::Relaxed)
}

/// Forgets who waits and who holds, in the child of a fork: they are not here.
fn forget() {
    queue::forget();
    kernel_owned::forget();
    stand_in::forget();
    parker::forget();
    crate::threads::forget();
}

fn before_turn() {
    crate::allocator::warn();
    parker::before_turn();
}

/// Looks at the C library's objects, before any hook works, and has the child of a fork hold what the
/// fiber held that forked.
pub(crate) fn prepare() {
    static PREPARED: std::sync::Once = std::sync::Once::new();
    PREPARED.call_once(|| {
        let known = mutex::is_as_expected()
            && condition::is_as_expected()
            && read_write::is_as_expected()
            && semaphore::is_as_expected()
            && barrier::is_as_expected()
            && once::is_as_expected();
        if !known {
            eprintln!("kapok: the locks of this C library are not known: they block threads");
        }
        crate::allocator::prepare();
        owner::prepare();
        kapok::interpose::on_abandoned(abandoned::abandon);
        kapok::interpose::on_turns(before_turn, parker::after_turn);
        KNOWN.store(known, Ordering::Relaxed);
    });
}
