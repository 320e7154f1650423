//! More than fits: tiny rings, thousands in flight, descriptors beyond the limit.

use std::time::Duration;

use kapok_engine::{Engine as _, Kind, Op, Readiness, Wait};

use crate::driver::Driver;
use crate::isolated::{doing, scale};
use crate::sockets::{
    Ownership, Transport, pattern, pipe, put, raw_recv, stream_pair, tcp_listener, unix_pair,
};
use crate::world::now;

conformance! {
    more_submissions_than_entries,
    more_completions_than_entries,
    more_cancels_than_entries,
    cancels_in_a_full_queue_are_not_lost,
    order_survives_a_full_queue,
    thousands_pending,
    thousands_cancelled,
    descriptors_beyond_the_limit,
    little_memory_for_rings,
}

fn more_submissions_than_entries(kind: Kind) {
    let mut driver = Driver::tiny(kind);
    let count = 1000 * scale();
    let nops: Vec<_> = (0..count).map(|_| driver.nop()).collect();
    for landed in driver.wait_for_all(&nops) {
        assert_eq!(landed.ok(), 0);
    }
    // Those that wait, and are served in another order than that in which they came.
    let pairs: Vec<_> = (0..200).map(|_| unix_pair()).collect();
    let recvs: Vec<_> = pairs.iter().map(|(a, _)| driver.recv(a.fd(), 8)).collect();
    driver.settle();
    for at in (0..200).map(|at| at * 77 % 200) {
        put(pairs[at].1.fd(), &[at as u8]);
    }
    for (at, landed) in driver.wait_for_all(&recvs).iter().enumerate() {
        assert_eq!(landed.bytes(), [at as u8]);
    }
}

fn more_completions_than_entries(kind: Kind) {
    let mut driver = Driver::tiny(kind);
    let pairs: Vec<_> = (0..200).map(|_| unix_pair()).collect();
    for round in 0..3u8 {
        let recvs: Vec<_> = pairs.iter().map(|(a, _)| driver.recv(a.fd(), 8)).collect();
        // All pending in the kernel by now, and then all over between two turns.
        driver.linger(Duration::from_millis(2));
        for (at, (_, b)) in pairs.iter().enumerate() {
            put(b.fd(), &[at as u8, round]);
        }
        for (at, landed) in driver.wait_for_all(&recvs).iter().enumerate() {
            assert_eq!(landed.bytes(), [at as u8, round]);
        }
    }
    // Sends and receives together, without a turn in between.
    let sends: Vec<_> = pairs.iter().map(|(_, b)| driver.send(b.fd(), b"sent")).collect();
    let recvs: Vec<_> = pairs.iter().map(|(a, _)| driver.recv(a.fd(), 8)).collect();
    for landed in driver.wait_for_all(&recvs) {
        assert_eq!(landed.bytes(), b"sent");
    }
    for landed in driver.wait_for_all(&sends) {
        assert_eq!(landed.ok(), 4);
    }
}

fn more_cancels_than_entries(kind: Kind) {
    let mut driver = Driver::tiny(kind);
    let pairs: Vec<_> = (0..200).map(|_| unix_pair()).collect();
    for turned in [true, false] {
        let mut keys: Vec<_> = pairs.iter().map(|(a, _)| driver.recv(a.fd(), 8)).collect();
        let far = now() + Duration::from_secs(1000);
        keys.extend((0..200).map(|at| driver.timer(far + Duration::from_millis(at))));
        if turned {
            driver.settle();
        }
        for &key in &keys {
            driver.cancel(key);
        }
        for landed in driver.wait_for_all(&keys) {
            assert!(landed.was_cancelled(), "{:?} landed with {}", landed.op, landed.res);
        }
    }
    for (a, b) in &pairs {
        put(b.fd(), b"still there");
        assert_eq!(raw_recv(a.fd(), 16).unwrap(), b"still there");
    }
}

