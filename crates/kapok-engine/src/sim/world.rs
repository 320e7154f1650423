//! The world: its objects, their descriptors, and the one `match` that acts an operation out.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;

use crate::op::{Op, Readiness};
use crate::sim::address::Address;
use crate::sim::config::{Chance, Config};
use crate::sim::datagram::Datagram;
use crate::sim::file::{File, Files};
use crate::sim::memory::Regions;
use crate::sim::names::Names;
use crate::sim::numbers::{self, Numbers};
use crate::sim::random::Random;
use crate::sim::schedule::{Event, Schedule};
use crate::sim::stream::Stream;

/// An object of the world. Never used twice.
pub(super) type Id = u64;

/// What descriptors stand for. `Accept` makes a second descriptor, `Duplicate` another of the same.
pub(super) enum Thing {
    Stream(Stream),
    Datagram(Datagram),
    File(File),
}

pub(super) struct Object {
    pub(super) thing: Thing,
    /// How many descriptors stand for it. A connection that was not accepted yet has none.
    descriptors: usize,
}

/// What an attempt came to.
pub(super) enum Attempt {
    Done(i32),
    /// It must wait for its object to be woken.
    Again,
}

/// One attempt at an operation.
pub(super) struct Try<'a> {
    pub(super) op: &'a Op,
    /// What earlier attempts have done of it: bytes, or 1 for a connect that is under way.
    pub(super) progress: &'a mut i32,
    /// The most bytes that this attempt may move.
    pub(super) most: usize,
}

pub(super) struct World {
    pub(super) config: Config,
    pub(super) random: Random,
    /// Nanoseconds since the world began.
    pub(super) now: u64,
    pub(super) schedule: Schedule,
    pub(super) names: Names,
    pub(super) files: Files,
    numbers: Numbers,
    objects: BTreeMap<Id, Object>,
    last_id: Id,
    /// Objects of which something has changed, so that those who wait on them must try again.
    woken: VecDeque<Id>,
    /// Numbers that were closed, and what they stood for.
    closed: Vec<(RawFd, Id)>,
}

impl World {
    pub(super) fn new(config: Config) -> World {
        World {
            random: Random::new(config.seed),
            now: 0,
            schedule: Schedule::default(),
            names: Names::default(),
            files: Files::default(),
            numbers: Numbers::default(),
            objects: BTreeMap::new(),
            last_id: 0,
            woken: VecDeque::new(),
            closed: Vec::new(),
            config,
        }
    }

    pub(super) fn insert(&mut self, thing: Thing) -> Id {
        self.last_id += 1;
        self.objects.insert(self.last_id, Object { thing, descriptors: 0 });
        self.last_id
    }

    pub(super) fn object_of(&self, fd: RawFd) -> Option<Id> {
        self.numbers.object(fd)
    }

    pub(super) fn thing(&mut self, id: Id) -> Option<&mut Thing> {
        self.objects.get_mut(&id).map(|object| &mut object.thing)
    }

    pub(super) fn stream(&mut self, id: Id) -> Option<&mut Stream> {
        match self.thing(id) {
            Some(Thing::Stream(stream)) => Some(stream),
            _ => None,
        }
    }

    pub(super) fn datagram(&mut self, id: Id) -> Option<&mut Datagram> {
        match self.thing(id) {
            Some(Thing::Datagram(datagram)) => Some(datagram),
            _ => None,
        }
    }

    pub(super) fn wake(&mut self, id: Id) {
        if !self.woken.contains(&id) {
            self.woken.push_back(id);
        }
    }

    pub(super) fn next_woken(&mut self) -> Option<Id> {
        self.woken.pop_front()
    }

    /// The descriptors that were closed since this was asked last.
    pub(super) fn take_closed(&mut self) -> Vec<(RawFd, Id)> {
        std::mem::take(&mut self.closed)
    }

    /// When what is sent now arrives: not before `earliest`, what is on its way before it.
    pub(super) fn arrival(&mut self, is_local: bool, earliest: u64) -> u64 {
        if is_local {
            return self.now.max(earliest);
        }
        let latency = self.random.nanos(&self.config.latency);
        (self.now + latency + self.delay(self.config.faults.delay)).max(earliest)
    }

    /// A delay, if that fault happens, or 0.
    pub(super) fn delay(&mut self, chance: Chance) -> u64 {
        if self.random.happens(chance) { self.random.nanos(&self.config.delay) } else { 0 }
    }

    /// Whether another descriptor may be made.
    pub(super) fn has_descriptor(&mut self) -> Result<(), i32> {
        if self.config.descriptor_limit.is_some() {
            self.notice_closed();
        }
        let full = self.config.descriptor_limit.is_some_and(|limit| self.numbers.len() >= limit);
        if full || self.random.happens(self.config.faults.no_descriptors) {
            return Err(-libc::EMFILE);
        }
        Ok(())
    }

