//! The pool beside fio, a bare ring, threads and other runtimes, on one file.
//!
//! ```text
//! cargo build --release --manifest-path bench/Cargo.toml -p disk
//! bench/target/release/disk > tables.md
//! ```
//!
//! Each contender is a process of its own for each round; rounds are interleaved and their order
//! rotates. Ratios are taken within a round. `--record` adds the rounds of several runs up.

mod aligned;
mod cases;
mod choice;
mod contenders;
mod job;
mod markdown;
mod record;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use kapok_lab::disk::Workload;
use kapok_lab::disk::pattern::Seed;

use cases::Case;
use contenders::{ALL, BASELINE};
use job::{Figures, Job};
use record::{Record, Records};

#[global_allocator]
static ALLOCATOR: aligned::Aligned = aligned::Aligned;

/// Compares Kapok's pool of I/O threads with others on a file, and prints the tables as Markdown.
#[derive(Parser)]
#[command(after_help = "Examples:
  disk                                             everything, 5 rounds of 0.3 s: a quarter of an hour
  disk --only 'cold read' --contenders 'fio;fibers auto' --rounds 15
  disk --auto --rounds 12 --seconds 0.15 --warmup 0.04   auto beside the best fixed choice: 10 minutes
  disk --rounds 3 --record rounds.jsonl            adds three rounds to those of earlier runs
  disk --report rounds.jsonl                       the tables of what was recorded")]
