//! Which engine: chosen at run time, dispatched by one match.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Instant;

use crate::bell::Bell;
use crate::engine::Engine;
use crate::op::{Completions, Key, Op, Submitted, Wait};
use crate::ready::Ready;
use crate::salvage::Salvage;
use crate::selector::{Busy, Mio, Poll, Select};
use crate::sim::{self, Sim};
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
    /// How many operations a ring takes between two system calls. More are flushed, none is lost.
    pub submission_entries: u32,
    /// How many completions a ring holds before the kernel has to keep them on the side.
    pub completion_entries: u32,
    /// The world of [`Kind::Sim`]. Without one, that kind is `InvalidInput`.
    pub simulation: Option<sim::Config>,
}

impl Default for Config {
    fn default() -> Config {
        Config { submission_entries: 512, completion_entries: 8192, simulation: None }
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
    Epoll(Ready<Mio>),
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
    /// What the kernel says; `Unsupported` for io_uring where there is none.
    pub fn new(kind: Kind, config: &Config) -> io::Result<AnyEngine> {
        Ok(match kind {
            #[cfg(target_os = "linux")]
            Kind::Uring => {
                AnyEngine::Uring(Uring::new(config.submission_entries, config.completion_entries)?)
            }
            #[cfg(not(target_os = "linux"))]
            Kind::Uring => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring is Linux's"));
            }
            Kind::Epoll => AnyEngine::Epoll(Ready::new()?),
            Kind::Poll => AnyEngine::Poll(Ready::new()?),
            Kind::Select => AnyEngine::Select(Ready::new()?),
            Kind::Busy => AnyEngine::Busy(Ready::new()?),
            Kind::Sim => match &config.simulation {
                Some(world) => AnyEngine::Sim(Box::new(Sim::new(world.clone())?)),
                None => {
                    let message = "a simulation needs a world: set Config::simulation";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                }
            },
        })
    }

    /// Makes the best engine that is to be had: io_uring, tried with a real operation, or else
    /// epoll or kqueue. Why not io_uring is logged, once a process as a warning.
    ///
    /// # Errors
    ///
    /// If there is not even a readiness engine: no descriptors, no memory.
    pub fn best(config: &Config) -> io::Result<AnyEngine> {
        match AnyEngine::new(Kind::Uring, config) {
            Ok(engine) => Ok(engine),
            Err(error) => {
                static TOLD: std::sync::Once = std::sync::Once::new();
                TOLD.call_once(|| {
                    tracing::warn!(%error, "no io_uring here, using {}; `kapok doctor` says why", Kind::Epoll);
                });
                AnyEngine::new(Kind::Epoll, config)
            }
        }
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
            let fresh = match Ready::with_tower(ring.tower()) {
                Ok(engine) => AnyEngine::Epoll(engine),
                Err(error) => match Ready::with_tower(ring.tower()) {
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
    fn now(&self) -> Instant {
        on_each!(self, engine => engine.now())
    }

    fn descriptor_limit(&self) -> Option<i32> {
        on_each!(self, engine => engine.descriptor_limit())
    }
}
