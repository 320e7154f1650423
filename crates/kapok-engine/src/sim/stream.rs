//! Streams: bytes in order between two ends, of TCP and of Unix sockets.
//!
//! Everything that one end sends waits at the other: first on its way, then in the receive buffer.
//! Both together are bounded, which is the back-pressure. The end of the stream and a reset travel
//! in order behind the bytes.

use std::collections::VecDeque;

use crate::op::{Op, Readiness};
use crate::sim::address::Address;
use crate::sim::memory::Regions;
use crate::sim::schedule::Event;
use crate::sim::world::{Attempt, Id, Try, World, describe, flags_of};

/// One end of a stream, or a listener.
pub(super) struct Stream {
    pub(super) domain: i32,
    pub(super) state: State,
    pub(super) local: Option<Address>,
    pub(super) remote: Option<Address>,
    /// The other end, as long as somebody has it.
    pub(super) peer: Option<Id>,
    pub(super) incoming: Incoming,
    pub(super) send_shut: bool,
    pub(super) receive_shut: bool,
    /// A pending error, told once.
    pub(super) error: i32,
    /// The connection was reset.
    pub(super) is_reset: bool,
}

pub(super) enum State {
    /// Neither connected nor listening.
    Idle,
    /// A connect is under way; its result, once that has arrived.
    Connecting(Option<i32>),
    Connected,
    Listening {
        backlog: usize,
        /// Connections to be accepted.
        queue: VecDeque<Id>,
        /// Clients for whom there is no room in the queue yet.
        knocking: VecDeque<Id>,
    },
}

/// What was sent to one end.
#[derive(Default)]
pub(super) struct Incoming {
    arrived: VecDeque<u8>,
    /// With the time of its arrival, which never decreases.
    travelling: VecDeque<(u64, Segment)>,
    travelling_bytes: usize,
    /// What is sent from now on does not arrive before this.
    pub(super) not_before: u64,
    /// The end of the stream has arrived.
    ended: bool,
}

enum Segment {
    Bytes(Vec<u8>),
    End,
    Reset,
}

impl Stream {
    pub(super) fn new(domain: i32) -> Stream {
        Stream {
            domain,
            state: State::Idle,
            local: None,
            remote: None,
            peer: None,
            incoming: Incoming::default(),
            send_shut: false,
            receive_shut: false,
            error: 0,
            is_reset: false,
        }
    }

    pub(super) fn is_unix(&self) -> bool {
        self.domain == libc::AF_UNIX
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected)
    }

    fn take_error(&mut self) -> Option<i32> {
        match std::mem::take(&mut self.error) {
            0 => None,
            error => Some(-error),
        }
    }

    /// Nothing more can come: the end has arrived, or nobody wants it.
    fn is_over(&self) -> bool {
        self.incoming.ended || self.receive_shut || self.is_reset
    }

    fn reset(&mut self) {
        // Who has seen the end learns from the reset that nobody reads: see tcp_reset() of Linux.
        self.error = if self.incoming.ended { libc::EPIPE } else { libc::ECONNRESET };
        self.is_reset = true;
        self.send_shut = true;
        self.incoming.travelling.clear();
        self.incoming.travelling_bytes = 0;
    }
}

impl Incoming {
    fn len(&self) -> usize {
        self.arrived.len() + self.travelling_bytes
    }

    fn take_in(&mut self, segment: Segment) -> bool {
        match segment {
            Segment::Bytes(bytes) => self.arrived.extend(bytes),
            Segment::End => self.ended = true,
            Segment::Reset => return true,
        }
        false
    }
}

impl World {
    /// Sends a segment to `to`.
    fn emit(&mut self, to: Id, segment: Segment) {
        let Some(stream) = self.peek_stream(to) else { return };
        let (is_unix, earliest) = (stream.is_unix(), stream.incoming.not_before);
        let at = self.arrival(is_unix, earliest);
        let now = self.now;
        let Some(stream) = self.stream(to) else { return };
        stream.incoming.not_before = at;
        if let Segment::Bytes(bytes) = &segment {
            stream.incoming.travelling_bytes += bytes.len();
        }
        stream.incoming.travelling.push_back((at, segment));
        if at <= now {
            self.arrive(to);
        } else {
            self.schedule.add(at, Event::Arrive(to));
        }
    }

