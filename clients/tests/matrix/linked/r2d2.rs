//! r2d2, the pool of connections that Diesel comes with. Its lock is parking_lot's, so connections are
//! taken and given back on threads of Kapok's for what blocks, and used on fibers.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{ConnectionManager, Pool, PoolError, PooledConnection};
use diesel::{PgConnection, QueryResult};

use super::Points;
use crate::place::{Place, Which};
use crate::proof::{Client, Point};
use crate::ticker::beside_a_ticker;

pub(super) static CLIENT: Client = Client {
    name: "r2d2",
    title: "Diesel with r2d2",
    server: Which::Postgres,
    remark: "`get` and the drop that gives back in `kapok::blocking`; plain threads as they are.",
};

pub(super) fn points() -> Points {
    vec![
        (Point::Ticker, ticker),
        (Point::Hundred, hundred),
        (Point::Other, other),
        (Point::Limit, limit),
    ]
}

type Manager = ConnectionManager<PgConnection>;

fn pool(place: &Place, size: u32) -> Pool<Manager> {
    let url = format!("postgres://kapok@127.0.0.1:{}/postgres", place.port);
    // It waits until they are connected.
    kapok::blocking(|| Pool::builder().max_size(size).build(Manager::new(url))).unwrap().unwrap()
}

fn get(pool: &Pool<Manager>, limit: Duration) -> Result<PooledConnection<Manager>, PoolError> {
    kapok::blocking(|| pool.get_timeout(limit)).unwrap()
}

/// On a fiber: uses a connection there, and nothing but that.
fn with<R>(pool: &Pool<Manager>, use_it: impl FnOnce(&mut PgConnection) -> R) -> R {
    let mut connection = get(pool, Duration::from_secs(30)).unwrap();
    let result = use_it(&mut connection);
    kapok::blocking(|| drop(connection)).unwrap();
    result
}

fn nap(connection: &mut PgConnection) -> QueryResult<()> {
    connection.batch_execute("select pg_sleep(0.01)")
}

/// A ticker beside twenty fibers of one thread, and four threads, that share three connections.
fn ticker(place: &Place) {
    shared(place, 20, 4, 3, 5);
}

/// A hundred fibers of one thread share ten.
fn hundred(place: &Place) {
    shared(place, 100, 0, 10, 3);
}

fn shared(place: &Place, fibers: u32, threads: u32, connections: u32, rounds: u32) {
    let pool = pool(place, connections);
    let (naps, inside, most) =
        (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let one = {
        let (naps, inside, most) = (Arc::clone(&naps), Arc::clone(&inside), Arc::clone(&most));
        move |connection: &mut PgConnection| {
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            nap(connection).unwrap();
            inside.fetch_sub(1, Ordering::SeqCst);
            naps.fetch_add(1, Ordering::SeqCst);
        }
    };
    let total = (fibers + threads) * rounds;
    let least = Duration::from_millis(10) * total / connections;
    beside_a_ticker(least * 9 / 10, || {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                let (pool, one) = (pool.clone(), one.clone());
                thread::spawn(move || (0..rounds).for_each(|_| one(&mut pool.get().unwrap())))
            })
            .collect();
        let fibers: Vec<_> = (0..fibers)
            .map(|_| {
                let (pool, one) = (pool.clone(), one.clone());
                kapok::spawn_local(move || (0..rounds).for_each(|_| with(&pool, &one)))
            })
            .collect();
        fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(naps.load(Ordering::SeqCst), total);
    // They were in use at the same time, and never by two.
    assert_eq!(most.load(Ordering::SeqCst), connections);
}

/// A fiber waits for the only connection, until another of its thread gives it back.
fn other(place: &Place) {
    let pool = Rc::new(pool(place, 1));
    let returned = Rc::new(Cell::new(false));
    beside_a_ticker(Duration::from_millis(200), || {
        let mut connection = get(&pool, Duration::from_secs(30)).unwrap();
        let (shared, seen) = (Rc::clone(&pool), Rc::clone(&returned));
        let second = kapok::spawn_local(move || {
            with(&shared, |connection| {
                assert!(seen.get(), "two had it");
                nap(connection).unwrap();
            });
        });
        connection.batch_execute("select pg_sleep(0.2)").unwrap();
        assert!(!second.is_finished());
        returned.set(true);
        kapok::blocking(|| drop(connection)).unwrap();
        second.join().unwrap();
    });
}

/// The pool's own limit ends the wait for a connection.
fn limit(place: &Place) {
    let pool = pool(place, 1);
    let connection = get(&pool, Duration::from_secs(30)).unwrap();
    let limit = Duration::from_millis(150);
    let (refused, took) = beside_a_ticker(limit * 9 / 10, || get(&pool, limit).err());
    println!("{}", refused.expect("somebody has it"));
    assert!(took < Duration::from_secs(30), "it took {took:?}");
    kapok::blocking(|| drop(connection)).unwrap();
}