    /// Has `fd`, which was just made, stand for an object.
    pub(super) fn open(&mut self, fd: RawFd, id: Id) {
        self.numbers.insert(fd, id);
        if let Some(object) = self.objects.get_mut(&id) {
            object.descriptors += 1;
        }
    }

    /// Takes in what was closed without the engine.
    pub(super) fn notice_closed(&mut self) {
        for (fd, id) in self.numbers.closed() {
            self.let_go(fd, id, false);
        }
    }

    /// A number that stood for an object does so no more.
    fn let_go(&mut self, fd: RawFd, id: Id, reset: bool) {
        self.closed.push((fd, id));
        let Some(object) = self.objects.get_mut(&id) else { return };
        object.descriptors -= 1;
        if object.descriptors == 0 {
            self.destroy(id, reset);
        }
    }

    /// Ends an object that nobody can name any more.
    pub(super) fn destroy(&mut self, id: Id, reset: bool) {
        let Some(object) = self.objects.remove(&id) else { return };
        self.names.release(id);
        match object.thing {
            Thing::Stream(stream) => self.end_stream(id, stream, reset),
            Thing::Datagram(datagram) => self.end_datagram(datagram),
            Thing::File(_) => {}
        }
    }

    fn close(&mut self, fd: RawFd) -> i32 {
        if self.numbers.object(fd).is_none() {
            return -libc::EBADF;
        }
        let reset = numbers::resets_on_close(fd);
        if let Some(id) = self.numbers.remove(fd) {
            self.let_go(fd, id, reset);
        }
        numbers::close(fd)
    }

    fn duplicate(&mut self, fd: RawFd) -> Result<i32, i32> {
        let id = self.numbers.object(fd).ok_or(-libc::EBADF)?;
        self.has_descriptor()?;
        let new = numbers::back_duplicate(fd);
        if new >= 0 {
            self.open(new, id);
        }
        Ok(new)
    }

    /// Acts out an operation that never waits.
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    pub(super) unsafe fn act(&mut self, op: &Op) -> i32 {
        // SAFETY: the caller's promise, passed on, here and below.
        let result = unsafe {
            match *op {
                Op::Socket { domain, kind, protocol } => self.socket(domain, kind, protocol),
                Op::SocketPair { kind, fds } => self.socket_pair(kind).map(|pair| {
                    fds.write(pair);
                    0
                }),
                Op::Bind { fd, addr, addr_len } => self.bind(fd, addr, addr_len),
                Op::Listen { fd, backlog } => self.listen(fd, backlog),
                Op::LocalAddress { fd, addr, addr_len } => {
                    self.local_address(fd).map(|(domain, address)| {
                        address.write(domain, addr, addr_len);
                        0
                    })
                }
                Op::PeerAddress { fd, addr, addr_len } => {
                    self.peer_address(fd).map(|(domain, address)| {
                        address.write(domain, addr, addr_len);
                        0
                    })
                }
                Op::Duplicate { fd } => self.duplicate(fd),
                Op::Shutdown { fd, how } => self.shutdown(fd, how),
                Op::Close { fd } => Ok(self.close(fd)),
                _ => Err(-libc::EINVAL),
            }
        };
        result.unwrap_or_else(|error| error)
    }

