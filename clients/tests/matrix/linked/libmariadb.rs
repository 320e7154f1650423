//! libmariadb, as C has it.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::ptr::{NonNull, null, null_mut};

use super::database::{Connection, Dialect, MARIADB};
use crate::place::{Place, Which};
use crate::proof::Client;

pub(super) static CLIENT: Client =
    Client { name: "libmariadb", title: "libmariadb", server: Which::MariaDb, remark: "" };

#[link(name = "mariadb")]
unsafe extern "C" {
    fn mysql_init(connection: *mut c_void) -> *mut c_void;
    fn mysql_real_connect(
        connection: *mut c_void,
        host: *const c_char,
        user: *const c_char,
        password: *const c_char,
        database: *const c_char,
        port: c_uint,
        socket: *const c_char,
        flags: c_ulong,
    ) -> *mut c_void;
    fn mysql_query(connection: *mut c_void, statement: *const c_char) -> c_int;
    fn mysql_error(connection: *mut c_void) -> *const c_char;
    fn mysql_store_result(connection: *mut c_void) -> *mut c_void;
    fn mysql_fetch_row(result: *mut c_void) -> *const *const c_char;
    fn mysql_free_result(result: *mut c_void);
    fn mysql_close(connection: *mut c_void);
}

pub(super) struct LibMariaDb(NonNull<c_void>);

impl LibMariaDb {
    fn error(&self) -> String {
        // SAFETY: a connection that is there; its message is a string until the next call.
        unsafe { CStr::from_ptr(mysql_error(self.0.as_ptr())) }.to_string_lossy().into_owned()
    }

    /// The first value of the first row, if there are rows.
    fn execute(&mut self, statement: &str) -> Result<Option<String>, String> {
        let statement = CString::new(statement).unwrap();
        let connection = self.0.as_ptr();
        // SAFETY: a connection that is there, a string that outlives the call.
        if unsafe { mysql_query(connection, statement.as_ptr()) } != 0 {
            return Err(self.error());
        }
        // SAFETY: as above; the result is freed once, after its row was looked at.
        unsafe {
            let result = mysql_store_result(connection);
            if result.is_null() {
                let error = self.error();
                return if error.is_empty() { Ok(None) } else { Err(error) };
            }
            let row = mysql_fetch_row(result);
            let value = (!row.is_null() && !(*row).is_null())
                .then(|| CStr::from_ptr(*row).to_string_lossy().into_owned());
            mysql_free_result(result);
            Ok(value)
        }
    }
}

impl Connection for LibMariaDb {
    const DIALECT: Dialect = MARIADB;

    fn connect(place: &Place) -> Result<LibMariaDb, String> {
        // SAFETY: without memory of the caller's the library makes a connection of its own.
        let connection = LibMariaDb(NonNull::new(unsafe { mysql_init(null_mut()) }).unwrap());
        // SAFETY: it is there; strings that live for the program.
        let connected = unsafe {
            mysql_real_connect(
                connection.0.as_ptr(),
                c"127.0.0.1".as_ptr(),
                c"kapok".as_ptr(),
                c"silk".as_ptr(),
                c"kapok".as_ptr(),
                place.port.into(),
                null(),
                0,
            )
        };
        if connected.is_null() { Err(connection.error()) } else { Ok(connection) }
    }

    fn run(&mut self, statement: &str) -> Result<(), String> {
        self.execute(statement).map(drop)
    }

    fn number(&mut self, query: &str) -> Result<i64, String> {
        let value = self.execute(query)?.ok_or("no rows")?;
        value.parse().map_err(|_| format!("{value:?} is no number"))
    }
}

impl Drop for LibMariaDb {
    fn drop(&mut self) {
        // SAFETY: it is there, and nobody uses it any more.
        unsafe { mysql_close(self.0.as_ptr()) }
    }
}
