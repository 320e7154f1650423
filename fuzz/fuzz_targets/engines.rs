//! The same commands on every engine and in a simulated world: they must come to the same.
//!
//! The commands are over pairs of Unix sockets, which deliver at once, and few enough bytes that a
//! send is never short. So what an operation comes to follows from the commands before it, on every
//! engine alike; only the turn in which it lands is an engine's own. After each command all engines
//! are turned until they agree with the first one, which they must within [`PATIENCE`]. The first
//! one is the oracle: the simulated world, in which no kernel has a say. It has no packet sockets;
//! where they are asked for, io_uring is compared with the others.
//!
//! What the contract leaves open is not asked:
//!
//! * the order among several that wait on one side of an end: one receive *or* poll is pending on an
//!   end at a time, one send, and none on an end that is being closed;
//! * `READ_CLOSED` where nobody asks for it, see [`Readiness::READ_CLOSED`];

#![no_main]

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use kapok_engine::sys::descriptors;
use kapok_engine::{
    AnyEngine, Completions, Config, Engine, Key, Kind, Op, Readiness, Submitted, Wait, sim,
};
use libfuzzer_sys::fuzz_target;

const PATIENCE: Duration = Duration::from_secs(5);
const PAIRS: usize = 3;
/// The one with boundaries between messages. The first one blocks, as a stranger's descriptor may,
/// and the last one is owned as Kapok's are.
const MESSAGES: usize = 1;
const OWNED: usize = 2;
const ENDS: usize = 2 * PAIRS;
/// Messages that the buffers of a socket hold for sure, read or not.
const MOST_SENDS: usize = 60;
const MOST_COMMANDS: usize = 100;

/// What an operation came to, and what it read.
type Result = (i32, Vec<u8>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Send(usize),
    Receive(usize),
    Poll(usize),
    Timer,
    Other,
}

struct World {
    /// First, so that it is gone before what it was lent.
    engine: AnyEngine,
    kind: Kind,
    ends: [Option<RawFd>; ENDS],
    /// Pending operations by their number, in the order of the commands.
    pending: BTreeMap<u32, (Role, Vec<u8>)>,
    landed: BTreeMap<u32, Result>,
    /// Those that were disarmed: they never land.
    disarmed: Vec<u32>,
    sends: [usize; ENDS],
    sent: [u8; ENDS],
    next: u32,
    completions: Completions,
}

/// What all worlds of a run have in common.
#[derive(Clone, Copy)]
struct Shape {
    /// Rings with next to no room.
    tiny: bool,
    /// `SOCK_*` of the pair with boundaries.
    messages: i32,
}

impl Shape {
    fn kinds(self) -> impl Iterator<Item = Kind> {
        let oracle = (self.messages == libc::SOCK_DGRAM).then_some(Kind::Sim);
        oracle.into_iter().chain(Kind::ALL.iter().copied())
    }
}

impl World {
    /// `None` if there is no such engine here.
    fn new(kind: Kind, shape: Shape) -> Option<World> {
        let mut config = Config::default();
        config.simulation = Some(sim::Config::new(0));
        if shape.tiny {
            config.submission_entries = 4;
            config.completion_entries = 8;
        }
        let engine = AnyEngine::new(kind, &config).ok()?;
        let mut world = World {
            engine,
            kind,
            ends: [None; ENDS],
            pending: BTreeMap::new(),
            landed: BTreeMap::new(),
            disarmed: Vec::new(),
            sends: [0; ENDS],
            sent: [0; ENDS],
            next: 0,
            completions: Completions::new(),
        };
        for pair in 0..PAIRS {
            let sort = if pair == MESSAGES { shape.messages } else { libc::SOCK_STREAM };
            for (side, fd) in world.make_pair(sort, pair == 0).into_iter().enumerate() {
                if pair == OWNED {
                    descriptors::adopt(fd);
                }
                world.ends[2 * pair + side] = Some(fd);
            }
        }
        Some(world)
    }

    /// Two sockets that are connected to each other.
    fn make_pair(&mut self, sort: i32, blocking: bool) -> [RawFd; 2] {
        let mut fds = [-1; 2];
        let op = Op::SocketPair { kind: sort, fds: &raw mut fds };
        // SAFETY: the operation never waits, so it is over when this returns.
        let made = unsafe { self.engine.submit(Key::new(0, 0), op) };
        assert_eq!(made, Submitted::Done(0), "{}: socketpair", self.kind);
        if !blocking {
            for fd in fds {
                // SAFETY: fcntl with integer arguments.
                let set = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
                assert_eq!(set, 0, "fcntl: {}", std::io::Error::last_os_error());
            }
        }
        fds
    }

