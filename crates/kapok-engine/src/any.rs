//! Which engine: chosen at run time, dispatched by one match.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Instant;

use crate::bell::Bell;
use crate::buffers::{Buffers, DEFAULT_BYTES};
use crate::choice::AUTO;
use crate::engine::Engine;
use crate::op::{Completions, Key, Op, Submitted, Wait};
use crate::ready::Ready;
use crate::salvage::Salvage;
#[cfg(any(target_os = "linux", target_os = "android"))]
use crate::selector::Epoll as Edges;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use crate::selector::Mio as Edges;
use crate::selector::{Busy, Poll, Select};
use crate::sim::{self, Sim};
use crate::stats::EngineStats;
#[cfg(target_os = "linux")]
use crate::uring::Uring;

/// The engines there are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// io_uring(7). Linux 5.19 and later.
    Uring,
    /// Readiness by epoll(7) on Linux, by kqueue(2) on macOS and the BSDs.
    Epoll,
    /// Readiness by poll(2).
    Poll,
    /// Readiness by select(2): only descriptors below 1024.
    Select,
    /// Readiness by asking all the time: no wait, a whole core.
    Busy,
    /// No kernel, but a [simulated world](crate::sim). Never chosen by a name.
    Sim,
}

impl Kind {
    /// Every engine for real work, the best first.
    pub const ALL: &[Kind] = &[Kind::Uring, Kind::Epoll, Kind::Poll, Kind::Select, Kind::Busy];

    /// What it is called on the command line and in `KAPOK_ENGINE`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Uring => "uring",
            Kind::Epoll => "epoll",
            Kind::Poll => "poll",
            Kind::Select => "select",
            Kind::Busy => "busy",
            Kind::Sim => "sim",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Kind, UnknownKind> {
        match name {
            // What epoll is elsewhere.
            "kqueue" => Ok(Kind::Epoll),
            _ => Kind::ALL
                .iter()
                .copied()
                .find(|kind| kind.name() == name)
                .ok_or_else(|| UnknownKind(name.to_owned())),
        }
    }
}

/// The name of no engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownKind(String);

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no engine is called {:?}; there are auto, uring, epoll, poll, select and busy",
            self.0
        )
    }
}

impl std::error::Error for UnknownKind {}

/// How an engine is made.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Config {
    /// How many operations a ring takes between two system calls. More are kept, none is lost.
    pub submission_entries: u32,
    /// How many completions a ring holds before the kernel has to keep them on the side.
    pub completion_entries: u32,
    /// The size of the buffers that [`Op::RecvPooled`] lands in, in bytes. An engine has 128 of them,
    /// whose memory is used as it is touched.
    pub pooled_buffer_bytes: u32,
    /// The world of [`Kind::Sim`]. Without one, that kind is `InvalidInput`.
    pub simulation: Option<sim::Config>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            submission_entries: 1024,
            completion_entries: 8192,
            pooled_buffer_bytes: DEFAULT_BYTES,
            simulation: None,
        }
    }
}

/// Any engine.
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "made once a loop, and a box would be on every path")]
pub enum AnyEngine {
    /// See [`Kind::Uring`].
    #[cfg(target_os = "linux")]
    Uring(Uring),
    /// See [`Kind::Epoll`].
    Epoll(Ready<Edges>),
    /// See [`Kind::Poll`].
    Poll(Ready<Poll>),
    /// See [`Kind::Select`].
    Select(Ready<Select>),
    /// See [`Kind::Busy`].
    Busy(Ready<Busy>),
    /// See [`Kind::Sim`].
    Sim(Box<Sim>),
}

/// Runs the same expression on whichever engine there is.
macro_rules! on_each {
    ($any:expr, $engine:ident => $body:expr) => {
        match $any {
            #[cfg(target_os = "linux")]
            AnyEngine::Uring($engine) => $body,
            AnyEngine::Epoll($engine) => $body,
            AnyEngine::Poll($engine) => $body,
            AnyEngine::Select($engine) => $body,
            AnyEngine::Busy($engine) => $body,
            AnyEngine::Sim($engine) => $body,
        }
    };
}

impl AnyEngine {
    /// Makes an engine of this kind, on the thread that will use it.
    ///
    /// # Errors
    ///
    /// What the kernel says; `Unsupported` for io_uring where there is none; `InvalidInput` for a
    /// configuration that makes no sense.
    pub fn new(kind: Kind, config: &Config) -> io::Result<AnyEngine> {
        if config.pooled_buffer_bytes == 0 {
            let message = "pooled_buffer_bytes is 0: a receive would always be at its end";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(match kind {
            #[cfg(target_os = "linux")]
            Kind::Uring => {
                let (submissions, completions) =
                    (config.submission_entries, config.completion_entries);
                AnyEngine::Uring(Uring::new(submissions, completions, config.pooled_buffer_bytes)?)
            }
            #[cfg(not(target_os = "linux"))]
            Kind::Uring => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring is Linux's"));
            }
            Kind::Epoll => {
                AnyEngine::Epoll(Ready::with_pooled_buffers(config.pooled_buffer_bytes)?)
            }
            Kind::Poll => AnyEngine::Poll(Ready::with_pooled_buffers(config.pooled_buffer_bytes)?),
            Kind::Select => {
                AnyEngine::Select(Ready::with_pooled_buffers(config.pooled_buffer_bytes)?)
            }
            Kind::Busy => AnyEngine::Busy(Ready::with_pooled_buffers(config.pooled_buffer_bytes)?),
            Kind::Sim => match &config.simulation {
                Some(world) => AnyEngine::Sim(Box::new(Sim::new(world.clone())?)),
                None => {
                    let message = "a simulation needs a world: set Config::simulation";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                }
            },
        })
    }

