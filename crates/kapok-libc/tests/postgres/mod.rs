//! PostgreSQL on a port of its own, for one test.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Who runs it: it refuses to be run by root.
const NOBODY: u32 = 65_534;

pub(crate) struct Postgres {
    server: Child,
    directory: PathBuf,
    port: u16,
}

impl Postgres {
    /// Starts a server, or says that something is skipped.
    pub(crate) fn start() -> Option<Postgres> {
        let Some(programs) = programs() else {
            crate::skipped::skip("there is no PostgreSQL (apt-get install postgresql)");
            return None;
        };
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kapok-postgres-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        if is_root() {
            chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let data = directory.join("data");
        let mut initdb = as_ordinary_user(&programs.join("initdb"));
        initdb.args([
            "--username=kapok",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        ]);
        let made = initdb.arg("--pgdata").arg(&data).current_dir("/").output().unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb: {said}");
        // A port that was free a moment ago may be somebody else's by now.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut server = as_ordinary_user(&programs.join("postgres"));
            server.arg("-D").arg(&data).current_dir("/");
            server.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
            server.args(["-c", "fsync=off", "-c", "max_connections=120", "-c"]);
            server.arg(format!("unix_socket_directories={}", directory.display()));
            let log = fs::File::create(directory.join("log")).unwrap();
            server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let mut server = server.spawn().unwrap();
            if answers(&mut server, port, &programs) {
                return Some(Postgres { server, directory, port });
            }
        }
        panic!("{}", fs::read_to_string(directory.join("log")).unwrap());
    }

    /// What libpq connects with.
    pub(crate) fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=kapok dbname=postgres", self.port)
    }
}

/// Waits until the server answers. False: it has ended.
fn answers(server: &mut Child, port: u16, programs: &Path) -> bool {
    let began = Instant::now();
    while server.try_wait().unwrap().is_none() {
        let mut ask = Command::new(programs.join("pg_isready"));
        let asked = ask.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status();
        // Another server may have the port.
        if asked.unwrap().success() && server.try_wait().unwrap().is_none() {
            return true;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "PostgreSQL does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SAFETY: only numbers are passed; the child is ours and not reaped. SIGINT: at once, in order.
        unsafe { libc::kill(self.server.id() as libc::pid_t, libc::SIGINT) };
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn is_root() -> bool {
    // SAFETY: no arguments, and it cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn as_ordinary_user(program: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Where Debian has the server's programs, the newest version first, or the PATH's.
fn programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map_while(Result::ok)
        .map(|version| version.path().join("bin"))
        .filter(|programs| programs.join("postgres").exists())
        .collect();
    versions.sort();
    versions.pop()
}
