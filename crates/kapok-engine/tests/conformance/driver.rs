//! The submitter's side of an engine, which holds the engine to its contract.
//!
//! A [`Driver`] owns an engine, hands out keys with generations, keeps lent memory until the key
//! lands, and checks on every turn that no key lands that is not in flight, that none lands twice,
//! that the engine counts what is in flight as the driver does, and that nothing was written
//! outside the room that an operation was given or after it landed.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use kapok_engine::{
    AnyEngine, Completions, Config, Engine, Key, Kind, Op, RawMetadata, Readiness, Submitted, Wait,
};

use crate::isolated::doing;
use crate::sockets::{Address, Message};
use crate::world::{self, now};

/// How long the driver waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// What unwritten room is filled with.
pub(crate) const CANARY: u8 = 0xa5;
/// Room behind each buffer that nobody may write to, in bytes.
const GUARD: usize = 16;
/// How many landed buffers are watched for late writes.
const QUARANTINE: usize = 64;

/// Memory that an operation borrows.
#[derive(Default)]
pub(crate) struct Lent {
    pub(crate) buffer: Vec<u8>,
    /// Bytes of `buffer` that the operation may write.
    pub(crate) room: usize,
    /// `buffer` was filled with the canary and is for the operation to write.
    guarded: bool,
    pub(crate) address: Option<Box<Address>>,
    pub(crate) message: Option<Box<Message>>,
    #[expect(dead_code, reason = "kept for the operation, never looked at")]
    path: Option<CString>,
    pub(crate) metadata: Option<Box<RawMetadata>>,
}

impl Lent {
    pub(crate) fn address(address: Box<Address>) -> Lent {
        Lent { address: Some(address), ..Lent::default() }
    }

    fn room(len: usize) -> Lent {
        Lent { buffer: vec![CANARY; len + GUARD], room: len, guarded: true, ..Lent::default() }
    }
}

/// What an operation came to, and its memory.
pub(crate) struct Landed {
    pub(crate) op: Op,
    pub(crate) res: i32,
    /// The answer of `submit` was `Done`.
    pub(crate) at_once: bool,
    /// Which of the engine's buffers it landed in.
    pub(crate) buffer: Option<u16>,
    pub(crate) lent: Lent,
}

impl Landed {
    /// The result of an operation that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(&self) -> usize {
        assert!(
            self.res >= 0,
            "{:?} failed: {}",
            self.op,
            std::io::Error::from_raw_os_error(-self.res)
        );
        self.res as usize
    }

    /// The bytes that were read.
    #[track_caller]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.lent.buffer[..self.ok()]
    }

    /// Checks that the operation failed with one of these.
    #[track_caller]
    pub(crate) fn failed_with(&self, errnos: &[i32]) {
        assert!(
            errnos.contains(&-self.res),
            "{:?} landed with {} and not with one of the errors {errnos:?}",
            self.op,
            self.res
        );
    }

    pub(crate) fn was_cancelled(&self) -> bool {
        self.res == -libc::ECANCELED
    }
}

struct Slot {
    generation: u32,
    pending: Option<(Op, Lent)>,
}

pub(crate) struct Driver {
    /// Gone before the memory it was lent. `None` only while dropping.
    engine: Option<NonNull<AnyEngine>>,
    pub(crate) kind: Kind,
    slots: Vec<Slot>,
    free: Vec<u32>,
    landed: HashMap<Key, Landed>,
    completions: Completions,
    pending: usize,
    /// An operation was over at once since the last turn.
    over_at_once: bool,
    quarantine: VecDeque<(Lent, Vec<u8>)>,
}

impl Driver {
    pub(crate) fn new(kind: Kind) -> Driver {
        Driver::with(kind, &Config::default())
    }

    /// A driver whose rings, if the engine has any, are far too small.
    pub(crate) fn tiny(kind: Kind) -> Driver {
        let mut config = Config::default();
        config.submission_entries = 4;
        config.completion_entries = 8;
        Driver::with(kind, &config)
    }

    /// A driver in a simulated world of its own.
    pub(crate) fn in_world(world: &kapok_engine::sim::Config) -> Driver {
        let mut config = Config::default();
        config.simulation = Some(world.clone());
        Driver::with(Kind::Sim, &config)
    }

    fn with(kind: Kind, config: &Config) -> Driver {
        let mut driver = Driver {
            engine: NonNull::new(world::engine(kind, config)),
            kind,
            slots: Vec::new(),
            free: Vec::new(),
            landed: HashMap::new(),
            completions: Completions::new(),
            pending: 0,
            over_at_once: false,
            quarantine: VecDeque::new(),
        };
        let engine = driver.engine();
        assert_eq!(engine.in_flight(), 0, "a new engine has nothing in flight");
        assert_eq!(engine.kind().to_string(), kind.to_string(), "the engine is of another kind");
        driver
    }

