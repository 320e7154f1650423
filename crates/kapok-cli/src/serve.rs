//! `kapok serve`: one server on one model until a signal.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use kapok::Kind;
use kapok_lab::load::raise_descriptor_limit;
use kapok_lab::{DelayServer, Model, ServeConfig, Stop, serve};
use serde_json::json;

use crate::cli::{Engine, ServeOptions, address};

/// Serves until SIGINT or SIGTERM, then says what was met.
pub(crate) fn run(options: &ServeOptions) -> io::Result<ExitCode> {
    let addr = address(&options.addr).map_err(|reason| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("--addr {}: {reason}", options.addr))
    })?;
    if let Err(error) = raise_descriptor_limit() {
        tracing::warn!("the limit on descriptors stays as it is: {error}");
    }
    let model = model(options)?;
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    let delay = options.delay_ms.map(DelayServer::start).transpose()?;
    let config = ServeConfig {
        addr,
        protocol: options.protocol,
        model,
        threads: options.threads,
        accept: options.accept,
        directory: options.dir.clone(),
        backend: delay.as_ref().map(DelayServer::addr).or(options.backend),
        cpu_per_request: options.cpu_us,
        body_bytes: options.body,
        buffer_bytes: options.buffer,
        idle_timeout: options.idle_timeout,
        watchdog: options.watchdog_ms.map(Duration::from_millis),
        dump_on_signal: model.has_fibers(),
        ..ServeConfig::default()
    };
    let served = serve(&config, &stop, |addr| {
        let line = if options.json {
            json!({ "listening": addr.to_string() }).to_string()
        } else {
            format!("listening on {addr}")
        };
        // Whoever started us may not read this; the clients are served all the same.
        let mut stdout = io::stdout().lock();
        if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            tracing::warn!("the ready line could not be written: {error}");
        }
    })
    .map_err(|error| io::Error::new(error.kind(), format!("{model} on {addr}: {error}")))?;

    if served.refused.count > 0 || served.accept_pauses > 0 {
        eprintln!(
            "kapok: refused {} of {} connections and paused accepting {} times: {}",
            served.refused.count,
            served.accepted,
            served.accept_pauses,
            served.refused.reason.as_deref().unwrap_or("no reason was given")
        );
    }
    if served.unserved > 0 {
        eprintln!(
            "kapok: {} of {} connections were never served: every worker was held by another",
            served.unserved, served.accepted
        );
    }
    if options.json {
        let account = json!({
            "accepted": served.accepted,
            "requests": served.requests,
            "unserved": served.unserved,
            "refused": served.refused.count,
            "accept_pauses": served.accept_pauses,
            "reason": served.refused.reason,
        });
        writeln!(io::stdout(), "{account}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The model, with the engine below it if one was named.
fn model(options: &ServeOptions) -> io::Result<Model> {
    let Engine::Named(kind) = options.engine else { return Ok(options.model) };
    let model = match (options.model, kind) {
        (Model::Fiber, Kind::Uring) => Model::FiberUring,
        (Model::Fiber, Kind::Epoll) => Model::FiberEpoll,
        (Model::Fiber, Kind::Poll) => Model::FiberPoll,
        (Model::Fiber, Kind::Select) => Model::FiberSelect,
        (Model::Fiber, kind) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "--engine {kind}: the model fiber is served on uring, epoll, poll or select"
                ),
            ));
        }
        (model, kind) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("--engine {kind} is for --model fiber, and not for {model}"),
            ));
        }
    };
    Ok(model)
}

/// Requests `stop` at SIGINT and SIGTERM.
pub(crate) fn stop_on_signals(stop: &Stop) -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let stop = stop.clone();
        // SAFETY: the handler only calls `Stop::stop`, which is async-signal-safe.
        unsafe { signal_hook_registry::register(signal, move || stop.stop()) }?;
    }
    Ok(())
}
