//! Kapok: a fiber per connection, and blocking-looking code. It reads into a buffer of each
//! connection's own like the others, or, `pooled`, into buffers of the loop's (`receive`).

use std::io::{self, Read, Write};
use std::net;

use kapok::net::{TcpListener, TcpStream};
use kapok::{EngineConfig, Kind, Runtime};

use crate::work::{Speech, Work};

pub(crate) fn serve(
    listener: net::TcpListener,
    work: Work,
    engine: Kind,
    loops: usize,
    pooled: bool,
) -> io::Result<()> {
    let mut config = EngineConfig::default();
    config.pooled_buffer_bytes = work.buffer_bytes as u32;
    let builder = Runtime::builder().engine(engine).engine_config(config).threads(loops);
    builder.build()?.run(move || {
        let listener = TcpListener::try_from(listener)?;
        loop {
            let (stream, _peer) = listener.accept()?;
            let work = work.clone();
            kapok::spawn(move || {
                let _ = match (work.speech, pooled) {
                    (Speech::Echo, false) => echo(stream, work.buffer_bytes),
                    (Speech::Http, false) => http(stream, &work),
                    (Speech::Echo, true) => echo_pooled(stream),
                    (Speech::Http, true) => http_pooled(stream, &work),
                };
            })
            .detach();
        }
    })
}

fn echo_pooled(mut stream: TcpStream) -> io::Result<()> {
    loop {
        let received = stream.receive()?;
        if received.is_empty() {
            return Ok(());
        }
        stream.write_all(&received)?;
    }
}

fn echo(mut stream: TcpStream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
    }
}

fn http_pooled(mut stream: TcpStream, work: &Work) -> io::Result<()> {
    let mut session = work.replies();
    let mut replies = Vec::new();
    loop {
        let received = stream.receive()?;
        if received.is_empty() {
            return Ok(());
        }
        replies.clear();
        let goes_on = session.answer(&received, &mut replies);
        drop(received);
        stream.write_all(&replies)?;
        if !goes_on {
            return Ok(());
        }
    }
}

fn http(mut stream: TcpStream, work: &Work) -> io::Result<()> {
    let mut session = work.replies();
    let mut buffer = vec![0; work.buffer_bytes];
    let mut replies = Vec::new();
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        replies.clear();
        let goes_on = session.answer(&buffer[..count], &mut replies);
        stream.write_all(&replies)?;
        if !goes_on {
            return Ok(());
        }
    }
}
