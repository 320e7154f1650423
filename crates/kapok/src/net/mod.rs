//! Sockets with the shape of std's.
//!
//! On a fiber their calls suspend the fiber; on a plain thread they block it. A read goes straight
//! into the caller's buffer, on every engine. Streams carry no state besides their descriptor and
//! their time-outs: they convert from and into std's types at no cost, and whatever shares the
//! descriptor sees every byte.
//!
//! # Cancellation and time-outs
//!
//! A call on a fiber that is cancelled, or whose deadline passes, returns an error only if its
//! operation did nothing: bytes that had arrived by then are returned, a connection that had been
//! accepted is returned or handed to the next `accept`. Time-outs are of the kind
//! [`TimedOut`](std::io::ErrorKind::TimedOut). They belong to the object, not to the socket: a
//! clone starts with its original's, and has its own from then on. On a plain thread only the
//! `SO_RCVTIMEO` and `SO_SNDTIMEO` that were set before a conversion apply.

mod listener;
mod received;
mod resolve;
mod socket;
mod split;
mod tcp;
mod udp;
mod unix;

pub use listener::DescriptorLimit;
pub use received::Received;
pub use resolve::ToSocketAddrs;
pub use split::{ReadHalf, WriteHalf};
pub use tcp::{Incoming, TcpListener, TcpStream};
pub use udp::UdpSocket;
pub use unix::{UnixDatagram, UnixListener, UnixStream};

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use kapok_engine::{Op, Readiness};

use crate::op::{self, Pending};

/// Waits until `fd` is readable, or at its end, or broken. Takes nothing out of it.
///
/// # Errors
///
/// What poll(2) says of the descriptor; cancellation and deadlines.
pub fn wait_readable(fd: impl AsFd) -> io::Result<()> {
    wait(fd, Readiness::READABLE)
}

/// Waits until `fd` is writable or broken.
///
/// # Errors
///
/// As for [`wait_readable`].
pub fn wait_writable(fd: impl AsFd) -> io::Result<()> {
    wait(fd, Readiness::WRITABLE)
}

/// Shuts down one direction of a stream, or both (shutdown(2)), by a borrowed descriptor. A call
/// that waits in it returns.
///
/// # Errors
///
/// `NotConnected` if it is not connected any more.
pub fn shutdown(fd: impl AsFd, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: the operation names no memory; the descriptor is borrowed for the whole call.
    unsafe { op::now(Op::Shutdown { fd: fd.as_fd().as_raw_fd(), how }) }.map(drop)
}

fn wait(fd: impl AsFd, events: Readiness) -> io::Result<()> {
    let op = Op::Poll { fd: fd.as_fd().as_raw_fd(), events };
    // SAFETY: a poll names no memory; the descriptor is borrowed for the whole call.
    unsafe { op::run(op) }.map(drop)
}

/// The future of a descriptor's readiness, for [`select!`](crate::select). Polled on a fiber.
///
/// It takes nothing out of the descriptor, so losing a race loses nothing: the winner of a
/// `select!` reads, and nobody else did.
#[must_use = "futures do nothing unless polled"]
pub struct Ready<'a> {
    pending: Pending,
    _descriptor: std::marker::PhantomData<&'a ()>,
}

impl std::fmt::Debug for Ready<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ready")
    }
}

impl Future for Ready<'_> {
    type Output = io::Result<()>;

    /// # Panics
    ///
    /// Outside a [`Runtime`](crate::Runtime).
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pending).poll(context).map(|res| match res {
            0.. => Ok(()),
            _ => Err(io::Error::from_raw_os_error(-res)),
        })
    }
}

/// Ends when `fd` is readable; see [`Ready`].
pub fn readable_async(fd: &impl AsFd) -> Ready<'_> {
    ready_async(fd, Readiness::READABLE)
}

/// Ends when `fd` is writable; see [`Ready`].
pub fn writable_async(fd: &impl AsFd) -> Ready<'_> {
    ready_async(fd, Readiness::WRITABLE)
}

fn ready_async(fd: &impl AsFd, events: Readiness) -> Ready<'_> {
    let op = Op::Poll { fd: fd.as_fd().as_raw_fd(), events };
    // SAFETY: a poll names no memory; the descriptor is borrowed for the future's life.
    Ready { pending: unsafe { Pending::new(op, None) }, _descriptor: std::marker::PhantomData }
}

/// What sockets have in common with std's: descriptors, and conversions from and into std's type. The
/// type has private methods `socket`, `from_owned` and `into_owned`.
macro_rules! descriptor_conversions {
    ($type:ident, $std:ty) => {
        impl std::os::fd::AsFd for $type {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                std::os::fd::AsFd::as_fd(self.socket())
            }
        }

        impl std::os::fd::AsRawFd for $type {
            fn as_raw_fd(&self) -> std::os::fd::RawFd {
                std::os::fd::AsRawFd::as_raw_fd(self.socket())
            }
        }

        impl From<$type> for std::os::fd::OwnedFd {
            fn from(socket: $type) -> std::os::fd::OwnedFd {
                socket.into_owned()
            }
        }

        impl From<$type> for $std {
            fn from(socket: $type) -> $std {
                <$std>::from(socket.into_owned())
            }
        }

        impl TryFrom<$std> for $type {
            type Error = std::io::Error;

            fn try_from(socket: $std) -> std::io::Result<$type> {
                $type::from_owned(std::os::fd::OwnedFd::from(socket))
            }
        }
    };
}

