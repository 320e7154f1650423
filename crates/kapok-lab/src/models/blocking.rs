//! One connection by blocking calls: the shortest way to write a server down.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::Server;
use super::backend::Blocking;
use crate::workload::{Session, Want, read_file};

/// Serves one connection to its end. The thread sleeps in `read` and `write`; the kernel wakes it.
pub(super) fn converse(
    mut stream: &TcpStream,
    session: &mut Session,
    server: &Server,
) -> io::Result<()> {
    let idle_timeout = server.config.idle_timeout;
    // The kernel keeps the time: a call that times out fails with EAGAIN, and the connection ends.
    let timeout = (!idle_timeout.is_zero()).then_some(idle_timeout);
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    let mut backend = Blocking::default();
    loop {
        let outcome = match session.want() {
            Want::Read => match stream.read(session.space()) {
                Ok(0) => {
                    session.ended();
                    Ok(())
                }
                read => read.map(|n| session.received(n)),
            },
            Want::Write => stream.write(session.pending()).map(|n| session.sent(n)),
            Want::Ask => backend.ask(server.config.backend).map(|()| session.answered()),
            Want::Load => {
                let file = read_file(session.file());
                session.loaded(file);
                Ok(())
            }
            Want::ShutDown => {
                session.shut_down();
                stream.shutdown(Shutdown::Write)
            }
            Want::Close => return Ok(()),
        };
        match outcome {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}
