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
            Submitted::Done(res) => Ok(res),
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

#[test]
fn chance_off_means_no_faults() {
    assert_eq!(Config::default().faults, Faults::NONE);
    assert_eq!(Faults::default(), Faults::NONE);
    assert_eq!(Chance::one_in(0), Chance::NEVER);
}
