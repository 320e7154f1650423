//! Redis.

use std::net::TcpStream;
use std::path::PathBuf;

use super::daemon::{Daemon, Scratch, as_ordinary_user, find, free_port};

/// A Redis server that keeps nothing.
pub struct Redis {
    // Before the directory, so that it ends first.
    server: Option<Daemon>,
    scratch: Scratch,
    program: PathBuf,
    port: u16,
}

impl Redis {
    /// Starts one, or says that something is skipped.
    ///
    /// # Panics
    ///
    /// If it is installed and does not start.
    #[track_caller]
    pub fn start() -> Option<Redis> {
        let program = find("redis-server", "redis-server")?;
        let scratch = Scratch::new("redis");
        let mut redis = Redis { server: None, scratch, program, port: free_port() };
        redis.run();
        Some(redis)
    }

    fn run(&mut self) {
        let log = self.scratch.path().join("log");
        let mut command = as_ordinary_user(&self.program);
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &self.port.to_string()]);
        command.arg("--dir").arg(self.scratch.path());
        let mut server = Daemon::start(&mut command, &log, libc::SIGTERM);
        server.until(&log, || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
        self.server = Some(server);
    }

    /// Ends it and starts it again on the same port, empty.
    pub fn restart(&mut self) {
        self.server = None;
        self.run();
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}
