//! A descriptor that one thread makes readable for another: an eventfd, or a pipe elsewhere.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Makes a descriptor readable, from any thread and from signal handlers.
#[derive(Debug)]
pub struct Notifier {
    read: OwnedFd,
    /// The writing end of the pipe; an eventfd is both.
    write: Option<OwnedFd>,
}

impl Notifier {
    /// One that is not readable yet.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn new() -> io::Result<Notifier> {
        // SAFETY: eventfd takes no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made and that nobody else knows.
        Ok(Notifier { read: unsafe { OwnedFd::from_raw_fd(fd) }, write: None })
    }

    /// One that is not readable yet.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn new() -> io::Result<Notifier> {
        let mut fds = [-1; 2];
        // SAFETY: pipe writes two descriptors to the array.
        if unsafe { libc::pipe(fds.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: descriptors that were just made and that nobody else knows.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
        for fd in [&read, &write] {
            // SAFETY: fcntl with integer arguments on a descriptor we own.
            let set = unsafe {
                libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) == 0
                    && libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) == 0
            };
            if !set {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Notifier { read, write: Some(write) })
    }

    /// Makes the descriptor readable. Async-signal-safe; leaves `errno` as it was.
    pub fn notify(&self) {
        let fd = self.write.as_ref().unwrap_or(&self.read).as_raw_fd();
        let one = 1u64;
        let saved = super::errno();
        // SAFETY: writes eight bytes from a local. EAGAIN means that it is readable already.
        unsafe { libc::write(fd, (&raw const one).cast(), 8) };
        super::set_errno(saved);
    }

    /// Takes out what [`notify`](Notifier::notify) put in.
    pub fn drain(&self) {
        let mut sink = [0u8; 64];
        // SAFETY: reads into a local of the length given; the descriptor does not block.
        while unsafe { libc::read(self.read.as_raw_fd(), sink.as_mut_ptr().cast(), sink.len()) }
            == sink.len() as isize
        {}
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.read.as_raw_fd()
    }
}
