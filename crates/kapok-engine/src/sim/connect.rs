//! Sockets before they carry anything: made, bound, listening, connecting, accepted.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use crate::sim::address::Address;
use crate::sim::datagram::Datagram;
use crate::sim::names::Space;
use crate::sim::numbers;
use crate::sim::schedule::Event;
use crate::sim::stream::{State, Stream};
use crate::sim::world::{Attempt, Id, Thing, Try, World};

/// The most connections that wait to be accepted, whatever listen(2) is asked for (`SOMAXCONN`).
const MOST_WAITING: i32 = 4096;

impl World {
    pub(super) fn socket(&mut self, domain: i32, kind: i32, protocol: i32) -> Result<i32, i32> {
        let thing = match (domain, kind) {
            (libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX, libc::SOCK_STREAM) => {
                Thing::Stream(Stream::new(domain))
            }
            (libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX, libc::SOCK_DGRAM) => {
                Thing::Datagram(Datagram::new(domain))
            }
            (libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX, _) => {
                return Err(-libc::ESOCKTNOSUPPORT);
            }
            _ => return Err(-libc::EAFNOSUPPORT),
        };
        self.has_descriptor()?;
        let fd = numbers::back_socket(domain, kind, protocol);
        if fd >= 0 {
            let id = self.insert(thing);
            self.open(fd, id);
        }
        Ok(fd)
    }

    pub(super) fn socket_pair(&mut self, kind: i32) -> Result<[RawFd; 2], i32> {
        let one = self.socket(libc::AF_UNIX, kind, 0)?;
        let made = if one < 0 { Err(one) } else { self.socket(libc::AF_UNIX, kind, 0) };
        let other = match made {
            Ok(other) if other >= 0 => other,
            Ok(error) | Err(error) => {
                if one >= 0 {
                    self.discard(one);
                }
                return Err(error);
            }
        };
        let ids = [one, other].map(|fd| self.object_of(fd).unwrap_or_default());
        for (id, peer) in [(ids[0], ids[1]), (ids[1], ids[0])] {
            match self.thing(id) {
                Some(Thing::Stream(stream)) => stream.join(peer),
                Some(Thing::Datagram(datagram)) => datagram.peer = Some(peer),
                _ => {}
            }
        }
        Ok([one, other])
    }

    /// # Safety
    ///
    /// `addr` points to `len` readable bytes.
    pub(super) unsafe fn bind(
        &mut self,
        fd: RawFd,
        addr: *const libc::sockaddr_storage,
        len: libc::socklen_t,
    ) -> Result<i32, i32> {
        let id = self.object_of(fd).ok_or(-libc::EBADF)?;
        let (space, domain, bound) = self.naming(id)?;
        // SAFETY: the caller's promise.
        let address = unsafe { Address::read(addr, len, domain) }?;
        if bound {
            return Err(-libc::EINVAL);
        }
        self.name(id, space, address)?;
        Ok(0)
    }

    /// What a socket's names are: where, of which family, and whether it has one.
    fn naming(&mut self, id: Id) -> Result<(Space, i32, bool), i32> {
        let unix_or = |domain, space| if domain == libc::AF_UNIX { Space::Unix } else { space };
        match self.thing(id) {
            Some(Thing::Stream(s)) => {
                Ok((unix_or(s.domain, Space::Tcp), s.domain, s.local.is_some()))
            }
            Some(Thing::Datagram(d)) => {
                Ok((unix_or(d.domain, Space::Udp), d.domain, d.local.is_some()))
            }
            _ => Err(-libc::ENOTSOCK),
        }
    }

    fn name(&mut self, id: Id, space: Space, wanted: Address) -> Result<Address, i32> {
        let address = self.names.bind(space, wanted, id)?;
        match self.thing(id) {
            Some(Thing::Stream(stream)) => stream.local = Some(address.clone()),
            Some(Thing::Datagram(datagram)) => datagram.local = Some(address.clone()),
            _ => {}
        }
        Ok(address)
    }

