//! What the conformance suite cannot ask: replay, virtual time, loans.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use super::{Chance, Config, Faults, Sim};
use crate::{Completion, Engine, Key, Op, Submitted, Wait};

/// A submitter that waits for each of its operations.
struct User {
    sim: Sim,
    next: u32,
    landed: Vec<Completion>,
}

impl User {
    fn new(mut config: Config) -> User {
        config.stuck_after = Some(Duration::from_millis(100));
        User { sim: Sim::new(config).unwrap(), next: 0, landed: Vec::new() }
    }

    /// # Safety
    ///
    /// As for [`Engine::submit`].
    unsafe fn submit(&mut self, op: Op) -> Result<i32, Key> {
        self.next += 1;
        let key = Key::new(self.next, 1);
        // SAFETY: the caller's promise.
        match unsafe { self.sim.submit(key, op) } {
            Submitted::Done(res) | Submitted::DoneIn(res, _) => Ok(res),
            Submitted::Pending => Err(key),
        }
    }

    fn wait(&mut self, submitted: Result<i32, Key>) -> i32 {
        let key = match submitted {
            Ok(res) => return res,
            Err(key) => key,
        };
        loop {
            if let Some(at) = self.landed.iter().position(|landed| landed.key == key) {
                return self.landed.swap_remove(at).res;
            }
            self.sim.turn(Wait::Forever, &mut self.landed).unwrap();
        }
    }

    /// What an operation has come to, if it has.
    fn over(&mut self, submitted: &mut Option<Result<i32, Key>>) -> Option<i32> {
        let res = match (*submitted)? {
            Ok(res) => res,
            Err(key) => {
                let at = self.landed.iter().position(|landed| landed.key == key)?;
                self.landed.swap_remove(at).res
            }
        };
        *submitted = None;
        Some(res)
    }

    /// # Safety
    ///
    /// As for [`Engine::submit`], until this returns.
    unsafe fn run(&mut self, op: Op) -> i32 {
        loop {
            // SAFETY: the caller's promise.
            let submitted = unsafe { self.submit(op) };
            match self.wait(submitted) {
                res if res == -libc::EINTR => {}
                res => return res,
            }
        }
    }

    fn socket(&mut self) -> RawFd {
        // SAFETY: no memory is named.
        unsafe {
            self.run(Op::Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0 })
        }
    }
}

fn inet(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: zero is a value of this structure of integers.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: both are locals.
    unsafe {
        super::address::Address::Inet(address).write(libc::AF_INET, &raw mut storage, &raw mut len);
    }
    (storage, len)
}

/// A connection by way of a listener: both ends.
fn connection(user: &mut User) -> [RawFd; 2] {
    let (addr, addr_len) = inet(([127, 0, 0, 1], 4000).into());
    let addr = &raw const addr;
    let (listener, client) = (user.socket(), user.socket());
    // SAFETY: the address is a local that outlives all of this.
    unsafe {
        assert_eq!(user.run(Op::Bind { fd: listener, addr, addr_len }), 0);
        assert_eq!(user.run(Op::Listen { fd: listener, backlog: 8 }), 0);
        let null = (std::ptr::null_mut(), std::ptr::null_mut());
        let accept = Op::Accept { fd: listener, addr: null.0, addr_len: null.1 };
        let accepting = user.submit(accept);
        assert_eq!(user.run(Op::Connect { fd: client, addr, addr_len }), 0);
        let server = match user.wait(accepting) {
            res if res == -libc::EINTR => user.run(accept),
            res => res,
        };
        assert!(server >= 0, "{server}");
        assert_eq!(user.run(Op::Close { fd: listener }), 0);
        [client, server]
    }
}