    /// Tries an operation that may wait.
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    pub(super) unsafe fn attempt(&mut self, attempt: Try<'_>) -> Attempt {
        let op = attempt.op;
        let id = match op.fd() {
            Some(fd) => match self.numbers.object(fd) {
                Some(id) => id,
                None => return Attempt::Done(-libc::EBADF),
            },
            // SAFETY: the caller's promise, here and below.
            None => return Attempt::Done(unsafe { self.open_file(op) }),
        };
        let Some(object) = self.objects.get(&id) else { return Attempt::Done(-libc::EBADF) };
        // SAFETY: as above.
        unsafe {
            match (&object.thing, *op) {
                (_, Op::Poll { events, .. }) => match self.readiness(id, events) {
                    Readiness(0) => Attempt::Again,
                    seen => Attempt::Done(i32::from(seen.0)),
                },
                (_, Op::Metadata { fd, out }) => Attempt::Done(self.metadata(fd, out)),
                (Thing::File(_), Op::Read { .. } | Op::Write { .. } | Op::Sync { .. }) => {
                    Attempt::Done(self.transfer_file(id, &attempt))
                }
                (Thing::File(_), _) => Attempt::Done(-libc::ENOTSOCK),
                (_, Op::Sync { .. }) => Attempt::Done(-libc::EINVAL),
                (_, Op::Read { offset, .. } | Op::Write { offset, .. })
                    if offset != Op::CURRENT_POSITION =>
                {
                    Attempt::Done(-libc::ESPIPE)
                }
                // read(2) of nothing does nothing.
                (_, Op::Read { len: 0, .. }) => Attempt::Done(0),
                (Thing::Stream(_), Op::Accept { addr, addr_len, .. }) => {
                    self.accept(id, addr, addr_len)
                }
                (Thing::Stream(_), Op::Connect { addr, addr_len, .. }) => {
                    self.connect_stream(id, addr, addr_len, attempt)
                }
                (Thing::Stream(_), Op::Recv { .. } | Op::RecvMsg { .. } | Op::Read { .. }) => {
                    self.receive(id, attempt)
                }
                (Thing::Stream(_), Op::Send { .. } | Op::SendMsg { .. } | Op::Write { .. }) => {
                    self.send(id, attempt)
                }
                (Thing::Datagram(_), Op::Accept { .. }) => Attempt::Done(-libc::EOPNOTSUPP),
                (Thing::Datagram(_), Op::Connect { addr, addr_len, .. }) => {
                    Attempt::Done(self.connect_datagram(id, addr, addr_len))
                }
                (Thing::Datagram(_), Op::Recv { .. } | Op::RecvMsg { .. } | Op::Read { .. }) => {
                    self.receive_datagram(id, op)
                }
                (Thing::Datagram(_), Op::Send { .. } | Op::SendMsg { .. } | Op::Write { .. }) => {
                    self.send_datagram(id, op)
                }
                _ => Attempt::Done(-libc::EINVAL),
            }
        }
    }

    /// What poll(2) would see of `events`.
    pub(super) fn readiness(&mut self, id: Id, events: Readiness) -> Readiness {
        let always = Readiness::ERROR.union(Readiness::HANG_UP);
        let Some(object) = self.objects.get(&id) else { return Readiness::ERROR };
        let seen = match &object.thing {
            Thing::Stream(stream) => self.stream_readiness(stream),
            Thing::Datagram(datagram) => self.datagram_readiness(datagram),
            Thing::File(_) => Readiness::READABLE.union(Readiness::WRITABLE),
        };
        Readiness(seen.0 & events.union(always).0)
    }

    pub(super) fn peek_stream(&self, id: Id) -> Option<&Stream> {
        match &self.objects.get(&id)?.thing {
            Thing::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    pub(super) fn peek_datagram(&self, id: Id) -> Option<&Datagram> {
        match &self.objects.get(&id)?.thing {
            Thing::Datagram(datagram) => Some(datagram),
            _ => None,
        }
    }

    pub(super) fn peek_file(&self, id: Id) -> Option<&File> {
        match &self.objects.get(&id)?.thing {
            Thing::File(file) => Some(file),
            _ => None,
        }
    }

    /// Has an event of the network happen.
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(id) => self.wake(id),
            Event::Arrive(id) => self.arrive(id),
            Event::Knock { client, to } => self.knock(client, &to),
            Event::Answer { client, res } => self.answer(client, res),
            Event::Datagram { to, from, bytes } => self.deliver(to, from, bytes),
            Event::Unreachable(id) => self.unreachable(id),
            Event::Timer(_) | Event::Land(_) | Event::Cancel(_) | Event::Bell => {}
        }
    }

    /// A message's payload, of a send.
    ///
    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    pub(super) unsafe fn payload(op: &Op, most: usize) -> Vec<u8> {
        // SAFETY: the caller's promise: the memory is there, and a send's is initialized.
        unsafe { Regions::of(op).get(most) }
    }
}

/// The flags of a transfer.
pub(super) fn flags_of(op: &Op) -> i32 {
    match *op {
        Op::Recv { flags, .. }
        | Op::RecvMsg { flags, .. }
        | Op::Send { flags, .. }
        | Op::SendMsg { flags, .. } => flags,
        _ => 0,
    }
}

/// Writes what recvmsg(2) tells beside the bytes.
///
/// # Safety
///
/// That of [`Engine::submit`](crate::Engine::submit).
pub(super) unsafe fn describe(op: &Op, sender: Option<(i32, &Address)>, flags: i32) {
    let Op::RecvMsg { msg, .. } = *op else { return };
    // SAFETY: the header is lent for writing, and its name has the room that it says.
    unsafe {
        match sender {
            Some((domain, address)) if !(*msg).msg_name.is_null() => {
                let mut len = (*msg).msg_namelen;
                address.write(domain, (*msg).msg_name.cast(), &raw mut len);
                (*msg).msg_namelen = len;
            }
            _ => (*msg).msg_namelen = 0,
        }
        (*msg).msg_controllen = 0 as _;
        (*msg).msg_flags = flags;
    }
}
