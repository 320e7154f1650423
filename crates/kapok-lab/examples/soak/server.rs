//! The processes: servers, and the nuisances that are there to be killed.
//!
//! They are this program again; a variable in the environment says as what.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kapok_lab::{Model, Protocol, ServeConfig, Stop};

use crate::options::{Speech, Subject};

/// As what the program was started; unset for the soak itself.
pub(crate) const ROLE: &str = "KAPOK_SOAK_ROLE";
const MODEL: &str = "KAPOK_SOAK_MODEL";
/// Body of the HTTP reply.
pub(crate) const BODY_BYTES: usize = 3000;
/// Stalled clients are given up by the server, too; the guests never wait as long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(8);
const READY_WITHIN: Duration = Duration::from_secs(30);
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// Lines of standard error that are kept for the report.
const KEPT_LINES: usize = 20;

/// The child's part: serves echo or HTTP until a signal.
pub(crate) fn serve() -> io::Result<()> {
    let variable = |name: &str| {
        std::env::var(name).map_err(|error| io::Error::other(format!("{name}: {error}")))
    };
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    let config = ServeConfig {
        protocol: variable(ROLE)?.parse::<Protocol>().map_err(io::Error::other)?,
        model: variable(MODEL)?.parse::<Model>().map_err(io::Error::other)?,
        body_bytes: BODY_BYTES,
        idle_timeout: IDLE_TIMEOUT,
        ..ServeConfig::default()
    };
    let served = kapok_lab::serve(&config, &stop, |addr| println!("listening on {addr}"))?;
    for _ in 0..served.accept_pauses {
        eprintln!("cannot accept");
    }
    Ok(())
}

/// Requests `stop` at SIGINT and SIGTERM.
pub(crate) fn stop_on_signals(stop: &Stop) -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let stop = stop.clone();
        // SAFETY: the handler only calls `Stop::stop`, which is async-signal-safe.
        unsafe { signal_hook_registry::register(signal, move || stop.stop()) }?;
    }
    Ok(())
}

/// This program as `role`. Not of our process group, so that a Ctrl-C is ours alone; killed by the
/// kernel if the thread that starts it ends without having ended it.
pub(crate) fn command(role: &str, descriptors: Option<u64>) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(ROLE, role).stdin(Stdio::null()).process_group(0);
    // SAFETY: between fork and exec this makes two system calls and touches no memory but its own.
    unsafe {
        command.pre_exec(move || {
            #[cfg(target_os = "linux")]
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if let Some(descriptors) = descriptors {
                let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: descriptors };
                if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(command)
}

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    pub(crate) addr: SocketAddr,
    complaints: Arc<Complaints>,
    reader: Option<JoinHandle<()>>,
}

/// What a server had to say.
#[derive(Default)]
struct Complaints {
    /// Times that it was out of descriptors.
    famines: AtomicU64,
    others: Mutex<Vec<String>>,
}

impl Server {
    pub(crate) fn start(subject: &Subject, descriptors: u64) -> io::Result<Server> {
        let mut command = command(subject.speech.name(), Some(descriptors))?;
        match subject.engine.as_str() {
            "auto" => command.env_remove("KAPOK_ENGINE").env(MODEL, "fiber"),
            engine => command.env("KAPOK_ENGINE", engine).env(MODEL, format!("fiber-{engine}")),
        };
        if subject.speech == Speech::Chat {
            command.arg("127.0.0.1:0");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("the server has no output to read"));
        };
        let complaints = Arc::new(Complaints::default());
        let collected = Arc::clone(&complaints);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.starts_with("cannot accept") {
                    collected.famines.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let mut others = collected.others.lock().unwrap_or_else(PoisonError::into_inner);
                if others.len() < KEPT_LINES {
                    others.push(line);
                }
            }
        });
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Server { child, addr: unknown, complaints, reader: Some(reader) };
        let (line_to, line_from) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = line_to.send(line);
        });
        let line = line_from.recv_timeout(READY_WITHIN).unwrap_or_default();
        let addr = line.trim().strip_prefix("listening on ").and_then(|addr| addr.parse().ok());
        server.addr = addr.ok_or_else(|| {
            let status = server.end();
            let said = server.complaints().join("; ");
            io::Error::other(format!("the server did not start ({status:?}): {said}"))
        })?;
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did so by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// How often it was out of descriptors, as far as it has said so.
    pub(crate) fn famines(&self) -> u64 {
        self.complaints.famines.load(Ordering::Relaxed)
    }

    /// What else it complained about.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.others.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks it to end and waits for that; none if it had to be killed.
    pub(crate) fn end(&mut self) -> Option<ExitStatus> {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: only numbers are passed, and the process is ours and not reaped.
            unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        }
        let give_up = Instant::now() + ENDS_WITHIN;
        let mut status = None;
        while status.is_none() && Instant::now() < give_up {
            status = self.child.try_wait().ok().flatten();
            thread::sleep(Duration::from_millis(5));
        }
        if status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // Its last words are complete once its end of the pipe is closed.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        status
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.reader.is_some() {
            self.end();
        }
    }
}
