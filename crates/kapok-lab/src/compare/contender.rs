//! Who is compared: models of this program, and servers of anybody's.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::str::FromStr;

use crate::Model;

/// One row of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contender {
    /// A model, served by this program.
    Model(Model),
    /// Another program.
    External(External),
}

/// A server of anybody's: a name and a command line.
///
/// ```
/// let server: kapok_lab::compare::External = "hand=./server --listen {addr}".parse()?;
/// assert_eq!(server.to_string(), "hand");
/// # Ok::<(), kapok_lab::compare::NoServer>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// What the row is called.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments, in which `{addr}`, `{host}` and `{port}` stand for the address that it is to
    /// listen at, `{protocol}` for `echo`, `http` or `files`, `{dir}` for the directory of those, `{backend}` for the server
    /// that each request is to wait for (if there is one), `{body}` for the bytes of the HTTP reply's body
    /// and `{threads}` for the number of workers.
    pub arguments: Vec<String>,
}

/// Why a text is no server: see [`External`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoServer(String);

impl fmt::Display for NoServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no NAME=COMMAND with {{addr}} or {{port}} in the command, such as \
             mine='./server --listen {{addr}}'",
            self.0
        )
    }
}

impl std::error::Error for NoServer {}

impl FromStr for External {
    type Err = NoServer;

    /// `NAME=COMMAND`. The command is split at white space, without quoting.
    fn from_str(text: &str) -> Result<External, NoServer> {
        let refuse = || NoServer(text.to_owned());
        let (name, command) = text.split_once('=').ok_or_else(refuse)?;
        let mut words = command.split_whitespace().map(str::to_owned);
        let program = words.next().ok_or_else(refuse)?;
        let arguments: Vec<String> = words.collect();
        let addressed =
            arguments.iter().any(|word| word.contains("{addr}") || word.contains("{port}"));
        if name.is_empty() || name.contains(char::is_whitespace) || !addressed {
            return Err(refuse());
        }
        Ok(External { name: name.to_owned(), program: program.into(), arguments })
    }
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Contender::Model(model) => model.fmt(f),
            Contender::External(external) => external.fmt(f),
        }
    }
}

impl From<Model> for Contender {
    fn from(model: Model) -> Contender {
        Contender::Model(model)
    }
}

/// A port of the loopback address that nobody listens at now. By the time a server binds it,
/// somebody may: then the server says so.
pub(super) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_name_and_a_command_with_an_address() {
        let server: External = "peer=bin/peer --at {addr} -n {threads}".parse().unwrap();
        assert_eq!(server.name, "peer");
        assert_eq!(server.program, PathBuf::from("bin/peer"));
        assert_eq!(server.arguments, ["--at", "{addr}", "-n", "{threads}"]);
        for text in ["", "peer", "peer=", "=bin {addr}", "peer=bin", "a b=bin {addr}", "{addr}=x"] {
            let refused = text.parse::<External>().unwrap_err().to_string();
            assert!(refused.contains("NAME=COMMAND"), "{text}: {refused}");
        }
    }
}
