//! compio: a future per connection on io_uring, with owned buffers.

use std::io;
use std::net;

use compio::BufResult;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::Runtime;

use crate::work::{Speech, Work};

pub(crate) fn serve(listener: net::TcpListener, work: Work) -> io::Result<()> {
    Runtime::new()?.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _peer) = listener.accept().await?;
            let work = work.clone();
            compio::runtime::spawn(async move {
                let _ = match work.speech {
                    Speech::Echo => echo(stream, work.buffer_bytes).await,
                    Speech::Http => http(stream, &work).await,
                };
            })
            .detach();
        }
    })
}

async fn echo(mut stream: TcpStream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(buffer_bytes);
    loop {
        buffer.clear();
        let BufResult(read, filled) = stream.read(buffer).await;
        if read? == 0 {
            return Ok(());
        }
        let BufResult(written, returned) = stream.write_all(filled).await;
        written?;
        buffer = returned;
    }
}

async fn http(mut stream: TcpStream, work: &Work) -> io::Result<()> {
    let mut session = work.replies();
    let mut buffer: Vec<u8> = Vec::with_capacity(work.buffer_bytes);
    let mut replies = Vec::new();
    loop {
        buffer.clear();
        let BufResult(read, filled) = stream.read(buffer).await;
        let count = read?;
        if count == 0 {
            return Ok(());
        }
        let goes_on = session.answer(&filled[..count], &mut replies);
        let BufResult(written, returned) = stream.write_all(replies).await;
        written?;
        if !goes_on {
            return Ok(());
        }
        (buffer, replies) = (filled, returned);
        replies.clear();
    }
}