    pub(crate) fn engine(&mut self) -> &mut AnyEngine {
        let mut engine = self.engine.expect("the engine lives as long as the driver");
        // SAFETY: it is this driver's until `end`, and whoever acts beside it is not within a call.
        unsafe { engine.as_mut() }
    }

    /// Whether waiting costs this engine no processor time.
    pub(crate) fn sleeps(&self) -> bool {
        !matches!(self.kind, Kind::Busy)
    }

    /// How many streams a test may hold open at once: both ends must fit below the limit.
    pub(crate) fn stream_capacity(&mut self, wanted: usize) -> usize {
        match self.engine().descriptor_limit() {
            Some(limit) => wanted.min((limit as usize - 64) / 2),
            None => wanted,
        }
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    fn next_key(&mut self) -> Key {
        // The last slot to become free is the first to be used again: generations matter.
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, pending: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.generation += 1;
        Key::new(index, slot.generation)
    }

    /// Submits `op`, which borrows nothing but `lent`.
    pub(crate) fn submit(&mut self, op: Op, lent: Lent) -> Key {
        let key = self.next_key();
        // The memory is in its slot before the engine sees it. Moving `lent` moves no memory: all
        // of it is behind pointers.
        self.slots[key.index() as usize].pending = Some((op, lent));
        // SAFETY: `lent` is kept in the slot until the key lands, and dropped after the engine; the
        // key is new. Tests that close descriptors of pending operations do so knowingly.
        let answer = unsafe { self.engine().submit(key, op) };
        match answer {
            Submitted::Done(res) => {
                self.over_at_once = true;
                self.land(key, res, None, true);
            }
            Submitted::DoneIn(res, buffer) => {
                self.over_at_once = true;
                self.land(key, res, Some(buffer), true);
            }
            Submitted::Pending => self.pending += 1,
        }
        self.check_count("submit");
        key
    }

    fn land(&mut self, key: Key, res: i32, buffer: Option<u16>, at_once: bool) {
        let slot = self.slots.get_mut(key.index() as usize).unwrap_or_else(|| {
            panic!("{key:?} landed with {res}, and there never was such a slot");
        });
        assert_eq!(
            slot.generation,
            key.generation(),
            "{key:?} landed with {res}, but its slot is in another generation"
        );
        let Some((op, lent)) = slot.pending.take() else {
            panic!("{key:?} landed a second time, with {res}");
        };
        if lent.guarded {
            let (untouched, guard) = lent.buffer.split_at(lent.room);
            assert!(guard.iter().all(|&b| b == CANARY), "{op:?} wrote beyond its buffer");
            assert!(
                res >= 0 || untouched.iter().all(|&b| b == CANARY),
                "{op:?} landed with {res}, but wrote to its buffer"
            );
        }
        assert_eq!(
            buffer.is_some(),
            matches!(op, Op::RecvPooled { .. }) && res > 0,
            "{op:?} landed with {res}, and a buffer of {buffer:?}"
        );
        self.free.push(key.index());
        self.landed.insert(key, Landed { op, res, at_once, buffer, lent });
    }

    #[track_caller]
    fn check_count(&mut self, after: &str) {
        let (counted, pending) = (self.engine().in_flight(), self.pending);
        assert_eq!(counted, pending, "in_flight() after {after} is not what is in flight");
    }

    /// One turn. Returns the keys that landed, in order.
    pub(crate) fn turn(&mut self, wait: Wait) -> Vec<Key> {
        self.over_at_once = false;
        let mut completions = std::mem::take(&mut self.completions);
        completions.clear();
        let turned = self.engine().turn(wait, &mut completions);
        turned.unwrap_or_else(|error| panic!("turn({wait:?}) failed: {error}"));
        let mut keys = Vec::with_capacity(completions.len());
        for completion in &completions {
            let key = completion.key;
            assert!(!key.is_reserved(), "{completion:?} is the engine's own");
            assert!(completion.is_terminal(), "{completion:?}: no operation here is multishot");
            self.land(key, completion.res, completion.buffer(), false);
            self.pending -= 1;
            keys.push(key);
        }
        self.completions = completions;
        self.check_count("turn");
        keys
    }

    /// A few turns that do not wait: what is there by now lands.
    pub(crate) fn settle(&mut self) {
        for _ in 0..3 {
            self.turn(Wait::No);
        }
    }

    /// A turn that waits for news, unless an operation was over at once since the last turn: that
    /// is news already.
    pub(crate) fn progress(&mut self, deadline: Instant) {
        let wait = if self.over_at_once { Wait::No } else { Wait::Until(deadline) };
        self.turn(wait);
    }

    /// Turns for about this long, so that what would land wrongly has the time to.
    pub(crate) fn linger(&mut self, duration: Duration) {
        let end = now() + duration;
        while now() < end {
            self.turn(Wait::Until(end));
        }
    }

    pub(crate) fn has_landed(&self, key: Key) -> bool {
        self.landed.contains_key(&key)
    }

    /// Takes what `key` landed with, if it has landed.
    pub(crate) fn take(&mut self, key: Key) -> Option<Landed> {
        let landed = self.landed.remove(&key)?;
        if landed.lent.guarded && landed.lent.room <= 4096 {
            if self.quarantine.len() == QUARANTINE {
                self.check_quarantine_front();
            }
            // The test gets a copy of the bytes; the memory itself is watched.
            let copy = landed.lent.buffer.clone();
            let mut returned = landed;
            let watched = Lent {
                buffer: std::mem::replace(&mut returned.lent.buffer, copy.clone()),
                ..Lent::default()
            };
            self.quarantine.push_back((watched, copy));
            return Some(returned);
        }
        Some(landed)
    }

    fn check_quarantine_front(&mut self) {
        if let Some((watched, copy)) = self.quarantine.pop_front() {
            assert_eq!(watched.buffer, copy, "memory was written after its operation landed");
        }
    }

    /// Turns until `key` has landed.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, key: Key) -> Landed {
        self.wait_for_within(key, PATIENCE)
    }

