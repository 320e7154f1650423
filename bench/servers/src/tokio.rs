//! tokio: a task per connection on epoll.

use std::io;
use std::net;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use crate::work::{Speech, Work};

pub(crate) fn serve(listener: net::TcpListener, work: Work, workers: usize) -> io::Result<()> {
    let mut builder = match workers {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if workers > 1 {
        builder.worker_threads(workers);
    }
    listener.set_nonblocking(true)?;
    builder.enable_io().build()?.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _peer) = listener.accept().await?;
            let work = work.clone();
            tokio::spawn(async move {
                let _ = match work.speech {
                    Speech::Echo => echo(stream, work.buffer_bytes).await,
                    Speech::Http => http(stream, &work).await,
                };
            });
        }
    })
}

async fn echo(mut stream: TcpStream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
    }
}

async fn http(mut stream: TcpStream, work: &Work) -> io::Result<()> {
    let mut session = work.replies();
    let mut buffer = vec![0; work.buffer_bytes];
    let mut replies = Vec::new();
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        replies.clear();
        let goes_on = session.answer(&buffer[..count], &mut replies);
        stream.write_all(&replies).await?;
        if !goes_on {
            return Ok(());
        }
    }
}
