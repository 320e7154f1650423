//! Names about which nobody answers: programs whose `/etc/resolv.conf` names a black hole.

use std::ffi::CString;
use std::io;
use std::net::UdpSocket;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};

use super::{Case, finish, kapok, own_words, suspensions};
use crate::place::Place;

/// An address at which questions come in and nothing goes out, and the file that names it.
struct Hole {
    _socket: UdpSocket,
    file: PathBuf,
}

impl Hole {
    /// Makes one of which a look-up of both families takes so many seconds. The reason, if it cannot be
    /// made here.
    fn dig(seconds: u64) -> Result<Hole, String> {
        // The file can name no port.
        let opened = (1..20).find_map(|number| {
            let address = format!("127.83.53.{number}");
            match UdpSocket::bind((address.as_str(), 53)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
                result => Some(result.map(|socket| (socket, address))),
            }
        });
        let (socket, address) = opened
            .unwrap_or_else(|| Err(io::ErrorKind::AddrInUse.into()))
            .map_err(|error| format!("port 53 of the loopback interface: {error}"))?;
        let file = std::env::temp_dir().join(format!("kapok-hole-{}", std::process::id()));
        let words = format!("nameserver {address}\noptions timeout:{seconds} attempts:1\n");
        std::fs::write(&file, words).map_err(|error| error.to_string())?;
        let hole = Hole { _socket: socket, file };
        let mut tried = Command::new("/bin/true");
        hole.surround(&mut tried);
        match tried.status() {
            Ok(status) if status.success() => Ok(hole),
            Ok(status) => Err(format!("/bin/true: {status}")),
            Err(error) => Err(format!("a mount namespace of its own: {error}")),
        }
    }

    /// Gives a program a mount namespace in which this is what names are asked of.
    fn surround(&self, command: &mut Command) {
        let file = CString::new(self.file.as_os_str().as_bytes()).unwrap();
        let place = c"/etc/resolv.conf";
        // SAFETY: only system calls are made between fork and exec, with strings that were made before.
        unsafe {
            command.pre_exec(move || {
                let null = std::ptr::null();
                let ours = libc::MS_REC | libc::MS_PRIVATE;
                if libc::unshare(libc::CLONE_NEWNS) != 0
                    || libc::mount(null, c"/".as_ptr(), null, ours, null.cast()) != 0
                    || libc::mount(file.as_ptr(), place.as_ptr(), null, libc::MS_BIND, null.cast())
                        != 0
                {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Only root may make one. It is said even where nothing else is skipped.
fn dig(seconds: u64) -> Result<Hole, Completion> {
    Hole::dig(seconds).map_err(|why| {
        let why = format!("no black hole for names can be made here: {why} (it needs root)");
        eprintln!("SKIPPED: {why}");
        Completion::ignored_with(why)
    })
}

/// A program by itself, on a fiber, and with its threads as fibers.
const WAYS: [&[&str]; 3] = [
    &[],
    &["run", "--main-fiber", "--stats", "--"],
    &["run", "--main-fiber", "--threads-as-fibers", "--stats", "--"],
];

fn command(way: &[&str], program: &str) -> Command {
    if way.is_empty() {
        return Command::new(program);
    }
    let mut command = Command::new(kapok());
    command.args(way).arg(program);
    command
}

/// curl's `--max-time` ends the wait for a name, which would take ten seconds.
pub(super) fn curl(case: &Case, _: &Place) -> Result<Completion, Failed> {
    let hole = match dig(10) {
        Ok(hole) => hole,
        Err(skipped) => return Ok(skipped),
    };
    // What the first, which is curl by itself, takes on this machine twice over, and the command's start.
    let mut latest = Duration::from_secs(7);
    for way in WAYS {
        let mut command = command(way, case.program);
        command.args(["-sS", "--max-time", "1", "http://nobody.test/"]);
        hole.surround(&mut command);
        let began = Instant::now();
        let run = finish(&mut command, "");
        let took = began.elapsed();
        let said = format!("{way:?}: {:?} after {took:?}: {}", run.status, run.stderr);
        // Its status for a time that is over.
        if run.status.and_then(|status| status.code()) != Some(28) {
            return Err(format!("another status: {said}").into());
        }
        if !(Duration::from_millis(950)..latest).contains(&took) {
            return Err(format!("not in time: {said}").into());
        }
        if way.is_empty() {
            latest = took * 2 + Duration::from_secs(2);
        }
        if !own_words(&run.stderr).contains("Resolving timed out") {
            return Err(format!("other words: {said}").into());
        }
        if !way.is_empty() && suspensions(&run.stderr).is_none_or(|count| count == 0) {
            return Err(format!("nothing was suspended: {said}").into());
        }
    }
    Ok(Completion::Completed)
}

/// A hundred of Python's threads look a name up, and its main thread, which ticks, goes on.
pub(super) fn python(case: &Case, _: &Place) -> Result<Completion, Failed> {
    const SECONDS: u64 = 2;
    const TRIES: usize = 4;
    let hole = match dig(SECONDS) {
        Ok(hole) => hole,
        Err(skipped) => return Ok(skipped),
    };
    let run = |way: &[&str]| -> Result<(f64, f64), Failed> {
        let mut command = command(way, case.program);
        command.args(["-c", include_str!("unanswered.py")]);
        hole.surround(&mut command);
        let run = finish(&mut command, "");
        let said = format!("{way:?}: {:?}: {}{}", run.status, run.stdout, run.stderr);
        if !run.status.is_some_and(|status| status.success()) {
            return Err(format!("another status: {said}").into());
        }
        if !way.is_empty() && suspensions(&run.stderr).is_none_or(|count| count < 100) {
            return Err(format!("its waits were not suspended: {said}").into());
        }
        let figures: Vec<f64> =
            run.stdout.split_whitespace().map_while(|word| word.parse().ok()).collect();
        println!("{said}");
        match figures[..] {
            [gap, took] => Ok((gap, took)),
            _ => Err(format!("no figures: {said}").into()),
        }
    };
    for way in &WAYS[1..] {
        let mut tries = 0;
        loop {
            let ((bare, _), (gap, took)) = (run(&[])?, run(way)?);
            // One after the other they would take two hundred seconds.
            if gap < (3.0 * bare).max(0.02) && took < 20.0 && took >= SECONDS as f64 * 0.9 {
                break;
            }
            tries += 1;
            if tries == TRIES {
                let said = format!("a gap of {gap} s, alone {bare} s; it took {took} s");
                return Err(format!("{way:?}: {said}").into());
            }
        }
    }
    Ok(Completion::Completed)
}
