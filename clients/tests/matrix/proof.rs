//! One proof: what is claimed of a client, and the process that shows it.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libtest_mimic::{Completion, Failed};

use crate::place::{Place, Servers, Which};
use crate::ticker::TOO_LATE;

/// Which proof a process is to show.
const VARIABLE: &str = "KAPOK_CLIENTS_PROOF";

/// The line with which a process asks for another start of its server. The answer is a line too.
const RESTART: &str = "please restart it";

/// Beyond this something hangs.
const LIMIT: Duration = Duration::from_secs(180);

/// What can be claimed of a client: the columns of the document.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Point {
    /// A ticker beside a call that waits.
    Ticker,
    /// A hundred fibers wait at the same time.
    Hundred,
    /// A fiber waits for what another fiber of its thread does.
    Other,
    /// A time limit of the client's own ends a wait.
    Limit,
    /// The server ends the connection in mid-query.
    Killed,
    /// The fiber is cancelled in mid-query.
    Cancelled,
    /// The server is restarted under load.
    Restarted,
}

impl Point {
    pub(crate) const ALL: [Point; 7] = [
        Point::Ticker,
        Point::Hundred,
        Point::Other,
        Point::Limit,
        Point::Killed,
        Point::Cancelled,
        Point::Restarted,
    ];
}

/// What is claimed, and shown by `run` on a fiber.
pub(crate) struct Proof {
    pub(crate) client: &'static Client,
    pub(crate) point: Point,
    pub(crate) run: fn(&Place),
}

/// A client: a row of the document.
pub(crate) struct Client {
    /// As in the names of the proofs.
    pub(crate) name: &'static str,
    /// As in the document.
    pub(crate) title: &'static str,
    pub(crate) server: Which,
    /// What has to be known beside the proofs.
    pub(crate) remark: &'static str,
}

impl Proof {
    pub(crate) fn name(&self) -> String {
        format!("{}::{:?}", self.client.name, self.point).to_lowercase()
    }
}

/// The proof that this process was started for.
pub(crate) fn asked_for() -> Option<String> {
    env::var(VARIABLE).ok()
}

/// Shows it on a fiber, in a process with hooks and one loop. Panics if it does not hold.
pub(crate) fn run_here(proofs: &[Proof], name: &str) {
    let run = proofs.iter().find(|proof| proof.name() == name).expect("a proof").run;
    let place = Place::from_environment();
    kapok_libc::install();
    let runtime = kapok::Runtime::builder().threads(1).build().unwrap();
    let main = runtime.run(move || kapok::spawn_local(move || run(&place)).join());
    if let Err(error) = main {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// Asks for another start of the server, and waits until it is there. On a fiber, of course.
pub(crate) fn restart() {
    println!("{RESTART}");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).unwrap();
    assert_eq!(answer, "there\n");
}

/// How often a process may be too late.
const TRIES: usize = 4;

/// Shows it in a process of its own.
pub(crate) fn run_in_a_process(proof: &Proof, servers: &Servers) -> Result<Completion, Failed> {
    let Some(place) = servers.place(proof.client.server) else {
        return Ok(Completion::ignored_with("its server is not installed"));
    };
    let mut tries = 0;
    loop {
        let mut command = Command::new(env::current_exe().unwrap());
        place.tell(command.env(VARIABLE, proof.name()));
        end_with_this_thread(&mut command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, status) = attend(&mut child, || servers.restart(proof.client.server));
        tries += 1;
        match status {
            Some(status) if status.success() => {
                // For who wants to see the gaps.
                if env::args().any(|argument| argument == "--nocapture") {
                    print!("{said}");
                }
                return Ok(Completion::Completed);
            }
            Some(_) if tries < TRIES && said.lines().any(|line| line.starts_with(TOO_LATE)) => {}
            Some(status) => return Err(Failed::from(format!("{status}\n{said}"))),
            None => return Err(Failed::from(format!("it hangs\n{said}"))),
        }
    }
}

/// A child does not outlive this thread.
pub(crate) fn end_with_this_thread(command: &mut Command) {
    // SAFETY: only a system call is made between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Gathers what a process says, and restarts its server when it asks. No status: it was killed, at its
/// limit.
fn attend(child: &mut Child, restart: impl Fn()) -> (String, Option<std::process::ExitStatus>) {
    let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let mut stdin = child.stdin.take().unwrap();
    let (lines, line) = mpsc::channel();
    let reading = thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let listening = thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let mut said = String::new();
    let mut in_time = true;
    loop {
        match line.recv_timeout(LIMIT) {
            Ok(line) if line == RESTART => {
                restart();
                let _ = stdin.write_all(b"there\n");
            }
            Ok(line) => said = said + &line + "\n",
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                in_time = false;
                break;
            }
        }
    }
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    reading.join().unwrap();
    said += &listening.join().unwrap();
    (said, in_time.then_some(status))
}
