//! The crate `mysql`.

use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};

use super::database::{Connection, Dialect, MARIADB};
use crate::place::{Place, Which};
use crate::proof::Client;

pub(super) static CLIENT: Client =
    Client { name: "mysql", title: "crate mysql", server: Which::MariaDb, remark: "" };

pub(super) struct Mysql(Conn);

impl Connection for Mysql {
    const DIALECT: Dialect = MARIADB;

    fn connect(place: &Place) -> Result<Mysql, String> {
        let options = OptsBuilder::new()
            .ip_or_hostname(Some("127.0.0.1"))
            .tcp_port(place.port)
            .user(Some("kapok"))
            .pass(Some("silk"))
            .db_name(Some("kapok"))
            // It would go on over the server's own socket.
            .prefer_socket(false);
        Conn::new(options).map(Mysql).map_err(|error| error.to_string())
    }

    fn run(&mut self, statement: &str) -> Result<(), String> {
        self.0.query_drop(statement).map_err(|error| error.to_string())
    }

    fn number(&mut self, query: &str) -> Result<i64, String> {
        let number = self.0.query_first(query).map_err(|error| error.to_string())?;
        number.ok_or_else(|| "no rows".to_owned())
    }
}