fn cancels_in_a_full_queue_are_not_lost(kind: Kind) {
    let mut driver = Driver::tiny(kind);
    let (a, _b) = unix_pair();
    for fill in 0..20 {
        let recv = driver.recv(a.fd(), 8);
        driver.settle();
        let before: Vec<_> = (0..fill).map(|_| driver.nop()).collect();
        driver.cancel(recv);
        let after: Vec<_> = (0..fill).map(|_| driver.nop()).collect();
        assert!(driver.wait_for(recv).was_cancelled());
        driver.wait_for_all(&before);
        driver.wait_for_all(&after);
    }
}

/// Sends on one stream that all have room go out in the order in which they were submitted.
fn order_survives_a_full_queue(kind: Kind) {
    let mut driver = Driver::tiny(kind);
    let (a, b) = stream_pair(Transport::Tcp, Ownership::Owned);
    let mut sends = Vec::new();
    let mut got = Vec::new();
    for at in 0..100 {
        sends.push(driver.send(a.fd(), &pattern(at * 10, 10)));
    }
    for landed in driver.wait_for_all(&sends) {
        assert_eq!(landed.ok(), 10);
    }
    while got.len() < 1000 {
        let recv = driver.recv(b.fd(), 64);
        got.extend_from_slice(driver.wait_for(recv).bytes());
    }
    assert!(got == pattern(0, 1000), "the sends went out in another order");
}

fn thousands_pending(kind: Kind) {
    let mut driver = Driver::new(kind);
    let count = driver.stream_capacity(5000);
    let pairs: Vec<_> = (0..count).map(|_| unix_pair()).collect();
    doing(format_args!("submitting {count} receives"));
    let recvs: Vec<_> = pairs.iter().map(|(a, _)| driver.recv(a.fd(), 16)).collect();
    driver.settle();
    assert_eq!(driver.engine().in_flight(), count);
    // A few at a time, from all over.
    for chunk in 0..5 {
        for at in (chunk * 10..count).step_by(count / 20) {
            let bytes = (at as u32).to_ne_bytes();
            put(pairs[at].1.fd(), &bytes);
            assert_eq!(driver.wait_for(recvs[at]).bytes(), bytes);
            put(pairs[at].1.fd(), b"again");
            let recv = driver.recv(pairs[at].0.fd(), 16);
            assert_eq!(driver.wait_for(recv).bytes(), b"again");
        }
    }
    // All the rest at once.
    let rest: Vec<_> = (0..count)
        .filter(|at| {
            !(0..5).any(|chunk| *at >= chunk * 10 && (at - chunk * 10) % (count / 20) == 0)
        })
        .collect();
    assert_eq!(driver.pending(), rest.len());
    for &at in &rest {
        put(pairs[at].1.fd(), &(at as u32).to_ne_bytes());
    }
    for &at in &rest {
        assert_eq!(driver.wait_for(recvs[at]).bytes(), (at as u32).to_ne_bytes());
    }
}

fn thousands_cancelled(kind: Kind) {
    let mut driver = Driver::new(kind);
    let count = driver.stream_capacity(3000);
    let pairs: Vec<_> = (0..count).map(|_| unix_pair()).collect();
    let recvs: Vec<_> = pairs.iter().map(|(a, _)| driver.recv(a.fd(), 16)).collect();
    driver.settle();
    for (at, &recv) in recvs.iter().enumerate() {
        if at % 3 == 0 {
            put(pairs[at].1.fd(), b"x");
        }
        if at % 2 == 0 {
            driver.cancel(recv);
        } else if at % 3 != 0 {
            put(pairs[at].1.fd(), b"y");
        }
    }
    for (at, landed) in driver.wait_for_all(&recvs).iter().enumerate() {
        let left = raw_recv(pairs[at].0.fd(), 16).unwrap_or_default();
        let got = if landed.was_cancelled() { left } else { [landed.bytes(), &left].concat() };
        let expected: &[u8] = if at % 3 == 0 {
            b"x"
        } else if at % 2 == 0 {
            b""
        } else {
            b"y"
        };
        assert_eq!(got, expected, "receive {at} landed with {}", landed.res);
        assert!(at % 2 == 0 || !landed.was_cancelled(), "{at} was cancelled, and not by us");
    }
}

