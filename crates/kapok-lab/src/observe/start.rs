//! Starting a program that is observed from its first instruction on.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::child::has_ended;

/// How long a program may take to end that was asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// A program that was started to be observed. It outlives this.
#[derive(Debug)]
pub struct Started {
    child: Child,
}

impl Started {
    /// Starts `program`, and calls `watch` with its process before it does anything. It is in a process
    /// group of its own, so that what is typed to stop the observer does not reach it, it reads nothing,
    /// and what it prints goes to our standard error: the report alone is on standard output.
    ///
    /// # Errors
    ///
    /// It cannot be started, or `watch` refuses; then it is not started.
    pub fn new<T>(
        program: &OsString,
        arguments: &[OsString],
        watch: impl FnOnce(u32) -> io::Result<T>,
    ) -> io::Result<(Started, T)> {
        let (mut its_number, number): (PipeReader, PipeWriter) = io::pipe()?;
        let (go, mut may_go): (PipeReader, PipeWriter) = io::pipe()?;
        let mut command = Command::new(program);
        let to_stderr = io::stderr().try_clone_to_owned()?;
        command.args(arguments).stdin(Stdio::null()).stdout(to_stderr).process_group(0);
        let (number, go) = (number, go);
        let (number_fd, go_fd, parents_end) =
            (number.as_raw_fd(), go.as_raw_fd(), may_go.as_raw_fd());
        // SAFETY: between fork and exec this makes system calls on descriptors that are open then, and
        // touches no memory but its own.
        unsafe {
            command.pre_exec(move || {
                let process = libc::getpid().to_ne_bytes();
                libc::write(number_fd, process.as_ptr().cast(), process.len());
                // Ours to close: else the end of the parent would not end the wait.
                libc::close(parents_end);
                let mut word = 0_u8;
                match libc::read(go_fd, (&raw mut word).cast(), 1) {
                    1 => Ok(()),
                    _ => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
                }
            });
        }
        // To make a process takes until it has become the program, and so until it may go.
        let spawning = thread::spawn(move || {
            let child = command.spawn();
            drop((number, go));
            child
        });
        let mut bytes = [0; 4];
        let known = its_number.read_exact(&mut bytes);
        let watched = known.and_then(|()| watch(u32::from_ne_bytes(bytes)));
        if watched.is_ok() {
            may_go.write_all(&[1])?;
        }
        drop(may_go);
        let child =
            spawning.join().unwrap_or_else(|_| Err(io::Error::other("it could not be started")));
        match (watched, child) {
            (Ok(watched), Ok(child)) => Ok((Started { child }, watched)),
            (_, Err(error)) if error.raw_os_error() != Some(libc::ECANCELED) => {
                let name = program.to_string_lossy();
                Err(io::Error::new(error.kind(), format!("{name}: {error}")))
            }
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// Whether it has ended. It is not reaped by this: what it has used can still be read.
    ///
    /// # Errors
    ///
    /// It cannot be told: [`ended`](Started::ended) or [`end`](Started::end) has reaped it.
    pub fn has_ended(&self) -> io::Result<bool> {
        has_ended(&self.child)
    }

    /// How it has ended, if it has; it is reaped then.
    ///
    /// # Errors
    ///
    /// It cannot be told.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Asks it to end, by SIGTERM, and waits until it has. If it does not within five seconds, it and all
    /// of its group are killed.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let process = self.child.id() as libc::pid_t;
        // SAFETY: only numbers are passed, and the process is ours and not reaped.
        unsafe { libc::kill(process, libc::SIGTERM) };
        let give_up = Instant::now() + ENDS_WITHIN;
        while Instant::now() < give_up {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        // SAFETY: only numbers are passed. The group is the child's own, and the child, which has not been
        // reaped, keeps its number from being used again.
        unsafe { libc::kill(-process, libc::SIGKILL) };
        self.child.wait()
    }
}

/// A descriptor of our own for what others write to.
trait TryCloneToOwned {
    fn try_clone_to_owned(&self) -> io::Result<Stdio>;
}

impl TryCloneToOwned for io::Stderr {
    fn try_clone_to_owned(&self) -> io::Result<Stdio> {
        use std::os::fd::AsFd;
        Ok(self.as_fd().try_clone_to_owned()?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsStr::new).map(OsStr::to_owned).collect()
    }

    #[test]
    fn it_does_nothing_before_it_is_watched() {
        let marker = std::env::temp_dir().join(format!("kapok-started-{}", std::process::id()));
        let path = marker.to_str().unwrap();
        let (mut started, process) = Started::new(&"touch".into(), &words(&[path]), |process| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!marker.exists(), "it ran already");
            Ok(process)
        })
        .unwrap();
        assert!(process > 1);
        let begun = std::time::Instant::now();
        while started.ended().unwrap().is_none() {
            assert!(begun.elapsed().as_secs() < 60, "it does not run");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        std::fs::remove_file(&marker).expect("it ran after all");
        assert!(started.end().unwrap().success());
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_its_group() {
        use std::os::unix::process::ExitStatusExt;
        // Both of them are deaf: what is ignored stays so over exec.
        let script = words(&["-c", "trap '' TERM; sleep 600"]);
        let (mut started, process) = Started::new(&"sh".into(), &script, Ok).unwrap();
        let status = format!("/proc/{process}/status");
        let is_deaf = || {
            let status = std::fs::read_to_string(&status).unwrap();
            let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
            u64::from_str_radix(ignored.trim(), 16).unwrap() & (1 << (libc::SIGTERM - 1)) != 0
        };
        let begun = Instant::now();
        while !is_deaf() {
            assert!(begun.elapsed().as_secs() < 60, "it does not begin");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(started.end().unwrap().signal(), Some(libc::SIGKILL));
        let begun = Instant::now();
        while crate::meters::is_group_alive(process) {
            assert!(begun.elapsed().as_secs() < 60, "somebody of its group is left");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named_and_one_refused_is_not_run() {
        let error =
            Started::new(&"./no-such-program".into(), &[], |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("no-such-program"), "{error}");
        let refused =
            Started::new(&"true".into(), &[], |_| Err::<(), _>(io::Error::other("not this one")));
        assert_eq!(refused.unwrap_err().to_string(), "not this one");
    }
}
