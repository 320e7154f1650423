//! A descriptor that one thread makes readable for another: an eventfd, or a pipe elsewhere.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::own::{OwnDescriptor, made};

/// Makes a descriptor readable, from any thread and from signal handlers.
#[derive(Debug)]
pub struct Notifier {
    read: OwnDescriptor,
    /// The writing end of the pipe; an eventfd is both.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    write: OwnDescriptor,
}

impl Notifier {
    /// It counts, in room for all notifications there will ever be: an eventfd. Elsewhere it is a pipe,
    /// which is full some time and then makes no edges.
    pub const COUNTS: bool = cfg!(any(target_os = "linux", target_os = "android"));

    /// One that is not readable yet.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn new() -> io::Result<Notifier> {
        // SAFETY: eventfd takes no memory, and makes a descriptor.
        let fd = unsafe { made(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }?;
        // Where the engine may be one over select(2), which holds no more.
        Ok(Notifier { read: OwnDescriptor::below(fd, libc::FD_SETSIZE as RawFd) })
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
        let (read, write) = unsafe { (made(fds[0])?, made(fds[1])?) };
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
        let [read, write] =
            [read, write].map(|fd| OwnDescriptor::below(fd, libc::FD_SETSIZE as RawFd));
        Ok(Notifier { read, write })
    }

    /// Makes the descriptor readable. Async-signal-safe; leaves `errno` as it was.
    ///
    /// By the system call: a waker rings, wherever it is called, and who comes before the C library's
    /// write(2) may suspend its caller.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn notify(&self) {
        let one = 1u64;
        let (fd, from) = (self.read.as_raw_fd() as usize, (&raw const one) as usize);
        // SAFETY: writes eight bytes from a local. EAGAIN means that it is readable already.
        unsafe { super::kernel::call(libc::SYS_write, [fd, from, 8, 0, 0, 0]) };
    }

    /// Makes the descriptor readable. Async-signal-safe; leaves `errno` as it was.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn notify(&self) {
        let fd = self.write.as_raw_fd();
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

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open as long as the notifier is, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}
