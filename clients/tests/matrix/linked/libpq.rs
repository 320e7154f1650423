//! libpq, as C has it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;

use super::database::{Connection, Dialect, POSTGRES};
use crate::place::{Place, Which};
use crate::proof::Client;

pub(super) static CLIENT: Client =
    Client { name: "libpq", title: "libpq", server: Which::Postgres, remark: "" };

#[link(name = "pq")]
unsafe extern "C" {
    fn PQconnectdb(conninfo: *const c_char) -> *mut c_void;
    fn PQstatus(connection: *const c_void) -> c_int;
    fn PQerrorMessage(connection: *const c_void) -> *const c_char;
    fn PQexec(connection: *mut c_void, query: *const c_char) -> *mut c_void;
    fn PQresultStatus(result: *const c_void) -> c_int;
    fn PQgetvalue(result: *const c_void, row: c_int, column: c_int) -> *const c_char;
    fn PQclear(result: *mut c_void);
    fn PQfinish(connection: *mut c_void);
}

const CONNECTION_OK: c_int = 0;
const COMMAND_OK: c_int = 1;
const TUPLES_OK: c_int = 2;

pub(super) struct Libpq(NonNull<c_void>);

impl Libpq {
    fn error(&self) -> String {
        // SAFETY: a connection that is there; its message is a string until the next call.
        unsafe { CStr::from_ptr(PQerrorMessage(self.0.as_ptr())) }.to_string_lossy().into_owned()
    }

    /// The first value of the first row, if there are rows.
    fn execute(&mut self, statement: &str) -> Result<Option<String>, String> {
        let statement = CString::new(statement).unwrap();
        // SAFETY: a connection and results that are there, of which the latter are freed once.
        unsafe {
            let result = PQexec(self.0.as_ptr(), statement.as_ptr());
            let value = match PQresultStatus(result) {
                COMMAND_OK => Ok(None),
                TUPLES_OK => Ok(Some(
                    CStr::from_ptr(PQgetvalue(result, 0, 0)).to_string_lossy().into_owned(),
                )),
                _ => Err(self.error()),
            };
            PQclear(result);
            value
        }
    }
}

impl Connection for Libpq {
    const DIALECT: Dialect = POSTGRES;

    fn connect(place: &Place) -> Result<Libpq, String> {
        let words = format!("host=127.0.0.1 port={} user=kapok dbname=postgres", place.port);
        let words = CString::new(words).unwrap();
        // SAFETY: a string that outlives the call.
        let connection = Libpq(NonNull::new(unsafe { PQconnectdb(words.as_ptr()) }).unwrap());
        // SAFETY: it is there.
        match unsafe { PQstatus(connection.0.as_ptr()) } {
            CONNECTION_OK => Ok(connection),
            _ => Err(connection.error()),
        }
    }

    fn run(&mut self, statement: &str) -> Result<(), String> {
        self.execute(statement).map(drop)
    }

    fn number(&mut self, query: &str) -> Result<i64, String> {
        let value = self.execute(query)?.ok_or("no rows")?;
        value.parse().map_err(|_| format!("{value:?} is no number"))
    }
}

impl Drop for Libpq {
    fn drop(&mut self) {
        // SAFETY: it is there, and nobody uses it any more.
        unsafe { PQfinish(self.0.as_ptr()) }
    }
}