struct Arguments {
    /// The directory where two files are made, on the device to be measured.
    #[arg(long, default_value = "/tmp/kapok-disk")]
    directory: PathBuf,
    /// How large they are, in MiB.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Only the cases with this in their name; may be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// The contenders, separated by semicolons; without it all. The numbers of a pool may follow its
    /// name: `futures thread/spin=0,take=8` (threads, take, spin, adaptive, completions, device, channel,
    /// balance=least|two|round|file).
    #[arg(long, value_delimiter = ';', value_name = "A;B")]
    contenders: Vec<String>,
    /// Rounds: each contender is measured once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one measured interval.
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// The same before it is measured.
    #[arg(long, default_value_t = 0.1)]
    warmup: f64,
    /// Adds what is measured to this file, and prints the tables of all that is in it.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Measures nothing, and prints the tables of this file.
    #[arg(long)]
    report: Option<PathBuf>,
    /// `auto` beside the best fixed choice, in every cell and for every caller.
    #[arg(long, conflicts_with = "contenders")]
    auto: bool,
    /// Lists the cases and the contenders.
    #[arg(long)]
    list: bool,
    /// One contender in this process; the job follows as JSON.
    #[arg(long, hide = true, num_args = 2, value_names = ["NAME", "JOB"])]
    child: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("disk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    if let [name, job] = &arguments.child[..] {
        let figures = contenders::run(name, &serde_json::from_str(job)?)?;
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    if let Some(path) = &arguments.report {
        return print(&Records::read(path)?, arguments.auto);
    }
    let cases: Vec<Case> = cases::all()
        .into_iter()
        .filter(|case| {
            arguments.only.is_empty()
                || arguments.only.iter().any(|part| case.name().contains(part))
        })
        .collect();
    if arguments.list || cases.is_empty() {
        let names: Vec<String> = cases::all().iter().map(Case::name).collect();
        println!("cases: {}\ncontenders: {}", names.join(", "), ALL.join(", "));
        return if cases.is_empty() { Err(io::Error::other("no such case")) } else { Ok(()) };
    }
    let mut chosen: Vec<&str> = arguments.contenders.iter().map(String::as_str).collect();
    if let Some(unknown) = chosen.iter().find(|name| !ALL.contains(&contenders::base(name))) {
        return Err(io::Error::other(format!("no contender {unknown}: {}", ALL.join(", "))));
    }
    if arguments.auto {
        chosen = choice::contenders();
    } else if chosen.is_empty() {
        chosen = ALL.to_vec();
    }
    if !arguments.auto && !chosen.contains(&BASELINE) {
        chosen.push(BASELINE);
    }
    let files = Files::prepare(&arguments.directory, arguments.mib << 20)?;
    let jobs: Vec<(&Case, &str)> = cases
        .iter()
        .flat_map(|case| chosen.iter().map(move |&name| (case, name)))
        .filter(|(case, name)| contenders::has(name, case.workload))
        .collect();
    let bar = ProgressBar::new((jobs.len() * arguments.rounds) as u64).with_style(
        ProgressStyle::with_template("{bar:24} {percent:>3} % · {elapsed} · {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let first = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_millis();
    let mut records = Records::default();
    for round in 0..arguments.rounds {
        for case in &cases {
            let mut names: Vec<&str> = chosen
                .iter()
                .copied()
                .filter(|name| contenders::has(name, case.workload))
                .collect();
            // Another one is first each time, and every other round goes backwards.
            let turn = round % names.len();
            names.rotate_left(turn);
            if round % 2 == 1 {
                names.reverse();
            }
            if case.workload == Workload::CachedRead {
                files.warm()?;
            }
            for name in names {
                bar.set_message(format!("{}: {name}", case.name()));
                let figures = measure(name, case, &files, arguments)?;
                bar.inc(1);
                let record = Record {
                    round: first as u64 + round as u64,
                    case: case.name(),
                    contender: name.to_owned(),
                    figures,
                };
                if let Some(path) = &arguments.record {
                    Records::append(path, &record)?;
                }
                records.0.push(record);
            }
        }
    }
    bar.finish_and_clear();
    match &arguments.record {
        Some(path) => print(&Records::read(path)?, arguments.auto),
        None => print(&records, arguments.auto),
    }
}

fn print(records: &Records, auto: bool) -> io::Result<()> {
    let rounds: std::collections::BTreeSet<u64> =
        records.0.iter().map(|record| record.round).collect();
    println!("{} rounds\n", rounds.len());
    if auto {
        println!("{}", choice::table(records));
        return Ok(());
    }
    println!("{}", markdown::tables(records));
    println!("{}", markdown::goals(records));
    Ok(())
}

/// The file that is read, which is verified, and the one that is written to.
struct Files {
    read: PathBuf,
    written: PathBuf,
    bytes: u64,
}

impl Files {
    fn prepare(directory: &Path, bytes: u64) -> io::Result<Files> {
        std::fs::create_dir_all(directory)?;
        let files =
            Files { read: directory.join("read"), written: directory.join("written"), bytes };
        for path in [&files.read, &files.written] {
            if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == bytes) {
                continue;
            }
            if path.exists() {
                std::fs::remove_file(path)?;
            }
            eprintln!("disk: making {}", path.display());
            kapok_lab::disk::make(path, bytes, Seed::new(0), |_| {})?;
        }
        Ok(files)
    }
}

impl Files {
    /// What is to be in the page cache must fit there.
    fn cached(&self) -> u64 {
        self.bytes.min(256 << 20)
    }

    fn warm(&self) -> io::Result<()> {
        let mut source = io::Read::take(std::fs::File::open(&self.read)?, self.cached());
        io::copy(&mut source, &mut io::sink()).map(drop)
    }
}

fn measure(name: &str, case: &Case, files: &Files, arguments: &Arguments) -> io::Result<Figures> {
    let file = if case.workload.writes() { &files.written } else { &files.read };
    let is_cached = case.workload == Workload::CachedRead;
    let job = Job {
        workload: case.workload.to_string(),
        file: file.clone(),
        file_bytes: if is_cached { files.cached() } else { files.bytes },
        block: case.block,
        depth: case.depth,
        seconds: arguments.seconds,
        warmup: arguments.warmup,
        tuning: name.split_once('/').map_or(String::new(), |(_, tuning)| tuning.to_owned()),
    };
    let output = Command::new(std::env::current_exe()?)
        .args(["--child", name, &serde_json::to_string(&job)?])
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("{name}, {}: {said}", case.name())));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
