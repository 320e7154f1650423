//! monoio: a future per connection on io_uring, with owned buffers.

use std::io;
use std::net;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{FusionDriver, RuntimeBuilder};

use crate::work::{Speech, Work};

pub(crate) fn serve(listener: net::TcpListener, work: Work) -> io::Result<()> {
    let mut runtime = RuntimeBuilder::<FusionDriver>::new().with_entries(4096).build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _peer) = listener.accept().await?;
            let work = work.clone();
            monoio::spawn(async move {
                let _ = match work.speech {
                    Speech::Echo => echo(stream, work.buffer_bytes).await,
                    Speech::Http => http(stream, &work).await,
                };
            });
        }
    })
}

async fn echo(mut stream: TcpStream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(buffer_bytes);
    loop {
        let (read, filled) = stream.read(buffer).await;
        if read? == 0 {
            return Ok(());
        }
        let (written, returned) = stream.write_all(filled).await;
        written?;
        buffer = returned;
    }
}

async fn http(mut stream: TcpStream, work: &Work) -> io::Result<()> {
    let mut session = work.replies();
    let mut buffer: Vec<u8> = Vec::with_capacity(work.buffer_bytes);
    let mut replies = Vec::new();
    loop {
        let (read, filled) = stream.read(buffer).await;
        let count = read?;
        if count == 0 {
            return Ok(());
        }
        let goes_on = session.answer(&filled[..count], &mut replies);
        let (written, returned) = stream.write_all(replies).await;
        written?;
        if !goes_on {
            return Ok(());
        }
        (buffer, replies) = (filled, returned);
        replies.clear();
    }
}
