//! The same protocol tests over every model.

#[macro_use]
mod child;
#[macro_use]
mod server;

mod backend;
mod echo;
mod files;
mod http;
mod lifecycle;
mod limits;
mod slow;