    #[track_caller]
    pub(crate) fn wait_for_within(&mut self, key: Key, patience: Duration) -> Landed {
        let deadline = now() + patience;
        loop {
            if let Some(landed) = self.take(key) {
                return landed;
            }
            let op = self.slots.get(key.index() as usize).and_then(|slot| slot.pending.as_ref());
            let (op, _) = op.unwrap_or_else(|| panic!("{key:?} is neither landed nor pending"));
            let op = *op;
            assert!(
                now() < deadline,
                "{op:?} as {key:?} has not landed in {patience:?} on {}, with {} in flight",
                self.kind,
                self.pending
            );
            doing(format_args!("waiting for {op:?} as {key:?}"));
            self.turn(Wait::Until(deadline));
        }
    }

    pub(crate) fn wait_for_all(&mut self, keys: &[Key]) -> Vec<Landed> {
        keys.iter().map(|&key| self.wait_for(key)).collect()
    }

    pub(crate) fn cancel(&mut self, key: Key) {
        self.engine().cancel(key);
        self.check_count("cancel");
    }

    /// Takes back a timer. `true`: it is gone, and its slot is free.
    pub(crate) fn disarm(&mut self, key: Key) -> bool {
        let gone = self.engine().disarm(key);
        if gone {
            let slot = &mut self.slots[key.index() as usize];
            assert_eq!(slot.generation, key.generation(), "disarmed a timer that is long over");
            assert!(slot.pending.take().is_some(), "disarmed a timer that has landed");
            self.free.push(key.index());
            self.pending -= 1;
        }
        self.check_count("disarm");
        gone
    }

    /// Cancels and waits for what it came to.
    #[track_caller]
    pub(crate) fn cancel_and_wait(&mut self, key: Key) -> Landed {
        self.cancel(key);
        self.wait_for(key)
    }

    /// Checks that `key` is still in flight after the engine had every chance to land it.
    #[track_caller]
    pub(crate) fn still_pending(&mut self, key: Key) {
        self.settle();
        self.linger(Duration::from_millis(1));
        if let Some(landed) = self.take(key) {
            panic!("{:?} landed too soon, with {}", landed.op, landed.res);
        }
    }

    /// Drops the engine with all that is in flight and returns the memory that was lent.
    pub(crate) fn drop_engine(mut self) -> Vec<Lent> {
        self.end();
        self.pending = 0;
        let slots = std::mem::take(&mut self.slots);
        slots.into_iter().filter_map(|slot| slot.pending.map(|(_, lent)| lent)).collect()
    }

    fn end(&mut self) {
        if let Some(engine) = self.engine.take() {
            world::end(engine.as_ptr());
        }
    }

    // The operations, each with memory of its own.

    pub(crate) fn nop(&mut self) -> Key {
        self.submit(Op::Nop, Lent::default())
    }

    pub(crate) fn timer(&mut self, deadline: Instant) -> Key {
        self.submit(Op::Timer { deadline }, Lent::default())
    }

    pub(crate) fn poll(&mut self, fd: RawFd, events: Readiness) -> Key {
        self.submit(Op::Poll { fd, events }, Lent::default())
    }