/// Sends a megabyte through a connection, and returns the digest and the time it took.
fn megabyte(config: Config) -> (u64, Duration) {
    let mut user = User::new(config);
    let [client, server] = connection(&mut user);
    let bytes: Vec<u8> = (0..1_000_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
    let (mut sent, mut got) = (0, Vec::new());
    let mut room = vec![0u8; 10_000];
    // Both are under way at once: neither gets on without the other.
    let (mut sending, mut receiving) = (None, None);
    while got.len() < bytes.len() {
        let rest = &bytes[sent..];
        let send = Op::Send { fd: client, buf: rest.as_ptr(), len: rest.len(), flags: 0 };
        let recv = Op::Recv { fd: server, buf: room.as_mut_ptr(), len: room.len(), flags: 0 };
        if sending.is_none() && !rest.is_empty() {
            // SAFETY: the bytes outlive the engine.
            sending = Some(unsafe { user.submit(send) });
        }
        if receiving.is_none() {
            // SAFETY: the room outlives the engine, and is looked at only when this is over.
            receiving = Some(unsafe { user.submit(recv) });
        }
        if let Some(res) = user.over(&mut sending) {
            assert!(res > 0 || res == -libc::EINTR, "{res}");
            sent += res.max(0) as usize;
        }
        if let Some(res) = user.over(&mut receiving) {
            assert!(res > 0 || res == -libc::EINTR, "{res}");
            got.extend_from_slice(&room[..res.max(0) as usize]);
        } else if sending.is_some() || sent == bytes.len() {
            user.sim.turn(Wait::Forever, &mut user.landed).unwrap();
        }
    }
    assert!(got == bytes, "bytes were lost, doubled or swapped");
    let elapsed = user.sim.elapsed();
    // SAFETY: no memory is named.
    unsafe {
        user.run(Op::Close { fd: client });
        user.run(Op::Close { fd: server });
    }
    (user.sim.trace_hash(), elapsed)
}

#[test]
fn bytes_arrive_in_a_perfect_world_and_in_a_bad_one() {
    megabyte(Config::new(1));
    for seed in 0..20 {
        let mut config = Config::new(seed);
        config.faults = Faults::benign();
        config.latency = Duration::from_micros(10)..=Duration::from_millis(1);
        let (hash, elapsed) = megabyte(config.clone());
        assert!(elapsed > Duration::from_micros(10), "{elapsed:?}");
        assert_eq!(megabyte(config.clone()), (hash, elapsed), "seed {seed} does not replay");
        config.seed += 1000;
        assert_ne!(megabyte(config).0, hash, "the seed makes no difference");
    }
}

#[test]
fn an_hour_costs_nothing() {
    let mut user = User::new(Config::new(0));
    let (began, really) = (user.sim.now(), std::time::Instant::now());
    let deadline = began + Duration::from_secs(3600);
    // SAFETY: no memory is named.
    assert_eq!(unsafe { user.run(Op::Timer { deadline }) }, 0);
    assert!(user.sim.now() - began >= Duration::from_secs(3600));
    assert!(really.elapsed() < Duration::from_secs(60));
}

#[test]
#[should_panic(expected = "was written to by somebody else")]
fn a_receive_buffer_that_is_written_to_while_it_is_lent() {
    let mut user = User::new(Config::new(3));
    let [client, server] = connection(&mut user);
    let mut room = [0u8; 32];
    let buf = room.as_mut_ptr();
    // SAFETY: the room outlives the engine. It is written to in between, which is what this is for,
    // by the same pointer.
    unsafe {
        assert!(user.submit(Op::Recv { fd: server, buf, len: 32, flags: 0 }).is_err());
        buf.add(7).write(1);
        user.run(Op::Send { fd: client, buf: b"x".as_ptr(), len: 1, flags: 0 });
    }
}

/// Latency of 1 to 3 ms, and nothing else.
fn far_away(seed: u64) -> Config {
    let mut config = Config::new(seed);
    config.latency = Duration::from_millis(1)..=Duration::from_millis(3);
    config
}

fn recv(fd: RawFd, room: &mut [u8]) -> Op {
    Op::Recv { fd, buf: room.as_mut_ptr(), len: room.len(), flags: 0 }
}

fn send(fd: RawFd, bytes: &[u8]) -> Op {
    Op::Send { fd, buf: bytes.as_ptr(), len: bytes.len(), flags: 0 }
}

#[test]
fn the_end_travels_behind_the_bytes_and_takes_its_time() {
    for closes in [true, false] {
        let mut user = User::new(far_away(5));
        let [client, server] = connection(&mut user);
        let mut room = [0; 100];
        let start = user.sim.elapsed();
        // SAFETY: all memory outlives the engine.
        unsafe {
            assert_eq!(user.run(send(client, b"some bytes")), 10);
            assert_eq!(user.run(send(client, b" and more")), 9);
            let end = match closes {
                true => Op::Close { fd: client },
                false => Op::Shutdown { fd: client, how: libc::SHUT_WR },
            };
            assert_eq!(user.run(end), 0);
            let mut got = Vec::new();
            loop {
                match user.run(recv(server, &mut room)) {
                    0 => break,
                    count => got.extend_from_slice(&room[..count as usize]),
                }
                assert!(user.sim.elapsed() - start >= Duration::from_millis(1), "no latency");
            }
            assert_eq!(got, b"some bytes and more");
            if closes {
                // Nobody reads the answer: the first is taken, and then comes the reset.
                assert_eq!(user.run(send(server, b"x")), 1);
                user.run(Op::Timer { deadline: user.sim.now() + Duration::from_millis(10) });
                assert_eq!(user.run(send(server, b"x")), -libc::EPIPE);
            }
        }
    }
}

#[test]
fn a_close_with_bytes_unread_is_a_reset() {
    let mut user = User::new(far_away(6));
    let [client, server] = connection(&mut user);
    let mut room = [0; 100];
    // SAFETY: all memory outlives the engine.
    unsafe {
        user.run(send(client, b"never read"));
        user.run(Op::Timer { deadline: user.sim.now() + Duration::from_millis(10) });
        user.run(Op::Close { fd: server });
        assert_eq!(user.run(recv(client, &mut room)), -libc::ECONNRESET);
        assert_eq!(user.run(recv(client, &mut room)), 0);
        assert_eq!(user.run(send(client, b"x")), -libc::EPIPE);
    }
}

#[test]
fn a_descriptor_that_is_closed_without_the_engine_is_noticed() {
    let mut user = User::new(Config::new(7));
    let [client, server] = connection(&mut user);
    let mut room = [0; 100];
    // SAFETY: all memory outlives the engine; the descriptor is this test's.
    unsafe {
        let receiving = user.submit(recv(server, &mut room));
        libc::close(client);
        assert_eq!(user.wait(receiving), 0, "the end of the stream");
    }
}

#[test]
fn dropped_with_operations_pending_it_leaves_memory_as_it_was() {
    let mut user = User::new(Config::new(8));
    let [client, server] = connection(&mut user);
    let mut room = [7; 100];
    let bytes = room.as_mut_ptr();
    // SAFETY: all memory outlives the engine.
    unsafe {
        assert!(user.submit(recv(server, &mut room)).is_err());
        assert_ne!(bytes.add(50).read(), 7, "there is no pattern in it");
        drop(user);
        assert_eq!(room, [7; 100]);
        libc::close(client);
        libc::close(server);
    }
}

#[test]
#[should_panic(expected = "was written to by somebody else")]
fn a_send_whose_bytes_change_while_they_are_lent() {
    let mut config = Config::new(9);
    config.buffer_bytes = 4;
    let mut user = User::new(config);
    let [client, server] = connection(&mut user);
    let mut bytes = *b"12345678";
    let (buf, mut room) = (bytes.as_mut_ptr(), [0; 4]);
    // SAFETY: all memory outlives the engine. The bytes are changed by the same pointer, which is
    // what this is for.
    unsafe {
        assert_eq!(user.run(Op::Send { fd: client, buf, len: 8, flags: 0 }), 4);
        assert!(user.submit(Op::Send { fd: client, buf: buf.add(4), len: 4, flags: 0 }).is_err());
        buf.add(6).write(b'x');
        user.run(recv(server, &mut room));
    }
}

#[test]
#[should_panic(expected = "nothing can happen any more in the simulation with seed 10")]
fn a_world_in_which_nothing_can_happen_says_so() {
    let mut user = User::new(Config::new(10));
    let [_client, server] = connection(&mut user);
    let mut room = [0; 8];
    // SAFETY: the room outlives the engine.
    unsafe { user.run(recv(server, &mut room)) };
}

#[test]
fn datagrams_are_lost_doubled_and_swapped_and_never_changed() {
    let mut config = far_away(11);
    config.faults.lost_datagram = Chance::percent(20);
    config.faults.doubled_datagram = Chance::percent(20);
    let mut user = User::new(config);
    let (addr, addr_len) = inet(([10, 0, 0, 1], 53).into());
    let addr = &raw const addr;
    let udp = Op::Socket { domain: libc::AF_INET, kind: libc::SOCK_DGRAM, protocol: 0 };
    // SAFETY: all memory outlives the engine.
    unsafe {
        let (server, client) = (user.run(udp), user.run(udp));
        assert_eq!(user.run(Op::Bind { fd: server, addr, addr_len }), 0);
        assert_eq!(user.run(Op::Connect { fd: client, addr, addr_len }), 0);
        for number in 0..200u32 {
            assert_eq!(user.run(send(client, &number.to_ne_bytes())), 4);
        }
        user.run(Op::Timer { deadline: user.sim.now() + Duration::from_millis(10) });
        let (mut got, mut room) = (Vec::new(), [0; 4]);
        while let Ok(4) = user.submit(Op::Recv {
            fd: server,
            buf: room.as_mut_ptr(),
            len: 4,
            flags: libc::MSG_DONTWAIT,
        }) {
            got.push(u32::from_ne_bytes(room));
        }
        let times = |number| got.iter().filter(|&&there| there == number).count();
        let counts: Vec<usize> = (0..200).map(times).collect();
        assert!(got.iter().all(|&number| number < 200));
        assert!(counts.contains(&0), "none was lost");
        assert!(counts.contains(&2), "none was doubled");
        assert!(!counts.contains(&3));
        assert!(!got.is_sorted(), "none was swapped");
    }
}

#[test]
fn descriptors_and_the_disk_have_limits() {
    let mut config = Config::new(12);
    config.descriptor_limit = Some(3);
    config.disk_bytes = Some(10);
    let mut user = User::new(config);
    let file = Op::Open {
        dir: libc::AT_FDCWD,
        path: c"/data/file".as_ptr(),
        flags: libc::O_RDWR | libc::O_CREAT,
        mode: 0o600,
    };
    let write = |fd, bytes: &'static [u8]| Op::Write {
        fd,
        buf: bytes.as_ptr(),
        len: bytes.len(),
        offset: Op::CURRENT_POSITION,
    };
    // SAFETY: all memory outlives the engine.
    unsafe {
        let fd = user.run(file);
        assert_eq!(user.run(write(fd, b"eight of")), 8);
        assert_eq!(user.run(write(fd, b"them")), 2, "only two bytes are left");
        assert_eq!(user.run(write(fd, b"more")), -libc::ENOSPC);
        let (one, other) = (user.socket(), user.socket());
        assert!(one >= 0 && other >= 0);
        assert_eq!(user.socket(), -libc::EMFILE);
        assert_eq!(user.run(file), -libc::EMFILE);
        assert_eq!(user.run(Op::Close { fd: one }), 0);
        let again = user.socket();
        assert!(again >= 0, "{again}");
        for fd in [fd, other, again] {
            user.run(Op::Close { fd });
        }
    }
}

