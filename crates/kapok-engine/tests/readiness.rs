//! What the readiness engine does at the limits of its selector.

use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kapok_engine::selector::{Event, Mio, Selector};
use kapok_engine::{Completions, Engine as _, Key, Op, Readiness, Ready, Submitted, Wait};

/// Watches its engine's bell, and then nothing more: as epoll does at `max_user_watches`.
struct Full {
    watched: usize,
}

impl Selector for Full {
    const EDGES: bool = true;

    fn new() -> io::Result<Full> {
        Ok(Full { watched: 0 })
    }

    fn watch(&mut self, _fd: RawFd, _interest: Readiness, _again: bool) -> io::Result<()> {
        self.watched += 1;
        if self.watched > 1 { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    }

    fn unwatch(&mut self, _fd: RawFd) {}

    fn wait(&mut self, _timeout: Option<Duration>, _events: &mut Vec<Event>) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn bytes_received_are_not_lost_when_the_rest_cannot_be_waited_for() {
    let mut engine = Ready::<Full>::new().unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"abc").unwrap();
    let mut buffer = [0_u8; 8];
    let op = Op::Recv {
        fd: near.as_raw_fd(),
        buf: buffer.as_mut_ptr(),
        len: buffer.len(),
        flags: libc::MSG_WAITALL,
    };
    // SAFETY: the buffer and the socket outlive the engine's use of them: it answers at once.
    let answer = unsafe { engine.submit(Key::new(0, 0), op) };
    assert_eq!(answer, Submitted::Done(3));
    assert_eq!(&buffer[..3], b"abc");
}

#[test]
#[cfg(target_os = "linux")]
fn more_that_is_ready_than_one_wait_reports_is_no_lost_edge() {
    // One wait reports 1,024. Two sweeps and a turn between them make three waits.
    const DESCRIPTORS: u32 = 5_000;
    raise_descriptor_limit(u64::from(DESCRIPTORS) + 100);
    let mut engine = Ready::<Mio>::new().unwrap();
    let counters: Vec<OwnedFd> = (0..DESCRIPTORS)
        .map(|_| {
            // SAFETY: eventfd takes no memory, and the descriptor was just made.
            unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) }
        })
        .collect();
    for (index, counter) in (0..).zip(&counters) {
        let op = Op::Poll { fd: counter.as_raw_fd(), events: Readiness::READABLE };
        // SAFETY: a poll lends no memory, and the descriptors outlive the engine's use of them.
        assert_eq!(unsafe { engine.submit(Key::new(index, 0), op) }, Submitted::Pending);
    }
    for counter in &counters {
        let one = 1_u64;
        // SAFETY: writes eight bytes from a local.
        assert_eq!(unsafe { libc::write(counter.as_raw_fd(), (&raw const one).cast(), 8) }, 8);
    }
    let mut landed = Completions::new();
    assert_eq!(engine.sweep().unwrap(), 0);
    engine.turn(Wait::No, &mut landed).unwrap();
    assert_eq!(engine.sweep().unwrap(), 0);
    while engine.in_flight() > 0 {
        engine.turn(Wait::No, &mut landed).unwrap();
    }
    assert_eq!(landed.len(), DESCRIPTORS as usize);
    assert_eq!(engine.lost_edges(), 0);
}

/// Raises the soft limit on descriptors.
#[cfg(target_os = "linux")]
fn raise_descriptor_limit(needed: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is a local that outlives both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    assert!(limit.rlim_cur >= needed, "this test needs {needed} descriptors");
}
