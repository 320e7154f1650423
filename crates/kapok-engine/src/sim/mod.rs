//! A simulated world: sockets and files in memory, under a clock of their own, with seeded faults.
//!
//! [`Sim`] is an [`Engine`](crate::Engine) like the others, and behind it is no kernel but a small model of one.
//! One `Sim` is one world: the network with everybody on it, and all files. Clients and servers are
//! submitters of the same engine. A world is made from a [`Config`], in which the seed is what
//! counts: **the same seed and the same operations give the same completions, in the same order,
//! with the same bytes, at the same times of its clock.** [`Sim::trace_hash`] shows it.
//!
//! # Determinism
//!
//! Nothing that differs between two runs decides anything: no real time, no address of memory, no
//! descriptor number, no iteration of a hash table. Chance comes from one generator whose algorithm
//! is fixed here. What comes from outside is outside the promise: rings from other threads, and
//! polls of descriptors that are not of this world.
//!
//! # Time
//!
//! [`Sim::now`](crate::Engine::now) is a clock that runs when the submitter waits. A turn in which nothing
//! lands jumps to the next event, within what its [`Wait`](crate::Wait) allows, so that an hour of waiting costs
//! nothing; every turn takes a microsecond, so that whoever asks over and over gets on too. If
//! nothing can happen any more, a turn that waits for ever really waits for the bell, or says that
//! all is stuck: see [`Config::stuck_after`].
//!
//! # Descriptors
//!
//! A descriptor of the world is a real descriptor, of a socket that is connected to nothing or of
//! a file in memory, so that `OwnedFd`, close(2), setsockopt(2) and the process's limits work as
//! ever. What it stands for is known to its world only: std's own calls on a socket see nothing of
//! it. Options of sockets are kept by the kernel and have no effect, but for `SO_LINGER` with a time
//! of zero, which makes a close a reset. Closed without the engine, a descriptor is seen to be
//! closed in the next turn in which
//! nothing else has landed. A descriptor that this world did
//! not make lands `EBADF`, but for [`Op::Poll`](crate::Op::Poll): that asks the kernel, and is served when this
//! world has nothing else to do.
//!
//! # What a world may do
//!
//! Everything in [`Faults`] is something that the contract of [`Engine`](crate::Engine) and the manual pages
//! allow. Bytes of a stream are never lost, doubled or swapped, except by a reset, which both
//! sides are told of.
//!
//! # What there is not
//!
//! Pipes, terminals, out-of-band data, passed descriptors and other ancillary data (a send with
//! some lands `EOPNOTSUPP`), directories as such (every directory exists), and names that are taken
//! away: an unlink(2) is not seen here. Every IP address is one of this world's own.

mod address;
mod config;
mod connect;
mod datagram;
mod digest;
mod engine;
mod file;
mod loan;
mod memory;
mod names;
mod numbers;
mod outside;
mod pending;
mod random;
mod schedule;
mod stream;
#[cfg(test)]
mod tests;
mod world;

pub use config::{Chance, Config, Faults};
pub use engine::Sim;
