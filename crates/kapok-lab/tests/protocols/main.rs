//! The same protocol tests over every model.

#[macro_use]
mod server;

mod echo;
