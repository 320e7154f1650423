//! I/O threads: operations of io_uring, awaitable from any executor, from fibers and from plain
//! threads.
//!
//! A [`Pool`] has threads with a ring each. An operation owns its buffer and gives it back with the
//! result, so its future can be dropped at any time. Where a hand-over to another thread would cost
//! more than the operation, it is tried in the caller first: see [`Via`].
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
pub use descriptor::Descriptor;
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
