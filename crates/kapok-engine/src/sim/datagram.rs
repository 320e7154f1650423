//! Datagrams: UDP, which loses, doubles and reorders them, and Unix, which does not.

use std::collections::VecDeque;

use crate::op::{Op, Readiness};
use crate::sim::address::Address;
use crate::sim::memory::Regions;
use crate::sim::names::Space;
use crate::sim::schedule::Event;
use crate::sim::stream::carries_only_bytes;
use crate::sim::world::{Attempt, Id, Thing, World, describe, flags_of};

pub(super) struct Datagram {
    pub(super) domain: i32,
    pub(super) local: Option<Address>,
    /// Whom it is connected to. UDP sends there, and receives from nobody else.
    pub(super) remote: Option<Address>,
    /// Of Unix, the socket that it is connected to, whatever becomes of the name.
    pub(super) peer: Option<Id>,
    queue: VecDeque<(Address, Vec<u8>)>,
    /// Senders that wait for room here.
    blocked: Vec<Id>,
    send_shut: bool,
    receive_shut: bool,
    /// A pending error, told once.
    error: i32,
}

/// The largest payload of UDP over IPv4, in bytes.
const LARGEST: usize = 65_507;
/// What a waiting datagram costs beside its bytes.
const OVERHEAD: usize = 64;

impl Datagram {
    pub(super) fn new(domain: i32) -> Datagram {
        Datagram {
            domain,
            local: None,
            remote: None,
            peer: None,
            queue: VecDeque::new(),
            blocked: Vec::new(),
            send_shut: false,
            receive_shut: false,
            error: 0,
        }
    }

    fn is_unix(&self) -> bool {
        self.domain == libc::AF_UNIX
    }

    /// Whether `len` more bytes are too many. One datagram always fits.
    fn is_full(&self, len: usize, room: usize) -> bool {
        let used: usize = self.queue.iter().map(|(_, bytes)| bytes.len() + OVERHEAD).sum();
        used > 0 && used + len + OVERHEAD > room
    }

    fn take_error(&mut self) -> Option<i32> {
        match std::mem::take(&mut self.error) {
            0 => None,
            error => Some(-error),
        }
    }
}

impl World {
    /// # Safety
    ///
    /// `addr` points to `len` readable bytes.
    pub(super) unsafe fn connect_datagram(
        &mut self,
        id: Id,
        addr: *const libc::sockaddr_storage,
        len: libc::socklen_t,
    ) -> i32 {
        let Some(datagram) = self.datagram(id) else { return -libc::EBADF };
        let is_unix = datagram.is_unix();
        // SAFETY: the caller's promise.
        let to = match unsafe { Address::read(addr, len, datagram.domain) } {
            Ok(to) => to,
            Err(error) => return error,
        };
        let receiver = match is_unix.then(|| self.find_receiver(Space::Unix, &to)) {
            Some(Ok(receiver)) if !self.may_send(id, receiver) => return -libc::EPERM,
            Some(Err(error)) => return error,
            receiver => receiver.and_then(Result::ok),
        };
        if let Err(error) = self.name_for(id, &to) {
            return error;
        }
        self.leave(id, receiver);
        if let Some(datagram) = self.datagram(id) {
            datagram.remote = Some(to);
            datagram.peer = receiver;
        }
        0
    }

    /// Whether the Unix socket `to` hears of `id`: one that is connected hears of its peer only.
    fn may_send(&self, id: Id, to: Id) -> bool {
        let peer = self.peek_datagram(to).and_then(|receiver| receiver.peer);
        peer.is_none_or(|peer| peer == id)
    }