    /// Takes in what has travelled to `id` long enough.
    pub(super) fn arrive(&mut self, id: Id) {
        let now = self.now;
        let Some(stream) = self.stream(id) else { return };
        while let Some((at, _)) = stream.incoming.travelling.front()
            && *at <= now
            && let Some((_, segment)) = stream.incoming.travelling.pop_front()
        {
            if let Segment::Bytes(bytes) = &segment {
                stream.incoming.travelling_bytes -= bytes.len();
            }
            if stream.incoming.take_in(segment) {
                stream.reset();
            }
        }
        self.wake(id);
    }

    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    pub(super) unsafe fn receive(&mut self, id: Id, attempt: Try<'_>) -> Attempt {
        let Try { op, progress, most, .. } = attempt;
        let flags = flags_of(op);
        // SAFETY: the caller's promise.
        let memory = unsafe { Regions::of(op) }.after(*progress as usize);
        let Some(stream) = self.stream(id) else { return Attempt::Done(-libc::EBADF) };
        match stream.state {
            State::Connected => {}
            State::Connecting(_) => return Attempt::Again,
            _ if stream.is_reset => {}
            _ if stream.is_unix() => return Attempt::Done(-libc::EINVAL),
            _ => return Attempt::Done(-libc::ENOTCONN),
        }
        if flags & libc::MSG_OOB != 0 {
            let error = if stream.is_unix() { libc::EOPNOTSUPP } else { libc::EINVAL };
            return Attempt::Done(-error);
        }
        let waits_for_all = flags & libc::MSG_WAITALL != 0 && flags & libc::MSG_PEEK == 0;
        if !stream.incoming.arrived.is_empty() {
            let count = memory.len().min(stream.incoming.arrived.len()).min(most);
            let bytes: Vec<u8> = if flags & libc::MSG_PEEK != 0 {
                stream.incoming.arrived.iter().copied().take(count).collect()
            } else {
                stream.incoming.arrived.drain(..count).collect()
            };
            let (domain, remote, peer) = (stream.domain, stream.remote.clone(), stream.peer);
            // SAFETY: the caller's promise; no more than there is room for.
            unsafe {
                memory.put(&bytes);
                // TCP does not say whom the bytes are from, and Unix does if it has a name.
                let named =
                    remote.filter(|name| domain == libc::AF_UNIX && *name != Address::UNNAMED);
                describe(op, named.as_ref().map(|name| (domain, name)), 0);
            }
            *progress += count as i32;
            if flags & libc::MSG_PEEK == 0
                && let Some(peer) = peer
            {
                self.wake(peer);
            }
            if !waits_for_all || count == memory.len() {
                return Attempt::Done(*progress);
            }
        }
        let Some(stream) = self.stream(id) else { return Attempt::Done(-libc::EBADF) };
        let done = *progress;
        // TCP knows of its end before it looks for errors, Unix after.
        let has_ended = stream.incoming.ended && !stream.is_unix();
        if done == 0
            && !has_ended
            && let Some(error) = stream.take_error()
        {
            return Attempt::Done(error);
        }
        if done > 0 && stream.is_unix() {
            // A Unix socket tells of its error here, where the bytes are what is returned.
            stream.take_error();
        }
        if stream.is_over() {
            // SAFETY: the caller's promise.
            unsafe { describe(op, None, 0) };
            return Attempt::Done(done);
        }
        Attempt::Again
    }

    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    pub(super) unsafe fn send(&mut self, id: Id, attempt: Try<'_>) -> Attempt {
        let Try { op, most, .. } = attempt;
        // SAFETY: the caller's promise, here and below.
        if let Err(error) = unsafe { carries_only_bytes(op) } {
            return Attempt::Done(error);
        }
        // SAFETY: as above.
        let len = unsafe { Regions::of(op) }.len();
        let capacity = self.config.buffer_bytes.max(1);
        let Some(stream) = self.stream(id) else { return Attempt::Done(-libc::EBADF) };
        let is_unix = stream.is_unix();
        match stream.state {
            State::Connected => {}
            State::Connecting(_) => return Attempt::Again,
            _ if is_unix => return Attempt::Done(-libc::ENOTCONN),
            _ => return Attempt::Done(-libc::EPIPE),
        }
        // Unix knows that it is shut before it looks for errors, TCP after.
        if !is_unix && let Some(error) = stream.take_error() {
            return Attempt::Done(error);
        }
        if stream.send_shut {
            return Attempt::Done(-libc::EPIPE);
        }
        let Some(peer) = stream.peer.filter(|_| !is_unix || len > 0) else {
            return match (is_unix, len) {
                (true, 1..) => Attempt::Done(-libc::EPIPE),
                (_, 0) => Attempt::Done(0),
                // Nobody is there any more, which the sender is about to learn.
                (false, len) => {
                    self.emit(id, Segment::Reset);
                    Attempt::Done(len.min(most).min(capacity) as i32)
                }
            };
        };
        let Some(other) = self.peek_stream(peer) else { return Attempt::Done(-libc::EPIPE) };
        if is_unix && other.receive_shut {
            return Attempt::Done(-libc::EPIPE);
        }
        if len == 0 {
            return Attempt::Done(0);
        }
        let room = capacity.saturating_sub(other.incoming.len());
        if room == 0 {
            return Attempt::Again;
        }
        // SAFETY: as above.
        let bytes = unsafe { World::payload(op, room.min(most)) };
        let count = bytes.len() as i32;
        self.emit(peer, Segment::Bytes(bytes));
        Attempt::Done(count)
    }

