//! Connections to the database that threads, or fibers of several threads, share: std's lock and
//! condition, on which a fiber waits as a thread does.
//!
//! r2d2 would be the usual choice. Its lock is parking_lot's, which keeps the place of a waiter in a
//! thread-local variable: two fibers of one thread that wait there take each other's place.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, PoisonError};

use diesel::{Connection as _, ConnectionResult, PgConnection};

pub(crate) struct Pool {
    idle: Mutex<Vec<PgConnection>>,
    returned: Condvar,
}

/// A connection, until it is dropped.
pub(crate) struct Pooled<'a> {
    pool: &'a Pool,
    connection: Option<PgConnection>,
}

impl Pool {
    /// Connects as often as is asked.
    pub(crate) fn connect(database: &str, size: usize) -> ConnectionResult<Pool> {
        let connections: ConnectionResult<Vec<_>> =
            (0..size).map(|_| PgConnection::establish(database)).collect();
        Ok(Pool { idle: Mutex::new(connections?), returned: Condvar::new() })
    }

    /// Waits for a connection that nobody uses.
    pub(crate) fn get(&self) -> Pooled<'_> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut idle = self
            .returned
            .wait_while(idle, |idle| idle.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        Pooled { pool: self, connection: idle.pop() }
    }
}

impl Deref for Pooled<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("it is there until the end")
    }
}

impl DerefMut for Pooled<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("it is there until the end")
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        self.pool
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(self.connection.take());
        self.pool.returned.notify_one();
    }
}
