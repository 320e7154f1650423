//! The crate `postgres`, which runs tokio inside.

use postgres::{Client as Postgres, NoTls};

use super::Points;
use super::database::{self, Connection, Dialect, POSTGRES};
use super::in_blocking::InBlocking;
use super::libpq::Libpq;
use crate::place::{Place, Which};
use crate::proof::{Client, Point};

pub(super) static CLIENT: Client = Client {
    name: "rust_postgres",
    title: "crate postgres",
    server: Which::Postgres,
    remark: "One fiber of a thread at a time, which must not be cancelled: see below.",
};

pub(super) fn points() -> Points {
    vec![
        (Point::Ticker, ticker),
        (Point::Other, database::other_with::<RustPostgres, Libpq>),
        (Point::Killed, database::killed_with::<RustPostgres, Libpq>),
        (Point::Restarted, |place| database::restarted_with::<RustPostgres>(1, place)),
    ]
}

pub(super) static IN_BLOCKING: Client = Client {
    name: "rust_postgres_in_blocking",
    title: "crate postgres, in `kapok::blocking`",
    server: Which::Postgres,
    remark: "Each call on a thread of Kapok's. A fiber that is cancelled waits for the call's end.",
};

pub(super) fn points_in_blocking() -> Points {
    type There = InBlocking<RustPostgres>;
    vec![
        (Point::Ticker, database::ticker::<There>),
        (Point::Hundred, database::hundred::<There>),
        (Point::Other, database::other::<There>),
        (Point::Killed, database::killed::<There>),
        (Point::Restarted, database::restarted::<There>),
    ]
}

/// As of others; and a second fiber is refused with tokio's words, while the first goes on.
fn ticker(place: &Place) {
    database::ticker::<RustPostgres>(place);
    let mut first = RustPostgres::connect(place).unwrap();
    let there = place.clone();
    let second = kapok::spawn_local(move || drop(RustPostgres::connect(&there)));
    first.run("select pg_sleep(0.1)").unwrap();
    let refused = second.join().unwrap_err().to_string();
    assert!(refused.contains("Cannot start a runtime from within a runtime"), "{refused}");
    assert_eq!(first.number("select 7"), Ok(7));
}

pub(super) struct RustPostgres(Postgres);

impl Connection for RustPostgres {
    const DIALECT: Dialect = POSTGRES;

    fn connect(place: &Place) -> Result<RustPostgres, String> {
        let words = format!("host=127.0.0.1 port={} user=kapok dbname=postgres", place.port);
        Postgres::connect(&words, NoTls).map(RustPostgres).map_err(|error| error.to_string())
    }

    fn run(&mut self, statement: &str) -> Result<(), String> {
        self.0.batch_execute(statement).map_err(|error| error.to_string())
    }

    fn number(&mut self, query: &str) -> Result<i64, String> {
        let query = format!("select one.value::bigint from ({query}) as one (value)");
        let row = self.0.query_one(&query, &[]).map_err(|error| error.to_string())?;
        Ok(row.get(0))
    }
}