/// Kernels charge the pages of rings to RLIMIT_MEMLOCK, and give them back some time after the ring has
/// gone. Here the third ring of the usual size is one too many, and so is a smaller one in its place while
/// the dropped ones are still charged.
fn little_memory_for_rings(kind: Kind) {
    #[cfg(target_os = "linux")]
    if !limit_locked_memory(512 << 10) {
        // What others of this user have in flight would count too.
        eprintln!("SKIPPED little_memory_for_rings: no CAP_IPC_LOCK to give up");
        return;
    }
    let mut drivers: Vec<_> = (0..4).map(|_| Driver::new(kind)).collect();
    for _ in 0..100 {
        let mut driver = drivers.swap_remove(0);
        more_than_a_small_ring_takes(&mut driver);
        drop(driver);
        drivers.push(Driver::new(kind));
    }
}

fn more_than_a_small_ring_takes(driver: &mut Driver) {
    let nops: Vec<_> = (0..200).map(|_| driver.nop()).collect();
    for landed in driver.wait_for_all(&nops) {
        assert_eq!(landed.ok(), 0);
    }
}

/// Gives up the capability that exempts from the limit; false if this process never had it.
#[cfg(target_os = "linux")]
fn limit_locked_memory(bytes: libc::rlim_t) -> bool {
    const VERSION_3: u32 = 0x2008_0522;
    const IPC_LOCK: u32 = 1 << 14;
    let header = [VERSION_3, 0];
    let mut sets = [0u32; 6];
    // SAFETY: capget(2) of this version writes two structs of three words, which `sets` has.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    assert_eq!(got, 0);
    if sets[0] & IPC_LOCK == 0 {
        return false;
    }
    sets[0] &= !IPC_LOCK;
    // SAFETY: the same structs, read.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!(set, 0);
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the struct is read. This process runs the one test.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
    true
}

/// select(2) knows descriptors below `FD_SETSIZE` only. It must say so, and not write beyond its set.
fn descriptors_beyond_the_limit(kind: Kind) {
    let mut driver = Driver::new(kind);
    let limit = driver.engine().descriptor_limit();
    assert_eq!(limit.is_some(), matches!(kind, Kind::Select));
    let limit = limit.unwrap_or(libc::FD_SETSIZE as i32);
    let (a, b) = unix_pair();
    let (reader, _writer) = pipe(Ownership::Foreign);
    let (listener, _) = tcp_listener(Ownership::Owned);
    for lowest in [limit, limit + 1, 2 * limit, 15_000] {
        let high = a.duplicate_from(lowest);
        let high_reader = reader.duplicate_from(lowest);
        let high_listener = listener.duplicate_from(lowest);
        let keys = [
            driver.recv(high.fd(), 16),
            driver.poll(high.fd(), Readiness::READABLE),
            driver.read(high_reader.fd(), 16, Op::CURRENT_POSITION),
            driver.accept(high_listener.fd()),
        ];
        if matches!(kind, Kind::Select) {
            for landed in driver.wait_for_all(&keys) {
                landed.failed_with(&[libc::EMFILE]);
            }
        } else {
            driver.settle();
            put(b.fd(), b"high");
            assert_eq!(driver.wait_for(keys[0]).bytes(), b"high");
            for &key in &keys[1..] {
                let landed = driver.cancel_and_wait(key);
                assert!(landed.was_cancelled() || landed.res > 0, "{}", landed.res);
            }
        }
        let close = driver.close(high.into_number());
        assert_eq!(driver.wait_for(close).ok(), 0);
        // What is below goes on.
        let recv = driver.recv(a.fd(), 16);
        driver.turn(Wait::No);
        put(b.fd(), b"low");
        assert_eq!(driver.wait_for(recv).bytes(), b"low");
    }
    // The last number below the limit is one of them.
    let last = a.duplicate_from(limit - 1);
    assert_eq!(last.fd(), limit - 1);
    let recv = driver.recv(last.fd(), 16);
    driver.still_pending(recv);
    put(b.fd(), b"last");
    assert_eq!(driver.wait_for(recv).bytes(), b"last");
}
