//! The command line of a server.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use super::{Bench, micros};
use crate::Protocol;
use crate::compare::contender::{Contender, free_port};
use crate::compare::server::{Ready, Server};

impl Bench<'_> {
    /// Starts a server and waits until it accepts.
    pub(super) fn start(&self, contender: &Contender) -> io::Result<Server> {
        let config = self.config;
        let host = self.point.network.server();
        match contender {
            Contender::Model(model) => {
                let options = [
                    ("--addr", format!("{host}:0")),
                    ("--protocol", self.protocol.to_string()),
                    ("--model", model.to_string()),
                    ("--threads", config.threads.to_string()),
                    ("--cpu-us", micros(self.point.cpu_per_request).to_string()),
                    ("--body", config.body_bytes.to_string()),
                ];
                let mut arguments = vec!["serve".to_owned()];
                if let (Protocol::Files, Some(directory)) = (self.protocol, &config.directory) {
                    arguments.extend(["--dir".to_owned(), directory.display().to_string()]);
                }
                if let Some(backend) = self.backend {
                    arguments.extend(["--backend".to_owned(), backend.addr().to_string()]);
                }
                arguments
                    .extend(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
                self.start_program(&config.program, &arguments, Ready::Says)
            }
            Contender::External(external) => {
                let port = free_port()?;
                let values = [
                    ("{addr}", format!("{host}:{port}")),
                    ("{host}", host.to_string()),
                    ("{port}", port.to_string()),
                    ("{protocol}", self.protocol.to_string()),
                    (
                        "{dir}",
                        config
                            .directory
                            .as_ref()
                            .map_or_else(String::new, |path| path.display().to_string()),
                    ),
                    (
                        "{backend}",
                        self.backend.map_or_else(String::new, |backend| backend.addr().to_string()),
                    ),
                    ("{body}", config.body_bytes.to_string()),
                    ("{threads}", config.threads.to_string()),
                ];
                let arguments: Vec<String> = external
                    .arguments
                    .iter()
                    .map(|word| {
                        values
                            .iter()
                            .fold(word.clone(), |word, (name, value)| word.replace(name, value))
                    })
                    .collect();
                let ready = Ready::Accepts(SocketAddr::from((host, port)));
                self.start_program(&external.program, &arguments, ready)
            }
        }
    }

    fn start_program(
        &self,
        program: &Path,
        arguments: &[String],
        ready: Ready,
    ) -> io::Result<Server> {
        let stop = self.config.stop.as_ref();
        Server::start(program, arguments, ready, self.cores, self.namespaces, stop)
    }
}
