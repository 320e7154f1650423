//! A simulated world for tests: the network, the files and the time of a runtime come from a seed.
//!
//! A [`Runtime`](crate::Runtime) that is built with [`simulation`](crate::RuntimeBuilder::simulation)
//! runs the same code on an engine in memory: sockets and files live in the process, time is virtual
//! and jumps to the next thing that happens, and faults come as a [`Config`] says. Client and server
//! are fibers of one world. The same seed runs the same program in exactly the same way, so a
//! failure is found by running many seeds, and looked at by running one of them again.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::time::Duration;
//!
//! use kapok::net::{TcpListener, TcpStream};
//! use kapok::sim::{Config, Faults};
//!
//! # fn main() -> std::io::Result<()> {
//! for seed in 0..100 {
//!     let mut config = Config::new(seed);
//!     config.faults = Faults::benign();
//!     kapok::Runtime::builder().simulation(config).build()?.run(move || -> std::io::Result<()> {
//!         let listener = TcpListener::bind("10.0.0.1:80")?;
//!         let server = kapok::spawn_local(move || -> std::io::Result<()> {
//!             let (mut stream, _) = listener.accept()?;
//!             std::io::copy(&mut stream.try_clone()?, &mut stream).map(drop)
//!         });
//!         let mut client = TcpStream::connect("10.0.0.1:80")?;
//!         client.write_all(b"kapok floats")?;
//!         client.shutdown(std::net::Shutdown::Write)?;
//!         kapok::sleep(Duration::from_secs(3600)).expect("an hour passes at once");
//!         let mut reply = String::new();
//!         client.read_to_string(&mut reply)?;
//!         assert_eq!(reply, "kapok floats", "seed {seed}");
//!         server.join().expect("no panic")
//!     })?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What is not simulated
//!
//! What does not go through the runtime: other threads, `std::net`, `std::fs`, `Instant::now`
//! ([`time::now`](crate::time::now) is the world's clock), random numbers and the order of hash maps.
//! [`blocking`](crate::blocking()) runs its closure on the spot, in no time. Names are not looked up:
//! only numeric addresses resolve, and `localhost`. Sockets of a simulated world cannot be turned
//! into std's to any use, and end with it.

pub use kapok_engine::sim::{Chance, Config, Faults};

use kapok_engine::sim::Sim;

use crate::runtime::Loop;

/// Runs `f` with the world that the calling fiber lives in, if it is a simulated one.
pub(crate) fn with_world<R>(f: impl FnOnce(&mut Sim) -> R) -> Option<R> {
    Loop::with_current(|current| current.and_then(|lp| lp.with_simulation(f)))
}

/// A digest of all that has happened in the simulated world of the calling fiber: the same after the
/// same history. None outside a simulation.
pub fn digest() -> Option<u64> {
    with_world(|world| world.trace_hash())
}

/// The seed of the simulated world that the calling fiber lives in. None outside a simulation.
pub fn seed() -> Option<u64> {
    with_world(|world| world.seed())
}
