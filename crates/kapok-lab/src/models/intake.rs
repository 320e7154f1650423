//! Where a worker's connections come from.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use super::Server;
use super::listener::{Accepted, Listener};

/// Accepts on a thread of its own until the stop, giving each connection to `take`.
pub(super) fn accept_each(
    server: &Server,
    mut listener: Listener,
    mut take: impl FnMut(TcpStream),
) -> io::Result<()> {
    while !server.stop.requested() {
        match listener.accept(&server.tally)? {
            Accepted::Connection(stream) => take(stream),
            Accepted::Empty => {
                wait_readable(&[listener.as_fd(), server.stop.as_fd()], None)?;
            }
            Accepted::Pause(pause) => wait_readable(&[server.stop.as_fd()], Some(pause))?,
        }
    }
    Ok(())
}

/// Blocks until one of the descriptors is readable or the time is over.
pub(super) fn wait_readable(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let timeout = limit.map_or(-1, |limit| limit.as_millis().min(i32::MAX as u128) as i32);
    // SAFETY: the pointer and length are those of a vector that outlives the call.
    let n = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
    match n {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
    }
}
