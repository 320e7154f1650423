//! A web service with Diesel on PostgreSQL, three times: on a thread for each connection, on fibers with
//! the C library's calls hooked, and on tokio with diesel-async. Handlers, queries and replies are the
//! same source; threads and fibers share every line but the spawning one.
//!
//! ```sh
//! # The whole comparison, as a table in Markdown. It wants wrk(1), PostgreSQL and a quiet machine.
//! cargo run --release --example diesel_service -- compare
//! # One of them, for a look: then `curl http://127.0.0.1:8080/author/3`.
//! cargo run --release --example diesel_service -- serve --model fibers-1 --addr 127.0.0.1:8080 \
//!     --database postgres://kapok@127.0.0.1:5432/postgres
//! ```

#![cfg(target_os = "linux")]

mod asynchronous;
mod blocking;
mod compare;
mod handlers;
mod http;
mod page;
mod pool;
mod process;
mod schema;
mod table;
mod wrk;

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// A web service with Diesel on PostgreSQL: on threads, on fibers, on tokio.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures all models, with a PostgreSQL of its own, and prints a table in Markdown.
    Compare(compare::Options),
    /// Makes the tables in a database and fills them.
    Fill {
        /// As `postgres://user@host:port/name`.
        #[arg(long)]
        database: String,
    },
    /// Serves until it is killed.
    Serve(Serve),
}

#[derive(clap::Args)]
struct Serve {
    /// What a connection runs on.
    #[arg(long, value_enum)]
    model: Model,
    /// Where to listen. With port 0 the system chooses; the port is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    addr: SocketAddr,
    /// As `postgres://user@host:port/name`.
    #[arg(long)]
    database: String,
    /// Connections to the database.
    #[arg(long, default_value_t = 20)]
    pool: usize,
}

/// What a connection runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Model {
    /// A thread for each connection.
    Threads,
    /// Fibers on one thread.
    #[value(name = "fibers-1")]
    Fibers1,
    /// Fibers on two threads.
    #[value(name = "fibers-2")]
    Fibers2,
    /// tokio on one thread, with diesel-async.
    #[value(name = "tokio-1")]
    Tokio1,
    /// tokio on two threads, with diesel-async.
    #[value(name = "tokio-2")]
    Tokio2,
}

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Compare(options) => compare::compare(&options),
        Command::Fill { database } => schema::fill(&database),
        Command::Serve(serve) => self::serve(&serve),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("diesel_service: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(serve: &Serve) -> Result<(), Error> {
    let listener =
        TcpListener::bind(serve.addr).map_err(|error| format!("{}: {error}", serve.addr))?;
    listen_for_thousands(&listener)?;
    println!("listening on {}", listener.local_addr()?);
    match serve.model {
        Model::Threads => blocking::on_threads(&listener, &serve.database, serve.pool),
        Model::Fibers1 => blocking::on_fibers(1, &listener, &serve.database, serve.pool),
        Model::Fibers2 => blocking::on_fibers(2, &listener, &serve.database, serve.pool),
        Model::Tokio1 => asynchronous::on_tokio(1, listener, &serve.database, serve.pool),
        Model::Tokio2 => asynchronous::on_tokio(2, listener, &serve.database, serve.pool),
    }
}

/// std's backlog is 128, and thousands connect at the same time.
fn listen_for_thousands(listener: &TcpListener) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: only numbers are passed. A second listen(2) changes the backlog.
    match unsafe { libc::listen(listener.as_raw_fd(), 4096) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
