//! What is outside the world: the bell, descriptors that are not its own, and nothing at all.

use std::fmt::Write as _;

use crate::op::Op;
use crate::sim::engine::Sim;
use crate::sim::pending::Pending;
use crate::sim::schedule::Event;
use crate::sys::{errno, poll_one};

impl Sim {
    /// Whether somebody has rung, and is heard now.
    pub(super) fn hears(&mut self) -> bool {
        let was_rung = !self.tower.fall_asleep();
        self.tower.wake_up();
        if was_rung && self.bell_random.happens(self.world.config.faults.late_bell) {
            let delay = self.bell_random.nanos(&self.world.config.delay);
            self.world.schedule.add(self.world.now + delay, Event::Bell);
            return false;
        }
        was_rung
    }

    /// Asks the kernel about descriptors that are not of this world.
    pub(super) fn look_outside(&mut self) {
        for key in self.table.outside().to_vec() {
            let Some(Pending { op: Op::Poll { fd, events }, .. }) = self.table.get(key) else {
                continue;
            };
            match poll_one(*fd, *events, 0) {
                0 => {}
                res => {
                    if let Some(pending) = self.table.remove(key) {
                        self.land(&pending, res);
                    }
                }
            }
        }
    }

    /// Waits for what does not come from this world: the bell, and descriptors of others.
    pub(super) fn wait_outside(&mut self) {
        if !self.tower.fall_asleep() {
            self.tower.wake_up();
            return;
        }
        let bell = libc::pollfd { fd: self.tower.fd(), events: libc::POLLIN, revents: 0 };
        let mut fds = vec![bell];
        for key in self.table.outside().to_vec() {
            if let Some(Pending { op: Op::Poll { fd, events }, .. }) = self.table.get(key) {
                fds.push(libc::pollfd { fd: *fd, events: events.0, revents: 0 });
            }
        }
        let limit = self.world.config.stuck_after;
        let timeout = limit.map_or(-1, |limit| limit.as_millis().min(i32::MAX as u128) as i32);
        // SAFETY: as many entries as the vector has.
        let seen = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        self.tower.wake_up();
        if fds[0].revents != 0 {
            self.tower.drain();
        }
        let is_interrupted = seen < 0 && errno() == libc::EINTR;
        if seen == 0 && !is_interrupted {
            panic!("{}", self.stuck());
        }
        self.look_outside();
    }

    /// What there is to say of a world in which nothing can happen any more.
    fn stuck(&self) -> String {
        let mut text = format!(
            "nothing can happen any more in the simulation with seed {}, at {:?}, with {} \
             operations pending:",
            self.seed(),
            self.elapsed(),
            self.in_flight
        );
        for pending in self.table.all().take(64) {
            let _ = write!(text, "\n  {:?} {}", pending.key, pending.op.name());
            if let Some(fd) = pending.op.fd() {
                let _ = write!(text, " on descriptor {fd}");
            }
        }
        text
    }
}
