//! Signals, as something a fiber waits for.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use kapok_engine::sys::preserving_errno;
use signal_hook_registry::SigId;

use crate::fiber;
use crate::net::UnixStream;

/// Signals that were asked for, in the order in which they came.
///
/// While it exists its signals do not have their default effect. Several may ask for the same
/// signal, and each gets it. The child of a fork that has not called exec(3) ignores them. Signals
/// of one number that come in quick succession may be told once,
/// as everywhere on Unix.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| -> std::io::Result<()> {
/// let mut signals = kapok::signal::Signals::termination()?;
/// let signal = signals.recv()?;
/// println!("told to stop by signal {signal}");
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Debug)]
pub struct Signals {
    pipe: UnixStream,
    registered: Vec<SigId>,
    /// The writing end, which the handlers use: it goes after they are gone.
    _writer: OwnedFd,
    seen: VecDeque<i32>,
}

impl Signals {
    /// Asks for these signals (`SIGINT`, …).
    ///
    /// # Errors
    ///
    /// `InvalidInput` for `SIGKILL`, `SIGSTOP`, `SIGILL`, `SIGFPE`, `SIGSEGV` and for what is no
    /// signal; if there is no descriptor left.
    pub fn new(signals: impl IntoIterator<Item = i32>) -> io::Result<Signals> {
        let (read, write) = StdUnixStream::pair()?;
        write.set_nonblocking(true)?;
        let writer = OwnedFd::from(write);
        let mut this = Signals {
            pipe: UnixStream::try_from(read)?,
            registered: Vec::new(),
            _writer: writer,
            seen: VecDeque::new(),
        };
        for signal in signals {
            if signal_hook_registry::FORBIDDEN.contains(&signal) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("signal {signal} cannot be waited for"),
                ));
            }
            let fd = this._writer.as_raw_fd();
            let number = signal as u8;
            let process = std::process::id();
            let action = move || {
                // A child that was forked shares the pipe. Its signals are not its parent's.
                if std::process::id() != process {
                    return;
                }
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: send is async-signal-safe, reads one byte of a local, and the descriptor
                // outlives the registration. A full pipe has enough to tell.
                preserving_errno(|| unsafe {
                    libc::send(fd, (&raw const number).cast(), 1, flags)
                });
            };
            // SAFETY: the action is async-signal-safe, see above, and leaves errno alone.
            let id = unsafe { signal_hook_registry::register(signal, action) }?;
            this.registered.push(id);
        }
        Ok(this)
    }

    /// Asks for the signals by which a program is told to end: `SIGINT` (Ctrl-C) and `SIGTERM`.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn termination() -> io::Result<Signals> {
        Signals::new([libc::SIGINT, libc::SIGTERM])
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    ///
    /// Cancellation and deadlines.
    pub fn recv(&mut self) -> io::Result<i32> {
        loop {
            if let Some(signal) = self.seen.pop_front() {
                return Ok(signal);
            }
            self.take_numbers()?;
        }
    }

    /// As [`recv`](Signals::recv), in a future for [`select!`](crate::select). Dropped early it
    /// loses no signal. Polled on a fiber.
    ///
    /// # Errors
    ///
    /// What waiting for the descriptor says.
    pub async fn recv_async(&mut self) -> io::Result<i32> {
        loop {
            if let Some(signal) = self.seen.pop_front() {
                return Ok(signal);
            }
            self.pipe.readable_async().await?;
            // Nobody else reads the pipe, so this does not wait; nor is a future interrupted.
            fiber::shield(|| self.take_numbers())?;
        }
    }

    fn take_numbers(&mut self) -> io::Result<()> {
        let mut numbers = [0; 64];
        let count = self.pipe.read(&mut numbers)?;
        self.seen.extend(numbers[..count].iter().map(|&number| i32::from(number)));
        Ok(())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for &id in &self.registered {
            signal_hook_registry::unregister(id);
        }
    }
}