/// Every fault by itself, always where that leaves something to go on, happens and is what it says.
#[test]
fn each_fault_happens_as_it_says() {
    type Set = fn(&mut Faults) -> &mut Chance;
    let sends: [(Set, i32); 2] = [
        (|faults| &mut faults.no_buffers, libc::ENOBUFS),
        (|faults| &mut faults.reset, libc::ECONNRESET),
    ];
    for (fault, errno) in sends {
        let mut user = User::new(Config::new(13));
        let [client, _server] = connection(&mut user);
        *fault(&mut user.sim.world.config.faults) = Chance::ALWAYS;
        // SAFETY: all memory outlives the engine, here and below.
        assert_eq!(unsafe { user.run(send(client, b"x")) }, -errno);
    }
    let receives: [(Set, Result<i32, ()>); 4] = [
        (|faults| &mut faults.interrupted, Ok(-libc::EINTR)),
        (|faults| &mut faults.would_block, Err(())),
        (|faults| &mut faults.late_completion, Err(())),
        (|faults| &mut faults.short_read, Ok(1)),
    ];
    for (fault, expected) in receives {
        let mut user = User::new(Config::new(14));
        let [client, server] = connection(&mut user);
        let mut room = [0; 2];
        if expected != Ok(-libc::EINTR) {
            // SAFETY: as above.
            unsafe { user.run(send(client, b"xy")) };
        }
        *fault(&mut user.sim.world.config.faults) = Chance::ALWAYS;
        let mut seen = Vec::new();
        for _ in 0..8 {
            // SAFETY: as above.
            match unsafe { user.submit(recv(server, &mut room)) } {
                Ok(res) => seen.push(Ok(res)),
                Err(_) => {
                    seen.push(Err(()));
                    break;
                }
            }
            if seen.last() == Some(&Ok(1)) {
                break;
            }
            if seen.last() == Some(&Ok(2)) {
                // SAFETY: as above: all was received, and there are two bytes again.
                unsafe { user.run(send(client, b"xy")) };
            }
        }
        assert_eq!(seen.last(), Some(&expected), "{seen:?}");
    }
}

