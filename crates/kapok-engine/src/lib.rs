//! The engine seam of Kapok: operations are data, engines carry them out.
//!
//! Most programs use the `kapok` crate, whose fibers, sockets and files stand on this one. Use this
//! crate to write an event loop of your own that runs on io_uring where it is to be had and on
//! epoll, kqueue, poll or select where it is not.
//!
//! The contract is in [`Engine`]; the vocabulary in [`Op`], [`Key`] and [`Completion`]. On Linux the
//! module `entry` has every other operation of io_uring.

mod any;
mod bell;
mod buffers;
mod choice;
mod engine;
#[cfg(target_os = "linux")]
pub mod entry;
pub mod offload;
mod op;
mod primitives;
mod ready;
mod salvage;
pub mod selector;
pub mod sim;
mod stats;
pub mod sys;
mod timers;
#[cfg(target_os = "linux")]
pub mod uring;

pub use any::{AnyEngine, Config, Kind, UnknownKind};
pub use bell::Bell;
#[cfg(loom)]
#[doc(hidden)]
pub use bell::Sleeper;
pub use buffers::Buffers;
pub use choice::{AUTO, Choice};
pub use engine::Engine;
pub use op::{
    Completion, Completions, Key, MAX_TRANSFER, Op, RawMetadata, Readiness, Submitted, Wait,
};
pub use ready::Ready;
pub use salvage::{Held, Salvage};
pub use stats::EngineStats;