    /// By the engine's clock.
    fn in_a_millisecond(&self) -> Wait {
        Wait::Until(self.engine.now() + Duration::from_millis(1))
    }

    fn is_pending(&self, role: Role) -> bool {
        self.pending.values().any(|(other, _)| *other == role)
    }

    fn submit(&mut self, role: Role, buffer: Vec<u8>, op: impl FnOnce(*mut u8) -> Op) {
        let number = self.next;
        self.next += 1;
        self.pending.insert(number, (role, buffer));
        let buffer = &mut self.pending.get_mut(&number).expect("just inserted").1;
        let op = op(buffer.as_mut_ptr());
        // SAFETY: the buffer stays in `pending`, unmoved behind its pointer, until the key lands, and
        // is dropped after the engine; numbers are used once; an end is closed with nothing pending.
        match unsafe { self.engine.submit(Key::new(number, number), op) } {
            Submitted::Done(res) | Submitted::DoneIn(res, _) => self.land(number, res),
            Submitted::Pending => {}
        }
        self.check_count();
    }

    fn land(&mut self, number: u32, res: i32) {
        let (role, mut buffer) = self.pending.remove(&number).expect("landed and was not pending");
        // Unasked, some engines report it and some do not.
        let res = if matches!(role, Role::Poll(_)) && res > 0 {
            res & !i32::from(Readiness::READ_CLOSED.0)
        } else {
            res
        };
        match role {
            Role::Receive(_) if res >= 0 => buffer.truncate(res as usize),
            _ => buffer.clear(),
        }
        self.landed.insert(number, (res, buffer));
    }

    fn turn(&mut self, wait: Wait) {
        let mut completions = std::mem::take(&mut self.completions);
        self.engine.turn(wait, &mut completions).expect("the engine works");
        for completion in completions.drain(..) {
            assert!(completion.is_terminal(), "nothing here lands twice");
            let number = completion.key.index();
            assert_eq!(completion.key, Key::new(number, number), "{}: a stranger's key", self.kind);
            self.land(number, completion.res);
        }
        self.completions = completions;
        self.check_count();
    }

    fn check_count(&self) {
        assert_eq!(self.engine.in_flight(), self.pending.len(), "{}: in flight", self.kind);
    }

