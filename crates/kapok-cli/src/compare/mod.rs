//! `kapok compare` and `kapok report`: what is asked for, and where the results go.

mod output;
mod print;
mod view;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use kapok_lab::compare::{
    self, Beside, Changes, CompareConfig, Comparison, Contender, Metric, Point, Rounds,
};
use kapok_lab::{Model, Protocol, Stop, report};

use crate::cli::{CompareOptions, ReportOptions};
use crate::serve::stop_on_signals;
use output::Output;
use view::View;

/// The quick profile ends by then, on machines where its rounds do not fit as well.
const QUICK_LIMIT: Duration = Duration::from_secs(84);

/// Connections registered, and active among them, where what they cost is asked for. Half a decade apart or
/// less: select, which ends at a thousand, needs points enough for a line as well.
const REGISTERED: [usize; 7] = [10, 100, 300, 600, 1_000, 3_000, 10_000];
const ACTIVE: usize = 10;

/// More rounds than this are not taken on account of an older result that has few.
const MOST_AGAINST: usize = 200;

/// Compares and prints; fails when no model could be measured, one has become worse, or it cannot be told.
pub(crate) fn run(options: &CompareOptions) -> io::Result<ExitCode> {
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    // Before minutes of measuring, not after them; and before any file is touched.
    let against = options.against.as_deref().map(report::read).transpose()?;
    let mut config = configure(options, stop)?;
    config.check()?;
    if let Some(old) = &against {
        suffice_against(&mut config, old, options.rounds.is_some())?;
    }
    let mut json = Output::open(options.json.as_deref(), "--json")?;
    let mut csv = Output::open(options.csv.as_deref(), "--csv")?;
    let mut hdr = Output::open(options.hdr.as_deref(), "--hdr")?;
    let (mut page, page_path) = page_file(options)?;
    let view = View::new();
    let compared = compare::run(&config, &mut |step| view.show(step));
    view.clear();
    let comparison = compared?;
    let something =
        comparison.tables.iter().any(|table| table.rows.iter().any(|row| !row.measured.is_empty()));

    // With nothing measured there is nothing to replace older results by.
    let wanted = |output: &Output| something || !output.replaces();
    if let Some(mut file) = json.take_if(|file| wanted(file)) {
        serde_json::to_writer_pretty(&mut file, &comparison)?;
        writeln!(file)?;
        file.finish()?;
    }
    if let Some(mut file) = csv.take_if(|file| wanted(file)) {
        report::write_csv(&mut file, &comparison)?;
        file.finish()?;
    }
    if let Some(mut file) = hdr.take_if(|file| wanted(file)) {
        report::write_hdr_log(&mut file, &comparison)?;
        file.finish()?;
    }
    let paged = wanted(&page);
    if paged {
        page.write_all(report::page(&comparison).as_bytes())?;
        page.finish()?;
    }
    let changes = against.map(|old| Changes::between(&old, &comparison));
    if [&options.json, &options.csv, &options.hdr]
        .into_iter()
        .flatten()
        .all(|path| !is_stdout(path))
    {
        let mut stdout = io::stdout().lock();
        print::print(&mut stdout, &comparison)?;
        if let Some(changes) = &changes {
            print_changes(&mut stdout, changes)?;
        }
        if paged {
            writeln!(stdout, "\nThe page with charts: {}", page_path.display())?;
        }
        stdout.flush()?;
    }
    let passed = changes.is_none_or(|changes| changes.passed());
    Ok(ExitCode::from(if something && !comparison.stopped_early && passed { 0 } else { 1 }))
}

/// Sees to it that the rounds can show a change against an older result: they are as many as it takes
/// where no number was asked for.
fn suffice_against(config: &mut CompareConfig, old: &Comparison, asked: bool) -> io::Result<()> {
    let most = if asked { config.rounds.cap().max(MOST_AGAINST) } else { MOST_AGAINST };
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let Some(enough) = Rounds::against(old, config, most) else {
        return refused(format!(
            "--against: the older result has too few rounds: {most} rounds now could not show any change; \
             measure it again with more"
        ));
    };
    if enough > config.rounds.cap() && asked {
        return refused(format!(
            "--rounds {}: too few to find any change against the older result: {enough} would do",
            config.rounds.cap()
        ));
    }
    match &mut config.rounds {
        Rounds::Fixed(rounds) if enough > *rounds => {
            *rounds = enough;
            // The quick profile's limit would end them early.
            config.time_limit = None;
        }
        Rounds::Fixed(_) => {}
        Rounds::Until { least, cap, .. } => {
            *least = enough.max(*least);
            *cap = (*least).max(*cap);
        }
    }
    Ok(())
}

/// Reads comparisons that were made before: prints one, or what changed from the first to the second.
pub(crate) fn report(options: &ReportOptions) -> io::Result<ExitCode> {
    let first = report::read(&options.first)?;
    let second = options.second.as_deref().map(report::read).transpose()?;
    let newest = second.as_ref().unwrap_or(&first);
    if let Some(path) = &options.html {
        let mut page = Output::open(Some(path), "--html")?.expect("a path was given");
        page.write_all(report::page(newest).as_bytes())?;
        page.finish()?;
    }
    let changes = second.as_ref().map(|second| Changes::between(&first, second));
    let mut stdout = io::stdout().lock();
    match (&changes, options.json) {
        (Some(changes), true) => writeln!(stdout, "{}", serde_json::to_string(changes)?)?,
        (None, true) => writeln!(stdout, "{}", serde_json::to_string(newest)?)?,
        (Some(changes), false) => print_changes(&mut stdout, changes)?,
        (None, false) => print::print(&mut stdout, newest)?,
    }
    stdout.flush()?;
    Ok(ExitCode::from(u8::from(changes.is_some_and(|changes| !changes.passed()))))
}

