//! What a simulated world is made from: plain data.

use std::ops::RangeInclusive;
use std::time::Duration;

/// How often something happens, in millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Chance(u32);

impl Chance {
    /// Not at all.
    pub const NEVER: Chance = Chance(0);
    /// Each time.
    pub const ALWAYS: Chance = Chance(Chance::WHOLE as u32);

    pub(super) const WHOLE: u64 = 1_000_000;

    /// Once in so many times. 0 is [`NEVER`](Chance::NEVER), and so is less than once in a million.
    pub const fn one_in(times: u32) -> Chance {
        match times {
            0 => Chance::NEVER,
            _ => Chance(Chance::ALWAYS.0 / times),
        }
    }

    /// So many times in a hundred; more than 100 is [`ALWAYS`](Chance::ALWAYS).
    pub const fn percent(percent: u32) -> Chance {
        if percent >= 100 { Chance::ALWAYS } else { Chance(Chance::ALWAYS.0 / 100 * percent) }
    }

    pub(super) const fn millionths(self) -> u64 {
        self.0 as u64
    }
}

/// Which faults a simulated world has, and how often. Each is one that a kernel or a network may
/// have: nothing here breaks the contract of [`Engine`](crate::Engine).
///
/// ```
/// use kapok_engine::sim::{Chance, Faults};
///
/// let mut faults = Faults::some();
/// faults.reset = Chance::NEVER;
/// faults.short_read = Chance::one_in(2);
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Faults {
    /// A read or receive of a stream or a file brings fewer bytes than are there.
    pub short_read: Chance,
    /// A write or send to a stream or a file takes fewer bytes than there is room for.
    pub short_write: Chance,
    /// Bytes, datagrams and connections are on their way for a [`delay`](Config::delay) longer
    /// than the latency. Streams stay in order.
    pub delay: Chance,
    /// An operation that could go on is taken for one that would wait, and tried again after a
    /// [`delay`](Config::delay); with `MSG_DONTWAIT` it lands `EAGAIN`.
    pub would_block: Chance,
    /// An operation that is over lands a [`delay`](Config::delay) later. Until then its memory is
    /// lent, and a cancel comes too late. Timers are late too.
    pub late_completion: Chance,
    /// The completions of a turn are returned in another order.
    pub reorder: Chance,
    /// A cancel takes a [`delay`](Config::delay) to arrive, and what it is for may be faster.
    pub late_cancel: Chance,
    /// A ring of the bell is heard a [`delay`](Config::delay) later.
    pub late_bell: Chance,
    /// An operation that would wait lands `EINTR`, and has done nothing.
    pub interrupted: Chance,
    /// A send lands `ENOBUFS`, and has sent nothing.
    pub no_buffers: Chance,
    /// What would make a descriptor lands `EMFILE`. A connection stays in the listener's backlog.
    pub no_descriptors: Chance,
    /// A TCP connection is reset, at a send or a receive.
    pub reset: Chance,
    /// A connect that would have been accepted lands `ECONNREFUSED`.
    pub refused: Chance,
    /// A UDP datagram is lost.
    pub lost_datagram: Chance,
    /// A UDP datagram arrives twice.
    pub doubled_datagram: Chance,
    /// A read, write or sync of a file, or an open, lands `EIO`, and has done nothing.
    pub io_error: Chance,
}

impl Faults {
    /// No faults at all.
    pub const NONE: Faults = Faults {
        short_read: Chance::NEVER,
        short_write: Chance::NEVER,
        delay: Chance::NEVER,
        would_block: Chance::NEVER,
        late_completion: Chance::NEVER,
        reorder: Chance::NEVER,
        late_cancel: Chance::NEVER,
        late_bell: Chance::NEVER,
        interrupted: Chance::NEVER,
        no_buffers: Chance::NEVER,
        no_descriptors: Chance::NEVER,
        reset: Chance::NEVER,
        refused: Chance::NEVER,
        lost_datagram: Chance::NEVER,
        doubled_datagram: Chance::NEVER,
        io_error: Chance::NEVER,
    };

    /// A bad day: what must be borne without notice often, errors now and then.
    pub const fn some() -> Faults {
        Faults {
            no_buffers: Chance::one_in(500),
            no_descriptors: Chance::one_in(100),
            reset: Chance::one_in(500),
            refused: Chance::one_in(50),
            lost_datagram: Chance::one_in(20),
            doubled_datagram: Chance::one_in(50),
            io_error: Chance::one_in(200),
            ..Faults::benign()
        }
    }

    /// Only what changes when and in which pieces things happen, and nothing that a correct program
    /// would report: no connection breaks, no operation fails.
    pub const fn benign() -> Faults {
        Faults {
            short_read: Chance::percent(20),
            short_write: Chance::percent(20),
            delay: Chance::percent(10),
            would_block: Chance::percent(10),
            late_completion: Chance::percent(20),
            reorder: Chance::percent(50),
            late_cancel: Chance::percent(30),
            late_bell: Chance::percent(10),
            interrupted: Chance::percent(2),
            ..Faults::NONE
        }
    }
}

/// What a simulated world is made from.
///
/// ```
/// use std::time::Duration;
/// use kapok_engine::sim::{Config, Faults};
///
/// let mut config = Config::new(42);
/// config.faults = Faults::some();
/// config.latency = Duration::from_micros(50)..=Duration::from_millis(2);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Config {
    /// From which all chance is drawn. The same seed and the same operations give the same world.
    pub seed: u64,
    /// What goes wrong, and how often.
    pub faults: Faults,
    /// How long bytes, datagrams and connections are on their way. Unix sockets have none.
    pub latency: RangeInclusive<Duration>,
    /// How late what [`Faults`] calls late is.
    pub delay: RangeInclusive<Duration>,
    /// How many bytes a stream holds between its two ends, in each direction; at least 1. A
    /// datagram socket holds as many, but always one datagram.
    pub buffer_bytes: usize,
    /// How many descriptors may be open in this world before `EMFILE`; `None` for no limit but the
    /// process's own.
    pub descriptor_limit: Option<usize>,
    /// How many bytes all files hold together before `ENOSPC`; `None` for no limit.
    pub disk_bytes: Option<u64>,
    /// Whether lent memory is watched: room for a receive is filled with a pattern while the
    /// operation is pending, and both it and the bytes of a send must be as they were when it
    /// lands. A broken loan panics and names the seed, the key and the operation.
    pub check_loans: bool,
    /// How long a turn that waits for ever, in a world in which nothing can happen any more, waits
    /// for the bell, in real time. `None`: for ever. After that it panics, with the seed and all
    /// that is pending.
    pub stuck_after: Option<Duration>,
}

impl Config {
    /// A world without faults or latency.
    pub fn new(seed: u64) -> Config {
        Config {
            seed,
            faults: Faults::NONE,
            latency: Duration::ZERO..=Duration::ZERO,
            delay: Duration::from_micros(1)..=Duration::from_millis(5),
            buffer_bytes: 64 * 1024,
            descriptor_limit: None,
            disk_bytes: None,
            check_loans: true,
            stuck_after: None,
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config::new(0)
    }
}
