//! A generator that is joined: a command that was started here, or a connection from elsewhere.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use super::part::GO;
use crate::complaints::Complaints;

/// The longest line that a generator may say: its part, of a hundred histograms at most.
const LONGEST_LINE: u64 = 64 << 20;

/// How long a command may take to end once nobody listens to it.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// How long to wait for a command's status and last words once it has said its last line.
const STATUS_WITHIN: Duration = Duration::from_secs(2);

/// What was heard of a member.
pub(super) enum Heard {
    Line(String),
    /// It says no more; why, if that is known.
    End(Option<io::Error>),
}

/// A generator. Dropping it has it end.
pub(super) struct Member {
    name: String,
    way: Way,
}

enum Way {
    Command {
        child: Child,
        input: Option<ChildStdin>,
        complaints: Complaints,
        /// What reads them.
        reader: thread::JoinHandle<()>,
    },
    Connection(TcpStream),
}

impl Member {
    /// Starts a command by the shell. What it says goes to `heard`, with `number`.
    pub(super) fn start(
        number: usize,
        command: &str,
        heard: Sender<(usize, Heard)>,
    ) -> io::Result<Member> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A signal from the terminal is for us: we have the generators end in order. And all that the
            // shell starts can be ended together.
            .process_group(0)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("/bin/sh: {error}")))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else {
            return Err(io::Error::other("a command without its three pipes"));
        };
        let (complaints, reader) = Complaints::collect(errors);
        listen(number, output, heard);
        Ok(Member {
            name: format!("generator {} (`{command}`)", number + 1),
            way: Way::Command { child, input: Some(input), complaints, reader },
        })
    }

    /// Takes a generator that has connected.
    pub(super) fn accept(
        number: usize,
        stream: TcpStream,
        peer: SocketAddr,
        heard: Sender<(usize, Heard)>,
    ) -> io::Result<Member> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        // One whose machine has gone says nothing at all.
        socket2::SockRef::from(&stream).set_keepalive(true)?;
        stream.set_write_timeout(Some(ENDS_WITHIN))?;
        listen(number, stream.try_clone()?, heard);
        Ok(Member {
            name: format!("generator {} ({peer})", number + 1),
            way: Way::Connection(stream),
        })
    }

    /// Its number, counted from 1, and where it is.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_command(&self) -> bool {
        matches!(self.way, Way::Command { .. })
    }

    /// Tells it to begin.
    pub(super) fn go(&mut self) -> io::Result<()> {
        let line = format!("{GO}\n");
        match &mut self.way {
            Way::Command { input: Some(input), .. } => input.write_all(line.as_bytes()),
            Way::Command { input: None, .. } => Err(io::ErrorKind::BrokenPipe.into()),
            Way::Connection(stream) => stream.write_all(line.as_bytes()),
        }
    }

    /// Has it end early, or lets it end; what it says until then is still heard.
    pub(super) fn dismiss(&mut self) {
        match &mut self.way {
            Way::Command { input, .. } => *input = None,
            Way::Connection(stream) => {
                // It may have gone already.
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
    }

    /// How a command that says no more has ended, and what it complained about.
    pub(super) fn last_words(&mut self) -> String {
        let Way::Command { child, complaints, reader, .. } = &mut self.way else {
            return "it closed the connection".to_owned();
        };
        let how = match wait(child, STATUS_WITHIN) {
            Some(status) => status.to_string(),
            None => "it closed its standard output".to_owned(),
        };
        let (said, _) = complaints.last_words(reader);
        if said.is_empty() { how } else { format!("{how}: {said}") }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.dismiss();
        match &mut self.way {
            Way::Connection(stream) => {
                // Also ends the thread that listens to it.
                let _ = stream.shutdown(Shutdown::Both);
            }
            Way::Command { child, .. } => {
                if wait(child, ENDS_WITHIN).is_some() {
                    return;
                }
                let group = -(child.id() as libc::pid_t);
                // SAFETY: only numbers are passed. The group is the child's own, and the child, which has
                // not been reaped, keeps its number from being used again.
                unsafe { libc::kill(group, libc::SIGKILL) };
                let _ = child.wait();
            }
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let give_up = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < give_up => thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Reads lines on a thread of its own, which ends with them or with who hears them.
fn listen(number: usize, from: impl Read + Send + 'static, heard: Sender<(usize, Heard)>) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        loop {
            let mut line = Vec::new();
            let read = from.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
            let said = match read {
                Ok(0) => Heard::End(None),
                Ok(_) if line.len() as u64 == LONGEST_LINE => {
                    Heard::End(Some(io::Error::other("a line that does not end")))
                }
                Ok(_) => Heard::Line(String::from_utf8_lossy(&line).trim().to_owned()),
                Err(error) => Heard::End(Some(error)),
            };
            let ends = matches!(said, Heard::End(_));
            if heard.send((number, said)).is_err() || ends {
                return;
            }
        }
    });
}