fn print_changes(out: &mut impl Write, changes: &Changes) -> io::Result<()> {
    writeln!(out, "\nAgainst the older one, relative to the baseline of each:")?;
    for change in &changes.changes {
        let metric = match change.metric {
            Metric::CpuPerRequest => "CPU per request",
            Metric::RequestsPerSecond => "requests/s",
        };
        let judged = match (change.regression, change.improvement) {
            (true, _) => "WORSE",
            (_, true) => "better",
            _ => "not told apart",
        };
        writeln!(
            out,
            "  {} · {:<14} {metric:<16} {:+.1} %  p {:.4}  {judged}",
            change.table,
            change.model,
            (change.change - 1.0) * 100.0,
            change.p
        )?;
    }
    for (said, lines) in [
        ("NOT COMPARABLE", &changes.unlike),
        ("LOST", &changes.lost),
        ("CANNOT BE TOLD", &changes.too_few),
    ] {
        for line in lines {
            writeln!(out, "  ! {said} {line}")?;
        }
    }
    for note in &changes.notes {
        writeln!(out, "  · {note}")?;
    }
    Ok(())
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The page's file: where it was asked for, or a new one in the directory for temporary files.
fn page_file(options: &CompareOptions) -> io::Result<(Output, PathBuf)> {
    let path = match &options.html {
        Some(path) => path.clone(),
        None => new_page()?,
    };
    let page = Output::open(Some(&path), "--html")?.expect("a path was given");
    Ok((page, path))
}

/// A name for the page that nothing has yet.
fn new_page() -> io::Result<PathBuf> {
    let directory = std::env::temp_dir();
    let mut names = (0..1000).map(|number| {
        directory.join(format!("kapok-compare-{}-{number}.html", std::process::id()))
    });
    // Never one that is there already, which might be a link to something else.
    names
        .find(|path| path.symlink_metadata().is_err())
        .ok_or_else(|| io::Error::other(format!("no name is free in {}", directory.display())))
}

fn configure(options: &CompareOptions, stop: Stop) -> io::Result<CompareConfig> {
    let c10k = options.c10k;
    let quick = options.seconds.is_none() && options.rounds.is_none() && !options.full && !c10k;
    let milliseconds = Duration::from_millis;
    let commit = env!("KAPOK_COMMIT");
    let points = points(options);
    let rounds = match (options.rounds, options.full) {
        (Some(rounds), false) => Rounds::Fixed(rounds),
        (cap, true) => match Rounds::FULL {
            Rounds::Until { half_width, least, cap: most } => {
                let cap = cap.unwrap_or(most);
                Rounds::Until { half_width, least: least.min(cap), cap }
            }
            fixed => fixed,
        },
        (None, false) if c10k => Rounds::Fixed(10),
        (None, false) => Rounds::Fixed(if quick { 3 } else { 5 }),
    };
    Ok(CompareConfig {
        program: std::env::current_exe()?,
        build: format!("kapok {} {commit}", env!("CARGO_PKG_VERSION")).trim().to_owned(),
        versions: env!("KAPOK_VERSIONS").split(" · ").map(str::to_owned).collect(),
        protocols: match &options.protocol[..] {
            [] if c10k => vec![Protocol::Echo],
            [] => Protocol::ALL.to_vec(),
            asked_for => asked_for.to_vec(),
        },
        contenders: contenders(options),
        baseline: options.baseline.clone(),
        time_limit: (quick && points.len() == 1).then_some(QUICK_LIMIT),
        points,
        directory: options.dir.clone(),
        body_bytes: options.body,
        pipeline: options.pipeline,
        rate: options.rate,
        threads: options.threads,
        rounds,
        warmup: milliseconds(match (quick || c10k, options.full) {
            (_, true) => 50,
            (true, false) => 100,
            (false, false) => 300,
        }),
        duration: options.seconds.unwrap_or(milliseconds(match (quick, options.full, c10k) {
            (true, ..) => 550,
            // Rounds twice as long do not scatter less: docs/design/comparing.md.
            (_, true, _) => 200,
            (.., true) => 500,
            _ => 2000,
        })),
        beside: Beside::Everything,
        costs: options.costs,
        stop: Some(stop),
    })
}

/// Every combination of what was asked for.
fn points(options: &CompareOptions) -> Vec<Point> {
    let (connections, active) = match options.c10k {
        true => (&REGISTERED[..], &[ACTIVE][..]),
        false => (&options.connections[..], &options.active[..]),
    };
    let mut points = connections.iter().map(|count| Point::new(*count)).collect();
    points = Point::across(points, active, |point, active| point.active = Some(active));
    points = Point::across(points, &options.size, |point, bytes| point.size_bytes = bytes);
    points = Point::across(points, &options.churn, |point, churn| point.churn = Some(churn));
    points = Point::across(points, &options.cpu_us, |point, cpu| point.cpu_per_request = cpu);
    points = Point::across(points, &options.delay_ms, |point, delay| point.delay = delay);
    Point::across(points, &options.network, |point, network| point.network = network)
}

/// The models that were asked for, or all if nothing was, and the servers.
fn contenders(options: &CompareOptions) -> Vec<Contender> {
    let models = if options.models.is_empty() && options.servers.is_empty() {
        &Model::ALL[..]
    } else {
        &options.models[..]
    };
    let models = models.iter().copied().map(Contender::Model);
    models.chain(options.servers.iter().cloned().map(Contender::External)).collect()
}
