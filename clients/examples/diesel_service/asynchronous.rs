//! The service on tokio, with diesel-async and its pool.

use std::io;
use std::net::TcpListener;

use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;

use crate::Error;
use crate::handlers::asynchronous::answer;
use crate::http::{self, Reply};

/// A task for each connection.
pub(crate) fn on_tokio(
    threads: usize,
    listener: TcpListener,
    database: &str,
    pool: usize,
) -> Result<(), Error> {
    let runtime = match threads {
        1 => Builder::new_current_thread().enable_all().build()?,
        _ => Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
    };
    let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new(database);
    let pool = Pool::builder(manager).max_size(pool).build()?;
    listener.set_nonblocking(true)?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        // On a worker, beside the connections.
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let pool = pool.clone();
                        tokio::spawn(async move {
                            // Clients come and go: how one went is nobody's concern.
                            let _ = handle(stream, &pool).await;
                        });
                    }
                    // It was gone before it was accepted.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error),
                }
            }
        })
        .await?
    })?;
    Ok(())
}

/// Answers requests until the client leaves.
async fn handle(mut stream: TcpStream, pool: &Pool<AsyncPgConnection>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::new();
    let mut room = [0; 2048];
    loop {
        while let Some(request) = http::take(&mut received)? {
            let reply = match request.without_database() {
                Some(reply) => reply,
                None => {
                    let mut connection = pool.get().await.map_err(io::Error::other)?;
                    let reply = answer(request, &mut connection).await;
                    reply.unwrap_or_else(|error| Reply::failed(&error))
                }
            };
            stream.write_all(&reply.bytes()).await?;
        }
        match stream.read(&mut room).await? {
            0 => return Ok(()),
            length => received.extend_from_slice(&room[..length]),
        }
    }
}