#[test]
fn a_connection_outlives_the_want_of_descriptors() {
    let mut user = User::new(Config::new(17));
    let (addr, addr_len) = inet(([127, 0, 0, 1], 80).into());
    let addr = &raw const addr;
    let (listener, client, other) = (user.socket(), user.socket(), user.socket());
    let null = (std::ptr::null_mut(), std::ptr::null_mut());
    let accept = Op::Accept { fd: listener, addr: null.0, addr_len: null.1 };
    // SAFETY: the address outlives the engine.
    unsafe {
        assert_eq!(user.run(Op::Bind { fd: listener, addr, addr_len }), 0);
        assert_eq!(user.run(Op::Listen { fd: listener, backlog: 8 }), 0);
        assert_eq!(user.run(Op::Connect { fd: client, addr, addr_len }), 0);
        user.sim.world.config.faults.no_descriptors = Chance::ALWAYS;
        assert_eq!(user.run(accept), -libc::EMFILE);
        assert_eq!(user.socket(), -libc::EMFILE);
        user.sim.world.config.faults.no_descriptors = Chance::NEVER;
        let server = user.run(accept);
        assert!(server >= 0, "the connection is lost: {server}");
        user.sim.world.config.faults.refused = Chance::ALWAYS;
        assert_eq!(user.run(Op::Connect { fd: other, addr, addr_len }), -libc::ECONNREFUSED);
        user.sim.world.config.faults.refused = Chance::NEVER;
        assert_eq!(user.run(Op::Connect { fd: other, addr, addr_len }), 0);
        for fd in [listener, client, other, server] {
            assert_eq!(user.run(Op::Close { fd }), 0);
        }
    }
}

