//! The engine over readiness, on every selector.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::ptr;

use super::*;
use crate::op::RawMetadata;
#[cfg(target_os = "linux")]
use crate::selector::Epoll;
use crate::selector::{Busy, Mio, Poll, Select};
use crate::sys::descriptors;

/// How long a machine may be busy with something else before a test gives up.
const LONG: Duration = Duration::from_secs(20);

/// Runs a test over every selector.
macro_rules! over_all {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            over_all::$name::<Mio>();
            #[cfg(target_os = "linux")]
            over_all::$name::<Epoll>();
            over_all::$name::<Poll>();
            over_all::$name::<Select>();
            over_all::$name::<Busy>();
        }
    )*};
}

mod connecting;
mod landing;
#[cfg(target_os = "linux")]
mod offloading;
mod receiving;
mod watching;

fn key(index: u32) -> Key {
    Key::new(index, 3)
}

fn recv(fd: &impl AsRawFd, buf: &mut [u8], flags: i32) -> Op {
    Op::Recv { fd: fd.as_raw_fd(), buf: buf.as_mut_ptr(), len: buf.len(), flags }
}

fn submit<S: Selector>(engine: &mut Ready<S>, index: u32, op: Op) -> Submitted {
    // SAFETY: each test keeps what its operations name until they have landed or the engine is
    // dropped.
    unsafe { engine.submit(key(index), op) }
}

/// Turns until `count` operations have landed.
fn land<S: Selector>(engine: &mut Ready<S>, count: usize) -> Vec<(u32, i32)> {
    let (mut out, give_up) = (Vec::new(), Instant::now() + LONG);
    while out.len() < count {
        assert!(Instant::now() < give_up, "only {out:?} landed of {count}");
        engine.turn(Wait::Until(give_up), &mut out).unwrap();
    }
    out.iter().map(|one| (one.key.index(), one.res)).collect()
}

/// The result of an operation, at once or later.
fn result<S: Selector>(engine: &mut Ready<S>, op: Op) -> i32 {
    match submit(engine, 0, op) {
        Submitted::Done(res) | Submitted::DoneIn(res, _) => res,
        Submitted::Pending => land(engine, 1)[0].1,
    }
}

fn assert_quiet<S: Selector>(engine: &mut Ready<S>) {
    let mut out = Vec::new();
    for _ in 0..3 {
        engine.turn(Wait::No, &mut out).unwrap();
    }
    assert_eq!(out, []);
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nodelay(true).unwrap();
    (near, listener.accept().unwrap().0)
}

/// A descriptor that the engine may remember things about while this lives.
struct Adopted<'a, F: AsRawFd>(&'a F);

impl<'a, F: AsRawFd> Adopted<'a, F> {
    fn new(of: &'a F) -> Self {
        descriptors::adopt(of.as_raw_fd());
        Adopted(of)
    }
}

impl<F: AsRawFd> Drop for Adopted<'_, F> {
    fn drop(&mut self) {
        descriptors::retire(self.0.as_raw_fd());
    }
}
