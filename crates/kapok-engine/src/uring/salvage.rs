//! Giving up a ring that can no longer be entered.
//!
//! The submission queue is memory that the kernel reads while we are inside io_uring_enter(2) and at
//! no other time, so what it has not consumed is ours to take back. What it has consumed it keeps:
//! a poll, a receive or a read from a disk cannot be called off without entering, nor by
//! io_uring_register(2), whose synchronous cancel leaves the completion to a later enter.
//!
//! The ring is leaked. Closing its descriptor would have a kernel thread end what is pending, some
//! time later, and tell nobody; until then operations may still write. Nothing that was lent could
//! be used again for it, and a descriptor and two mappings are little beside what is leaked anyway.

use std::mem::{self, ManuallyDrop};

use linux_raw_sys::io_uring::io_uring_op as code;

use super::{Form, NO_DESCRIPTOR, Uring};
use crate::bell::BellTower;
use crate::engine::Engine as _;
use crate::entry::{self, decode::decode};
use crate::op::{Completion, Key, Op};
use crate::salvage::{Held, Salvage};

impl Uring {
    /// The tower for the engine that takes this one's place.
    pub(crate) fn tower(&self) -> BellTower {
        self.bell.pass_on()
    }

    /// Gives the ring up and says what was in flight.
    pub(crate) fn salvage(self) -> Salvage {
        let mut ring = ManuallyDrop::new(self);
        let mut salvage = Salvage { landed: mem::take(&mut ring.landed), ..Salvage::default() };
        ring.reap(&mut salvage.landed);
        salvage.buffers = ring.buffers().cloned();

        let mut entries = ring.ring.take_unsubmitted();
        entries.extend(mem::take(&mut ring.backlog));
        for sqe in entries {
            let key = Key::from_bits(sqe.user_data);
            // The engine's own: its bell, what follows others, and cancels of what is held or was withdrawn.
            if key.is_reserved() {
                continue;
            }
            let index = key.index() as usize;
            let op = match ring.pending[index].form {
                Form::Op | Form::Holding => decode(&sqe),
                Form::Entry => Some(Op::Entry { entry: ring.entries[index] }),
                // It would be carried out whatever became of those before it.
                Form::Chained | Form::LettingGo => None,
            };
            ring.pending[index].fd = NO_DESCRIPTOR;
            match op {
                Some(op) => salvage.unseen.push((key, op)),
                None => {
                    salvage.landed.push(Completion { key, res: -libc::ECANCELED, flags: 0 });
                }
            }
        }
        let timers = ring.timers.take_all();
        salvage.unseen.extend(timers.map(|(key, deadline)| (key, Op::Timer { deadline })));

        for (index, pending) in (0..).zip(&mut ring.pending) {
            if pending.fd != NO_DESCRIPTOR && pending.form == Form::LettingGo {
                let key = Key::new(index, pending.generation);
                salvage.landed.push(Completion { key, res: pending.res, flags: 0 });
                pending.fd = NO_DESCRIPTOR;
            }
        }
        let pending = (0..).zip(mem::take(&mut ring.pending));
        salvage.held = pending
            .filter(|(_, pending)| pending.fd != NO_DESCRIPTOR)
            .map(|(index, pending)| {
                let (name, lends) = match pending.form {
                    Form::Op | Form::Holding | Form::LettingGo => nature(pending.opcode),
                    Form::Entry | Form::Chained => (entry::name(pending.opcode), true),
                };
                Held { key: Key::new(index, pending.generation), name, lends }
            })
            .collect();
        salvage
    }
}

/// The name of an operation, and whether it names memory.
fn nature(opcode: u8) -> (&'static str, bool) {
    const NOP: u8 = code::IORING_OP_NOP as u8;
    const POLL: u8 = code::IORING_OP_POLL_ADD as u8;
    const FSYNC: u8 = code::IORING_OP_FSYNC as u8;
    const RECV: u8 = code::IORING_OP_RECV as u8;
    const SEND: u8 = code::IORING_OP_SEND as u8;
    const RECVMSG: u8 = code::IORING_OP_RECVMSG as u8;
    const SENDMSG: u8 = code::IORING_OP_SENDMSG as u8;
    const ACCEPT: u8 = code::IORING_OP_ACCEPT as u8;
    const CONNECT: u8 = code::IORING_OP_CONNECT as u8;
    const READ: u8 = code::IORING_OP_READ as u8;
    const WRITE: u8 = code::IORING_OP_WRITE as u8;
    const OPEN: u8 = code::IORING_OP_OPENAT as u8;
    const METADATA: u8 = code::IORING_OP_STATX as u8;
    const FUTEX: u8 = code::IORING_OP_FUTEX_WAIT as u8;
    match opcode {
        NOP => ("nop", false),
        POLL => ("poll", false),
        FSYNC => ("fsync", false),
        RECV => ("recv", true),
        SEND => ("send", true),
        RECVMSG => ("recvmsg", true),
        SENDMSG => ("sendmsg", true),
        ACCEPT => ("accept", true),
        CONNECT => ("connect", true),
        READ => ("read", true),
        WRITE => ("write", true),
        OPEN => ("open", true),
        METADATA => ("statx", true),
        // The word is read as the wait begins, and not written.
        FUTEX => ("futex", false),
        // What is not known may do anything.
        _ => ("an operation", true),
    }
}
