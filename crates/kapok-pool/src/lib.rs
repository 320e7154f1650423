//! I/O threads: operations of io_uring, awaitable from any executor, from fibers and from plain
//! threads.
//!
//! A [`Pool`] has threads with a ring each. An operation owns its buffer and gives it back with the
//! result, so its future can be dropped at any time. Where a hand-over to another thread would cost
//! more than the operation, it is tried in the caller first: see [`Via`].
//!
//! What has no operation of its own here is an [entry](Pool::entry) of io_uring. What io_uring has none for is a
//! call on a blocking thread ([`File::blocking`]).
//!
//! Where the thread of an executor has a ring of its own driven by its [`Driver`], nothing is handed over at all.
//!
//! Where the kernel refuses io_uring, the same operations are carried out by epoll and by threads that
//! block.

mod balance;
mod blocking;
mod buffer;
mod carrier;
mod cell;
mod channel;
mod context;
mod descriptor;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod entries;
mod file;
mod fork;
mod free;
pub mod fs;
mod gate;
mod hint;
#[cfg(target_os = "linux")]
mod incoming;
mod lease;
mod listener;
#[cfg(all(test, loom))]
mod models;
mod operation;
mod pool;
mod port;
mod primitives;
#[cfg(target_os = "linux")]
mod receiver;
mod request;
mod requests;
mod scale;
mod shared;
mod sleep;
mod slot;
mod stats;
mod step;
mod thread;
mod via;
#[cfg(target_os = "linux")]
mod watch;

pub use balance::Balance;
pub use blocking::Blocking;
#[doc(hidden)]
pub use buffer::Registered;
pub use buffer::{Buffer, Part, Source};
pub use carrier::{Carrier, PollState};
pub use cell::Landed;
pub use context::raw_os_error;
pub use descriptor::Descriptor;
#[cfg(target_os = "linux")]
pub use driver::{Driver, Resting};
#[cfg(target_os = "linux")]
pub use entries::{OfEntry, Splice};
pub use file::{File, Metadata, OpenFile, OpenOptions};
#[cfg(target_os = "linux")]
pub use incoming::Incoming;
pub use lease::{ALIGNMENT, Buffers, Lease, Leasing, Pages};
pub use listener::{Accept, Accepting, Listener};
pub use operation::{Operation, block_on};
pub use pool::{Builder, Pool};
#[cfg(target_os = "linux")]
pub use receiver::Receiver;
pub use request::{BUFFER_GROUP, Request};
pub use requests::{Moved, NoDescriptor, OpenAt, Plain, ReadAt, Ready, Recv, Send, Stat, WriteAt};
pub use scale::Thresholds;
pub use stats::{PoolStats, ThreadStats};
pub use via::{UnknownVia, Via};
#[cfg(target_os = "linux")]
pub use watch::Watch;

/// What operations and the options of a pool are made of, so that this crate, or `kapok`, is all that a
/// program depends on.
#[doc(no_inline)]
pub use kapok_engine::{Config as EngineConfig, Kind, Op, RawMetadata, Readiness};

/// Every operation of io_uring as an entry, for [`Pool::entry`].
#[cfg(target_os = "linux")]
#[doc(no_inline)]
pub use kapok_engine::entry;