    pub(crate) fn recv(&mut self, fd: RawFd, len: usize) -> Key {
        self.recv_with(fd, len, 0)
    }

    pub(crate) fn recv_with(&mut self, fd: RawFd, len: usize, flags: i32) -> Key {
        let mut lent = Lent::room(len);
        self.submit(Op::Recv { fd, buf: lent.buffer.as_mut_ptr(), len, flags }, lent)
    }

    pub(crate) fn send(&mut self, fd: RawFd, bytes: &[u8]) -> Key {
        self.send_with(fd, bytes, 0)
    }

    pub(crate) fn send_with(&mut self, fd: RawFd, bytes: &[u8], flags: i32) -> Key {
        let lent = Lent { buffer: bytes.to_vec(), ..Lent::default() };
        let op = Op::Send { fd, buf: lent.buffer.as_ptr(), len: bytes.len(), flags };
        self.submit(op, lent)
    }

    pub(crate) fn recv_message(&mut self, fd: RawFd, message: Box<Message>, flags: i32) -> Key {
        let mut message = message;
        let op = Op::RecvMsg { fd, msg: message.header(), flags };
        self.submit(op, Lent { message: Some(message), ..Lent::default() })
    }

    pub(crate) fn send_message(&mut self, fd: RawFd, message: Box<Message>, flags: i32) -> Key {
        let mut message = message;
        let op = Op::SendMsg { fd, msg: message.header(), flags };
        self.submit(op, Lent { message: Some(message), ..Lent::default() })
    }

    /// Accepts, without asking for the peer's address.
    pub(crate) fn accept(&mut self, fd: RawFd) -> Key {
        let op = Op::Accept { fd, addr: std::ptr::null_mut(), addr_len: std::ptr::null_mut() };
        self.submit(op, Lent::default())
    }

    pub(crate) fn accept_with_address(&mut self, fd: RawFd) -> Key {
        let mut address = Box::new(Address::room());
        let op = Op::Accept { fd, addr: &raw mut address.storage, addr_len: &raw mut address.len };
        self.submit(op, Lent { address: Some(address), ..Lent::default() })
    }

    pub(crate) fn connect(&mut self, fd: RawFd, address: Address) -> Key {
        let address = Box::new(address);
        let op = Op::Connect { fd, addr: &raw const address.storage, addr_len: address.len };
        self.submit(op, Lent { address: Some(address), ..Lent::default() })
    }

    pub(crate) fn shutdown(&mut self, fd: RawFd, how: i32) -> Key {
        self.submit(Op::Shutdown { fd, how }, Lent::default())
    }

    pub(crate) fn read(&mut self, fd: RawFd, len: usize, offset: u64) -> Key {
        let mut lent = Lent::room(len);
        self.submit(Op::Read { fd, buf: lent.buffer.as_mut_ptr(), len, offset }, lent)
    }

    pub(crate) fn write(&mut self, fd: RawFd, bytes: &[u8], offset: u64) -> Key {
        let lent = Lent { buffer: bytes.to_vec(), ..Lent::default() };
        let op = Op::Write { fd, buf: lent.buffer.as_ptr(), len: bytes.len(), offset };
        self.submit(op, lent)
    }

    pub(crate) fn sync(&mut self, fd: RawFd, data_only: bool) -> Key {
        self.submit(Op::Sync { fd, data_only }, Lent::default())
    }

    pub(crate) fn open(&mut self, dir: RawFd, path: &str, flags: i32, mode: libc::mode_t) -> Key {
        let path = CString::new(path).expect("a path has no NUL");
        let op = Op::Open { dir, path: path.as_ptr(), flags, mode };
        self.submit(op, Lent { path: Some(path), ..Lent::default() })
    }

    pub(crate) fn metadata(&mut self, fd: RawFd) -> Key {
        // SAFETY: plain integers, for which zero is a value.
        let mut metadata: Box<RawMetadata> = Box::new(unsafe { std::mem::zeroed() });
        let op = Op::Metadata { fd, out: &raw mut *metadata };
        self.submit(op, Lent { metadata: Some(metadata), ..Lent::default() })
    }

    pub(crate) fn close(&mut self, fd: RawFd) -> Key {
        self.submit(Op::Close { fd }, Lent::default())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test failed already. The process ends now; its memory must last until then.
            self.engine = None;
            std::mem::forget(std::mem::take(&mut self.slots));
            return;
        }
        if self.engine.is_some() {
            assert_eq!(self.pending, 0, "the test left operations in flight");
            let late = self.turn(Wait::No);
            assert!(late.is_empty(), "landed though nothing was in flight: {late:?}");
            self.end();
        }
        while !self.quarantine.is_empty() {
            self.check_quarantine_front();
        }
    }
}
