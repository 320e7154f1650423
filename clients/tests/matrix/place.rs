//! Where the servers are.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use kapok_clients::servers::{Dnsmasq, MariaDb, Nginx, Postgres, Redis};

/// A server, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which {
    Nothing,
    Postgres,
    MariaDb,
    Redis,
    Nginx,
    Dnsmasq,
}

impl Which {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Which::Nothing => "none",
            Which::Postgres => "PostgreSQL",
            Which::MariaDb => "MariaDB",
            Which::Redis => "Redis",
            Which::Nginx => "nginx, TLS",
            Which::Dnsmasq => "dnsmasq, black hole",
        }
    }
}

/// As many clients as the proofs have three times over, since a server is done with those that have left
/// when it comes to it, and some that look on.
const CONNECTIONS: u32 = 350;

/// The servers that were started so far. None inside: not installed.
#[derive(Default)]
pub(crate) struct Servers {
    postgres: Mutex<Option<Option<Postgres>>>,
    mariadb: Mutex<Option<Option<MariaDb>>>,
    redis: Mutex<Option<Option<Redis>>>,
    nginx: Mutex<Option<Option<Nginx>>>,
    dnsmasq: Mutex<Option<Option<Dnsmasq>>>,
}

/// What a client has to know.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) port: u16,
    /// What to trust. Empty where there is no TLS.
    pub(crate) certificate: PathBuf,
}

const PORT: &str = "KAPOK_CLIENTS_PORT";
const CERTIFICATE: &str = "KAPOK_CLIENTS_CERTIFICATE";

impl Place {
    fn at(port: u16) -> Place {
        Place { port, certificate: PathBuf::new() }
    }

    /// Tells a process.
    pub(crate) fn tell<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(PORT, self.port.to_string()).env(CERTIFICATE, &self.certificate)
    }

    /// What this process was told.
    pub(crate) fn from_environment() -> Place {
        Place {
            port: env::var(PORT).unwrap().parse().unwrap(),
            certificate: env::var_os(CERTIFICATE).unwrap().into(),
        }
    }
}

impl Servers {
    /// Where a server is, which is started if it was not. None: it is not installed.
    #[track_caller]
    pub(crate) fn place(&self, which: Which) -> Option<Place> {
        fn started<S>(
            server: &Mutex<Option<Option<S>>>,
            start: impl FnOnce() -> Option<S>,
            of: impl FnOnce(&S) -> Place,
        ) -> Option<Place> {
            // A server that does not start is a failure of every proof that wants it.
            let mut server = server.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            server.get_or_insert_with(start).as_ref().map(of)
        }
        match which {
            Which::Nothing => Some(Place::at(0)),
            Which::Postgres => started(
                &self.postgres,
                || Postgres::start(CONNECTIONS),
                |server| Place::at(server.port()),
            ),
            Which::MariaDb => {
                started(&self.mariadb, MariaDb::start, |server| Place::at(server.port()))
            }
            Which::Redis => started(&self.redis, Redis::start, |server| Place::at(server.port())),
            Which::Nginx => started(&self.nginx, Nginx::start, |server| Place {
                port: server.port(),
                certificate: server.certificate(),
            }),
            Which::Dnsmasq => {
                started(&self.dnsmasq, Dnsmasq::start, |server| Place::at(server.port()))
            }
        }
    }

    /// Ends a server that was started, and starts it again.
    pub(crate) fn restart(&self, which: Which) {
        match which {
            Which::Postgres => {
                self.postgres.lock().unwrap().as_mut().unwrap().as_mut().unwrap().restart()
            }
            Which::MariaDb => {
                self.mariadb.lock().unwrap().as_mut().unwrap().as_mut().unwrap().restart()
            }
            Which::Redis => {
                self.redis.lock().unwrap().as_mut().unwrap().as_mut().unwrap().restart()
            }
            Which::Nothing | Which::Nginx | Which::Dnsmasq => panic!("{which:?} is not restarted"),
        }
    }
}
