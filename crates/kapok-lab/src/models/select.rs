//! An event loop on `select(2)`.
//!
//! Waits: in one call for all connections. Costs: a bit for every descriptor up to the highest one,
//! for each direction, goes to the kernel and back on every call, and both sides look through all of
//! them: O(n) a wake-up. The limit is the set: descriptors from `FD_SETSIZE` (1024) on do not fit,
//! and writing them there would overwrite what lies behind. Their connections are closed and
//! counted, and the rest is served.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use super::Server;
use super::connection::{Connection, Interest, Next};
use super::intake::Intake;
use super::listener::Accepted;
use super::pace::Pace;
use super::table::Table;

pub(super) fn serve(server: &Server, mut intake: Intake) -> io::Result<()> {
    let mut table = Table::default();
    let mut pace = Pace::new(&server.config);
    // What is waited for is kept in two sets; `select` gets copies, which it writes its answer to.
    let mut readers = Set::new();
    let mut writers = Set::new();
    if !Set::holds(&server.stop) || !Set::holds(&intake) {
        return Err(io::Error::other(format!(
            "select cannot serve: its own descriptors are beyond FD_SETSIZE ({})",
            libc::FD_SETSIZE
        )));
    }
    readers.insert(&server.stop);
    loop {
        if pace.accepts() {
            readers.insert(&intake);
        } else {
            readers.remove(&intake);
        }
        let (mut readable, mut writable) = (readers, writers);
        wait(&mut readable, &mut writable, pace.timeout(table.is_empty()))?;

        for token in 0..table.len() {
            let Some(connection) = table.get(token) else { continue };
            if !readable.contains(&*connection) && !writable.contains(&*connection) {
                continue;
            }
            readers.remove(&*connection);
            writers.remove(&*connection);
            match connection.drive(pace.now()) {
                Next::Wait(_) if !Set::holds(&*connection) => {
                    server.tally.refused(|| {
                        format!(
                            "connection closed, select cannot wait for its backend: FD_SETSIZE is {}",
                            libc::FD_SETSIZE
                        )
                    });
                    table.remove(token);
                }
                Next::Wait(Interest::Write) => writers.insert(&*connection),
                // What is left is reported again by the next call.
                Next::Wait(Interest::Read) | Next::Again => readers.insert(&*connection),
                Next::Close => table.remove(token),
            }
        }
        while readable.contains(&intake) && pace.accepts() {
            match intake.next(server)? {
                Accepted::Connection(stream) if Set::holds(&stream) => {
                    readers.insert(&stream);
                    table.insert(Connection::new(server, stream, pace.now()));
                }
                Accepted::Connection(stream) => server.tally.refused(|| {
                    format!(
                        "connection closed, select cannot wait for descriptor {}: FD_SETSIZE is \
                         {}; use poll or epoll for more connections",
                        stream.as_raw_fd(),
                        libc::FD_SETSIZE
                    )
                }),
                Accepted::Pause(pause) => pace.pause_accepting(pause),
                Accepted::Empty => break,
            }
        }
        if readable.contains(&server.stop) {
            readers.remove(&server.stop);
            pace.drain(server.config.drain_timeout);
            table.iter().for_each(|(_, connection)| connection.end_input());
        }
        let due = pace.due();
        if due.sweep {
            for token in pace.idle(&table) {
                if let Some(connection) = table.get(token) {
                    readers.remove(&*connection);
                    writers.remove(&*connection);
                }
                table.remove(token);
            }
        }
        if due.cut || pace.drains() && table.is_empty() {
            return Ok(());
        }
    }
}

/// A set of descriptors below `FD_SETSIZE`. A descriptor leaves it before it is closed: `select`
/// fails for all if one of them is not open.
#[derive(Clone, Copy)]
struct Set(libc::fd_set);

impl Set {
    fn new() -> Set {
        let mut set = MaybeUninit::uninit();
        // SAFETY: FD_ZERO initialises all of it.
        unsafe {
            libc::FD_ZERO(set.as_mut_ptr());
            Set(set.assume_init())
        }
    }

    /// Whether the set has a bit for the descriptor.
    fn holds(fd: impl AsFd) -> bool {
        (fd.as_fd().as_raw_fd() as usize) < libc::FD_SETSIZE
    }

    fn insert(&mut self, fd: impl AsFd) {
        assert!(Set::holds(&fd), "refused when it was accepted");
        // SAFETY: the bit exists, as was just asserted.
        unsafe { libc::FD_SET(fd.as_fd().as_raw_fd(), &mut self.0) }
    }

    fn remove(&mut self, fd: impl AsFd) {
        assert!(Set::holds(&fd), "refused when it was accepted");
        // SAFETY: the bit exists, as was just asserted.
        unsafe { libc::FD_CLR(fd.as_fd().as_raw_fd(), &mut self.0) }
    }

    fn contains(&self, fd: impl AsFd) -> bool {
        assert!(Set::holds(&fd), "refused when it was accepted");
        // SAFETY: the bit exists, as was just asserted.
        unsafe { libc::FD_ISSET(fd.as_fd().as_raw_fd(), &self.0) }
    }
}

/// Leaves in the sets what is possible; nothing on a time-out or a signal.
fn wait(readable: &mut Set, writable: &mut Set, timeout: Option<Duration>) -> io::Result<()> {
    let mut timeout = timeout.map(|timeout| libc::timeval {
        // A day is as good as longer; the loop looks again.
        tv_sec: timeout.as_secs().min(86_400) as libc::time_t,
        // Rounded up, lest the loop spins through the last microsecond.
        tv_usec: (timeout.subsec_micros() + 1).min(999_999) as libc::suseconds_t,
    });
    let timeout = timeout.as_mut().map_or(std::ptr::null_mut(), |timeout| &raw mut *timeout);
    // SAFETY: the sets and the time-out are locals that outlive the call, and the first argument is
    // the number of bits that a set has.
    let n = unsafe {
        libc::select(
            libc::FD_SETSIZE as i32,
            &mut readable.0,
            &mut writable.0,
            std::ptr::null_mut(),
            timeout,
        )
    };
    if n >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => {
            (*readable, *writable) = (Set::new(), Set::new());
            Ok(())
        }
        error => Err(io::Error::new(error.kind(), format!("select failed: {error}"))),
    }
}
