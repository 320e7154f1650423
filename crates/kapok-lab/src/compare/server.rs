//! A server as a child process: started, paused, stopped, and never left behind.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::environment::pin;
use crate::Stop;

/// How long a server may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// How long a server may take to stop before it is killed.
const STOPS_WITHIN: Duration = Duration::from_secs(3);

/// How much of what a server complains about is kept.
const COMPLAINT_LINES: usize = 5;

/// A running server. Dropping it stops and reaps it.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    pub(super) addr: SocketAddr,
    complaints: Complaints,
    paused: bool,
}

/// The last lines that the server wrote to its standard error.
#[derive(Clone, Debug, Default)]
struct Complaints(Arc<Mutex<VecDeque<String>>>);

impl Complaints {
    /// Keeps reading, so that a server with a lot to say never blocks on the pipe.
    fn collect(from: ChildStderr) -> (Complaints, thread::JoinHandle<()>) {
        let complaints = Complaints::default();
        let kept = complaints.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let mut lines = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == COMPLAINT_LINES {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
        });
        (complaints, reader)
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> =
            lines.iter().map(|line| line.strip_prefix("kapok: ").unwrap_or(line)).collect();
        lines.join("; ")
    }
}

impl Server {
    /// Starts `program` with `arguments` on `cores` and awaits its ready line.
    ///
    /// The thread that calls must live as long as the server: when it ends, however that comes
    /// about, the kernel kills the server.
    pub(super) fn start(
        program: &Path,
        arguments: &[String],
        cores: &[usize],
        stop: Option<&Stop>,
    ) -> io::Result<Server> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let cores = cores.to_vec();
        // SAFETY: between fork and exec this makes two system calls and touches no memory but its
        // own.
        unsafe {
            command.pre_exec(move || {
                #[cfg(target_os = "linux")]
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                pin(&cores)
            });
        }
        let mut child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", program.display()))
        })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("the server has no output to read"));
        };
        let (complaints, reader) = Complaints::collect(stderr);
        let mut server =
            Server { child, addr: SocketAddr::from(([0, 0, 0, 0], 0)), complaints, paused: false };

        let (line_to, line_from) = mpsc::channel();
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut line = String::new();
            // A server that ends without a line is seen as an empty one.
            let _ = stdout.read_line(&mut line);
            let _ = line_to.send(line);
            // Nothing more is expected; if it comes, it must not block the server.
            let _ = io::copy(&mut stdout.by_ref(), &mut io::sink());
        });
        let give_up = Instant::now() + READY_WITHIN;
        let line = loop {
            match line_from.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => break line,
                Err(_) if stop.is_some_and(Stop::requested) => {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                Err(_) if Instant::now() > give_up => {
                    return Err(io::Error::other(format!("not ready within {READY_WITHIN:?}")));
                }
                Err(_) => {}
            }
        };
        let addr = line.trim().strip_prefix("listening on ").and_then(|addr| addr.parse().ok());
        match addr {
            Some(addr) => server.addr = addr,
            None => {
                let status = server.end();
                // Its last words are complete once its end of the pipe is closed.
                let _ = reader.join();
                let said = server.complaints.text();
                return Err(io::Error::other(if said.is_empty() {
                    format!("it ended before it was ready: {}", describe(status))
                } else {
                    said
                }));
            }
        }
        Ok(server)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes the server off its core until [`resume`](Server::resume).
    pub(super) fn pause(&mut self) {
        self.signal(libc::SIGSTOP);
        self.paused = true;
    }

    pub(super) fn resume(&mut self) {
        if self.paused {
            self.signal(libc::SIGCONT);
            self.paused = false;
        }
    }

    /// If the server has ended by itself: how.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        let said = self.complaints.text();
        let said = if said.is_empty() { said } else { format!(": {said}") };
        Some(format!("the server ended: {}{said}", describe(Some(status))))
    }

    /// Asks the server to stop, without waiting.
    pub(super) fn ask_to_stop(&mut self) {
        self.signal(libc::SIGTERM);
        self.resume();
    }

    /// Stops the server and returns what it had to say.
    pub(super) fn stop(mut self) -> String {
        let status = self.end();
        // The reader has read its last words a moment after the end.
        thread::sleep(Duration::from_millis(5));
        match status {
            Some(status) if status.success() => self.complaints.text(),
            status => format!("{} {}", self.complaints.text(), describe(status)).trim().to_owned(),
        }
    }

    fn end(&mut self) -> Option<ExitStatus> {
        self.ask_to_stop();
        let give_up = Instant::now() + STOPS_WITHIN;
        while Instant::now() < give_up {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Err(_) => break,
            }
        }
        // Killed or already gone: in both cases there is only reaping left to do.
        let _ = self.child.kill();
        self.child.wait().ok()
    }

    fn signal(&mut self, signal: libc::c_int) {
        // A child that was reaped has given its number back.
        if matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: only numbers are passed, and the process is ours and not reaped.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "it could not be awaited".to_owned(), |status| status.to_string())
}
