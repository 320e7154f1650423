//! The I/O models, one file each.
//!
//! Every model serves the same [`workload`](crate::workload) and keeps the same rules: it takes
//! every connection that is pending and keeps its listener armed, pauses accepting when it is out
//! of descriptors, asks for writability only while output is pending, and ends as
//! [`serve()`](crate::serve()) describes.

mod activity;
mod backend;
mod blocking;
mod busy_poll;
mod connection;
#[cfg(target_os = "linux")]
mod epoll;
mod fiber;
mod intake;
mod listener;
mod mio;
mod pace;
mod poll;
mod roster;
mod select;
mod table;
mod tally;
mod thread_pool;
mod threads;
mod tokio;
#[cfg(target_os = "linux")]
mod uring;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use crate::serve::{AcceptMode, Model, ServeConfig, Served};
use crate::stop::Stop;
use crate::workload::Workload;
use intake::run_workers;
use listener::Listener;
use tally::Tally;
#[cfg(target_os = "linux")]
pub(crate) use thread_pool::FEWEST_WORKERS;

/// What every thread of one server shares.
struct Server {
    config: ServeConfig,
    workload: Arc<Workload>,
    stop: Stop,
    tally: Tally,
}

impl Server {
    fn new(config: &ServeConfig, stop: &Stop) -> Arc<Server> {
        Arc::new(Server {
            config: config.clone(),
            workload: Workload::new(config),
            stop: stop.clone(),
            tally: Tally::default(),
        })
    }
}

/// Runs the server that `config` describes on the fibers of the calling one's runtime.
pub(crate) fn run_on_fibers(
    config: &ServeConfig,
    listener: kapok::net::TcpListener,
    stopped: impl FnOnce() -> io::Result<()>,
) -> io::Result<Served> {
    let server = Server::new(config, &Stop::new()?);
    fiber::supervise(&server, listener, stopped)?;
    Ok(server.tally.served())
}

/// Runs the server that `config` describes.
pub(crate) fn run(
    config: &ServeConfig,
    stop: &Stop,
    ready: impl FnOnce(SocketAddr),
) -> io::Result<Served> {
    let server = Server::new(config, stop);
    // Before anybody is told that this server is ready.
    check(config)?;
    let listeners = listen(config)?;
    ready(listeners[0].local_addr()?);
    match config.model {
        Model::Threads => threads::serve(&server, listeners)?,
        Model::ThreadPool => thread_pool::serve(&server, listeners)?,
        Model::BusyPoll => {
            run_workers(&server, listeners, |intake| busy_poll::serve(&server, intake))?
        }
        Model::Select => run_workers(&server, listeners, |intake| select::serve(&server, intake))?,
        Model::Poll => run_workers(&server, listeners, |intake| poll::serve(&server, intake))?,
        #[cfg(target_os = "linux")]
        Model::Epoll => run_workers(&server, listeners, |intake| epoll::serve(&server, intake))?,
        Model::Mio => run_workers(&server, listeners, |intake| mio::serve(&server, intake))?,
        #[cfg(target_os = "linux")]
        Model::Uring => run_workers(&server, listeners, |intake| uring::serve(&server, intake))?,
        Model::Tokio => tokio::serve(&server, listeners)?,
        Model::Fiber
        | Model::FiberUring
        | Model::FiberEpoll
        | Model::FiberPoll
        | Model::FiberSelect => fiber::serve(&server, listeners)?,
        #[cfg(not(target_os = "linux"))]
        Model::Epoll | Model::Uring => unreachable!("checked above"),
    }
    Ok(server.tally.served())
}

/// Whether this system has what the model needs, and the model what was asked for. Fibers can be
/// dumped from here on.
fn check(config: &ServeConfig) -> io::Result<()> {
    let model = config.model;
    let is_watched = config.watchdog.is_some_and(|limit| !limit.is_zero());
    if !model.has_fibers() && (is_watched || config.dump_on_signal) {
        let what = if is_watched { "watchdog" } else { "dump" };
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a {what} is for fibers, and the model {model} has none; fiber has"),
        ));
    }
    match model {
        #[cfg(target_os = "linux")]
        Model::Uring => uring::check(),
        #[cfg(not(target_os = "linux"))]
        Model::Epoll | Model::Uring => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the model {model} needs Linux"),
        )),
        _ if model.has_fibers() => fiber::runtime(config).build().map(drop),
        _ => Ok(()),
    }
}

/// One listener, or one for each worker on the same address.
fn listen(config: &ServeConfig) -> io::Result<Vec<Listener>> {
    let count = match config.accept {
        AcceptMode::Thread => 1,
        AcceptMode::Worker => config.threads,
    };
    let nonblocking = !matches!(config.model, Model::Threads | Model::ThreadPool | Model::Uring);
    let first = Listener::bind(config.addr, count > 1, nonblocking)?;
    // With port 0 the others share the port that the first was given.
    let addr = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..count {
        listeners.push(Listener::bind(addr, true, nonblocking)?);
    }
    Ok(listeners)
}

/// Does `work` with each item, the first on the calling thread and each other on a thread of its
/// own. A failure stops the server; the first one is the result.
fn on_threads<T: Send>(
    server: &Server,
    name: &str,
    items: Vec<T>,
    work: impl Fn(T) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let work = |item| work(item).inspect_err(|_| server.stop.stop());
    thread::scope(|scope| {
        let mut items = items.into_iter();
        let first = items.next();
        let others: Vec<_> = items
            .map(|item| {
                thread::Builder::new()
                    .name(name.to_owned())
                    .spawn_scoped(scope, || work(item))
                    .inspect_err(|_| server.stop.stop())
            })
            .collect();
        let mut result = first.map_or(Ok(()), work);
        for other in others {
            let outcome = other.and_then(|other| {
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            result = result.and(outcome);
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_watchdog_that_never_barks_is_for_every_model() {
        for model in [Model::Threads, Model::Mio, Model::Tokio, Model::Fiber] {
            let with = |watchdog, dump_on_signal| {
                check(&ServeConfig { model, watchdog, dump_on_signal, ..ServeConfig::default() })
            };
            assert!(with(Some(Duration::ZERO), false).is_ok(), "{model}");
            for (watchdog, dump_on_signal, what) in [
                (Some(Duration::from_secs(1)), false, "watchdog"),
                (Some(Duration::ZERO), true, "dump"),
            ] {
                let checked = with(watchdog, dump_on_signal);
                assert_eq!(checked.is_ok(), model.has_fibers(), "{model}");
                assert!(checked.is_ok() || checked.unwrap_err().to_string().contains(what));
            }
        }
    }
}
