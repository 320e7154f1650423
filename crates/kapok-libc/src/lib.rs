//! The C library's blocking calls, made on fibers: they suspend the fiber and not the thread.
//!
//! This crate defines functions of the C library under their own names: recv(2), poll(2),
//! nanosleep(2) and so on. Linked into a program, or loaded before one, they come before those of
//! the C library itself. What runs on a [`kapok`] fiber and was written for threads (std's own
//! sockets, drivers in C) then waits as a fiber does.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//!
//! kapok_libc::install();
//! # fn main() -> std::io::Result<()> {
//! kapok::Runtime::new()?.run(|| -> std::io::Result<()> {
//!     // std's, not Kapok's. Both ends are on the same thread.
//!     let listener = TcpListener::bind("127.0.0.1:0")?;
//!     let address = listener.local_addr()?;
//!     let echo = kapok::spawn(move || -> std::io::Result<()> {
//!         let (mut stream, _) = listener.accept()?;
//!         let mut buf = [0; 5];
//!         stream.read_exact(&mut buf)?;
//!         stream.write_all(&buf)
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
//! # Which calls
//!
//! Those made on a fiber by the fiber's own code. On plain threads, inside Kapok, inside a handler
//! of a signal and before [`install`] every function is the C library's, called as if nothing was
//! in between.
//!
//! # Layout
//!
//! The module `hook` is the mechanism: one macro makes every hooked function. The subjects stand on
//! it, one module each.

#![cfg(target_os = "linux")]

mod allocator;
pub mod api;
mod bounds;
mod call;
mod closing;
mod copying;
mod descriptors;
mod ending;
mod errno;
mod files;
mod fork;
mod handler;
mod hook;
mod kernel;
mod locks;
mod names;
mod note;
mod parts;
mod patience;
mod processes;
mod readiness;
mod real;
mod signals;
mod sockets;
mod specific;
mod stream;
mod terminal;
mod threads;
mod time;
mod wait;

pub use allocator::Unsuspended;
pub use hook::{Counts, Hook};
pub use threads::threads_as_fibers;

/// Every hook, by subject.
static SUBJECTS: &[&[&Hook]] = &[
    sockets::HOOKS,
    readiness::HOOKS,
    time::HOOKS,
    files::HOOKS,
    copying::HOOKS,
    descriptors::HOOKS,
    locks::mutexes::HOOKS,
    locks::others::HOOKS,
    locks::others::BY_HAND,
    locks::waits::HOOKS,
    names::HOOKS,
    processes::HOOKS,
    processes::VFORKS,
    signals::HOOKS,
    signals::registration::HOOKS,
    handler::JUMPS,
    specific::HOOKS,
    bounds::HOOKS,
    threads::HOOKS,
    threads::FORWARDED,
    threads::BY_HAND,
    threads::EXITS,
    specific::KEY_HOOKS,
];

/// Makes the hooks work, for the whole process and for good. Before the first call, and in a
/// program that never makes it, every hooked function is the C library's own.
///
/// A program that links this crate must call it for another reason too: it names every hook, so that
/// the linker keeps them all.
pub fn install() {
    std::hint::black_box((SUBJECTS, &note::NOTE, &LOOK_UP));
    look_up();
    locks::prepare();
    closing::prepare();
    fork::prepare();
    hook::activate();
    signals::prepare();
}

/// Looks up what comes after the hooks, once: see [`real`].
extern "C" fn look_up() {
    static LOOKED_UP: std::sync::Once = std::sync::Once::new();
    LOOKED_UP.call_once(|| {
        for hook in hooks() {
            hook.real();
        }
        real::look_up_all();
        // SAFETY: no conditions. What was not found is no error of the program's.
        unsafe { libc::dlerror() };
    });
}

// SAFETY: the linker gathers such pointers and the loader calls them; the function has the ABI that
// the loader calls, takes what it passes by ignoring it, and does not unwind.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK_UP: extern "C" fn() = look_up;

/// All hooks, with what they have counted so far.
///
/// ```
/// assert!(kapok_libc::hooks().any(|hook| hook.name() == "recv"));
/// ```
pub fn hooks() -> impl Iterator<Item = &'static Hook> {
    SUBJECTS.iter().flat_map(|hooks| hooks.iter().copied())
}

/// Has calls that go straight to the C library counted too ([`Counts::bypassed`]): those of plain
/// threads. They are not by default, since every thread would write to the same counters.
pub fn count_bypasses() {
    hook::count_bypasses();
}
