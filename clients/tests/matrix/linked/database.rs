//! What is claimed of every client of a database, and how it is shown.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use crate::place::Place;
use crate::proof;
use crate::ticker::{beside_a_ticker, in_time, on_threads};

/// Longer than anything takes that works, on a machine that does a lot besides.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the queries are that do not end by themselves, and how soon they have to be over.
const ENDLESS_SECONDS: f64 = 90.0;
const SOON: Duration = Duration::from_secs(5);

/// A client's connection, as simply as the client allows.
pub(super) trait Connection: Sized + 'static {
    /// What its server understands.
    const DIALECT: Dialect;

    fn connect(place: &Place) -> Result<Self, String>;

    /// Carries out a statement.
    fn run(&mut self, statement: &str) -> Result<(), String>;

    /// The one number that a query gives.
    fn number(&mut self, query: &str) -> Result<i64, String>;
}

/// Where servers differ.
pub(super) struct Dialect {
    /// A query that takes as many seconds.
    pub(super) sleep: fn(f64) -> String,
    /// The number of one's own connection.
    pub(super) own_number: &'static str,
    /// Ends a connection.
    pub(super) kill: fn(i64) -> String,
}

pub(super) const POSTGRES: Dialect = Dialect {
    sleep: |seconds| format!("select pg_sleep({seconds})"),
    own_number: "select pg_backend_pid()::bigint",
    kill: |number| format!("select pg_terminate_backend({number})"),
};

pub(super) const MARIADB: Dialect = Dialect {
    sleep: |seconds| format!("select sleep({seconds})"),
    own_number: "select connection_id()",
    kill: |number| format!("kill {number}"),
};

fn sleep<C: Connection>(seconds: f64) -> String {
    (C::DIALECT.sleep)(seconds)
}

/// A ticker beside connecting and a query.
pub(super) fn ticker<C: Connection>(place: &Place) {
    let waits = || {
        let mut connection = C::connect(place).unwrap();
        connection.run(&sleep::<C>(0.2)).unwrap();
    };
    beside_a_ticker(Duration::from_millis(200), waits);
}

/// A hundred fibers of one thread, connected, sleep for a second each: it takes a second, not a hundred.
pub(super) fn hundred<C: Connection>(place: &Place) {
    let ready = Rc::new(Cell::new(0));
    let go = Rc::new(kapok::sync::Semaphore::new(0));
    let fibers: Vec<_> = (0..100)
        .map(|_| {
            let (place, ready, go) = (place.clone(), Rc::clone(&ready), Rc::clone(&go));
            kapok::spawn_local(move || {
                let mut connection = C::connect(&place).unwrap();
                // Some servers make a thread or a process ready at the first query only.
                connection.number("select 1").unwrap();
                ready.set(ready.get() + 1);
                go.acquire().unwrap().forget();
                connection.run(&sleep::<C>(1.0)).unwrap();
            })
        })
        .collect();
    let began = Instant::now();
    while ready.get() < 100 {
        assert!(began.elapsed() < PATIENCE, "{} are connected", ready.get());
        kapok::sleep(Duration::from_millis(1)).unwrap();
    }
    let (_, took) = beside_a_ticker(Duration::from_secs(1), || {
        go.add_permits(100);
        for fiber in fibers {
            fiber.join().unwrap();
        }
    });
    in_time("a hundred queries", took, Duration::from_millis(1500), a_hundred_threads::<C>, place);
}

/// What a hundred threads take for the same on this machine, at this moment.
fn a_hundred_threads<C: Connection>(place: &Place) -> Duration {
    let ready = |place: &Place| {
        let mut connection = C::connect(place).unwrap();
        connection.number("select 1").unwrap();
        connection
    };
    on_threads(place, ready, |mut connection| connection.run(&sleep::<C>(1.0)).unwrap())
}

/// Two fibers of one thread fight for a row: one has to wait until the other has committed.
pub(super) fn other<C: Connection>(place: &Place) {
    other_with::<C, C>(place);
}

/// The same, where the one that does not wait has client `O`.
pub(super) fn other_with<C: Connection, O: Connection>(place: &Place) {
    let mut first = O::connect(place).unwrap();
    first.run("drop table if exists fought_for").unwrap();
    first.run("create table fought_for (id integer primary key, n integer)").unwrap();
    first.run("insert into fought_for values (1, 0)").unwrap();
    let locked = Rc::new(Cell::new(false));
    let committed = Rc::new(Cell::new(false));
    let (place, seen, waited_for) = (place.clone(), Rc::clone(&locked), Rc::clone(&committed));
    let second = kapok::spawn_local(move || {
        let mut second = C::connect(&place).unwrap();
        while !seen.get() {
            thread::sleep(Duration::from_millis(1));
        }
        second.run("begin").unwrap();
        second.run("update fought_for set n = n * 10 where id = 1").unwrap();
        assert!(waited_for.get(), "the row was not locked");
        second.run("commit").unwrap();
    });
    beside_a_ticker(Duration::from_millis(200), || {
        first.run("begin").unwrap();
        first.run("update fought_for set n = n + 1 where id = 1").unwrap();
        locked.set(true);
        first.run(&sleep::<C>(0.2)).unwrap();
        committed.set(true);
        first.run("commit").unwrap();
        second.join().unwrap();
    });
    assert_eq!(first.number("select n from fought_for where id = 1"), Ok(10));
    first.run("drop table fought_for").unwrap();
}

