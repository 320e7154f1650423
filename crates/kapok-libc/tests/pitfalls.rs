//! What other interposed C libraries got wrong, and what is easy to get wrong: a test for each.

mod one_loop;

use std::ffi::c_int;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use one_loop::{begin, connected, errno};

/// Some look at numbers and at handlers of signals, which all of the process share.
static ALONE: Mutex<()> = Mutex::new(());

fn on_one_loop(main: impl FnOnce() + 'static) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    one_loop::run(Duration::from_secs(30), main);
}

/// How often the loop of this test has turned.
fn turns() -> u64 {
    let ours = std::thread::current().name().unwrap().to_owned();
    let metrics = kapok::metrics();
    metrics.loops.iter().find(|one| one.thread == ours).unwrap().counts.scheduler.turns
}

fn is_busy() -> bool {
    std::env::var(kapok::ENGINE_VARIABLE).as_deref() == Ok("busy")
}

fn flags(fd: RawFd) -> [c_int; 2] {
    // SAFETY: no memory.
    unsafe { [libc::fcntl(fd, libc::F_GETFL), libc::fcntl(fd, libc::F_GETFD)] }
}

#[test]
fn a_descriptor_that_the_user_made_non_blocking_never_waits() {
    on_one_loop(|| {
        let (mut one, _other) = connected();
        // By another number of the same description, which no table of numbers knows.
        one.try_clone().unwrap().set_nonblocking(true).unwrap();
        let error = one.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn waiting_changes_no_flag() {
    on_one_loop(|| {
        let (mut one, mut other) = connected();
        let before = flags(one.as_raw_fd());
        let fd = one.as_raw_fd();
        let reader = begin(move || one.read(&mut [0; 8]).map(|count| (count, one)).unwrap());
        assert_eq!(flags(fd), before, "while it waits");
        other.write_all(b"x").unwrap();
        let (count, one) = reader.join().unwrap();
        assert_eq!(count, 1);
        assert_eq!(flags(one.as_raw_fd()), before, "after it has waited");
    });
}

#[test]
fn a_peek_waits_and_takes_nothing() {
    on_one_loop(|| {
        let (one, mut other) = connected();
        let peeker = begin(move || {
            let mut buf = [0; 8];
            let peeked = one.peek(&mut buf).unwrap();
            let mut again = [0; 8];
            let read = (&one).read(&mut again).unwrap();
            (peeked, buf, read, again)
        });
        other.write_all(b"peek").unwrap();
        assert_eq!(peeker.join().unwrap(), (4, *b"peek\0\0\0\0", 4, *b"peek\0\0\0\0"));
    });
}

#[test]
fn an_accepted_connection_has_an_address_and_no_flags_of_ours() {
    on_one_loop(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = begin(move || {
            let mut from = [0u8; 16];
            let mut len: libc::socklen_t = 16;
            // SAFETY: room as told.
            let fd = unsafe {
                libc::accept(listener.as_raw_fd(), from.as_mut_ptr().cast(), &raw mut len)
            };
            (fd, from, len)
        });
        let client = TcpStream::connect(address).unwrap();
        let (fd, from, len) = accepting.join().unwrap();
        assert_eq!(len, 16);
        let port = u16::from_be_bytes([from[2], from[3]]);
        assert_eq!(port, client.local_addr().unwrap().port());
        assert_eq!(flags(fd), [libc::O_RDWR, 0]);
        let mut no_delay: c_int = 7;
        let mut size: libc::socklen_t = 4;
        // SAFETY: locals; a descriptor of ours.
        unsafe {
            let value = (&raw mut no_delay).cast();
            libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, value, &raw mut size);
            libc::close(fd);
        }
        assert_eq!(no_delay, 0);
    });
}

#[test]
fn closing_wakes_whoever_waits_with_ebadf() {
    on_one_loop(|| {
        let (one, other) = connected();
        let fd = one.into_raw_fd();
        // SAFETY: room that is there; a number that another fiber closes.
        let reader = begin(move || unsafe {
            let mut buf = [0u8; 8];
            let res = libc::recv(fd, buf.as_mut_ptr().cast(), 8, 0);
            (res, errno())
        });
        let poller = begin(move || {
            let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: a local.
            (unsafe { libc::poll(&raw mut one, 1, 10_000) }, one.revents)
        });
        // SAFETY: a number of ours.
        assert_eq!(unsafe { libc::close(fd) }, 0);
        assert_eq!(reader.join().unwrap(), (-1, libc::EBADF));
        assert_eq!(poller.join().unwrap(), (1, libc::POLLNVAL));
        drop(other);
    });
}

#[test]
fn a_plain_thread_that_closes_or_replaces_wakes_them_too() {
    on_one_loop(|| {
        let (one, _other) = connected();
        let (third, _fourth) = connected();
        for replace in [true, false] {
            // SAFETY: a number of ours.
            let fd = unsafe { libc::dup(one.as_raw_fd()) };
            // SAFETY: room that is there.
            let reader = begin(move || unsafe {
                let mut buf = [0u8; 8];
                let res = libc::recv(fd, buf.as_mut_ptr().cast(), 8, 0);
                (res, errno())
            });
            let by = third.as_raw_fd();
            std::thread::spawn(move || {
                // SAFETY: numbers of ours.
                unsafe {
                    if replace {
                        assert_eq!(libc::dup2(by, fd), fd);
                    } else {
                        assert_eq!(libc::close_range(fd as u32, fd as u32, 0), 0);
                    }
                }
            })
            .join()
            .unwrap();
            assert_eq!(reader.join().unwrap(), (-1, libc::EBADF));
            if replace {
                // SAFETY: a number of ours.
                unsafe { libc::close(fd) };
            }
        }
    });
}

#[test]
fn a_time_out_does_not_survive_its_socket() {
    on_one_loop(|| {
        let (one, _peer) = UnixStream::pair().unwrap();
        one.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let number = one.as_raw_fd();
        assert!((&one).read(&mut [0; 1]).is_err());
        drop(one);
        let (again, mut peer) = UnixStream::pair().unwrap();
        assert!(again.as_raw_fd() == number || peer.as_raw_fd() == number, "the number is free");
        let reader = begin(move || (&again).read(&mut [0; 1]));
        kapok::sleep(Duration::from_millis(30)).unwrap();
        peer.write_all(b"x").unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn two_fibers_on_one_descriptor_both_get_their_bytes() {
    on_one_loop(|| {
        let (one, mut other) = connected();
        let one = Rc::new(one);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let one = Rc::clone(&one);
                begin(move || {
                    let mut buf = [0; 1];
                    (&*one).read_exact(&mut buf).map(|()| buf[0]).unwrap()
                })
            })
            .collect();
        other.write_all(b"a").unwrap();
        kapok::sleep(Duration::from_millis(2)).unwrap();
        other.write_all(b"b").unwrap();
        let mut got: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        got.sort_unstable();
        assert_eq!(got, *b"ab");
    });
}

#[test]
fn a_blocking_send_to_a_peer_that_has_sent_all_it_will_waits_without_spinning() {
    on_one_loop(|| {
        let (one, other) = connected();
        other.shutdown(std::net::Shutdown::Write).unwrap();
        let sender = begin(move || {
            let bytes = vec![7; 8 << 20];
            (&one).write_all(&bytes).unwrap();
        });
        // On a ring the half-closed peer ends every wait for room.
        let before = turns();
        kapok::sleep(Duration::from_millis(100)).unwrap();
        let turned = turns() - before;
        // A busy loop always turns.
        assert!(is_busy() || turned < 60, "{turned} turns in 100 ms of waiting");
        let mut all = Vec::new();
        (&other).take(8 << 20).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 8 << 20);
        sender.join().unwrap();
    });
}

#[test]
fn idle_fibers_do_not_wake() {
    on_one_loop(|| {
        let pairs: Vec<_> = (0..20).map(|_| UnixStream::pair().unwrap()).collect();
        let mut peers = Vec::new();
        let readers: Vec<_> = pairs
            .into_iter()
            .map(|(one, peer)| {
                peers.push(peer);
                begin(move || (&one).read(&mut [0; 1]).unwrap())
            })
            .collect();
        let before = turns();
        kapok::sleep(Duration::from_millis(200)).unwrap();
        let turned = turns() - before;
        // Once a fiber, if they woke a hundred times a second, were 400.
        assert!(is_busy() || turned < 100, "{turned} turns");
        drop(peers);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 0);
        }
    });
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_: c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_send_to_nobody_raises_its_signal_once_unless_told_not_to() {
    on_one_loop(|| {
        // SAFETY: a handler that is safe to run at any time.
        unsafe { libc::signal(libc::SIGPIPE, count_signal as *const () as libc::sighandler_t) };
        let (one, other) = UnixStream::pair().unwrap();
        drop(other);
        let fd = one.as_raw_fd();
        for (flags, signals) in [(libc::MSG_NOSIGNAL, 0), (0, 1)] {
            SIGNALS.store(0, Ordering::Relaxed);
            // SAFETY: a byte that is there.
            assert_eq!(unsafe { libc::send(fd, b"x".as_ptr().cast(), 1, flags) }, -1);
            assert_eq!(errno(), libc::EPIPE);
            assert_eq!(SIGNALS.load(Ordering::Relaxed), signals);
        }
        // SAFETY: as it was in this process of Rust's.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    });
}

#[test]
fn errno_is_a_fibers_own_over_its_waits() {
    on_one_loop(|| {
        let (one, other) = UnixStream::pair().unwrap();
        let reader = begin(move || {
            let mut buf = [0u8; 1];
            // SAFETY: the thread's own errno, and room for a byte.
            unsafe {
                *libc::__errno_location() = 77;
                let count = libc::recv(one.as_raw_fd(), buf.as_mut_ptr().cast(), 1, 0);
                (count, *libc::__errno_location())
            }
        });
        // SAFETY: a number that is not open.
        assert_eq!(unsafe { libc::fcntl(-1, libc::F_GETFL) }, -1);
        (&other).write_all(b"x").unwrap();
        assert_eq!(reader.join().unwrap(), (1, 77));
    });
}

#[test]
fn everything_is_sent_or_a_partial_count_after_the_time_limit() {
    on_one_loop(|| {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_write_timeout(Some(Duration::from_millis(10))).unwrap();
        let bytes = vec![1u8; 4 << 20];
        let began = Instant::now();
        let count = (&one).write(&bytes).unwrap();
        assert!(count > 0 && count < bytes.len(), "{count}");
        assert!(began.elapsed() >= Duration::from_millis(10));
        let error = (&one).write(&bytes).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        drop(other);
    });
}

#[test]
fn a_receive_of_all_waits_for_all() {
    on_one_loop(|| {
        let (one, mut other) = connected();
        let reader = begin(move || {
            let mut buf = [0u8; 6];
            // SAFETY: room that is there.
            let count = unsafe {
                libc::recv(one.as_raw_fd(), buf.as_mut_ptr().cast(), 6, libc::MSG_WAITALL)
            };
            (count, buf)
        });
        for part in [b"ab", b"cd", b"ef"] {
            other.write_all(part).unwrap();
            kapok::sleep(Duration::from_millis(1)).unwrap();
        }
        assert_eq!(reader.join().unwrap(), (6, *b"abcdef"));
    });
}

#[test]
fn cancelling_ends_a_wait_with_an_error_that_nobody_retries() {
    on_one_loop(|| {
        let (mut one, _other) = connected();
        let reader = begin(move || one.read_exact(&mut [0; 4]).unwrap_err().raw_os_error());
        reader.cancel();
        assert_eq!(reader.join().unwrap(), Some(libc::ECANCELED));
        let sleeper = begin(|| std::thread::sleep(Duration::from_secs(3600)));
        sleeper.cancel();
        sleeper.join().unwrap();
    });
}
