//! Clients that are linked, on fibers of one thread.

mod database;
mod diesel;
mod hiredis;
mod in_blocking;
mod libmariadb;
mod libpq;
mod mysql;
mod names;
mod pages;
mod parking_lot;
mod queue;
mod r2d2;
mod redis;
mod rust_postgres;
mod sqlite;
mod standard;

use crate::proof::{Point, Proof};

/// All of them, client by client.
pub(crate) fn proofs() -> Vec<Proof> {
    let mut all = Vec::new();
    for (client, points) in [
        (&libpq::CLIENT, of_database::<libpq::Libpq>()),
        (&diesel::CLIENT, of_database::<diesel::Diesel>()),
        (&r2d2::CLIENT, r2d2::points()),
        (&rust_postgres::CLIENT, rust_postgres::points()),
        (&rust_postgres::IN_BLOCKING, rust_postgres::points_in_blocking()),
        (&libmariadb::CLIENT, of_database::<libmariadb::LibMariaDb>()),
        (&mysql::CLIENT, of_database::<mysql::Mysql>()),
        (&hiredis::CLIENT, of_queue::<hiredis::Hiredis>()),
        (&redis::CLIENT, of_queue::<redis::Redis>()),
        (&standard::CLIENT, of_queue::<standard::Standard>()),
        (&pages::CURL, pages::points::<pages::Curl>()),
        (&pages::UREQ, pages::points::<pages::Ureq>()),
        (&sqlite::CLIENT, sqlite::points()),
        (&names::CLIENT, names::points()),
        (&parking_lot::CLIENT, parking_lot::points()),
    ] {
        all.extend(points.into_iter().map(|(point, run)| Proof { client, point, run }));
    }
    all
}

type Points = Vec<(Point, fn(&crate::place::Place))>;

fn of_database<C: database::Connection>() -> Points {
    vec![
        (Point::Ticker, database::ticker::<C>),
        (Point::Hundred, database::hundred::<C>),
        (Point::Other, database::other::<C>),
        (Point::Killed, database::killed::<C>),
        (Point::Cancelled, database::cancelled::<C>),
        (Point::Restarted, database::restarted::<C>),
    ]
}

fn of_queue<C: queue::Connection>() -> Points {
    vec![
        (Point::Ticker, queue::ticker::<C>),
        (Point::Hundred, queue::hundred::<C>),
        (Point::Other, queue::other::<C>),
        (Point::Limit, queue::limit::<C>),
        (Point::Killed, queue::killed::<C>),
        (Point::Cancelled, queue::cancelled::<C>),
        (Point::Restarted, queue::restarted::<C>),
    ]
}
