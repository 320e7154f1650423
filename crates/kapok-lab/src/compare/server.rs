//! A server as a child process: started, paused, stopped, and never left behind.
//!
//! A server of anybody's may be several processes: a script and what it runs, a master and its workers.
//! It is in a process group of its own, and what is signalled is the group, for which its first process
//! is not reaped before the others have ended: until then the group's number is nobody else's.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::environment::pin;
use super::network::Namespaces;
use crate::Stop;
use crate::child::has_ended;
use crate::complaints::Complaints;
use crate::workload::{BURN_RATE, rounds_per_nanosecond};

/// How long a server may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// How long a server may take to stop before it is killed.
const STOPS_WITHIN: Duration = Duration::from_secs(3);

/// What is said of a server that goes on without its first process.
const FOREGROUND: &str = "; it must stay in the foreground";

/// How a server tells that it is ready.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ready {
    /// It prints where it listens.
    Says,
    /// It accepts connections at the address that it was given.
    Accepts(SocketAddr),
}

/// A running server. Dropping it stops and reaps it.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    /// How its first process has ended, once it is reaped.
    status: Option<ExitStatus>,
    ready: Ready,
    pub(super) addr: SocketAddr,
    complaints: Complaints,
    paused: bool,
}

impl Server {
    /// Starts `program` with `arguments` on `cores` and waits until it is ready.
    ///
    /// The thread that calls must live as long as the server: when it ends, however that comes
    /// about, the kernel kills the server's first process.
    pub(super) fn start(
        program: &Path,
        arguments: &[String],
        ready: Ready,
        cores: &[usize],
        namespaces: Option<&Namespaces>,
        stop: Option<&Stop>,
    ) -> io::Result<Server> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        // The same work for all, however fast the machine is when each of them starts.
        command.env(BURN_RATE, rounds_per_nanosecond().to_string());
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
        if let Some(namespaces) = namespaces {
            namespaces.contain(&mut command);
        }
        let mut child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", program.display()))
        })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("the server has no output to read"));
        };
        let (complaints, reader) = Complaints::collect(stderr);
        let mut server = Server {
            child,
            status: None,
            ready,
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            complaints,
            paused: false,
        };

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
        let pause = Duration::from_millis(50);
        let addr = loop {
            if stop.is_some_and(Stop::requested) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if Instant::now() > give_up {
                return Err(io::Error::other(format!("not ready within {READY_WITHIN:?}")));
            }
            match ready {
                Ready::Says => {
                    if let Ok(line) = line_from.recv_timeout(pause) {
                        let addr = line.trim().strip_prefix("listening on ");
                        break addr.and_then(|addr| addr.parse().ok());
                    }
                }
                Ready::Accepts(addr) => {
                    if has_ended(&server.child)? {
                        break None;
                    }
                    if TcpStream::connect_timeout(&addr, pause).is_ok() {
                        break Some(addr);
                    }
                    thread::sleep(pause);
                }
            }
        };
        match addr {
            Some(addr) => server.addr = addr,
            None => {
                let status = server.end();
                let (said, all) = server.complaints.last_words(&reader);
                // What has gone on without its first process is not ours to stop or to measure.
                let daemon = server.is_foreign() && (!all || status.is_some_and(|it| it.success()));
                let daemon = if daemon { FOREGROUND } else { "" };
                return Err(io::Error::other(if said.is_empty() {
                    format!("it ended before it was ready: {}{daemon}", describe(status))
                } else {
                    format!("{said}{daemon}")
                }));
            }
        }
        Ok(server)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All its processes as they are now, the first one first. A model is one; of others the list of all
    /// processes is read, for which there is no time in a timed interval.
    pub(super) fn processes(&self) -> Vec<u32> {
        #[cfg(target_os = "linux")]
        if self.is_foreign() {
            return crate::meters::with_descendants(self.pid());
        }
        vec![self.pid()]
    }

    /// Not one of our models.
    fn is_foreign(&self) -> bool {
        matches!(self.ready, Ready::Accepts(_))
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
        if self.status.is_none() && !has_ended(&self.child).unwrap_or(true) {
            return None;
        }
        let status = self.end();
        let said = self.complaints.text();
        let said = if said.is_empty() { said } else { format!(": {said}") };
        let daemon = self.is_foreign() && status.is_some_and(|status| status.success());
        let daemon = if daemon { FOREGROUND } else { "" };
        Some(format!("the server ended: {}{said}{daemon}", describe(status)))
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
            // As it was asked to.
            Some(status) if status.success() || status.signal() == Some(libc::SIGTERM) => {
                self.complaints.text()
            }
            status => format!("{} {}", self.complaints.text(), describe(status)).trim().to_owned(),
        }
    }

    /// Has all processes of the group end, and reaps the first.
    fn end(&mut self) -> Option<ExitStatus> {
        if self.status.is_some() {
            return self.status;
        }
        self.ask_to_stop();
        let all = self.all_end_within(STOPS_WITHIN);
        self.signal(libc::SIGKILL);
        if !all {
            // What is killed ends a moment later, and the first one may have ended long ago.
            self.all_end_within(STOPS_WITHIN);
        }
        // Killed or already gone: in both cases there is only reaping left to do.
        self.status = self.child.wait().ok();
        self.status
    }

    /// Waits for the whole group to end, for so long.
    fn all_end_within(&self, limit: Duration) -> bool {
        let give_up = Instant::now() + limit;
        loop {
            match has_ended(&self.child) {
                Ok(true) if !self.has_others() => return true,
                Ok(_) if Instant::now() < give_up => thread::sleep(Duration::from_millis(2)),
                Ok(_) | Err(_) => return false,
            }
        }
    }

    /// Whether others of the group live on. Where nobody can tell they are killed with it.
    fn has_others(&self) -> bool {
        #[cfg(target_os = "linux")]
        return crate::meters::is_group_alive(self.pid());
        #[cfg(not(target_os = "linux"))]
        false
    }

    fn signal(&mut self, signal: libc::c_int) {
        // A child that was reaped has given its number back.
        if self.status.is_none() {
            // SAFETY: only numbers are passed, and the group is ours: its first process is not reaped.
            unsafe { libc::kill(-(self.child.id() as libc::pid_t), signal) };
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::compare::contender::free_port;
    use crate::meters::is_group_alive;
    use std::fs;
    use std::net::Ipv4Addr;
    use std::path::PathBuf;

    /// A file for a script to write into, with a name of its own.
    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("kapok-server-{name}-{}", std::process::id()))
    }

    fn shell(script: &str, marker: &Path, port: u16) -> io::Result<Server> {
        let arguments = ["-c", script, "sh", marker.to_str().unwrap()].map(str::to_owned);
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let cores = crate::compare::environment::Environment::look("", &[]).cores;
        Server::start(Path::new("sh"), &arguments, Ready::Accepts(addr), &cores, None, None)
    }

    fn number_in(marker: &Path) -> u32 {
        fs::read_to_string(marker).unwrap().trim().parse().unwrap()
    }

    fn is_alive(process: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    }

    #[test]
    fn what_a_script_runs_belongs_to_the_server_and_ends_with_it() {
        // It accepts for the script, whose child does nothing, once politely and once not.
        let accepts = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for (name, trap) in [("polite", ""), ("rude", "trap '' TERM; ")] {
            let marker = scratch(name);
            let script =
                format!("sh -c '{trap}echo $$ > \"$0\"; while :; do sleep 60; done' \"$1\"; :");
            let server = shell(&script, &marker, accepts.local_addr().unwrap().port()).unwrap();
            let begun = Instant::now();
            while !fs::read_to_string(&marker).is_ok_and(|number| number.ends_with('\n')) {
                assert!(begun.elapsed() < Duration::from_secs(60), "it does not run");
                thread::sleep(Duration::from_millis(2));
            }
            let (first, child) = (server.pid(), number_in(&marker));
            let processes = server.processes();
            assert!(processes[0] == first && processes[1..].contains(&child), "{processes:?}");
            assert_eq!(server.stop(), "", "it has ended as it was asked to");
            fs::remove_file(marker).unwrap();
            assert!(!is_alive(child) && !is_group_alive(first), "{name}: it was left behind");
        }
    }

    #[test]
    fn servers_are_told_how_long_a_loop_burns() {
        let marker = scratch("rate");
        let script = format!("echo ${BURN_RATE} > \"$1\"");
        // It ends before it accepts anything.
        shell(&script, &marker, free_port().unwrap()).unwrap_err();
        let told: f64 = fs::read_to_string(&marker).unwrap().trim().parse().unwrap();
        fs::remove_file(marker).unwrap();
        assert_eq!(told, rounds_per_nanosecond());
    }

    #[test]
    fn a_server_that_goes_into_the_background_is_told_so_and_not_waited_for() {
        let marker = scratch("daemon");
        let script = "setsid sh -c 'echo said >&2; echo $$ > \"$0\"; exec sleep 30' \"$1\" & \
                      while [ ! -s \"$1\" ]; do sleep 0.01; done";
        let begun = Instant::now();
        let error = shell(script, &marker, free_port().unwrap()).unwrap_err().to_string();
        let took = begun.elapsed();
        let daemon = number_in(&marker);
        fs::remove_file(marker).unwrap();
        let held = is_alive(daemon);
        // SAFETY: only numbers are passed; the process sleeps for half a minute and was started here.
        unsafe { libc::kill(daemon as libc::pid_t, libc::SIGKILL) };
        assert!(held && took < Duration::from_secs(20), "{took:?}, it held the pipe: {held}");
        assert_eq!(error, "said; it must stay in the foreground");
    }

    #[test]
    fn a_server_that_fails_says_why_and_nothing_of_the_foreground() {
        let port = free_port().unwrap();
        let error = shell("echo no such option >&2; exit 2", &scratch("none"), port).unwrap_err();
        assert_eq!(error.to_string(), "no such option");
        let error = shell("exit 3", &scratch("none"), port).unwrap_err().to_string();
        assert_eq!(error, "it ended before it was ready: exit status: 3");
    }
}
