//! Fibers that run plain blocking code on io_uring, epoll, kqueue, poll and select.
//!
//! A fiber that has called `read(&mut buf)` cannot go away before the call returns. So its buffer
//! can be lent to the kernel as it is: no owned buffers, no copies, no `async`. Whatever is written
//! against [`std::io::Read`] and [`std::io::Write`] runs on fibers unchanged.
//!
//! ```
//! use std::io::{Read, Write};
//!
//! use kapok::net::{TcpListener, TcpStream};
//!
//! # fn main() -> std::io::Result<()> {
//! kapok::Runtime::new()?.run(|| -> std::io::Result<()> {
//!     let listener = TcpListener::bind("127.0.0.1:0")?;
//!     let address = listener.local_addr()?;
//!     let echo = kapok::spawn(move || -> std::io::Result<()> {
//!         let (mut stream, _) = listener.accept()?;
//!         let mut buf = [0; 64];
//!         let count = stream.read(&mut buf)?;
//!         stream.write_all(&buf[..count])
//!     });
//!     let mut client = TcpStream::connect(address)?;
//!     client.write_all(b"float")?;
//!     let mut reply = [0; 5];
//!     client.read_exact(&mut reply)?;
//!     assert_eq!(&reply, b"float");
//!     echo.join().unwrap()
//! })
//! # }
//! ```
//!
//! # The parts
//!
//! * [`Runtime`] runs fibers on one or more threads; [`spawn`], [`scope()`], [`yield_now`],
//!   [`timeout`], [`JoinHandle::cancel`] are about fibers themselves.
//! * [`net`], [`fs`], [`time`] and [`signal`] are what they wait for; [`sync`] is how they, threads
//!   and futures talk to each other; [`select!`] waits for several things.
//! * [`block_on`] awaits any future, [`blocking()`] runs code that blocks.
//! * [`metrics()`] counts, [`dump`] shows every fiber with what it waits for and where it is, and a
//!   watchdog tells when one blocks its loop: see [`observe`].
//! * [`register`], [`run`], [`stop`], [`read()`] and [`write()`] are the event-free API: see
//!   [`server`].

mod blocking;
mod carrier;
mod fiber;
#[doc(hidden)]
pub mod foreign;
pub mod fs;
#[doc(hidden)]
pub mod interpose;
pub mod metrics;
pub mod net;
pub mod observe;
mod op;
mod park;
mod primitives;
mod runtime;
#[doc(hidden)]
pub mod select;
pub mod server;
pub mod signal;
pub mod sim;
mod stack;
pub mod sync;
pub mod time;

pub use blocking::blocking;
pub use fiber::{
    Builder, Canceled, FiberLocal, Interrupted, JoinError, JoinHandle, Scope, ScopedJoinHandle,
    check_interrupted, current_id, current_name, deadline, interrupted_async, on_fiber, scope,
    shield, spawn, spawn_local, timeout, yield_now,
};
pub use kapok_engine::{Config as EngineConfig, Kind};
#[doc(inline)]
pub use kapok_pool as pool;
pub use metrics::metrics;
pub use observe::{Dump, dump};
pub use park::block_on;
pub use runtime::{Builder as RuntimeBuilder, ENGINE_VARIABLE, Incidents, Runtime, incidents};
pub use server::{read, register, run, start, stop, write};
pub use stack::{StackUsage, stack_usage};
pub use time::sleep;

/// The README's code, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
