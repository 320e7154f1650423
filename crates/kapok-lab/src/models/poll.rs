//! An event loop on `poll(2)`.
//!
//! Waits: in one call for all connections. Costs: the whole list goes to the kernel and is looked
//! through, there and here, on every call: O(n) a wake-up, however few are active. The limit is the
//! number of open files.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::Server;
use super::connection::{Connection, Interest, Next};
use super::intake::Intake;
use super::listener::Accepted;
use super::pace::{Pace, milliseconds};
use super::table::Table;

/// The first two places in the list; the connection with token `t` has place `t + CONNECTIONS`.
const STOP: usize = 0;
const INTAKE: usize = 1;
const CONNECTIONS: usize = 2;

/// `poll` passes over negative descriptors: how a place is kept empty.
const NOBODY: libc::pollfd = libc::pollfd { fd: -1, events: 0, revents: 0 };

fn waiting(fd: impl AsFd, interest: Interest) -> libc::pollfd {
    let events = match interest {
        Interest::Read => libc::POLLIN,
        Interest::Write => libc::POLLOUT,
    };
    libc::pollfd { fd: fd.as_fd().as_raw_fd(), events, revents: 0 }
}

pub(super) fn serve(server: &Server, mut intake: Intake) -> io::Result<()> {
    let mut table = Table::default();
    let mut pace = Pace::new(&server.config);
    let mut list = vec![waiting(&server.stop, Interest::Read), NOBODY];
    loop {
        list[INTAKE] = if pace.accepts() { waiting(&intake, Interest::Read) } else { NOBODY };
        wait(&mut list, milliseconds(pace.timeout(table.is_empty())))?;

        for token in 0..table.len() {
            let place = &mut list[CONNECTIONS + token];
            if place.revents == 0 {
                continue;
            }
            let Some(connection) = table.get(token) else { continue };
            match connection.drive(pace.now()) {
                Next::Wait(interest) => *place = waiting(&*connection, interest),
                // What is left is reported again by the next call.
                Next::Again => *place = waiting(&*connection, Interest::Read),
                Next::Close => {
                    *place = NOBODY;
                    table.remove(token);
                }
            }
        }
        while list[INTAKE].revents != 0 && pace.accepts() {
            match intake.next(server)? {
                Accepted::Connection(stream) => {
                    let connection = Connection::new(server, stream, pace.now());
                    let place = waiting(&connection, Interest::Read);
                    let token = table.insert(connection);
                    list.resize(list.len().max(CONNECTIONS + token + 1), NOBODY);
                    list[CONNECTIONS + token] = place;
                }
                Accepted::Pause(pause) => pace.pause_accepting(pause),
                Accepted::Empty => break,
            }
        }
        if list[STOP].revents != 0 {
            list[STOP] = NOBODY;
            pace.drain(server.config.drain_timeout);
            table.iter().for_each(|(_, connection)| connection.end_input());
        }
        let due = pace.due();
        if due.sweep {
            for token in pace.idle(&table) {
                list[CONNECTIONS + token] = NOBODY;
                table.remove(token);
            }
        }
        if due.cut || pace.drains() && table.is_empty() {
            return Ok(());
        }
    }
}

/// Leaves in each `revents` what is possible; in none of them on a time-out or a signal.
fn wait(list: &mut [libc::pollfd], timeout: i32) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a slice that outlives the call.
    let n = unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, timeout) };
    if n >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => {
            list.iter_mut().for_each(|place| place.revents = 0);
            Ok(())
        }
        // EINVAL: more places than the process may open files. It cannot have opened that many, so
        // the limit was lowered while it ran.
        error => Err(io::Error::new(error.kind(), format!("poll failed: {error}"))),
    }
}