    /// Turns until nothing more lands.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 2 {
            let before = self.pending.len();
            self.turn(Wait::No);
            quiet = if self.pending.len() == before { quiet + 1 } else { 0 };
        }
    }

    /// One command. Whether it is carried out depends on what all engines agree on alone.
    fn perform(&mut self, [what, which, size]: [u8; 3]) {
        let end = usize::from(which) % ENDS;
        let length = usize::from(size) + 1;
        let nth = self.pending.keys().nth(usize::from(which) % 8).copied();
        let Some(fd) = self.ends[end] else { return };
        let receives = self.is_pending(Role::Receive(end)) || self.is_pending(Role::Poll(end));
        match what % 12 {
            0..=2 if self.sends[end] < MOST_SENDS && !self.is_pending(Role::Send(end)) => {
                self.sends[end] += 1;
                let bytes: Vec<u8> = (0..length)
                    .map(|_| {
                        self.sent[end] = self.sent[end].wrapping_mul(5).wrapping_add(which | 1);
                        self.sent[end]
                    })
                    .collect();
                let send =
                    |buf: *mut u8| Op::Send { fd, buf, len: length, flags: libc::MSG_NOSIGNAL };
                self.submit(Role::Send(end), bytes, send);
            }
            3..=5 if !receives => {
                let flags = match which / 32 {
                    0 => libc::MSG_PEEK,
                    1 => libc::MSG_WAITALL,
                    2 => libc::MSG_DONTWAIT,
                    3 => libc::MSG_PEEK | libc::MSG_DONTWAIT,
                    4 => libc::MSG_WAITALL | libc::MSG_PEEK,
                    5 => libc::MSG_WAITALL | libc::MSG_DONTWAIT,
                    _ => 0,
                };
                let receive = |buf| Op::Recv { fd, buf, len: length, flags };
                self.submit(Role::Receive(end), vec![0; length], receive);
            }
            6 if !receives => {
                let events = if size % 2 == 0 { Readiness::READABLE } else { Readiness::WRITABLE };
                self.submit(Role::Poll(end), Vec::new(), |_| Op::Poll { fd, events });
            }
            7 => {
                let now = self.engine.now();
                let deadline = if size % 2 == 0 { now } else { now + Duration::from_secs(3600) };
                self.submit(Role::Timer, Vec::new(), |_| Op::Timer { deadline });
            }
            8 => {
                // Also what has landed, and what never was.
                let number = nth.unwrap_or(u32::from(size));
                self.engine.cancel(Key::new(number, number));
                self.engine.cancel(Key::new(number, number.wrapping_add(1)));
            }
            9 => {
                let timer = nth.filter(|number| self.pending[number].0 == Role::Timer);
                if let Some(number) = timer
                    && self.engine.disarm(Key::new(number, number))
                {
                    self.pending.remove(&number);
                    self.disarmed.push(number);
                }
            }
            10 => {
                let how = i32::from(size % 3);
                self.submit(Role::Other, Vec::new(), |_| Op::Shutdown { fd, how });
            }
            11 if size < 64 && !receives && !self.is_pending(Role::Send(end)) => {
                self.ends[end] = None;
                if end / 2 == OWNED {
                    descriptors::retire(fd);
                }
                self.submit(Role::Other, Vec::new(), |_| Op::Close { fd });
            }
            _ => self.submit(Role::Other, Vec::new(), |_| Op::Nop),
        }
    }

    /// What has landed, or was disarmed, and has not or differently on `other`.
    fn different(&self, other: &World) -> (Vec<(u32, &Result)>, &[u32]) {
        let differs = |(number, result): &(&u32, &Result)| other.landed.get(number) != Some(result);
        let landed = self.landed.iter().filter(differs).map(|(&number, result)| (number, result));
        (landed.collect(), &self.disarmed)
    }

    /// Cancels everything, and sees it land.
    fn finish(&mut self) {
        for number in self.pending.keys().copied().collect::<Vec<_>>() {
            self.engine.cancel(Key::new(number, number));
        }
        let give_up = Instant::now() + PATIENCE;
        while !self.pending.is_empty() {
            self.turn(self.in_a_millisecond());
            assert!(Instant::now() < give_up, "{}: cancelled and never landed", self.kind);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (end, fd) in self.ends.into_iter().enumerate() {
            let Some(fd) = fd else { continue };
            if end / 2 == OWNED {
                descriptors::retire(fd);
            }
            // SAFETY: the number is this world's, and nothing is pending on it.
            unsafe { libc::close(fd) };
        }
    }
}

fn assert_agree(worlds: &mut [World], commands: &[[u8; 3]]) {
    let give_up = Instant::now() + PATIENCE;
    worlds.iter_mut().for_each(World::settle);
    loop {
        let (first, others) = worlds.split_first().expect("some engine");
        let differs = others
            .iter()
            .position(|other| other.landed != first.landed || other.disarmed != first.disarmed);
        let Some(differs) = differs.map(|index| index + 1) else { return };
        if Instant::now() > give_up {
            let (one, other) = (&worlds[0], &worlds[differs]);
            panic!(
                "after {commands:?}\n{}: {:?}\n{}: {:?}",
                one.kind,
                one.different(other),
                other.kind,
                other.different(one),
            );
        }
        for world in worlds.iter_mut() {
            world.turn(world.in_a_millisecond());
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, commands)) = data.split_first() else { return };
    let (commands, _) = commands.as_chunks::<3>();
    let messages = if first & 2 == 0 { libc::SOCK_DGRAM } else { libc::SOCK_SEQPACKET };
    let shape = Shape { tiny: first & 1 == 1, messages };
    let mut worlds: Vec<World> = shape.kinds().filter_map(|kind| World::new(kind, shape)).collect();
    assert!(worlds.len() >= 2, "there is nothing to compare");
    for (index, &command) in commands.iter().take(MOST_COMMANDS).enumerate() {
        worlds.iter_mut().for_each(|world| world.perform(command));
        assert_agree(&mut worlds, &commands[..=index]);
    }
    worlds.iter_mut().for_each(World::finish);
});
