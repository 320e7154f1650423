//! Whether those who lent memory keep their promise: not to touch it before the operation lands.
//!
//! Room for a receive is filled with a pattern while the operation waits, and put back as it was
//! before anything is written to it. So whoever reads the room early reads garbage, and whoever
//! writes to it, because it was freed or used for something else, breaks the pattern. The bytes of
//! a send, and those of a receive that is over but has not landed, are remembered by a digest.

use std::mem::MaybeUninit;

use crate::op::{Key, Op};
use crate::sim::digest::Digest;
use crate::sim::memory::Regions;
use crate::sim::random::mix;

/// What an operation has lent, and how it must look.
pub(super) enum Loan {
    /// Nothing, or nothing that is watched.
    None,
    /// Room with a pattern in it, and what was there before.
    Room { regions: Regions, saved: Vec<MaybeUninit<u8>>, pattern: u64 },
    /// Bytes that must stay as they are.
    Bytes { regions: Regions, count: usize, digest: u64 },
}

impl Loan {
    /// Begins to watch the memory of `op`, of which `progress` bytes are done.
    ///
    /// # Safety
    ///
    /// `op` is as [`Engine::submit`](crate::Engine::submit) wants it, and stays so until this loan
    /// is [taken back](Loan::take_back).
    pub(super) unsafe fn of(op: &Op, progress: i32, key: Key, seed: u64) -> Loan {
        // SAFETY: the caller's promise, here and below.
        let regions = unsafe { Regions::of(op) };
        match op {
            Op::Recv { .. } | Op::RecvMsg { .. } | Op::Read { .. } => {
                let regions = regions.after(progress as usize);
                let pattern = mix(seed ^ mix(key.bits()));
                // SAFETY: as above: it is lent for writing.
                unsafe {
                    let saved = regions.save();
                    regions.put(&patterned(pattern, saved.len()));
                    Loan::Room { regions, saved, pattern }
                }
            }
            Op::Send { .. } | Op::SendMsg { .. } | Op::Write { .. } => {
                let count = regions.len();
                // SAFETY: as above.
                unsafe { Loan::bytes(regions, count) }
            }
            _ => Loan::None,
        }
    }

    /// Begins to watch what a receive brought, until it lands.
    ///
    /// # Safety
    ///
    /// As for [`of`](Loan::of); the first `count` bytes are there.
    pub(super) unsafe fn of_result(op: &Op, count: usize) -> Loan {
        // SAFETY: the caller's promise.
        unsafe { Loan::bytes(Regions::of(op), count) }
    }

    /// # Safety
    ///
    /// As for [`of`](Loan::of).
    unsafe fn bytes(regions: Regions, count: usize) -> Loan {
        // SAFETY: the caller's promise.
        let digest = Digest::of(&unsafe { regions.get(count) });
        Loan::Bytes { regions, count, digest }
    }

    /// Ends the loan, and puts the room back as it was. Says whether nobody has touched it.
    ///
    /// # Safety
    ///
    /// The memory is still lent.
    pub(super) unsafe fn take_back(self) -> bool {
        match self {
            Loan::None => true,
            Loan::Room { regions, saved, pattern } => {
                // SAFETY: the caller's promise; the room is full of the pattern.
                unsafe {
                    let kept = regions.get(saved.len()) == patterned(pattern, saved.len());
                    regions.restore(&saved);
                    kept
                }
            }
            Loan::Bytes { regions, count, digest } => {
                // SAFETY: the caller's promise.
                Digest::of(&unsafe { regions.get(count) }) == digest
            }
        }
    }
}

fn patterned(pattern: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut word = pattern;
    while bytes.len() < len {
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bytes.extend_from_slice(&mix(word).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
