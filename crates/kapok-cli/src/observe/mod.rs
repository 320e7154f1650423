//! `kapok observe`: a live view of what a process does, and a summary of it at the end.

mod trace;
mod view;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use console::Term;
use kapok_lab::Stop;
use kapok_lab::meters::{Depth, process_of};
use kapok_lab::observe::{Observer, Report, Sample, Started};

use crate::cli::ObserveOptions;
use crate::serve::stop_on_signals;

/// How soon a signal or the end of the process is noticed.
const SOON: Duration = Duration::from_millis(50);

/// Watches until the time is over, a signal comes or the process has ended, and prints.
pub(crate) fn run(options: &ObserveOptions) -> io::Result<ExitCode> {
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    if options.every.is_zero() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "--every must be longer than nothing",
        ));
    }
    if options.trace {
        return trace::run(options, &stop);
    }
    let (started, (mut observer, first)) = begin(options, |pid| {
        let depth = if options.detail { Depth::Everything } else { Depth::Counts };
        let mut observer = Observer::of(pid, depth)?;
        // A program that is started for it has done nothing yet.
        let first = observer.sample()?;
        Ok((observer, first))
    })?;
    let watched = watch(options, &stop, &mut observer, &first, started.as_ref());
    let ended = finish(options, started)?;
    let last = watched?;
    let report = observer.report(&first, &last);
    let mut stdout = io::stdout().lock();
    if options.json {
        writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
    } else {
        let colours = io::stdout().is_terminal() && crate::cli::colours_allowed();
        for line in view::summary(&report, colours) {
            writeln!(stdout, "{line}")?;
        }
        if let Some(ended) = ended {
            writeln!(stdout, "the program has ended: {ended}")?;
        }
    }
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// What is watched: a process that runs, or a program that is started for it.
fn begin<T>(
    options: &ObserveOptions,
    watch: impl FnOnce(u32) -> io::Result<T>,
) -> io::Result<(Option<Started>, T)> {
    match (options.pid, &options.program[..]) {
        (Some(pid), _) => {
            let process = process_of(pid).unwrap_or(pid);
            if process != pid {
                eprintln!(
                    "kapok: {pid} is a thread of process {process}, all of which is observed"
                );
            }
            Ok((None, watch(process)?))
        }
        (None, [program, arguments @ ..]) => {
            let (started, watched) = Started::new(program, arguments, watch)?;
            Ok((Some(started), watched))
        }
        (None, []) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "give the number of a process, or -- and a program",
        )),
    }
}

/// Ends the program that was started, if that was asked for; how it has ended, if it has.
fn finish(options: &ObserveOptions, started: Option<Started>) -> io::Result<Option<String>> {
    let Some(mut started) = started else { return Ok(None) };
    let ended = if options.end { Some(started.end()?) } else { started.ended()? };
    Ok(ended.map(|status| status.to_string()))
}

/// The sample at the end.
fn watch(
    options: &ObserveOptions,
    stop: &Stop,
    observer: &mut Observer,
    first: &Sample,
    started: Option<&Started>,
) -> io::Result<Sample> {
    let mut last = first.clone();
    let begun = Instant::now();
    let mut screen = Screen::new(!options.json);
    let mut next = begun + options.every;
    loop {
        thread::sleep(SOON.min(options.every));
        let is_over =
            stop.requested() || options.seconds.is_some_and(|seconds| begun.elapsed() >= seconds);
        let has_ended = started.map_or(Ok(false), Started::has_ended)?;
        if !is_over && !has_ended && Instant::now() < next {
            continue;
        }
        next += options.every;
        match observer.sample() {
            Ok(sample) => {
                if !is_over && !has_ended {
                    screen.draw(&observer.report(&last, &sample), begun.elapsed())?;
                }
                last = sample;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                screen.clear()?;
                return Ok(observer.sample_of_ended(&last));
            }
            Err(error) => return Err(error),
        }
        if is_over || has_ended {
            screen.clear()?;
            return Ok(last);
        }
    }
}

/// Where the live view goes: a place on the terminal that is drawn over and over, or, without a terminal, a
/// line each time.
struct Screen {
    term: Option<Term>,
    wanted: bool,
    lines: usize,
}

impl Screen {
    fn new(wanted: bool) -> Screen {
        let term = Term::stderr();
        Screen { term: (wanted && term.is_term()).then_some(term), wanted, lines: 0 }
    }

    fn draw(&mut self, report: &Report, since: Duration) -> io::Result<()> {
        self.clear()?;
        let Some(term) = &self.term else {
            if self.wanted {
                writeln!(io::stderr(), "{}", view::line(report, since))?;
            }
            return Ok(());
        };
        let lines = view::live(report, since);
        let (height, width) = term.size();
        // A line that wraps or scrolls could not be taken back.
        let visible = lines.iter().take(usize::from(height).saturating_sub(2));
        for line in visible {
            term.write_line(&console::truncate_str(line, usize::from(width).max(20) - 1, "…"))?;
            self.lines += 1;
        }
        term.flush()
    }

    fn clear(&mut self) -> io::Result<()> {
        if let Some(term) = &self.term {
            term.clear_last_lines(self.lines)?;
        }
        self.lines = 0;
        Ok(())
    }
}
