//! Random operations over socket pairs, against a model that knows every byte.
//!
//! Each direction of each pair carries an endless pattern. At most one send and one receive are
//! pending per direction, so what a landing says fixes the positions: a byte that is lost, doubled
//! or out of order is a wrong byte.

use std::cell::Cell;
use std::time::{Duration, Instant};

use kapok_engine::{AnyEngine, Key, Kind, Readiness, Wait, sim};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner};

use crate::driver::{Driver, Landed};
use crate::isolated::{self, doing, scale};
use crate::sockets::{Descriptor, Ownership, Transport, pattern, shrink_send_buffer, stream_pair};
use crate::world::{self, now};

conformance! {
    commands,
    commands_on_tiny_rings,
}

const PAIRS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Command {
    Send { end: usize, len: usize },
    Recv { end: usize, len: usize, flags: i32 },
    Poll { end: usize },
    Timer { micros: u64 },
    CancelSend { end: usize },
    CancelRecv { end: usize },
    CancelPoll { end: usize },
    CancelTimer { nth: usize },
    CancelStale,
    CloseEnd { end: usize },
    Turn,
    Wait { micros: u64 },
}

fn command() -> impl Strategy<Value = Command> {
    let end = 0..2 * PAIRS;
    let len = prop_oneof![4 => 1..50usize, 1 => 1..20_000usize];
    let flags = prop_oneof![5 => Just(0), 1 => Just(libc::MSG_PEEK), 1 => Just(libc::MSG_WAITALL)];
    prop_oneof![
        6 => (end.clone(), len.clone()).prop_map(|(end, len)| Command::Send { end, len }),
        6 => (end.clone(), len, flags)
            .prop_map(|(end, len, flags)| Command::Recv { end, len, flags }),
        1 => end.clone().prop_map(|end| Command::Poll { end }),
        1 => (0..2000u64).prop_map(|micros| Command::Timer { micros }),
        2 => end.clone().prop_map(|end| Command::CancelSend { end }),
        3 => end.clone().prop_map(|end| Command::CancelRecv { end }),
        1 => end.clone().prop_map(|end| Command::CancelPoll { end }),
        1 => (0..4usize).prop_map(|nth| Command::CancelTimer { nth }),
        1 => Just(Command::CancelStale),
        1 => end.prop_map(|end| Command::CloseEnd { end }),
        4 => Just(Command::Turn),
        1 => (0..300u64).prop_map(|micros| Command::Wait { micros }),
    ]
}

/// One end of a pair; its peer is `end ^ 1`.
struct End {
    /// `None` once it is closed.
    descriptor: Option<Descriptor>,
    /// Where in the pattern the next byte it sends is, and the next that it receives.
    sent: usize,
    received: usize,
    send: Option<Key>,
    recv: Option<Key>,
    poll: Option<Key>,
    /// Lengths of the pending operations.
    send_len: usize,
    recv_flags: i32,
}

/// What may go wrong beside what commands do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Faults {
    None,
    /// Nothing that breaks a connection or fails for good.
    Benign,
    /// TCP connections may be reset, and sends may find no memory.
    All,
}

struct World {
    driver: Driver,
    faults: Faults,
    /// Whether a pair was told of a reset.
    broken: [bool; PAIRS],
    ends: Vec<End>,
    timers: Vec<(Key, Instant)>,
    stale: Vec<Key>,
}

impl World {
    fn new(mut driver: Driver, faults: Faults) -> World {
        let mut ends = Vec::new();
        for pair in 0..PAIRS {
            let ownership = Ownership::ALL[pair % 3];
            let (a, b) = stream_pair(Transport::ALL[pair % 2], ownership);
            for descriptor in [a, b] {
                shrink_send_buffer(descriptor.fd());
                ends.push(End {
                    descriptor: Some(descriptor),
                    sent: 0,
                    received: 0,
                    send: None,
                    recv: None,
                    poll: None,
                    send_len: 0,
                    recv_flags: 0,
                });
            }
        }
        driver.turn(Wait::No);
        World {
            driver,
            faults,
            broken: [false; PAIRS],
            ends,
            timers: Vec::new(),
            stale: Vec::new(),
        }
    }

    /// Whether an operation on this end may fail like this, though nobody made it.
    fn bears(&mut self, end: usize, res: i32) -> bool {
        let pair = end / 2;
        match -res {
            libc::EINTR => self.faults != Faults::None,
            libc::ENOBUFS => self.faults == Faults::All,
            libc::ECONNRESET | libc::EPIPE if Transport::ALL[pair % 2] == Transport::Tcp => {
                self.broken[pair] |= self.faults == Faults::All;
                self.faults == Faults::All
            }
            _ => false,
        }
    }

    fn is_open(&self, end: usize) -> bool {
        self.ends[end].descriptor.is_some()
    }

    fn fd(&self, end: usize) -> i32 {
        self.ends[end].descriptor.as_ref().expect("an open end").fd()
    }

    /// Each direction's pattern begins elsewhere.
    fn origin(sender: usize) -> usize {
        sender * 1_000_003
    }

