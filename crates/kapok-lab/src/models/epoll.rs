//! An event loop on `epoll(7)`, edge-triggered, written by hand.
//!
//! Waits: in one call for all connections, which were registered once. Costs: a wake-up costs as
//! much as there are active connections, O(1) for each, however many are idle; a message costs a
//! read, a write and its share of an `epoll_wait`. An edge tells that something *changed*: the loop
//! must take all there is, or remember that it did not, since nobody will tell it again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::Server;
use super::connection::{Connection, Interest, Next};
use super::intake::Intake;
use super::listener::Accepted;
use super::pace::{Pace, milliseconds};
use super::table::Table;

const STOP: u64 = u64::MAX;
const INTAKE: u64 = u64::MAX - 1;

const EVENTS_A_WAIT: usize = 256;

const HUNG_UP: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;

fn edges(interest: Interest) -> i32 {
    match interest {
        Interest::Read => libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET,
        Interest::Write => libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET,
    }
}

pub(super) fn serve(server: &Server, mut intake: Intake) -> io::Result<()> {
    let epoll = Epoll::new()?;
    let mut table = Table::default();
    let mut pace = Pace::new(&server.config);
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_A_WAIT];
    // Connections that had their turn while there may be more to read.
    let mut again: Vec<usize> = Vec::new();
    // These two are level-triggered: readable as long as there is something.
    epoll.add(&server.stop, libc::EPOLLIN, STOP)?;
    epoll.add(&intake, libc::EPOLLIN, INTAKE)?;
    loop {
        let timeout = match again.is_empty() {
            true => pace.timeout(table.is_empty()),
            false => Some(Duration::ZERO),
        };
        let happened = epoll.wait(&mut events, timeout)?;

        let (mut stop, mut accept) = (false, false);
        for token in std::mem::take(&mut again) {
            drive(&epoll, &mut table, token, &pace, &mut again)?;
        }
        for event in happened {
            match event.u64 {
                STOP => stop = true,
                INTAKE => accept = true,
                token => {
                    let token = token as usize;
                    if event.events & HUNG_UP != 0
                        && let Some(connection) = table.get(token)
                    {
                        connection.hung_up();
                    }
                    drive(&epoll, &mut table, token, &pace, &mut again)?;
                }
            }
        }
        while accept && pace.accepts() {
            match intake.next(server)? {
                Accepted::Connection(stream) => {
                    let token = table.insert(Connection::new(server, stream, pace.now()));
                    let Some(connection) = table.get(token) else { continue };
                    // Data that is there already makes the first edge.
                    let added = epoll.add(&*connection, edges(Interest::Read), token as u64);
                    if let Err(error) = added {
                        table.remove(token);
                        server.tally.refused(|| {
                            format!(
                                "connection closed, epoll cannot watch it: {error}; raise \
                                 fs.epoll.max_user_watches"
                            )
                        });
                    }
                }
                Accepted::Pause(pause) => {
                    pace.pause_accepting(pause);
                    // The backlog is still readable: look away, or every wait returns at once.
                    epoll.modify(&intake, 0, INTAKE)?;
                }
                Accepted::Empty => break,
            }
        }
        if stop {
            epoll.remove(&server.stop)?;
            epoll.remove(&intake)?;
            pace.drain(server.config.drain_timeout);
            table.iter().for_each(|(_, connection)| connection.end_input());
        }
        let due = pace.due();
        if due.resume {
            epoll.modify(&intake, libc::EPOLLIN, INTAKE)?;
        }
        if due.sweep {
            pace.idle(&table).into_iter().for_each(|token| table.remove(token));
        }
        if due.cut || pace.drains() && table.is_empty() {
            return Ok(());
        }
    }
}

#[inline]
fn drive(
    epoll: &Epoll,
    table: &mut Table<'_>,
    token: usize,
    pace: &Pace,
    again: &mut Vec<usize>,
) -> io::Result<()> {
    let Some(connection) = table.get(token) else { return Ok(()) };
    match connection.drive(pace.now()) {
        Next::Wait(_) if connection.asks() => {
            if let Some(backend) = connection.backend_to_watch() {
                let both = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET;
                epoll.add(backend, both, token as u64)?;
            }
        }
        Next::Wait(interest) => {
            if connection.interest != interest {
                connection.interest = interest;
                // Modifying makes a new edge of whatever is possible by now.
                epoll.modify(&*connection, edges(interest), token as u64)?;
            }
        }
        Next::Again => again.push(token),
        Next::Close => table.remove(token),
    }
    Ok(())
}

/// The three system calls.
struct Epoll(OwnedFd);

impl Epoll {
    fn new() -> io::Result<Epoll> {
        // SAFETY: takes no memory.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made and that nobody else knows.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn add(&self, fd: impl AsFd, events: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    fn modify(&self, fd: impl AsFd, events: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, what: i32, fd: impl AsFd, events: i32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: the event is a local that the kernel reads during the call.
        match unsafe { libc::epoll_ctl(self.0.as_raw_fd(), what, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What happened; nothing on a time-out or a signal.
    fn wait<'e>(
        &self,
        events: &'e mut [libc::epoll_event],
        timeout: Option<Duration>,
    ) -> io::Result<&'e [libc::epoll_event]> {
        // SAFETY: the pointer and length are those of a slice that outlives the call.
        let n = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as i32,
                milliseconds(timeout),
            )
        };
        if n >= 0 {
            return Ok(&events[..n as usize]);
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
            error => Err(error),
        }
    }
}
