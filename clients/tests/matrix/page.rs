//! The document, made of what is proven.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use crate::preloaded::Case;
use crate::proof::{Point, Proof};

/// `docs/clients.md` as it has to be.
pub(crate) fn rows(proofs: &[Proof], cases: &[Case]) -> String {
    let mut page = String::new();
    let out = &mut page;
    out.push_str(BEGINNING);
    row(out, ["client", "server"], Point::ALL.map(title));
    row(out, ["---"; 2], ["---"; Point::ALL.len()]);
    let mut clients: Vec<&'static crate::proof::Client> = Vec::new();
    for proof in proofs {
        if !clients.iter().any(|client| client.name == proof.client.name) {
            clients.push(proof.client);
        }
    }
    for client in &clients {
        let points: BTreeSet<Point> = proofs
            .iter()
            .filter(|proof| proof.client.name == client.name)
            .map(|proof| proof.point)
            .collect();
        let marks = Point::ALL.map(|point| if points.contains(&point) { "yes" } else { "" });
        row(out, [client.title, client.server.title()], marks);
    }
    out.push('\n');
    for client in clients.iter().filter(|client| !client.remark.is_empty()) {
        writeln!(out, "* {}: {}", client.title, client.remark).unwrap();
    }
    out.push_str(PROGRAMS);
    out.push_str("| program | server | |\n|---|---|---|\n");
    for case in cases {
        writeln!(out, "| {} | {} | {} |", case.title, case.server.title(), case.remark).unwrap();
    }
    out.push_str(END);
    page
}

fn row<const POINTS: usize>(out: &mut String, first: [&str; 2], marks: [&str; POINTS]) {
    let all: Vec<&str> = first.into_iter().chain(marks).collect();
    writeln!(out, "| {} |", all.join(" | ")).unwrap();
}

fn title(point: Point) -> &'static str {
    match point {
        Point::Ticker => "ticker",
        Point::Hundred => "100 fibers",
        Point::Other => "another fiber",
        Point::Limit => "time limit",
        Point::Killed => "ended by the server",
        Point::Cancelled => "cancelled",
        Point::Restarted => "server restarted",
    }
}

const BEGINNING: &str = "\
# Clients

Programs and libraries that were written for threads, tested on fibers before real servers. Each `yes` is
a test of that name, which fails if it is not so: `cargo test --test matrix` in `clients/`, which writes
this page too, with `KAPOK_WRITE_CLIENTS=1`. The servers are Debian's, on the loopback interface.

One thing of std is not to be had for clients of fibers: who waits in `std::sync::mpsc`'s `recv` does not hear
of a send by another fiber of the same thread. Of other threads' sends it does, and `recv_timeout` finds what
has come once its time is over: see \"Channels of std within a thread\" in
[locks](design/interposed-locks.md).

## Linked

A program calls `kapok_libc::install()` and uses the client as it is, on fibers of one thread.

* **ticker**: beside a call that waits, a fiber of the same thread wakes up every millisecond; the largest
  gap stays under 20 ms (or, on a busy machine, under three times that of a thread of its own).
* **100 fibers** wait at the same time. For databases: connected, each runs a query of one second, and all
  have ended within one and a half (or, on a busy machine, within one and a half times what threads take).
  Waits of half a second at Redis, and pages that take 0.3 s, end within one.
* **another fiber** of the same thread does what a fiber waits for: it commits a transaction that holds a
  row, fills a list, closes a file's transaction, or goes on while the other waits.
* **time limit**: the client's own ends a wait, with its usual error.
* **ended by the server**: the connection is ended in mid-query, at the word of another fiber. The client
  gives its usual error and connects again.
* **cancelled**: the fiber is cancelled in mid-query. The client gives its usual error at once.
* **server restarted**, under load of ten fibers: each gets errors, none hangs, and all go on.

";

const PROGRAMS: &str = "
## Preloaded

Programs as they are, under `kapok run --main-fiber --stats --`. Each says the same as by itself, on both
streams, and ends with the same status, or does what is said beside it; and where it waits, something was
suspended. Its threads stay threads.

";

const END: &str = "
## What wants a thread

A fiber is not a thread to those who keep what belongs to a thread in ELF thread-locals (`thread_local!`
in Rust, `__thread` in C). Most clients keep nothing there over a wait. Known ones that do, and what to do:

* **parking_lot**: the place of a waiter is a thread-local. One fiber of each thread may wait at a time, for
  a lock that another fiber of the thread holds over a wait or that a plain thread holds: that is what is
  tested above. Two fibers of one thread that wait at the same time take each other's place, and one is
  never woken. std's locks and `kapok::sync` have no such limit.
* **r2d2** has such a lock inside. Take connections, and give them back, in `kapok::blocking`, and use them
  on the fiber. A pool with std's lock needs neither: `clients/examples/diesel_service/pool.rs` is one.
* **tokio's `block_on`**, and so the crate `postgres` and the blocking interface of `reqwest`: the thread is
  marked as being inside, and a second fiber's `block_on` panics. One fiber of a thread at a time works. It
  must not be cancelled: tokio's driver does not expect the error, panics, and panics again when the client
  is dropped, which ends the process. In `kapok::blocking` any number of fibers work.

What keeps its state from one call to the next in thread-locals wants always the same thread, which
`kapok::blocking` does not promise. Give it a thread with a loop of its own, for which a fiber waits as for
any thread: `std::thread::spawn(|| kapok::Runtime::new()?.run(...))`. The test
`a_fiber_with_a_thread_of_its_own_has_its_thread_locals` in `crates/kapok-libc` does.

None of them can be mended from outside. Thread-locals exchanged at each switch by their content would be
wrong for those whose address others hold, as parking_lot's queue does. Exchanged by their address, with a
thread pointer for each fiber, they would take along what the C library and the kernel keep there of the
thread itself: its number, its stack, its cancellation, its restartable sequences.
";

/// Compares the document with what it has to be, or writes it.
pub(crate) fn compare(rendered: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/clients.md");
    if std::env::var_os("KAPOK_WRITE_CLIENTS").is_some_and(|value| value == "1") {
        std::fs::write(&path, rendered).expect("the document can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("docs/clients.md");
    for (at, (ours, theirs)) in (1..).zip(rendered.lines().zip(committed.lines())) {
        assert_eq!(ours, theirs, "line {at} of docs/clients.md; the document says how to write it");
    }
    assert_eq!(rendered, committed, "docs/clients.md has more lines, or fewer");
}