    fn sent(&mut self, end: usize, landed: &Landed) {
        self.stale.extend(self.ends[end].send.take());
        if landed.res >= 0 {
            assert!(landed.ok() > 0 && landed.ok() <= self.ends[end].send_len);
            self.ends[end].sent += landed.ok();
        } else if self.bears(end, landed.res) {
            // Nothing was sent.
        } else if self.is_open(end ^ 1) {
            landed.failed_with(&[libc::ECANCELED]);
        } else {
            landed.failed_with(&[libc::ECANCELED, libc::EPIPE, libc::ECONNRESET]);
        }
        self.ends[end].send_len = 0;
    }

    /// Takes the bytes of a receive. `false`: that was the end of the stream.
    fn received(&mut self, end: usize, landed: &Landed) -> bool {
        self.stale.extend(self.ends[end].recv.take());
        let peer = end ^ 1;
        if landed.res < 0 {
            if self.bears(end, landed.res) {
                return landed.res == -libc::EINTR;
            }
            if self.is_open(peer) {
                landed.failed_with(&[libc::ECANCELED]);
            } else {
                landed.failed_with(&[libc::ECANCELED, libc::ECONNRESET]);
            }
            return landed.was_cancelled();
        }
        let bytes = landed.bytes();
        if bytes.is_empty() {
            // The reset may have been told to a send that has not landed yet.
            let is_over = !self.is_open(peer) || self.bears(end, -libc::ECONNRESET);
            assert!(is_over, "the end of a stream whose other end is open");
            return false;
        }
        let at = self.ends[end].received;
        let expected = pattern(World::origin(peer) + at, bytes.len());
        assert!(bytes == expected, "end {end} received wrong bytes at {at}");
        // A send that has not been seen to land may have been at work.
        let most = self.ends[peer].sent + self.ends[peer].send_len;
        assert!(at + bytes.len() <= most, "end {end} received what was never sent");
        if self.ends[end].recv_flags & libc::MSG_PEEK == 0 {
            self.ends[end].received += bytes.len();
        }
        true
    }

    /// Takes what has landed.
    fn collect(&mut self) {
        for end in 0..self.ends.len() {
            if let Some(landed) = self.ends[end].send.and_then(|key| self.driver.take(key)) {
                self.sent(end, &landed);
            }
            if let Some(landed) = self.ends[end].recv.and_then(|key| self.driver.take(key)) {
                self.received(end, &landed);
            }
            if let Some(landed) = self.ends[end].poll.and_then(|key| self.driver.take(key)) {
                let is_well = landed.res > 0 || landed.was_cancelled();
                assert!(is_well || self.bears(end, landed.res), "poll: {}", landed.res);
                self.stale.extend(self.ends[end].poll.take());
            }
        }
        let driver = &mut self.driver;
        let stale = &mut self.stale;
        self.timers.retain(|&(key, deadline)| match driver.take(key) {
            None => true,
            Some(landed) => {
                assert!(landed.was_cancelled() || landed.res == 0, "timer: {}", landed.res);
                assert!(landed.was_cancelled() || now() >= deadline, "early");
                stale.push(key);
                false
            }
        });
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::Send { end, len } => {
                if self.is_open(end) && self.ends[end].send.is_none() {
                    let bytes = pattern(World::origin(end) + self.ends[end].sent, len);
                    self.ends[end].send_len = len;
                    self.ends[end].send = Some(self.driver.send(self.fd(end), &bytes));
                }
            }
            Command::Recv { end, len, flags } => {
                if self.is_open(end) && self.ends[end].recv.is_none() {
                    self.ends[end].recv_flags = flags;
                    self.ends[end].recv = Some(self.driver.recv_with(self.fd(end), len, flags));
                }
            }
            Command::Poll { end } => {
                if self.is_open(end) && self.ends[end].poll.is_none() {
                    let poll = self.driver.poll(self.fd(end), Readiness::READABLE);
                    self.ends[end].poll = Some(poll);
                }
            }
            Command::Timer { micros } => {
                let deadline = now() + Duration::from_micros(micros);
                self.timers.push((self.driver.timer(deadline), deadline));
            }
            Command::CancelSend { end } => {
                self.ends[end].send.into_iter().for_each(|key| self.driver.cancel(key));
            }
            Command::CancelRecv { end } => {
                self.ends[end].recv.into_iter().for_each(|key| self.driver.cancel(key));
            }
            Command::CancelPoll { end } => {
                self.ends[end].poll.into_iter().for_each(|key| self.driver.cancel(key));
            }
            Command::CancelTimer { nth } => {
                self.timers.get(nth).into_iter().for_each(|&(key, _)| self.driver.cancel(key));
            }
            Command::CancelStale => {
                self.stale.drain(..).for_each(|key| self.driver.cancel(key));
            }
            Command::CloseEnd { end } => {
                // Only the last pair, and its second end only: the others go on to the end.
                if end == self.ends.len() - 1 && self.is_open(end) {
                    self.stop(end);
                    let number = self.ends[end].descriptor.take().unwrap().into_number();
                    let close = self.driver.close(number);
                    assert_eq!(self.driver.wait_for(close).ok(), 0);
                }
            }
            Command::Turn => {
                self.driver.turn(Wait::No);
            }
            Command::Wait { micros } => {
                self.driver.turn(Wait::Until(now() + Duration::from_micros(micros)));
            }
        }
        self.collect();
    }

    /// Cancels what pends on an end and takes what it came to.
    fn stop(&mut self, end: usize) {
        if let Some(key) = self.ends[end].send {
            let landed = self.driver.cancel_and_wait(key);
            self.sent(end, &landed);
        }
        if let Some(key) = self.ends[end].recv {
            let landed = self.driver.cancel_and_wait(key);
            self.received(end, &landed);
        }
        if let Some(key) = self.ends[end].poll.take() {
            let landed = self.driver.cancel_and_wait(key);
            let is_well = landed.res > 0 || landed.was_cancelled();
            assert!(is_well || self.bears(end, landed.res), "poll: {}", landed.res);
        }
    }

    /// Stops everything, and receives all that was sent.
    fn finish(mut self) -> Driver {
        for end in 0..self.ends.len() {
            self.stop(end);
        }
        for (key, _) in std::mem::take(&mut self.timers) {
            self.driver.cancel_and_wait(key);
        }
        for end in 0..self.ends.len() {
            let peer = end ^ 1;
            if !self.is_open(end) {
                continue;
            }
            self.ends[end].recv_flags = 0;
            while self.ends[end].received < self.ends[peer].sent {
                doing(format_args!("receiving the rest at end {end}"));

                let recv = self.driver.recv(self.fd(end), 65536);
                let landed = self.driver.wait_for(recv);
                if !self.received(end, &landed) {
                    break;
                }
            }
            // A peer that was closed with something unread resets the stream, and TCP then drops
            // what was on its way.
            if self.is_open(peer) && !self.broken[end / 2] {
                assert_eq!(self.ends[end].received, self.ends[peer].sent, "bytes were lost");
                let last = self.driver.recv(self.fd(end), 16);
                self.driver.turn(Wait::No);
                let landed = self.driver.cancel_and_wait(last);
                let is_well = landed.was_cancelled() || self.bears(end, landed.res);
                assert!(is_well, "more came than was sent: {}", landed.res);
            }
        }
        self.driver
    }
}

