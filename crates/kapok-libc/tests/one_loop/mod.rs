//! Tests on a runtime of one loop, where everything waits beside everything.

use std::cell::Cell;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

/// Runs `main` on one loop, and ends the process if it is not over within `limit`.
pub(crate) fn run(limit: Duration, main: impl FnOnce() + 'static) {
    kapok_libc::install();
    // A fiber that waits for good cannot be unwound, so nothing milder would end the test.
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let (alive, watched) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            let _ = writeln!(std::io::stderr(), "{name} is not over after {limit:?}: it hangs");
            std::process::abort();
        }
    });
    let lost = || kapok::metrics().total.engine.lost_edges;
    let before = lost();
    kapok::Runtime::builder().threads(1).build().unwrap().run(main);
    drop(alive);
    assert_eq!(lost(), before, "edges were lost");
}

pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

/// Runs `f` on another fiber up to its first wait.
pub(crate) fn begin<T: 'static>(f: impl FnOnce() -> T + 'static) -> kapok::JoinHandle<T> {
    let begun = Rc::new(Cell::new(false));
    let begins = Rc::clone(&begun);
    let fiber = kapok::spawn_local(move || {
        begins.set(true);
        f()
    });
    while !begun.get() {
        kapok::yield_now();
    }
    fiber
}

#[allow(dead_code, reason = "not every test has connections")]
pub(crate) fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, client)
}
