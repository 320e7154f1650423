//! A descriptor's number that is closed behind the back of a fiber that waits on it, as code does
//! that closes a number once too often: the number's next owner loses nothing to who waits still.

mod harness;

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use harness::alone;
use kapok::net::UnixStream;
use kapok::{Kind, Runtime};

const LONG: Duration = Duration::from_secs(10);

/// Two sockets, the first of which has the number, which is free.
fn pair_at(number: i32) -> (UnixStream, UnixStream) {
    let mut others = Vec::new();
    loop {
        let (one, other) = UnixStream::pair().unwrap();
        if one.as_raw_fd() == number {
            return (one, other);
        }
        if other.as_raw_fd() == number {
            return (other, one);
        }
        others.push((one, other));
        assert!(others.len() < 100, "the number {number} does not come back");
    }
}

fn read(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut buf = [0; 16];
    kapok::timeout(LONG, || stream.read(&mut buf)).map(|count| buf[..count].to_vec())
}

/// `owner_waits`: the new owner waits for its bytes, behind the old one; else they wait for it.
fn reuse(kind: Kind, owner_waits: bool) {
    let (stale, mut stale_peer) = UnixStream::pair().unwrap();
    // Never dropped: its number is not its own any more.
    let stale: &'static UnixStream = Box::leak(Box::new(stale));
    let number = stale.as_raw_fd();
    let waits = kapok::spawn_local(move || read(stale));
    kapok::sleep(Duration::from_millis(5)).unwrap();
    // SAFETY: nothing uses the number any more but what is being tested.
    assert_eq!(unsafe { libc::close(number) }, 0);

    let (owner, mut peer) = pair_at(number);
    if !owner_waits {
        peer.write_all(b"first").unwrap();
        // Long enough for whoever sees them.
        kapok::sleep(Duration::from_millis(5)).unwrap();
    }
    let owner = kapok::spawn_local(move || (read(&owner), owner));
    kapok::sleep(Duration::from_millis(5)).unwrap();
    if owner_waits {
        peer.write_all(b"first").unwrap();
    }
    let (received, owner) = owner.join().unwrap();
    assert_eq!(received.unwrap(), b"first", "on {kind}");

    // In a ring the operation keeps the old socket open; elsewhere that went with its number.
    let sent = stale_peer.write_all(b"old");
    let received = waits.join().unwrap();
    if kind == Kind::Uring {
        assert!(sent.is_ok(), "{sent:?}");
        assert_eq!(received.unwrap(), b"old");
    } else {
        let error = received.expect_err("nothing was sent to it before it was closed");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "on {kind}");
    }
    peer.write_all(b"second").unwrap();
    assert_eq!(read(&owner).unwrap(), b"second", "on {kind}");
}

#[test]
fn a_fiber_that_waits_on_a_closed_number_takes_nothing_from_its_next_owner() {
    alone("a_fiber_that_waits_on_a_closed_number_takes_nothing_from_its_next_owner", || {
        for &kind in Kind::ALL {
            match Runtime::builder().engine(kind).build() {
                Ok(runtime) => runtime.run(move || {
                    for round in 0..20 {
                        reuse(kind, round % 2 == 0);
                    }
                }),
                Err(error) => eprintln!("no {kind} here: {error}"),
            }
        }
    });
}
