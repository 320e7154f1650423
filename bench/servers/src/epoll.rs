//! A loop over epoll, written by hand: level-triggered, one read and one write for what is there.
//!
//! One read buffer serves all connections, for nothing is kept in it from one wake-up to the next.
//! What a peer does not take is kept with its connection, which waits for room from then on.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

use crate::work::{Replies, Speech, Work};

const LISTENER: u64 = u64::MAX;
const EVENTS: usize = 1024;

struct Connection {
    stream: TcpStream,
    replies: Replies,
    /// What the peer has not taken yet.
    pending: Vec<u8>,
    waits_for_room: bool,
    closes: bool,
}

pub(crate) fn serve(listener: TcpListener, work: &Work) -> io::Result<()> {
    // SAFETY: a number goes in and a number comes out.
    let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    listener.set_nonblocking(true)?;
    control(epoll, libc::EPOLL_CTL_ADD, listener.as_raw_fd(), libc::EPOLLIN, LISTENER)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    let mut buffer = vec![0; work.buffer_bytes];
    let mut replies = Vec::new();
    loop {
        // SAFETY: the array lives through the call and has as many places as are told.
        let count =
            check(unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), EVENTS as i32, -1) })?;
        for event in &events[..count as usize] {
            if event.u64 == LISTENER {
                accept(epoll, &listener, work, &mut connections, &mut free)?;
                continue;
            }
            let place = event.u64 as usize;
            let Some(connection) = &mut connections[place] else { continue };
            match connection.advance(work.speech, &mut buffer, &mut replies) {
                Ok(true) => connection.rearm(epoll, event.u64)?,
                Ok(false) | Err(_) => {
                    connections[place] = None;
                    free.push(place);
                }
            }
        }
    }
}

fn accept(
    epoll: RawFd,
    listener: &TcpListener,
    work: &Work,
    connections: &mut Vec<Option<Connection>>,
    free: &mut Vec<usize>,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _peer)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        let place = free.pop().unwrap_or_else(|| {
            connections.push(None);
            connections.len() - 1
        });
        control(epoll, libc::EPOLL_CTL_ADD, stream.as_raw_fd(), libc::EPOLLIN, place as u64)?;
        connections[place] = Some(Connection {
            stream,
            replies: work.replies(),
            pending: Vec::new(),
            waits_for_room: false,
            closes: false,
        });
    }
}

impl Connection {
    /// Reads once and answers. `false`: the connection is over.
    fn advance(
        &mut self,
        speech: Speech,
        buffer: &mut [u8],
        replies: &mut Vec<u8>,
    ) -> io::Result<bool> {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            self.send(&pending)?;
            return Ok(!self.pending.is_empty() || !self.closes);
        }
        let count = match self.stream.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        match speech {
            Speech::Echo => self.send(&buffer[..count])?,
            Speech::Http => {
                replies.clear();
                self.closes = !self.replies.answer(&buffer[..count], replies);
                self.send(replies)?;
            }
        }
        Ok(!self.pending.is_empty() || !self.closes)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = match self.stream.write(bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.pending.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    fn rearm(&mut self, epoll: RawFd, place: u64) -> io::Result<()> {
        let waits_for_room = !self.pending.is_empty();
        if waits_for_room == self.waits_for_room {
            return Ok(());
        }
        self.waits_for_room = waits_for_room;
        let wanted = if waits_for_room { libc::EPOLLOUT } else { libc::EPOLLIN };
        control(epoll, libc::EPOLL_CTL_MOD, self.stream.as_raw_fd(), wanted, place)
    }
}

fn control(epoll: RawFd, what: i32, fd: RawFd, events: i32, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events: events as u32, u64: data };
    // SAFETY: the event lives through the call.
    check(unsafe { libc::epoll_ctl(epoll, what, fd, &raw mut event) }).map(drop)
}

fn check(result: i32) -> io::Result<i32> {
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}