    pub(super) fn stream_readiness(&self, stream: &Stream) -> Readiness {
        let mut seen = 0;
        match &stream.state {
            State::Idle if !stream.is_reset => {
                return Readiness::WRITABLE.union(Readiness::HANG_UP);
            }
            State::Listening { queue, .. } => {
                return if queue.is_empty() { Readiness(0) } else { Readiness::READABLE };
            }
            State::Connecting(None) => return Readiness(0),
            _ => {}
        }
        if !stream.incoming.arrived.is_empty() {
            seen |= libc::POLLIN;
        }
        if stream.is_over() {
            seen |= libc::POLLIN | Readiness::READ_CLOSED.0;
        }
        let other = stream.peer.and_then(|peer| self.peek_stream(peer));
        let has_room =
            other.is_none_or(|other| other.incoming.len() < self.config.buffer_bytes.max(1));
        if has_room || stream.send_shut {
            seen |= libc::POLLOUT;
        }
        if stream.error != 0 {
            seen |= libc::POLLERR;
        }
        let is_gone = stream.is_unix() && stream.peer.is_none();
        if stream.is_reset || stream.is_over() && (stream.send_shut || is_gone) {
            seen |= libc::POLLHUP;
        }
        Readiness(seen)
    }

    pub(super) fn shutdown_stream(&mut self, id: Id, how: i32) -> Result<i32, i32> {
        let (receive, send) = match how {
            libc::SHUT_RD => (true, false),
            libc::SHUT_WR => (false, true),
            libc::SHUT_RDWR => (true, true),
            _ => return Err(-libc::EINVAL),
        };
        let Some(stream) = self.stream(id) else { return Err(-libc::EBADF) };
        if matches!(stream.state, State::Listening { .. }) && !stream.is_unix() && receive {
            // On Linux this ends the listening: who waits for connections is told `EINVAL`.
            self.stop_listening(id);
            self.wake(id);
            return Ok(0);
        }
        let Some(stream) = self.stream(id) else { return Err(-libc::EBADF) };
        if !stream.is_connected() || stream.is_reset {
            return Err(-libc::ENOTCONN);
        }
        let is_unix = stream.is_unix();
        let says_end = send && !stream.send_shut;
        stream.receive_shut |= receive;
        stream.send_shut |= send;
        let peer = stream.peer;
        self.wake(id);
        if let Some(peer) = peer {
            if says_end {
                self.emit(peer, Segment::End);
            }
            if is_unix && receive {
                // Who would send there is told at once, and it takes part in a hang-up.
                if let Some(other) = self.stream(peer) {
                    other.send_shut = true;
                }
                self.wake(peer);
            }
        }
        Ok(0)
    }

    /// Resets a connection on both sides, as a network does that gives it up.
    pub(super) fn break_connection(&mut self, id: Id) {
        let peer = self.stream(id).and_then(|stream| {
            stream.reset();
            stream.peer.take()
        });
        self.wake(id);
        if let Some(peer) = peer {
            self.emit(peer, Segment::Reset);
            if let Some(other) = self.stream(peer) {
                other.peer = None;
            }
        }
    }

    /// Ends one side of a connection, whose object is gone already.
    pub(super) fn end_stream(&mut self, id: Id, stream: Stream, reset: bool) {
        if let State::Listening { queue, knocking, .. } = stream.state {
            self.turn_away(queue, knocking);
            return;
        }
        self.stop_knocking(id, stream.remote.as_ref());
        let Some(peer) = stream.peer else { return };
        let is_unix = stream.is_unix();
        let Some(other) = self.stream(peer) else { return };
        other.peer = None;
        let unread = stream.incoming.len() > 0;
        if is_unix {
            if (unread || reset) && other.error == 0 {
                other.error = libc::ECONNRESET;
            }
            other.send_shut = true;
            self.emit(peer, Segment::End);
        } else if unread || reset {
            self.emit(peer, Segment::Reset);
        } else if !stream.send_shut {
            self.emit(peer, Segment::End);
        }
        self.wake(peer);
    }
}

/// A send with ancillary data is more than this world carries.
///
/// # Safety
///
/// That of [`Engine::submit`](crate::Engine::submit).
pub(super) unsafe fn carries_only_bytes(op: &Op) -> Result<(), i32> {
    match *op {
        // SAFETY: the header is lent.
        Op::SendMsg { msg, .. } if unsafe { (*msg).msg_controllen } > 0 => Err(-libc::EOPNOTSUPP),
        _ => Ok(()),
    }
}
