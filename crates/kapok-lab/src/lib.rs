//! The measuring lab: the same servers on every I/O model, under the same work.
//!
//! [`serve()`] runs an echo or an HTTP server on the [`Model`] that a [`ServeConfig`] names. What a
//! request costs is fixed by [`workload`], which does no I/O; what differs is only how a model
//! waits, and that is one file each in `models`.

pub mod compare;
pub mod load;
pub mod meters;
mod models;
mod serve;
mod stop;
pub mod workload;

pub use serve::{
    AcceptMode, Model, Protocol, Refusals, ServeConfig, Served, UnknownName, serve, serve_on_fibers,
};
pub use stop::Stop;
