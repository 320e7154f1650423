//! glommio: a future per connection on io_uring.

use std::io;
use std::net;
use std::os::fd::{FromRawFd, IntoRawFd};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};

use crate::work::{Speech, Work};

pub(crate) fn serve(listener: net::TcpListener, work: Work) -> io::Result<()> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).make().map_err(failed)?;
    executor.run(async move {
        // SAFETY: the descriptor was another owner's until here, and is a listening socket.
        let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
        loop {
            let stream = listener.accept().await.map_err(failed)?;
            let work = work.clone();
            glommio::spawn_local(async move {
                let _ = match work.speech {
                    Speech::Echo => echo(stream, work.buffer_bytes).await,
                    Speech::Http => http(stream, &work).await,
                };
            })
            .detach();
        }
    })
}

fn failed(error: glommio::GlommioError<()>) -> io::Error {
    io::Error::other(error.to_string())
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
