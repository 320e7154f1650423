//! The service as calls that block, on threads or on fibers.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crate::Error;
use crate::handlers::blocking::answer;
use crate::http::{self, Reply};
use crate::pool::Pool;

/// A thread for each connection.
pub(crate) fn on_threads(listener: &TcpListener, database: &str, pool: usize) -> Result<(), Error> {
    let pool = Arc::new(Pool::connect(database, pool)?);
    accept(listener, &pool, |connection| thread::Builder::new().spawn(connection).map(drop))?;
    Ok(())
}

/// A fiber for each connection, on as many threads, each of which accepts for itself.
pub(crate) fn on_fibers(
    threads: usize,
    listener: &TcpListener,
    database: &str,
    pool: usize,
) -> Result<(), Error> {
    kapok_libc::install();
    let pool = Arc::new(Pool::connect(database, pool)?);
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|_| {
                let (listener, pool) = (listener.try_clone(), Arc::clone(&pool));
                scope.spawn(move || -> io::Result<()> {
                    let (listener, runtime) =
                        (listener?, kapok::Runtime::builder().threads(1).build()?);
                    runtime.run(move || {
                        accept(&listener, &pool, |connection| {
                            kapok::spawn_local(connection).detach();
                            Ok(())
                        })
                    })
                })
            })
            .collect();
        all.into_iter().try_for_each(|one| one.join().expect("no panic on this thread"))
    })?;
    Ok(())
}

/// Has each connection handled by what `spawn` starts.
fn accept(
    listener: &TcpListener,
    pool: &Arc<Pool>,
    spawn: impl Fn(Box<dyn FnOnce() + Send>) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // It was gone before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let pool = Arc::clone(pool);
        spawn(Box::new(move || {
            // Clients come and go: how one went is nobody's concern.
            let _ = handle(stream, &pool);
        }))?;
    }
}

/// Answers requests until the client leaves.
fn handle(mut stream: TcpStream, pool: &Pool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::new();
    let mut room = [0; 2048];
    loop {
        while let Some(request) = http::take(&mut received)? {
            let reply = request.without_database().unwrap_or_else(|| {
                answer(request, &mut pool.get()).unwrap_or_else(|error| Reply::failed(&error))
            });
            stream.write_all(&reply.bytes())?;
        }
        match stream.read(&mut room)? {
            0 => return Ok(()),
            length => received.extend_from_slice(&room[..length]),
        }
    }
}
