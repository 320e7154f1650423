//! rusqlite, on files.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use rusqlite::Connection;

use super::Points;
use crate::place::{Place, Which};
use crate::proof::{Client, Point};
use crate::ticker::beside_a_ticker;

pub(super) static CLIENT: Client =
    Client { name: "sqlite", title: "crate rusqlite, on disk", server: Which::Nothing, remark: "" };

pub(super) fn points() -> Points {
    vec![
        (Point::Ticker, ticker),
        (Point::Hundred, hundred),
        (Point::Other, other),
        (Point::Limit, limit),
    ]
}

/// A database in a file, which goes when this does.
struct Database(PathBuf);

impl Database {
    fn new() -> Database {
        // Not in /tmp, which may be memory: here are disks.
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let database = Database(directory.join(format!("sqlite-{}", std::process::id())));
        let connection = database.connect(Duration::ZERO);
        connection.execute_batch("create table one (id integer primary key, n integer)").unwrap();
        connection.execute_batch("insert into one values (1, 0)").unwrap();
        database
    }

    /// Waits for as long for others' locks.
    fn connect(&self, limit: Duration) -> Connection {
        let connection = Connection::open(&self.0).unwrap();
        connection.busy_timeout(limit).unwrap();
        connection.execute_batch("pragma synchronous = full").unwrap();
        connection
    }

    fn number(&self) -> i64 {
        let connection = self.connect(Duration::ZERO);
        connection.query_row("select n from one where id = 1", [], |row| row.get(0)).unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.0.display()));
        }
    }
}

const ADD: &str = "update one set n = n + 1 where id = 1";

/// A ticker beside transactions that go to the disk.
fn ticker(_: &Place) {
    let database = Database::new();
    let connection = database.connect(Duration::ZERO);
    let least = Duration::from_millis(100);
    let (count, _) = beside_a_ticker(least, || {
        let began = std::time::Instant::now();
        let mut count = 0;
        while began.elapsed() < least {
            connection.execute_batch(ADD).unwrap();
            count += 1;
        }
        count
    });
    assert_eq!(database.number(), count);
}

/// A hundred fibers of one thread, with a connection each, add to the same row.
fn hundred(_: &Place) {
    let database = Rc::new(Database::new());
    let fibers: Vec<_> = (0..100)
        .map(|_| {
            let database = Rc::clone(&database);
            kapok::spawn_local(move || {
                database.connect(Duration::from_secs(100)).execute_batch(ADD).unwrap();
            })
        })
        .collect();
    for fiber in fibers {
        fiber.join().unwrap();
    }
    assert_eq!(database.number(), 100);
}

/// A fiber waits until another of its thread has committed.
fn other(_: &Place) {
    let database = Rc::new(Database::new());
    let first = database.connect(Duration::ZERO);
    let committed = Rc::new(Cell::new(false));
    first.execute_batch("begin immediate").unwrap();
    let (there, seen) = (Rc::clone(&database), Rc::clone(&committed));
    let second = kapok::spawn_local(move || {
        there.connect(Duration::from_secs(100)).execute_batch(ADD).unwrap();
        assert!(seen.get(), "it was not locked");
    });
    beside_a_ticker(Duration::from_millis(150), || {
        std::thread::sleep(Duration::from_millis(150));
        first.execute_batch(ADD).unwrap();
        committed.set(true);
        first.execute_batch("commit").unwrap();
        second.join().unwrap();
    });
    assert_eq!(database.number(), 2);
}

/// The busy time-out ends the wait for a lock.
fn limit(_: &Place) {
    let database = Database::new();
    let first = database.connect(Duration::ZERO);
    first.execute_batch("begin immediate").unwrap();
    let second = database.connect(Duration::from_millis(150));
    let (result, took) =
        beside_a_ticker(Duration::from_millis(100), || second.execute_batch("begin immediate"));
    println!("{}", result.unwrap_err());
    assert!(took < Duration::from_secs(30), "it took {took:?}");
}