    /// Gives an Internet socket that talks to `to` a port, if it has none.
    pub(super) fn name_for(&mut self, id: Id, to: &Address) -> Result<(), i32> {
        let (space, _, bound) = self.naming(id)?;
        if let (false, Address::Inet(to)) = (bound, to) {
            // Every address of this world is this world's own: one talks to it from itself.
            let mut from = *to;
            from.set_port(0);
            self.name(id, space, Address::Inet(from))?;
        }
        Ok(())
    }

    pub(super) fn listen(&mut self, fd: RawFd, backlog: i32) -> Result<i32, i32> {
        let id = self.object_of(fd).ok_or(-libc::EBADF)?;
        let stream = match self.thing(id) {
            Some(Thing::Stream(stream)) => stream,
            Some(Thing::Datagram(_)) => return Err(-libc::EOPNOTSUPP),
            _ => return Err(-libc::ENOTSOCK),
        };
        // Linux takes a negative backlog for the largest.
        let most = if backlog < 0 { MOST_WAITING } else { backlog.min(MOST_WAITING) } as usize;
        match &mut stream.state {
            State::Listening { backlog, .. } => *backlog = most,
            State::Idle if stream.local.is_some() => {
                stream.state = State::Listening {
                    backlog: most,
                    queue: VecDeque::new(),
                    knocking: VecDeque::new(),
                };
            }
            State::Idle if stream.domain == libc::AF_UNIX => return Err(-libc::EINVAL),
            State::Idle => {
                let any = match stream.domain {
                    libc::AF_INET => ([0, 0, 0, 0], 0).into(),
                    _ => ([0u16; 8], 0).into(),
                };
                self.name(id, Space::Tcp, Address::Inet(any))?;
                return self.listen(fd, backlog);
            }
            _ => return Err(-libc::EINVAL),
        }
        self.admit(id);
        Ok(0)
    }

    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit), for a connect.
    pub(super) unsafe fn connect_stream(
        &mut self,
        id: Id,
        addr: *const libc::sockaddr_storage,
        len: libc::socklen_t,
        attempt: Try<'_>,
    ) -> Attempt {
        let Some(stream) = self.stream(id) else { return Attempt::Done(-libc::EBADF) };
        match stream.state {
            State::Connected => return Attempt::Done(-libc::EISCONN),
            State::Listening { .. } if stream.is_unix() => return Attempt::Done(-libc::EINVAL),
            State::Listening { .. } => return Attempt::Done(-libc::EISCONN),
            State::Connecting(_) if *attempt.progress == 0 => {
                return Attempt::Done(-libc::EALREADY);
            }
            State::Connecting(_) => return self.connect_outcome(id),
            State::Idle => {}
        }
        let domain = stream.domain;
        // SAFETY: the caller's promise.
        let to = match unsafe { Address::read(addr, len, domain) } {
            Ok(to) => to,
            Err(error) => return Attempt::Done(error),
        };
        if let Err(error) = self.name_for(id, &to) {
            return Attempt::Done(error);
        }
        let is_unix = domain == libc::AF_UNIX;
        let at = self.arrival(is_unix, 0);
        if let Some(stream) = self.stream(id) {
            stream.state = State::Connecting(None);
        }
        *attempt.progress = 1;
        if at > self.now {
            self.schedule.add(at, Event::Knock { client: id, to });
            return Attempt::Again;
        }
        self.knock(id, &to);
        self.connect_outcome(id)
    }

    /// What a connect that is under way has come to.
    fn connect_outcome(&mut self, id: Id) -> Attempt {
        let Some(stream) = self.stream(id) else { return Attempt::Done(-libc::EBADF) };
        let State::Connecting(Some(res)) = stream.state else { return Attempt::Again };
        stream.state = if res == 0 { State::Connected } else { State::Idle };
        Attempt::Done(res)
    }

    /// Gives up a connect that has not reached anybody. `false`: it has, and its answer will come.
    pub(super) fn give_up_connect(&mut self, id: Id) -> bool {
        match self.stream(id) {
            Some(stream) if matches!(stream.state, State::Connecting(None)) => {
                if stream.peer.is_some() {
                    return false;
                }
                stream.state = State::Idle;
                let to = stream.remote.take();
                self.stop_knocking(id, to.as_ref());
                true
            }
            _ => true,
        }
    }

    /// A connect arrives where it was sent.
    pub(super) fn knock(&mut self, client: Id, to: &Address) {
        let Some(stream) = self.stream(client) else { return };
        if !matches!(stream.state, State::Connecting(None)) || stream.peer.is_some() {
            return; // given up meanwhile
        }
        let is_unix = stream.is_unix();
        stream.remote = Some(to.clone());
        let space = if is_unix { Space::Unix } else { Space::Tcp };
        let found = self.names.find(space, to);
        let refused = self.random.happens(self.config.faults.refused);
        let listener = match found.and_then(|id| self.thing(id)) {
            Some(Thing::Stream(Stream { state: State::Listening { .. }, .. })) if !refused => found,
            Some(Thing::Datagram(_)) => return self.reply(client, -libc::EPROTOTYPE),
            _ if is_unix && found.is_none() => return self.reply(client, -libc::ENOENT),
            _ => None,
        };
        let Some(listener) = listener else { return self.reply(client, -libc::ECONNREFUSED) };
        if let Some(Stream { state: State::Listening { knocking, .. }, .. }) = self.stream(listener)
        {
            knocking.push_back(client);
        }
        self.admit(listener);
    }

    /// Sends the answer to a connect on its way back.
    fn reply(&mut self, client: Id, res: i32) {
        let is_unix = self.peek_stream(client).is_none_or(Stream::is_unix);
        let at = self.arrival(is_unix, 0);
        if let Some(stream) = self.stream(client) {
            stream.incoming.not_before = at;
        }
        if at > self.now {
            self.schedule.add(at, Event::Answer { client, res });
        } else {
            self.answer(client, res);
        }
    }

    /// The answer to a connect arrives.
    pub(super) fn answer(&mut self, client: Id, res: i32) {
        if let Some(stream) = self.stream(client)
            && matches!(stream.state, State::Connecting(None))
        {
            stream.state = State::Connecting(Some(res));
            self.wake(client);
        }
    }

    /// Takes clients that knock into the queue of a listener, as far as there is room.
    fn admit(&mut self, listener: Id) {
        loop {
            let Some(stream) = self.stream(listener) else { return };
            let (domain, local) = (stream.domain, stream.local.clone());
            let State::Listening { backlog, queue, knocking } = &mut stream.state else { return };
            // As Linux counts: one more than was asked for.
            if queue.len() > *backlog {
                return;
            }
            let Some(client) = knocking.pop_front() else { return };
            let Some(connecting) = self.stream(client) else { continue };
            // Who listens on all addresses is talked to at one of them.
            let local = if domain == libc::AF_UNIX { local } else { connecting.remote.clone() };
            let mut server = Stream::new(domain);
            server.local = local;
            server.remote = Some(connecting.local.clone().unwrap_or(Address::UNNAMED));
            server.join(client);
            let server = self.insert(Thing::Stream(server));
            if let Some(connecting) = self.stream(client) {
                connecting.peer = Some(server);
            }
            if let Some(Stream { state: State::Listening { queue, .. }, .. }) =
                self.stream(listener)
            {
                queue.push_back(server);
            }
            self.wake(listener);
            self.reply(client, 0);
        }
    }

    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit), for an accept.
    pub(super) unsafe fn accept(
        &mut self,
        id: Id,
        addr: *mut libc::sockaddr_storage,
        len: *mut libc::socklen_t,
    ) -> Attempt {
        let Some(stream) = self.stream(id) else { return Attempt::Done(-libc::EBADF) };
        let domain = stream.domain;
        let State::Listening { queue, .. } = &stream.state else {
            return Attempt::Done(-libc::EINVAL);
        };
        let Some(&connection) = queue.front() else { return Attempt::Again };
        if let Err(error) = self.has_descriptor() {
            return Attempt::Done(error);
        }
        let fd = numbers::back_socket(domain, libc::SOCK_STREAM, 0);
        if fd < 0 {
            return Attempt::Done(fd);
        }
        if let Some(Stream { state: State::Listening { queue, .. }, .. }) = self.stream(id) {
            queue.pop_front();
        }
        self.open(fd, connection);
        let remote = self.peek_stream(connection).and_then(|stream| stream.remote.clone());
        // SAFETY: the caller's promise.
        unsafe { remote.unwrap_or(Address::UNNAMED).write(domain, addr, len) };
        self.admit(id);
        Attempt::Done(fd)
    }

    /// Ends the connections that nobody has accepted, and refuses those that knock.
    pub(super) fn turn_away(&mut self, queue: VecDeque<Id>, knocking: VecDeque<Id>) {
        for connection in queue {
            self.destroy(connection, true);
        }
        for client in knocking {
            self.reply(client, -libc::ECONNREFUSED);
        }
    }

    pub(super) fn stop_listening(&mut self, id: Id) {
        let Some(stream) = self.stream(id) else { return };
        if let State::Listening { queue, knocking, .. } =
            std::mem::replace(&mut stream.state, State::Idle)
        {
            self.turn_away(queue, knocking);
        }
    }

    /// Takes a client out of the queue in which it waits to be let in.
    pub(super) fn stop_knocking(&mut self, client: Id, to: Option<&Address>) {
        let listener = to.and_then(|to| {
            let space = if matches!(to, Address::Unix(_)) { Space::Unix } else { Space::Tcp };
            self.names.find(space, to)
        });
        if let Some(stream) = listener.and_then(|id| self.stream(id))
            && let State::Listening { knocking, .. } = &mut stream.state
        {
            knocking.retain(|&waiting| waiting != client);
        }
    }

    pub(super) fn local_address(&mut self, fd: RawFd) -> Result<(i32, Address), i32> {
        let id = self.object_of(fd).ok_or(-libc::EBADF)?;
        let (domain, local) = match self.thing(id) {
            Some(Thing::Stream(stream)) => (stream.domain, stream.local.clone()),
            Some(Thing::Datagram(datagram)) => (datagram.domain, datagram.local.clone()),
            _ => return Err(-libc::ENOTSOCK),
        };
        Ok((domain, local.unwrap_or(unbound(domain))))
    }

    pub(super) fn peer_address(&mut self, fd: RawFd) -> Result<(i32, Address), i32> {
        let id = self.object_of(fd).ok_or(-libc::EBADF)?;
        match self.thing(id) {
            Some(Thing::Stream(stream)) if stream.is_connected() && !stream.is_reset => {
                Ok((stream.domain, stream.remote.clone().unwrap_or(Address::UNNAMED)))
            }
            Some(Thing::Datagram(datagram)) => match (&datagram.remote, datagram.peer) {
                (Some(remote), _) => Ok((datagram.domain, remote.clone())),
                (None, Some(_)) => Ok((datagram.domain, Address::UNNAMED)),
                (None, None) => Err(-libc::ENOTCONN),
            },
            Some(Thing::Stream(_)) => Err(-libc::ENOTCONN),
            _ => Err(-libc::ENOTSOCK),
        }
    }

    pub(super) fn shutdown(&mut self, fd: RawFd, how: i32) -> Result<i32, i32> {
        let id = self.object_of(fd).ok_or(-libc::EBADF)?;
        match self.thing(id) {
            Some(Thing::Stream(_)) => self.shutdown_stream(id, how),
            Some(Thing::Datagram(_)) => self.shutdown_datagram(id, how),
            _ => Err(-libc::ENOTSOCK),
        }
    }

    /// Takes back a descriptor that was made a moment ago.
    fn discard(&mut self, fd: RawFd) {
        // SAFETY: the operation names no memory.
        unsafe { self.act(&crate::op::Op::Close { fd }) };
    }
}

/// The address of a socket that has none.
fn unbound(domain: i32) -> Address {
    match domain {
        libc::AF_INET => Address::Inet(([0, 0, 0, 0], 0).into()),
        libc::AF_INET6 => Address::Inet(([0u16; 8], 0).into()),
        _ => Address::UNNAMED,
    }
}

impl Stream {
    /// Connects this end to the other.
    fn join(&mut self, peer: Id) {
        self.state = State::Connected;
        self.peer = Some(peer);
    }
}
