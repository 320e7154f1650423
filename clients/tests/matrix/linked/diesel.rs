//! Diesel, on libpq.

use diesel::connection::SimpleConnection;
use diesel::deserialize::QueryableByName;
use diesel::sql_types::BigInt;
use diesel::{Connection as _, PgConnection, RunQueryDsl, sql_query};

use super::database::{Connection, Dialect, POSTGRES};
use crate::place::{Place, Which};
use crate::proof::Client;

pub(super) static CLIENT: Client =
    Client { name: "diesel", title: "Diesel (on libpq)", server: Which::Postgres, remark: "" };

pub(super) struct Diesel(PgConnection);

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    value: i64,
}

impl Connection for Diesel {
    const DIALECT: Dialect = POSTGRES;

    fn connect(place: &Place) -> Result<Diesel, String> {
        let url = format!("postgres://kapok@127.0.0.1:{}/postgres", place.port);
        PgConnection::establish(&url).map(Diesel).map_err(|error| error.to_string())
    }

    fn run(&mut self, statement: &str) -> Result<(), String> {
        self.0.batch_execute(statement).map_err(|error| error.to_string())
    }

    fn number(&mut self, query: &str) -> Result<i64, String> {
        sql_query(format!("select one.value::bigint from ({query}) as one (value)"))
            .get_result::<Number>(&mut self.0)
            .map(|number| number.value)
            .map_err(|error| error.to_string())
    }
}