    fn find_receiver(&mut self, space: Space, to: &Address) -> Result<Id, i32> {
        match self.names.find(space, to) {
            None if space == Space::Unix => Err(-libc::ENOENT),
            None => Err(-libc::ECONNREFUSED),
            Some(id) => match self.thing(id) {
                Some(Thing::Datagram(_)) => Ok(id),
                Some(_) => Err(-libc::EPROTOTYPE),
                None => Err(-libc::ECONNREFUSED),
            },
        }
    }

    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    pub(super) unsafe fn receive_datagram(&mut self, id: Id, op: &Op) -> Attempt {
        let flags = flags_of(op);
        // SAFETY: the caller's promise.
        let memory = unsafe { Regions::of(op) };
        let Some(datagram) = self.datagram(id) else { return Attempt::Done(-libc::EBADF) };
        let domain = datagram.domain;
        if flags & libc::MSG_OOB != 0 {
            return Attempt::Done(-libc::EOPNOTSUPP);
        }
        if let Some(error) = datagram.take_error() {
            return Attempt::Done(error);
        }
        let next = if flags & libc::MSG_PEEK != 0 {
            datagram.queue.front().cloned()
        } else {
            datagram.queue.pop_front()
        };
        let Some((from, bytes)) = next else {
            // Linux tells only those of the end who would wait for more.
            if datagram.receive_shut && flags & libc::MSG_DONTWAIT == 0 {
                // SAFETY: the caller's promise.
                unsafe { describe(op, None, 0) };
                return Attempt::Done(0);
            }
            return Attempt::Again;
        };
        let kept = bytes.len().min(memory.len());
        let cut = if kept < bytes.len() { libc::MSG_TRUNC } else { 0 };
        // SAFETY: the caller's promise; no more than there is room for.
        unsafe {
            memory.put(&bytes[..kept]);
            let named = from != Address::UNNAMED;
            describe(op, named.then_some((domain, &from)), cut);
        }
        if flags & libc::MSG_PEEK == 0 {
            let blocked = std::mem::take(&mut datagram.blocked);
            blocked.into_iter().for_each(|sender| self.wake(sender));
        }
        // With the flag, recv(2) tells how long the datagram was.
        Attempt::Done(if flags & libc::MSG_TRUNC != 0 { bytes.len() } else { kept } as i32)
    }

    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    pub(super) unsafe fn send_datagram(&mut self, id: Id, op: &Op) -> Attempt {
        // SAFETY: the caller's promise, here and below.
        if let Err(error) = unsafe { carries_only_bytes(op) } {
            return Attempt::Done(error);
        }
        let Some(datagram) = self.datagram(id) else { return Attempt::Done(-libc::EBADF) };
        let (domain, is_unix) = (datagram.domain, datagram.is_unix());
        let named = match *op {
            // SAFETY: as above; the header's name is readable as far as it says.
            Op::SendMsg { msg, .. } => unsafe {
                let name = (*msg).msg_name;
                (!name.is_null())
                    .then(|| Address::read(name.cast(), (*msg).msg_namelen, domain))
                    .transpose()
            },
            _ => Ok(None),
        };
        let named = match named {
            Ok(named) => named,
            Err(error) => return Attempt::Done(error),
        };
        if let Some(error) = datagram.take_error() {
            return Attempt::Done(error);
        }
        if datagram.send_shut {
            return Attempt::Done(-libc::EPIPE);
        }
        let peer = datagram.peer;
        let remote = datagram.remote.clone().filter(|_| !is_unix);
        let Some(to) = named.or(remote) else {
            return match peer {
                // SAFETY: as above.
                Some(peer) => unsafe { self.send_locally(id, peer, op) },
                None if is_unix => Attempt::Done(-libc::ENOTCONN),
                None => Attempt::Done(-libc::EDESTADDRREQ),
            };
        };
        if is_unix {
            return match self.find_receiver(Space::Unix, &to) {
                // SAFETY: as above.
                Ok(receiver) => unsafe { self.send_locally(id, receiver, op) },
                Err(error) => Attempt::Done(error),
            };
        }
        // SAFETY: as above.
        let bytes = unsafe { World::payload(op, usize::MAX) };
        if bytes.len() > LARGEST {
            return Attempt::Done(-libc::EMSGSIZE);
        }
        if let Err(error) = self.name_for(id, &to) {
            return Attempt::Done(error);
        }
        let count = bytes.len() as i32;
        self.launch(id, &to, bytes);
        Attempt::Done(count)
    }

    /// Puts a UDP datagram on its way, or not.
    fn launch(&mut self, id: Id, to: &Address, bytes: Vec<u8>) {
        if self.random.happens(self.config.faults.lost_datagram) {
            return;
        }
        let from = self.peek_datagram(id).and_then(|datagram| datagram.local.clone());
        // Bound to all addresses, it sends from the one that it sends to.
        let from = match (from, to) {
            (Some(Address::Inet(mut from)), Address::Inet(to)) if from.ip().is_unspecified() => {
                from.set_ip(to.ip());
                Address::Inet(from)
            }
            (from, _) => from.unwrap_or(Address::UNNAMED),
        };
        let copies = 1 + usize::from(self.random.happens(self.config.faults.doubled_datagram));
        for _ in 0..copies {
            let at = self.arrival(false, 0);
            let event = match self.find_receiver(Space::Udp, to) {
                Ok(to) => Event::Datagram { to, from: from.clone(), bytes: bytes.clone() },
                Err(_) => Event::Unreachable(id),
            };
            if at > self.now {
                self.schedule.add(at, event);
            } else {
                self.happen(event);
            }
        }
    }

