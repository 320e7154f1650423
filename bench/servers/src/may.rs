//! may: a stackful coroutine per connection on epoll.

use std::io::{self, Read, Write};
use std::net;
use std::os::fd::{FromRawFd, IntoRawFd};

use may::net::{TcpListener, TcpStream};

use crate::work::{Speech, Work};

pub(crate) fn serve(listener: net::TcpListener, work: Work) -> io::Result<()> {
    may::config().set_workers(1);
    // SAFETY: nothing here keeps references to thread-locals across a call that waits, and the
    // stacks are deep enough for the calls made on them. The listening socket was another owner's
    // until it is taken over.
    let acceptor = unsafe {
        may::coroutine::spawn(move || -> io::Result<()> {
            let listener = TcpListener::from_raw_fd(listener.into_raw_fd());
            loop {
                let (stream, _peer) = listener.accept()?;
                let work = work.clone();
                may::coroutine::spawn(move || {
                    let _ = match work.speech {
                        Speech::Echo => echo(stream, work.buffer_bytes),
                        Speech::Http => http(stream, &work),
                    };
                });
            }
        })
    };
    acceptor.join().unwrap_or_else(|_| Err(io::Error::other("the acceptor panicked")))
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
