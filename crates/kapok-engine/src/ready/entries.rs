//! Entries of io_uring on a readiness engine.
//!
//! What says the same as another operation is that operation, and what is about the engine's own books
//! (timeouts, cancels) is done here; the rest are system calls, by a thread where they may block.

use std::time::Instant;

use linux_raw_sys::io_uring as uapi;

use super::Ready;
use super::offloaded::Carry;
use super::table::Place;
use crate::engine::Engine as _;
use crate::entry::{Entry, abi};
use crate::op::{Key, Op, Submitted};
use crate::selector::Selector;
use crate::sys::entry::{REFUSED, Way, is_unlimited, time_limit, way};
use crate::sys::perform;

impl<S: Selector> Ready<S> {
    /// [`Op::Entry`].
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    pub(super) unsafe fn submit_entry(&mut self, key: Key, pointer: *const Entry) -> Submitted {
        // SAFETY: the caller's promise, here and below.
        let entry = unsafe { pointer.read() };
        let op = Op::Entry { entry: pointer };
        match way(&entry) {
            // SAFETY: as above: it names the same memory.
            Way::As(op) => unsafe { self.submit(key, op) },
            // SAFETY: as above.
            Way::AtOnce => Submitted::Done(unsafe { perform(&op, false) }),
            // SAFETY: as above.
            Way::Try => match unsafe { perform(&op, false) } {
                res if res == -libc::EAGAIN && entry.op_flags as i32 & libc::MSG_DONTWAIT == 0 => {
                    self.offload(key, op, Carry::Blocking)
                }
                res => Submitted::Done(res),
            },
            Way::Thread if is_unlimited(&entry) => self.offload(key, op, Carry::Recallable),
            Way::Thread => self.offload(key, op, Carry::Blocking),
            // SAFETY: as above.
            Way::Engine => match unsafe { self.keep_books(key, &entry) } {
                Some(res) => Submitted::Done(res),
                None => Submitted::Pending,
            },
        }
    }

    /// A timeout, or something about what is pending here. `None`: it is pending itself.
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    unsafe fn keep_books(&mut self, key: Key, entry: &Entry) -> Option<i32> {
        let target = Key::from_bits(entry.addr);
        let is_update = entry.op_flags & uapi::IORING_TIMEOUT_UPDATE != 0;
        match entry.opcode {
            abi::TIMEOUT => {
                // SAFETY: the caller's promise.
                match unsafe { time_limit(entry.addr, entry.off, entry.op_flags) } {
                    Ok(limit) => {
                        self.in_flight += 1;
                        self.timeouts.insert(key);
                        self.timers.insert(key, Instant::now() + limit);
                        None
                    }
                    Err(res) => Some(res),
                }
            }
            abi::TIMEOUT_REMOVE if is_update => {
                // SAFETY: the caller's promise.
                match unsafe { time_limit(entry.off, 0, entry.op_flags) } {
                    Err(res) => Some(res),
                    Ok(limit) if self.timeouts.contains(&target) => {
                        self.timers.remove(target);
                        self.timers.insert(target, Instant::now() + limit);
                        Some(0)
                    }
                    Ok(_) => Some(-libc::ENOENT),
                }
            }
            abi::TIMEOUT_REMOVE if entry.op_flags != 0 => Some(-libc::EINVAL),
            abi::TIMEOUT_REMOVE if self.timeouts.contains(&target) => {
                self.cancel(target);
                Some(0)
            }
            abi::TIMEOUT_REMOVE => Some(-libc::ENOENT),
            abi::POLL_REMOVE if entry.len != 0 => Some(REFUSED),
            abi::POLL_REMOVE => {
                let is_poll = self.table.find(target).is_some_and(|slot| {
                    slot.place == Place::Parked && matches!(slot.op, Op::Poll { .. })
                });
                if is_poll {
                    self.cancel(target);
                }
                Some(if is_poll { 0 } else { -libc::ENOENT })
            }
            abi::ASYNC_CANCEL if entry.op_flags & !uapi::IORING_ASYNC_CANCEL_USERDATA == 0 => {
                Some(self.end(target))
            }
            _ => Some(REFUSED),
        }
    }

    /// Cancels `target`, and answers what io_uring would.
    fn end(&mut self, target: Key) -> i32 {
        let landed = self.landed.len();
        let is_there = self.table.find(target).is_some();
        self.cancel(target);
        if self.landed.len() > landed {
            0
        } else if is_there {
            // A thread has taken it up.
            -libc::EALREADY
        } else {
            -libc::ENOENT
        }
    }
}
