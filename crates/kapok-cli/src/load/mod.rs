//! `kapok load`: one run of the generator, or of several that are joined, and the report.

mod join;
mod print;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use kapok_lab::Stop;
use kapok_lab::load::{self, LoadConfig, LoadReport, Phase, Progress};

use crate::cli::LoadOptions;
use crate::serve::stop_on_signals;

/// How often to try to reach who joins the generators: it may still be starting.
const AGAIN: Duration = Duration::from_millis(500);

/// Runs the load, prints the report, and fails if anything that came back was wrong, or nothing came.
pub(crate) fn run(options: &LoadOptions) -> io::Result<ExitCode> {
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    let Some(addr) = options.addr else { return join::run(options, stop) };
    let config = configure(options, addr, stop);
    let bar = progress_bar(options.json || options.part);
    let mut progress = |progress| bar.set_message(describe(&config, progress));
    let report = if options.part {
        let orders = io::BufReader::new(io::stdin());
        load::run_part(&config, &build(), orders, &mut io::stdout(), &mut progress)
    } else if let Some(whose) = &options.part_of {
        bar.set_message(format!("connecting to {whose}"));
        connect(whose, options.wait, &config).and_then(|stream| {
            let orders = io::BufReader::new(stream.try_clone()?);
            load::run_part(&config, &build(), orders, &mut &stream, &mut progress)
        })
    } else {
        load::run(&config, &mut progress)
    };
    bar.finish_and_clear();
    let report = report?;
    if !options.part {
        let json = options.json.then(|| serde_json::to_string(&report)).transpose()?;
        write(json, |out| print::print(out, &report))?;
    }
    Ok(verdict(&report))
}

/// Version and commit.
fn build() -> String {
    format!("kapok {} {}", env!("CARGO_PKG_VERSION"), env!("KAPOK_COMMIT")).trim().to_owned()
}

fn configure(options: &LoadOptions, addr: SocketAddr, stop: Stop) -> LoadConfig {
    LoadConfig {
        connections: options.connections,
        active: options.active,
        size_bytes: options.size,
        body_bytes: options.body,
        pipeline: options.pipeline,
        rate: options.rate,
        churn: options.churn,
        warmup: options.warmup,
        duration: options.seconds,
        timeout: options.timeout,
        threads: options.threads,
        stop: Some(stop),
        ..LoadConfig::new(addr, options.protocol)
    }
}

/// Reaches who joins the generators, which may not be there yet, nor its name.
fn connect(whose: &str, limit: Duration, config: &LoadConfig) -> io::Result<TcpStream> {
    let give_up = Instant::now() + limit;
    loop {
        match whose.to_socket_addrs().and_then(reach) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) if Instant::now() >= give_up => {
                return Err(io::Error::other(format!(
                    "--part-of {whose}: {error}, for {limit:?} (--wait gives it longer)"
                )));
            }
            Err(_) => thread::sleep(AGAIN.min(limit)),
        }
        if config.stop.as_ref().is_some_and(Stop::requested) {
            return Err(io::Error::other(format!("stopped before {whose} was reached")));
        }
    }
}

/// Connects to the first of these that accepts: a name may have addresses of several kinds.
fn reach(addrs: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut refusal = io::Error::other("the name has no address");
    for addr in addrs {
        match TcpStream::connect_timeout(&addr, Duration::from_secs(5)) {
            Ok(stream) => return Ok(stream),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

/// 1 if anything that came back was wrong, or nothing came.
fn verdict(report: &LoadReport) -> ExitCode {
    let sound =
        report.errors.total() == 0 && report.served == report.connections && report.requests > 0;
    ExitCode::from(u8::from(!sound))
}

/// Writes the JSON, if there is any, and else what `print` prints.
fn write(
    json: Option<String>,
    print: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>,
) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = match json {
        Some(json) => writeln!(stdout, "{json}"),
        None => print(&mut stdout),
    };
    match written.and_then(|()| stdout.flush()) {
        // The reader has seen enough. What became of the load is still told by the exit status.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// A line that says what is going on; invisible where standard error is no terminal.
fn progress_bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}

fn describe(config: &LoadConfig, progress: Progress) -> String {
    let what = match progress.phase {
        Phase::Connecting => format!("connecting: {} of {}", progress.served, config.connections),
        Phase::WarmUp | Phase::Settling => "warming up".to_owned(),
        Phase::Measuring => format!("measuring: {} replies", progress.requests),
        Phase::Draining => "awaiting the last replies".to_owned(),
    };
    format!("{:.1} s · {what} · {} errors", progress.elapsed.as_secs_f64(), progress.errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn every_address_of_a_name_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        // The same port of an address at which nobody listens.
        let closed = SocketAddr::from(([127, 0, 0, 2], open.port()));
        assert!(reach([closed, open].into_iter()).is_ok());
        let refused = reach([closed].into_iter()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(reach([].into_iter()).unwrap_err().to_string().contains("no address"));
    }
}
