//! What all servers share: where their files are, who runs them, and how they end.

use std::ffi::{OsStr, c_int};
use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Who runs the servers: some refuse to be run by root.
const NOBODY: u32 = 65_534;

/// How long a server may take to start, or to end.
const LIMIT: Duration = Duration::from_secs(180);

/// A directory of one server's, which goes when this does.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kapok-{name}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        if is_root() {
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Scratch(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it, which the server may read.
    pub(super) fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that runs.
pub(super) struct Daemon {
    child: Child,
    /// What it wants to be told to end at once, and in order.
    signal: c_int,
}

impl Daemon {
    /// Starts it with its words going to `log`.
    pub(super) fn start(command: &mut Command, log: &Path, signal: c_int) -> Daemon {
        let log = fs::File::create(log).unwrap();
        // SAFETY: only a system call is made between fork and exec. The second comes after the change of
        // user, which would undo it.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Daemon { child, signal }
    }

    /// Its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `answers` says that it does.
    pub(super) fn until(&mut self, log: &Path, mut answers: impl FnMut() -> bool) {
        let began = Instant::now();
        while !answers() {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < LIMIT,
                "a server does not answer ({ended:?}): {}",
                fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SAFETY: only numbers are passed; the child is ours and not reaped.
        unsafe { libc::kill(self.child.id() as libc::pid_t, self.signal) };
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if began.elapsed() > LIMIT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(super) fn is_root() -> bool {
    // SAFETY: no arguments, and it cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A program run by somebody who is not root.
pub fn as_ordinary_user(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        // root's home is closed to others, which some clients take for an error.
        command.uid(NOBODY).gid(NOBODY).env("HOME", "/");
    }
    command
}

/// Runs a program that prepares something.
pub(super) fn prepare(command: &mut Command) {
    let made = command
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{command:?}: {said}");
}

/// A port that was free a moment ago.
pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A port that was free for datagrams and connections a moment ago.
pub(super) fn free_port_of_both() -> u16 {
    loop {
        let stream = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = stream.local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Where a program is, among the places where Debian has programs and servers. If it is nowhere, says that
/// something is skipped.
#[track_caller]
pub(super) fn find(program: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|place| place.join(program))
        .find(|path| path.is_file());
    if found.is_none() {
        crate::skip(&format!("there is no {program} (apt-get install {package})"));
    }
    found
}