    /// Makes the best engine that is to be had, by the rule in [`AUTO`]: io_uring, tried with a real
    /// operation, or else epoll or kqueue. Why not io_uring is logged, once a process as a warning.
    ///
    /// # Errors
    ///
    /// If there is not even a readiness engine: no descriptors, no memory.
    pub fn best(config: &Config) -> io::Result<AnyEngine> {
        let (last, before) = AUTO.split_last().expect("auto tries at least one engine");
        for (place, choice) in before.iter().enumerate() {
            match AnyEngine::new(choice.kind, config) {
                Ok(engine) => return Ok(engine),
                Err(error) => {
                    static TOLD: std::sync::Once = std::sync::Once::new();
                    TOLD.call_once(|| {
                        tracing::warn!(
                            %error,
                            "no {}, using {}; `kapok doctor` says why",
                            if choice.kind == Kind::Uring { "io_uring here" } else { choice.kind.name() },
                            AUTO[place + 1].kind
                        );
                    });
                }
            }
        }
        AnyEngine::new(last.kind, config)
    }

    /// Puts a readiness engine in the place of a ring that can no longer be entered, that is, whose
    /// [`turn`](Engine::turn) has failed: epoll, or poll where there is no descriptor for it.
    ///
    /// Bells of the ring ring for the new engine. The new engine has nothing in flight; what the old
    /// one had is what this returns. The ring itself is leaked, descriptor and mappings: closing it
    /// would have the kernel end what is pending at a time that nobody is told.
    ///
    /// # Errors
    ///
    /// `Unsupported` if this is no ring; what the system says if there is no readiness engine to be
    /// had. The engine is what it was then.
    pub fn replace_broken(&mut self) -> io::Result<Salvage> {
        #[cfg(target_os = "linux")]
        if let AnyEngine::Uring(ring) = self {
            let fresh = match Ready::with_tower(ring.tower(), ring.pooled_buffer_bytes()) {
                Ok(engine) => AnyEngine::Epoll(engine),
                Err(error) => match Ready::with_tower(ring.tower(), ring.pooled_buffer_bytes()) {
                    Ok(engine) => AnyEngine::Poll(engine),
                    Err(_) => return Err(error),
                },
            };
            if let AnyEngine::Uring(ring) = std::mem::replace(self, fresh) {
                return Ok(ring.salvage());
            }
        }
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("nothing takes the place of the {} engine", self.kind()),
        ))
    }

    /// Looks for edges that the selector has lost, serves what waits for them, and says how many
    /// there were: see [`Ready::sweep`]. Engines without edges lose none.
    ///
    /// # Errors
    ///
    /// As for [`Engine::turn`].
    pub fn sweep(&mut self) -> io::Result<usize> {
        match self {
            AnyEngine::Epoll(engine) => engine.sweep(),
            _ => Ok(0),
        }
    }

    /// Which it is.
    pub fn kind(&self) -> Kind {
        match self {
            #[cfg(target_os = "linux")]
            AnyEngine::Uring(_) => Kind::Uring,
            AnyEngine::Epoll(_) => Kind::Epoll,
            AnyEngine::Poll(_) => Kind::Poll,
            AnyEngine::Select(_) => Kind::Select,
            AnyEngine::Busy(_) => Kind::Busy,
            AnyEngine::Sim(_) => Kind::Sim,
        }
    }
}

impl Engine for AnyEngine {
    #[inline]
    unsafe fn submit(&mut self, key: Key, op: Op) -> Submitted {
        // SAFETY: by the caller.
        on_each!(self, engine => unsafe { engine.submit(key, op) })
    }

    #[inline]
    fn cancel(&mut self, key: Key) {
        on_each!(self, engine => engine.cancel(key))
    }

    #[inline]
    fn disarm(&mut self, key: Key) -> bool {
        on_each!(self, engine => engine.disarm(key))
    }

    #[inline]
    fn turn(&mut self, wait: Wait, out: &mut Completions) -> io::Result<()> {
        on_each!(self, engine => engine.turn(wait, out))
    }

    fn bell(&self) -> Bell {
        on_each!(self, engine => engine.bell())
    }

    #[inline]
    fn in_flight(&self) -> usize {
        on_each!(self, engine => engine.in_flight())
    }

    #[inline]
    fn stats(&self) -> EngineStats {
        on_each!(self, engine => engine.stats())
    }

    #[inline]
    fn now(&self) -> Instant {
        on_each!(self, engine => engine.now())
    }

    #[inline]
    fn flush(&mut self, at_least: usize, busy: usize) {
        on_each!(self, engine => engine.flush(at_least, busy));
    }

    #[inline]
    fn wants_turn(&self) -> bool {
        on_each!(self, engine => engine.wants_turn())
    }

    #[inline]
    fn sends_at_once(&self, fd: RawFd) -> bool {
        on_each!(self, engine => engine.sends_at_once(fd))
    }

    #[inline]
    fn buffers(&self) -> Option<&Rc<Buffers>> {
        on_each!(self, engine => engine.buffers())
    }

    fn descriptor_limit(&self) -> Option<i32> {
        on_each!(self, engine => engine.descriptor_limit())
    }
}
