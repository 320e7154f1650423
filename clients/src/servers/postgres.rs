//! PostgreSQL.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::daemon::{Daemon, Scratch, as_ordinary_user, free_port, prepare};

/// A PostgreSQL server, whose user `kapok` needs no password.
pub struct Postgres {
    // Before the directory, so that it ends first.
    server: Option<Daemon>,
    scratch: Scratch,
    programs: PathBuf,
    port: u16,
    connections: u32,
}

impl Postgres {
    /// Starts one that lets as many clients connect, or says that something is skipped.
    ///
    /// # Panics
    ///
    /// If it is installed and does not start.
    #[track_caller]
    pub fn start(connections: u32) -> Option<Postgres> {
        let Some(programs) = programs() else {
            crate::skip("there is no PostgreSQL (apt-get install postgresql)");
            return None;
        };
        let scratch = Scratch::new("postgres");
        prepare(
            as_ordinary_user(programs.join("initdb"))
                .args(["--username=kapok", "--auth=trust", "--no-sync", "--encoding=UTF8"])
                .args(["--locale=C", "--pgdata"])
                .arg(scratch.path().join("data")),
        );
        let port = free_port();
        let mut postgres = Postgres { server: None, scratch, programs, port, connections };
        postgres.run();
        Some(postgres)
    }

    fn run(&mut self) {
        let log = self.scratch.path().join("log");
        let mut command = as_ordinary_user(self.programs.join("postgres"));
        command.arg("-D").arg(self.scratch.path().join("data"));
        command.args(["-p", &self.port.to_string(), "-c", "fsync=off"]);
        command.args(["-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", &format!("max_connections={}", self.connections), "-c"]);
        command.arg(format!("unix_socket_directories={}", self.scratch.path().display()));
        // SIGINT: at once, without waiting for clients.
        let mut server = Daemon::start(&mut command, &log, libc::SIGINT);
        server.until(&log, || {
            let mut asked = Command::new(self.programs.join("pg_isready"));
            asked.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            asked.status().unwrap().success()
        });
        self.server = Some(server);
    }

    /// Ends it at once and starts it again on the same port, with the same data.
    pub fn restart(&mut self) {
        self.server = None;
        self.run();
    }

    /// The CPU time that it has used since it was started, in ticks of 10 ms: its own, and that of its
    /// processes for clients, those that have ended included.
    pub fn cpu_time(&self) -> Duration {
        let Some(server) = &self.server else { return Duration::ZERO };
        let own = server.id();
        let mut ticks = 0;
        for process in fs::read_dir("/proc").into_iter().flatten().map_while(Result::ok) {
            let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
            // The name, in parentheses, may hold anything; the fields follow its last parenthesis.
            let fields: Vec<&str> =
                stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
            let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
            let is_own = process.file_name().to_str() == Some(&own.to_string());
            if is_own || number(1) == Some(u64::from(own)) {
                // Without those that the process has waited for, unless it is the server.
                let until = if is_own { 14 } else { 12 };
                ticks += (11..=until).filter_map(number).sum::<u64>();
            }
        }
        Duration::from_millis(ticks * 10)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Where Debian has the server's programs, the newest version first.
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