/// The server ends a connection in mid-query, at the word of another fiber: an error, and the next
/// connection works.
pub(super) fn killed<C: Connection>(place: &Place) {
    killed_with::<C, C>(place);
}

/// The same, where the other fiber has client `O`.
pub(super) fn killed_with<C: Connection, O: Connection>(place: &Place) {
    let mut victim = C::connect(place).unwrap();
    let number = victim.number(C::DIALECT.own_number).unwrap();
    let sleeping = kapok::spawn_local(move || victim.run(&sleep::<C>(ENDLESS_SECONDS)));
    let mut other = O::connect(place).unwrap();
    other.run(&sleep::<C>(0.2)).unwrap();
    let began = Instant::now();
    other.run(&(C::DIALECT.kill)(number)).unwrap();
    let error = sleeping.join().unwrap().unwrap_err();
    println!("{error}");
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    assert_eq!(C::connect(place).unwrap().number("select 7"), Ok(7));
}

/// A fiber is cancelled in mid-query: the client gives an error at once, and its fiber ends.
pub(super) fn cancelled<C: Connection>(place: &Place) {
    let there = place.clone();
    let sleeping = kapok::spawn_local(move || {
        let mut connection = C::connect(&there).unwrap();
        connection.run(&sleep::<C>(ENDLESS_SECONDS))
    });
    thread::sleep(Duration::from_millis(300));
    assert!(!sleeping.is_finished());
    let began = Instant::now();
    sleeping.cancel();
    let error = sleeping.join().unwrap().unwrap_err();
    println!("{error}");
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    assert_eq!(C::connect(place).unwrap().number("select 7"), Ok(7));
}

/// The server is restarted under load: each client gets errors, and goes on once the server is back.
pub(super) fn restarted<C: Connection>(place: &Place) {
    restarted_with::<C>(10, place);
}

/// The same, with as many fibers.
pub(super) fn restarted_with<C: Connection>(fibers: usize, place: &Place) {
    under_load(fibers, place, |place, stroke| {
        let mut connection = C::connect(place)?;
        loop {
            connection.run(&sleep::<C>(0.005))?;
            if !stroke() {
                return Ok(());
            }
        }
    });
}

/// Runs loads, of which each calls its stroke after each success until it says no, and starts again after
/// errors. Restarts the server in the middle.
pub(super) fn under_load(
    fibers: usize,
    place: &Place,
    load: fn(&Place, &dyn Fn() -> bool) -> Result<(), String>,
) {
    #[derive(Default)]
    struct Seen {
        successes: Cell<u32>,
        errors: Cell<u32>,
    }
    const ENOUGH: u32 = 5;
    let over = Rc::new(Cell::new(false));
    let (loads, seen): (Vec<_>, Vec<_>) = (0..fibers)
        .map(|_| {
            let seen = Rc::new(Seen::default());
            let (place, over, own) = (place.clone(), Rc::clone(&over), Rc::clone(&seen));
            let running = kapok::spawn_local(move || {
                let stroke = || {
                    own.successes.set(own.successes.get() + 1);
                    !over.get()
                };
                while let Err(error) = load(&place, &stroke) {
                    if own.errors.get() == 0 {
                        println!("{error}");
                    }
                    own.errors.set(own.errors.get() + 1);
                    thread::sleep(Duration::from_millis(20));
                }
            });
            (running, seen)
        })
        .unzip();
    let all_go_on = |what: &str| {
        seen.iter().for_each(|seen| seen.successes.set(0));
        let began = Instant::now();
        while seen.iter().any(|seen| seen.successes.get() < ENOUGH) {
            assert!(began.elapsed() < PATIENCE, "{what} the restart nothing goes on");
            kapok::sleep(Duration::from_millis(1)).unwrap();
        }
    };
    all_go_on("before");
    assert!(seen.iter().all(|seen| seen.errors.get() == 0), "errors before the restart");
    proof::restart();
    all_go_on("after");
    over.set(true);
    for load in loads {
        load.join().unwrap();
    }
    assert!(seen.iter().all(|seen| seen.errors.get() > 0), "a client did not notice the restart");
}