#[test]
fn a_file_that_fails_is_as_it_was() {
    let mut user = User::new(Config::new(18));
    let path = c"/file".as_ptr();
    let (dir, flags, mode) = (libc::AT_FDCWD, libc::O_RDWR | libc::O_CREAT, 0o600);
    let mut room = [0; 16];
    // SAFETY: all memory outlives the engine.
    unsafe {
        let fd = user.run(Op::Open { dir, path, flags, mode });
        let write = |bytes: &'static [u8]| {
            let (buf, len) = (bytes.as_ptr(), bytes.len());
            Op::Write { fd, buf, len, offset: 0 }
        };
        assert_eq!(user.run(write(b"kept")), 4);
        user.sim.world.config.faults.io_error = Chance::ALWAYS;
        assert_eq!(user.run(write(b"lost")), -libc::EIO);
        assert_eq!(user.run(Op::Sync { fd, data_only: false }), -libc::EIO);
        assert_eq!(user.run(Op::Open { dir, path, flags, mode }), -libc::EIO);
        user.sim.world.config.faults = Faults::NONE;
        let read = Op::Read { fd, buf: room.as_mut_ptr(), len: 16, offset: 0 };
        assert_eq!(user.run(read), 4);
        assert_eq!(&room[..4], b"kept");
        assert_eq!(user.run(Op::Close { fd }), 0);
    }
}

