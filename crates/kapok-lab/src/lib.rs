//! The measuring lab: the same servers on every I/O model, under the same work.
//!
//! [`serve()`] runs an echo or an HTTP server on the [`Model`] that a [`ServeConfig`] names. What a
//! request costs is fixed by [`workload`], which does no I/O; what differs is only how a model
//! waits, and that is one file each in `models`.

#[cfg(target_os = "linux")]
pub mod advise;
mod child;
pub mod compare;
mod complaints;
#[cfg(target_os = "linux")]
pub mod costs;
mod delay;
pub mod disk;
#[cfg(target_os = "linux")]
pub mod latency;
pub mod load;
pub mod meters;
mod models;
#[cfg(target_os = "linux")]
pub mod observe;
pub mod report;
mod serve;
mod stop;
pub mod workload;

pub use delay::DelayServer;
pub use serve::{
    AcceptMode, Model, Protocol, Refusals, ServeConfig, Served, UnknownName, serve, serve_on_fibers,
};
pub use stop::Stop;
