//! MariaDB.

use std::io::Read;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use super::daemon::{Daemon, Scratch, as_ordinary_user, find, free_port, prepare};

/// A MariaDB server with a database `kapok`, whose user `kapok` has the password `silk`.
pub struct MariaDb {
    // Before the directory, so that it ends first.
    server: Option<Daemon>,
    scratch: Scratch,
    program: PathBuf,
    port: u16,
}

impl MariaDb {
    /// Starts one, or says that something is skipped.
    ///
    /// # Panics
    ///
    /// If it is installed and does not start.
    #[track_caller]
    pub fn start() -> Option<MariaDb> {
        let program = find("mariadbd", "mariadb-server")?;
        let install = find("mariadb-install-db", "mariadb-server")?;
        let scratch = Scratch::new("mariadb");
        let data = scratch.path().join("data");
        prepare(
            as_ordinary_user(install)
                .args(["--no-defaults", "--auth-root-authentication-method=normal"])
                .args([
                    "--skip-test-db",
                    "--innodb-log-file-size=8M",
                    "--innodb-flush-method=nosync",
                ])
                .arg(format!("--datadir={}", data.display())),
        );
        scratch.write(
            "users.sql",
            "CREATE DATABASE IF NOT EXISTS kapok;\n\
             CREATE OR REPLACE USER kapok@'127.0.0.1' IDENTIFIED BY 'silk';\n\
             GRANT ALL ON *.* TO kapok@'127.0.0.1';\n",
        );
        let mut mariadb = MariaDb { server: None, scratch, program, port: free_port() };
        mariadb.run();
        Some(mariadb)
    }

    fn run(&mut self) {
        let here = self.scratch.path();
        let log = here.join("log");
        let mut command = as_ordinary_user(&self.program);
        command.args(["--no-defaults", "--bind-address=127.0.0.1", "--max-connections=350"]);
        command.args(["--skip-name-resolve", "--innodb-log-file-size=8M"]);
        command.args(["--innodb-flush-method=nosync", "--innodb-buffer-pool-size=16M"]);
        command.arg(format!("--port={}", self.port));
        command.arg(format!("--datadir={}", here.join("data").display()));
        command.arg(format!("--socket={}", here.join("socket").display()));
        command.arg(format!("--init-file={}", here.join("users.sql").display()));
        let mut server = Daemon::start(&mut command, &log, libc::SIGTERM);
        server.until(&log, || self.greets());
        self.server = Some(server);
    }

    /// It listens only once the users are there; its greeting says that it takes clients.
    fn greets(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        matches!(stream.read(&mut [0; 64]), Ok(read) if read > 0)
    }

    /// Ends it and starts it again on the same port, with the same data.
    pub fn restart(&mut self) {
        self.server = None;
        self.run();
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}
