//! What is left of a broken ring.

use std::rc::Rc;

use crate::buffers::Buffers;
use crate::op::{Completions, Key, Op};

/// What was in flight on a ring when it was given up: see
/// [`AnyEngine::replace_broken`](crate::AnyEngine::replace_broken). Each pending key is in exactly
/// one of the three.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Salvage {
    /// Operations that had landed. To be taken like those of a turn.
    pub landed: Completions,
    /// The buffers that those of [`Op::RecvPooled`] have landed in.
    pub buffers: Option<Rc<Buffers>>,
    /// Operations that the kernel has never seen, timers included, in the order of their submission
    /// (timers in none). Nothing of them is lent any more: they may be submitted again under the
    /// same key, which is not in flight, or dropped.
    pub unseen: Vec<(Key, Op)>,
    /// Operations that the kernel has. Their keys never land.
    pub held: Vec<Held>,
}

/// An operation of which nobody will ever say what became of it.
///
/// It may have happened, may happen yet or may never happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Held {
    /// The key it was submitted under.
    pub key: Key,
    /// The operation, by the name of its system call.
    pub name: &'static str,
    /// Whether it names memory, which the kernel may read or write at any time until the process
    /// ends. An operation that names none changes nothing and may be made again.
    pub lends: bool,
}