#[test]
fn completions_of_a_turn_change_places_and_timers_are_late_and_never_early() {
    let mut config = Config::new(19);
    config.faults.reorder = Chance::ALWAYS;
    config.faults.late_completion = Chance::percent(50);
    let mut user = User::new(config);
    let (mut late, mut swapped) = (0, 0);
    for _ in 0..50 {
        let deadline = user.sim.now() + Duration::from_millis(1);
        // SAFETY: timers name no memory.
        let keys = [(); 8].map(|()| unsafe { user.submit(Op::Timer { deadline }) }.unwrap_err());
        let mut landed = Vec::new();
        while landed.len() < keys.len() {
            let before = landed.len();
            user.sim.turn(Wait::Forever, &mut landed).unwrap();
            assert!(user.sim.now() >= deadline, "early");
            late += usize::from(before > 0);
            swapped += usize::from(!landed[before..].is_sorted_by_key(|one| one.key.index()));
        }
    }
    assert!(late > 0, "no timer is late");
    assert!(swapped > 0, "the order is always that of the submissions");
}

#[test]
fn a_late_cancel_may_come_too_late() {
    let mut config = Config::new(15);
    config.faults.late_cancel = Chance::ALWAYS;
    let mut user = User::new(config);
    let [client, server] = connection(&mut user);
    let mut room = [0; 8];
    // SAFETY: all memory outlives the engine.
    unsafe {
        let Err(key) = user.submit(recv(server, &mut room)) else { panic!("nothing was sent") };
        user.sim.cancel(key);
        user.run(send(client, b"faster"));
        assert_eq!(user.wait(Err(key)), 6, "the cancel has not arrived yet");
        let Err(key) = user.submit(recv(server, &mut room)) else { panic!("nothing was sent") };
        user.sim.cancel(key);
        assert_eq!(user.wait(Err(key)), -libc::ECANCELED);
    }
}

#[test]
fn a_late_bell_is_heard_in_the_end() {
    let mut config = Config::new(16);
    config.faults.late_bell = Chance::ALWAYS;
    let mut user = User::new(config);
    user.sim.bell().ring();
    let before = user.sim.elapsed();
    user.sim.turn(Wait::No, &mut user.landed).unwrap();
    user.sim.turn(Wait::Forever, &mut user.landed).unwrap();
    let waited = user.sim.elapsed() - before;
    assert!(waited <= Duration::from_millis(6), "{waited:?}");
    assert!(user.sim.is_stuck());
}

#[test]
fn chance_off_means_no_faults() {
    assert_eq!(Config::default().faults, Faults::NONE);
    assert_eq!(Faults::default(), Faults::NONE);
    assert_eq!(Chance::one_in(0), Chance::NEVER);
}
