//! A client whose every call is made on a thread of Kapok's for what blocks, while its fiber waits: the
//! cure for those that want a thread for themselves.

use super::database::{Connection, Dialect};
use crate::place::Place;

/// Always there, but for the moment of its end.
pub(super) struct InBlocking<C: Connection + Send>(Option<C>);

impl<C: Connection + Send> Connection for InBlocking<C> {
    const DIALECT: Dialect = C::DIALECT;

    fn connect(place: &Place) -> Result<InBlocking<C>, String> {
        let connection =
            kapok::blocking(|| C::connect(place)).map_err(|error| error.to_string())?;
        Ok(InBlocking(Some(connection?)))
    }

    fn run(&mut self, statement: &str) -> Result<(), String> {
        let connection = self.0.as_mut().unwrap();
        kapok::blocking(|| connection.run(statement)).map_err(|error| error.to_string())?
    }

    fn number(&mut self, query: &str) -> Result<i64, String> {
        let connection = self.0.as_mut().unwrap();
        kapok::blocking(|| connection.number(query)).map_err(|error| error.to_string())?
    }
}

impl<C: Connection + Send> Drop for InBlocking<C> {
    fn drop(&mut self) {
        // It says good-bye to its server.
        let connection = self.0.take();
        kapok::blocking(|| drop(connection)).unwrap();
    }
}