    /// A UDP datagram arrives. If there is no room for it, it is lost.
    pub(super) fn deliver(&mut self, to: Id, from: Address, bytes: Vec<u8>) {
        let room = self.config.buffer_bytes;
        let Some(receiver) = self.datagram(to) else { return };
        let is_foreign = receiver.remote.as_ref().is_some_and(|remote| *remote != from);
        if is_foreign || receiver.receive_shut || receiver.is_full(bytes.len(), room) {
            return;
        }
        receiver.queue.push_back((from, bytes));
        self.wake(to);
    }

    /// Only a connected socket is told that nobody is there.
    pub(super) fn unreachable(&mut self, id: Id) {
        if let Some(datagram) = self.datagram(id)
            && datagram.remote.is_some()
        {
            datagram.error = libc::ECONNREFUSED;
            self.wake(id);
        }
    }

    /// Hands a datagram over between Unix sockets.
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    unsafe fn send_locally(&mut self, id: Id, to: Id, op: &Op) -> Attempt {
        let room = self.config.buffer_bytes;
        let from = self.peek_datagram(id).and_then(|datagram| datagram.local.clone());
        let from = from.unwrap_or(Address::UNNAMED);
        // SAFETY: the caller's promise.
        let bytes = unsafe { World::payload(op, usize::MAX) };
        if bytes.len() > room.max(LARGEST) {
            return Attempt::Done(-libc::EMSGSIZE);
        }
        if !self.may_send(id, to) {
            return Attempt::Done(-libc::EPERM);
        }
        let Some(receiver) = self.datagram(to) else {
            if self.peek_datagram(id).is_some_and(|datagram| datagram.peer == Some(to)) {
                self.leave(id, None);
            }
            return Attempt::Done(-libc::ECONNREFUSED);
        };
        if receiver.receive_shut {
            return Attempt::Done(-libc::EPIPE);
        }
        if receiver.is_full(bytes.len(), room) {
            if !receiver.blocked.contains(&id) {
                receiver.blocked.push(id);
            }
            return Attempt::Again;
        }
        let count = bytes.len() as i32;
        receiver.queue.push_back((from, bytes));
        self.wake(to);
        Attempt::Done(count)
    }

    /// A Unix socket has another peer from now on, or none. What it has not received yet of the one
    /// before is lost, which is told of that: see unix_dgram_disconnected() of Linux.
    fn leave(&mut self, id: Id, next: Option<Id>) {
        let Some(datagram) = self.datagram(id) else { return };
        let Some(left) = datagram.peer.filter(|&peer| Some(peer) != next) else { return };
        (datagram.peer, datagram.remote) = (None, None);
        // Its own sends wait there no longer.
        self.wake(id);
        let Some(datagram) = self.datagram(id) else { return };
        if datagram.queue.is_empty() {
            return;
        }
        datagram.queue.clear();
        let blocked = std::mem::take(&mut datagram.blocked);
        blocked.into_iter().for_each(|sender| self.wake(sender));
        if let Some(left_one) = self.datagram(left)
            && left_one.peer == Some(id)
        {
            left_one.error = libc::ECONNRESET;
            self.wake(left);
        }
    }

    pub(super) fn datagram_readiness(&self, datagram: &Datagram) -> Readiness {
        let mut seen = 0;
        if !datagram.queue.is_empty() || datagram.receive_shut {
            seen |= libc::POLLIN;
        }
        if datagram.receive_shut {
            seen |= Readiness::READ_CLOSED.0;
        }
        let is_full = datagram
            .peer
            .and_then(|id| self.peek_datagram(id))
            .is_some_and(|receiver| receiver.is_full(0, self.config.buffer_bytes));
        if !is_full {
            seen |= libc::POLLOUT;
        }
        if datagram.error != 0 {
            seen |= libc::POLLERR;
        }
        if datagram.receive_shut && datagram.send_shut {
            seen |= libc::POLLHUP;
        }
        Readiness(seen)
    }

    pub(super) fn shutdown_datagram(&mut self, id: Id, how: i32) -> Result<i32, i32> {
        let Some(datagram) = self.datagram(id) else { return Err(-libc::EBADF) };
        if !(0..=2).contains(&how) {
            return Err(-libc::EINVAL);
        }
        if !datagram.is_unix() && datagram.remote.is_none() {
            return Err(-libc::ENOTCONN);
        }
        datagram.receive_shut |= how != libc::SHUT_WR;
        datagram.send_shut |= how != libc::SHUT_RD;
        let blocked = std::mem::take(&mut datagram.blocked);
        blocked.into_iter().for_each(|sender| self.wake(sender));
        self.wake(id);
        Ok(0)
    }

    /// Those who waited for room at a socket that is gone are told so.
    pub(super) fn end_datagram(&mut self, datagram: Datagram) {
        datagram.blocked.into_iter().for_each(|sender| self.wake(sender));
        if let Some(peer) = datagram.peer {
            self.wake(peer);
        }
    }
}