/// Reading and writing, time-outs and halves of a stream.
macro_rules! stream_methods {
    ($type:ident) => {
        impl std::io::Read for $type {
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                self.0.recv_stream(buf, 0)
            }

            fn read_vectored(
                &mut self,
                bufs: &mut [std::io::IoSliceMut<'_>],
            ) -> std::io::Result<usize> {
                self.0.recv_vectored(bufs)
            }
        }

        impl std::io::Read for &$type {
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                self.0.recv_stream(buf, 0)
            }

            fn read_vectored(
                &mut self,
                bufs: &mut [std::io::IoSliceMut<'_>],
            ) -> std::io::Result<usize> {
                self.0.recv_vectored(bufs)
            }
        }

        impl std::io::Write for $type {
            fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
                self.0.send(buf, 0)
            }

            fn write_vectored(&mut self, bufs: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
                self.0.send_vectored(bufs)
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        impl std::io::Write for &$type {
            fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
                self.0.send(buf, 0)
            }

            fn write_vectored(&mut self, bufs: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
                self.0.send_vectored(bufs)
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        impl $type {
            /// Receives what has come, in a buffer of the loop's own that is taken when there is
            /// something to receive: until then a connection that waits holds no memory for it. Up
            /// to 16 KiB at a time, up to 256 KiB once that much was not all that had come, and nothing is
            /// read ahead. Empty at the end of the stream.
            ///
            /// On io_uring the kernel takes the buffer as bytes come (5.19 and later), on the
            /// readiness engines the loop does. Where neither can (simulation, plain threads, all
            /// 128 of them taken), memory is allocated for the call.
            ///
            /// ```
            /// use std::io::Write;
            ///
            /// # fn main() -> std::io::Result<()> {
            /// # kapok::Runtime::new()?.run(|| {
            /// let (mut one, other) = kapok::net::UnixStream::pair()?;
            /// one.write_all(b"ahoy")?;
            /// let received = other.receive()?;
            /// assert_eq!(&received[..], b"ahoy");
            /// # Ok(())
            /// # })
            /// # }
            /// ```
            ///
            /// # Errors
            ///
            /// As for reading: resets, cancellation, deadlines and the time-out of reads.
            pub fn receive(&self) -> std::io::Result<$crate::net::Received> {
                $crate::net::Received::from(&self.0)
            }

            /// A second object for the same stream, with a descriptor of its own (dup(2)).
            ///
            /// # Errors
            ///
            /// If there is no descriptor left.
            pub fn try_clone(&self) -> std::io::Result<$type> {
                self.0.try_clone().map($type)
            }

            /// Two halves of the stream, for two fibers. (`&stream` reads and writes too; halves
            /// are for fibers that do not borrow.)
            pub fn split(self) -> (crate::net::ReadHalf<$type>, crate::net::WriteHalf<$type>) {
                crate::net::split::split(self)
            }

            /// Receives without taking the bytes out of the socket.
            ///
            /// # Errors
            ///
            /// As for a read.
            pub fn peek(&self, buf: &mut [u8]) -> std::io::Result<usize> {
                self.0.recv_stream(buf, libc::MSG_PEEK)
            }

            /// Shuts one direction of the stream down, or both. A call that waits in it returns.
            ///
            /// # Errors
            ///
            /// `NotConnected` if it is not connected any more.
            pub fn shutdown(&self, how: std::net::Shutdown) -> std::io::Result<()> {
                crate::net::shutdown(self, how)
            }

            /// A future that ends when the stream can be read from; see [`Ready`](crate::net::Ready).
            pub fn readable_async(&self) -> crate::net::Ready<'_> {
                crate::net::readable_async(self)
            }
        }

        crate::net::timeout_methods!($type);
    };
}

/// Time-outs of reads and writes.
macro_rules! timeout_methods {
    ($type:ident) => {
        impl $type {
            /// How long a read may wait.
            ///
            /// # Errors
            ///
            /// None; the shape is std's.
            pub fn read_timeout(&self) -> std::io::Result<Option<std::time::Duration>> {
                Ok(self.0.read_timeout())
            }

            /// How long a write may wait.
            ///
            /// # Errors
            ///
            /// None; the shape is std's.
            pub fn write_timeout(&self) -> std::io::Result<Option<std::time::Duration>> {
                Ok(self.0.write_timeout())
            }

            /// Limits how long each read on a fiber may wait: then it fails with `TimedOut`.
            ///
            /// # Errors
            ///
            /// `InvalidInput` for a limit of zero.
            pub fn set_read_timeout(
                &self,
                limit: Option<std::time::Duration>,
            ) -> std::io::Result<()> {
                self.0.set_read_timeout(limit)
            }

            /// Limits how long each write on a fiber may wait: then it fails with `TimedOut`.
            ///
            /// # Errors
            ///
            /// `InvalidInput` for a limit of zero.
            pub fn set_write_timeout(
                &self,
                limit: Option<std::time::Duration>,
            ) -> std::io::Result<()> {
                self.0.set_write_timeout(limit)
            }

            /// Takes the error that is pending on the socket (`SO_ERROR`).
            ///
            /// # Errors
            ///
            /// If it cannot be asked for.
            pub fn take_error(&self) -> std::io::Result<Option<std::io::Error>> {
                self.0.options().take_error()
            }
        }
    };
}

pub(crate) use {descriptor_conversions, stream_methods, timeout_methods};