fn run(driver: fn(Kind) -> Driver, kind: Kind, cases: u32) {
    let config = Cases {
        cases: cases * scale() as u32,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Cases::default()
    };
    TestRunner::new(config)
        .run(&vec(command(), 1..150), |commands| {
            let mut world = World::new(driver(kind), Faults::None);
            for command in commands {
                world.perform(command);
            }
            world.finish();
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{kind}: {failure}"));
}

/// Runs random commands in a world with faults, both from the seed, and returns the digest of all
/// that happened.
fn in_a_bad_world(seed: u64, faults: Faults) -> u64 {
    doing(format_args!("seed {seed}: replay with KAPOK_SIM_SEED={seed}"));
    let mut config = world::simulation(seed);
    config.faults = match faults {
        Faults::None => sim::Faults::NONE,
        Faults::Benign => sim::Faults::benign(),
        Faults::All => sim::Faults::some(),
    };
    // Small rooms are full more often.
    config.buffer_bytes = [100, 4096, 65_536][seed as usize % 3];
    if seed.is_multiple_of(2) {
        config.latency = Duration::from_micros(20)..=Duration::from_micros(500);
    }
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let cases = Cases { cases: 1, failure_persistence: None, ..Cases::default() };
    let hash = Cell::new(0);
    TestRunner::new_with_rng(cases, rng)
        .run(&vec(command(), 1..150), |commands| {
            let mut world = World::new(Driver::in_world(&config), faults);
            for command in commands {
                world.perform(command);
            }
            let mut driver = world.finish();
            let AnyEngine::Sim(sim) = driver.engine() else { unreachable!() };
            hash.set(sim.trace_hash());
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("replay with KAPOK_SIM_SEED={seed}: {failure}"));
    hash.get()
}

/// The same commands in worlds with faults: each seed is another world.
#[test]
fn commands_in_bad_worlds() {
    isolated::run(Kind::Sim, concat!(module_path!(), "::commands_in_bad_worlds"), |_| {
        let one = std::env::var("KAPOK_SIM_SEED").ok();
        let one = one.map(|seed| seed.parse::<u64>().expect("KAPOK_SIM_SEED is a number"));
        // 2,000 of each sort, and 100,000 at full length.
        let seeds = match one {
            Some(seed) => seed..seed + 1,
            None if scale() == 1 => 0..2_000,
            None => 0..100_000,
        };
        for seed in seeds {
            for faults in [Faults::Benign, Faults::All] {
                let hash = in_a_bad_world(seed, faults);
                if seed % 50 == 0 || one.is_some() {
                    assert_eq!(in_a_bad_world(seed, faults), hash, "seed {seed} does not replay");
                }
            }
        }
    });
}

fn commands(kind: Kind) {
    run(Driver::new, kind, 150);
}

fn commands_on_tiny_rings(kind: Kind) {
    run(Driver::tiny, kind, 75);
}
