//! psql(1) at a terminal, and the key that interrupts.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};

use super::{Case, LIMIT, kapok};
use crate::place::Place;
use crate::proof::end_with_this_thread;

/// Without readline(3), which would put the terminal into a mode of its own and draw lines.
const WITH_LINES: &[&str] = &["--no-psqlrc", "--no-readline"];
const WITH_READLINE: &[&str] = &["--no-psqlrc"];

/// By itself and under `kapok run`, the key cancels the query that runs, and psql goes on.
pub(super) fn psql_is_interrupted(_: &Case, place: &Place) -> Result<Completion, Failed> {
    let server = format!("postgresql://kapok@127.0.0.1:{}/postgres", place.port);
    for lines in [WITH_LINES, WITH_READLINE] {
        let mut said = Vec::new();
        for hooked in [false, true] {
            let mut command = if hooked { Command::new(kapok()) } else { Command::new("psql") };
            if hooked {
                command.args(["run", "--main-fiber", "--", "psql"]);
            }
            command.args(lines).arg(&server);
            let words = interrupt(&mut command, place).map_err(|why| {
                let why = why.message().unwrap_or_default().to_owned();
                format!("hooked: {hooked}, {lines:?}: {why}")
            })?;
            said.push(words);
        }
        if said[0] != said[1] {
            return Err(format!("{lines:?}: alone:\n{}\nhooked:\n{}", said[0], said[1]).into());
        }
    }
    Ok(Completion::Completed)
}

/// Has psql cancel a query, twice, and answer another. What it said after each, but for the echo.
fn interrupt(command: &mut Command, place: &Place) -> Result<String, Failed> {
    let mut terminal = Terminal::start(command)?;
    terminal.until("postgres=#")?;
    let mut all = String::new();
    for round in 1..=2 {
        terminal.type_in(&format!("select pg_sleep(30) as nap_{round};\r"))?;
        runs(place, round)?;
        let began = Instant::now();
        // What the key sends: the terminal makes a signal of it.
        terminal.type_in("\x03")?;
        terminal.until("canceling statement due to user request")?;
        if began.elapsed() > Duration::from_secs(15) {
            return Err(format!("the query ended after {:?}", began.elapsed()).into());
        }
        all += &terminal.until("postgres=#")?;
        terminal.type_in("select 6 * 7 as answer;\r")?;
        terminal.until(" answer")?;
        all += &terminal.until("postgres=#")?;
    }
    // At the prompt the key only begins a new line.
    terminal.type_in("\x03")?;
    terminal.until("postgres=#")?;
    terminal.type_in("\\q\r")?;
    let status = terminal.end()?;
    Ok(format!("{all}{status}"))
}

/// Waits until the server works on the query.
fn runs(place: &Place, round: usize) -> Result<(), Failed> {
    let query = format!(
        "select count(*) from pg_stat_activity where state = 'active' and query like '%nap_{round};%' \
         and pid <> pg_backend_pid()"
    );
    let server = format!("postgresql://kapok@127.0.0.1:{}/postgres", place.port);
    let began = Instant::now();
    loop {
        let mut psql = Command::new("psql");
        let asked = psql.args(["--no-psqlrc", "-At", "-c", &query, &server]).output().unwrap();
        if asked.stdout == b"1\n" {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            return Err(format!("the query never runs: {asked:?}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A program at a terminal of its own.
struct Terminal {
    child: Child,
    master: File,
    /// What it has said and nobody has looked at yet.
    said: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(command: &mut Command) -> Result<Terminal, Failed> {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: writes two numbers; the rest may be null.
        let opened = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        if opened != 0 {
            return Err(format!("openpty: {}", io::Error::last_os_error()).into());
        }
        // SAFETY: both were just opened and are nobody else's.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        // The program must not hold the other end: its own end would then be none.
        // SAFETY: a descriptor that is there.
        unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        end_with_this_thread(command);
        // SAFETY: only system calls are made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // A session of its own, with this terminal: its keys are signals for it.
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stdout(Stdio::from(slave.try_clone().unwrap()))
            .stderr(Stdio::from(slave))
            .env("TERM", "dumb")
            .env("LC_ALL", "C.UTF-8")
            .env("PSQL_HISTORY", "/dev/null")
            .env("PAGER", "cat")
            .env_remove("LD_PRELOAD")
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // Its copies of the terminal's end are the last: with the child's they go.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let said = Arc::new(Mutex::new(Vec::new()));
        let (mut reads, heard) = (master.try_clone().unwrap(), Arc::clone(&said));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // EIO once the last end of the program's is closed.
            while let Ok(count @ 1..) = reads.read(&mut bytes) {
                heard.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Ok(Terminal { child, master, said })
    }

    fn type_in(&mut self, keys: &str) -> Result<(), Failed> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Waits until it has said this, and takes what it said so far.
    fn until(&mut self, words: &str) -> Result<String, Failed> {
        let began = Instant::now();
        let mut ended = None;
        loop {
            {
                let mut said = self.said.lock().unwrap();
                let text = String::from_utf8_lossy(&said).into_owned();
                if let Some(at) = text.find(words) {
                    let (taken, rest) = text.split_at(at + words.len());
                    *said = rest.as_bytes().to_vec();
                    return Ok(taken.to_owned());
                }
                if began.elapsed() > LIMIT {
                    return Err(format!("it never says {words:?}, but {text:?}").into());
                }
                // What it said last may still be on its way.
                if let Some(status) = self.child.try_wait()? {
                    let since = ended.get_or_insert_with(Instant::now);
                    if since.elapsed() > Duration::from_secs(2) {
                        return Err(format!("{status}, without {words:?}, but {text:?}").into());
                    }
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end.
    fn end(&mut self) -> Result<std::process::ExitStatus, Failed> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > LIMIT {
                let said = String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned();
                return Err(format!("it does not end, but says {said:?}").into());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
