//! Whether `kapok advise` is right: over many workloads, what it advises beside what a longer,
//! independent measurement of all candidates finds.
//!
//! `cargo run --release -p kapok-lab --example advice -- target/release/kapok [--seconds 34]
//! [--results advice.jsonl] [--only NAME] [--table]`
//!
//! Each workload of `workloads.jsonl`, beside this file, takes `--seconds`: a third for the advice, the
//! rest for the measurement that it is judged by. Its result is appended to `--results` as it ends, and
//! what is there already is not measured again, so that the whole can be stopped and continued. At the
//! end, or at once with `--table`, it prints a Markdown table of all results, and the misses.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kapok_lab::advise::{self, AdviseConfig, Objective, Outcome, Question};
use serde::{Deserialize, Serialize};

const WORKLOADS: &str = include_str!("workloads.jsonl");

/// The part of a workload's time that the advice has.
const ADVICE: f64 = 0.35;

/// One of the grid.
#[derive(Debug, Deserialize)]
struct Workload {
    name: String,
    question: Question,
}

/// How the advice for one fared.
#[derive(Debug, Serialize, Deserialize)]
struct Judged {
    name: String,
    objective: Objective,
    describes: String,
    seconds: f64,
    candidates: usize,
    advised: String,
    fastest: String,
    /// Rounds and the ratio of the next model, as advised.
    margin: Option<String>,
    outcome: Outcome,
    best: String,
    /// The advised model's cost over the best one's.
    behind: f64,
    interval: Option<(f64, f64)>,
    rounds: usize,
}

struct Arguments {
    program: PathBuf,
    seconds: f64,
    results: PathBuf,
    only: Option<String>,
    table: bool,
}

fn arguments() -> io::Result<Arguments> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    let mut given = std::env::args().skip(1);
    let mut program = None;
    let mut arguments = Arguments {
        program: PathBuf::new(),
        seconds: 34.0,
        results: PathBuf::from("advice.jsonl"),
        only: None,
        table: false,
    };
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or_else(|| wrong(format!("{argument} needs a value")));
        match argument.as_str() {
            "--seconds" => {
                let text = value()?;
                let seconds = text.parse().ok().filter(|seconds| (1.0..=3600.0).contains(seconds));
                arguments.seconds =
                    seconds.ok_or_else(|| wrong(format!("--seconds {text}: from 1 to 3600")))?;
            }
            "--results" => arguments.results = value()?.into(),
            "--only" => arguments.only = Some(value()?),
            "--table" => arguments.table = true,
            _ if program.is_none() && !argument.starts_with('-') => program = Some(argument.into()),
            _ => return Err(wrong(format!("{argument}: not known"))),
        }
    }
    arguments.program = match program {
        Some(program) => program,
        None if arguments.table => PathBuf::new(),
        None => return Err(wrong("usage: advice KAPOK [--seconds S] [--results F]".to_owned())),
    };
    Ok(arguments)
}

fn workloads() -> io::Result<Vec<Workload>> {
    WORKLOADS
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            serde_json::from_str(line).map_err(|error| io::Error::other(format!("{line}: {error}")))
        })
        .collect()
}

/// What was judged before. A line that was cut off when it was being written counts for nothing.
fn read(path: &Path) -> io::Result<Vec<Judged>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut all = Vec::new();
    for line in BufReader::new(file).lines() {
        match serde_json::from_str(&line?) {
            Ok(judged) => all.push(judged),
            Err(error) => eprintln!("{}: a line is left out: {error}", path.display()),
        }
    }
    Ok(all)
}

fn judge(arguments: &Arguments, workload: &Workload) -> io::Result<Judged> {
    let Workload { name, question } = workload;
    let config = |share: f64| AdviseConfig {
        program: arguments.program.clone(),
        build: String::new(),
        versions: Vec::new(),
        question: question.clone(),
        time: Duration::from_secs_f64(arguments.seconds * share),
        cross_over: false,
        stop: None,
    };
    let nothing = |what: &str| io::Error::other(format!("{name}: {what}"));
    let advice = advise::run(&config(ADVICE), &mut |_, _| {})?;
    let decision = advice.decision.ok_or_else(|| nothing("no model was advised"))?;
    let mut all = advise::survey(&config(1.0 - ADVICE), &mut |_, _| {})?;
    // What the question excludes by what was used is no better answer.
    let limit = question.memory_limit_bytes.map_or(f64::INFINITY, |bytes| bytes as f64);
    all.retain(|one| one.cost(Objective::Memory).is_none_or(|used| used <= limit));
    let (outcome, best, ratio) = Outcome::of(&decision.model, &all, question.objective)
        .ok_or_else(|| nothing("the advised model was not measured again"))?;
    let margin = decision
        .next()
        .map(|next| format!("{} {:.2} {}", next.model, next.ratio.estimate, next.ratio.verdict));
    Ok(Judged {
        name: name.clone(),
        objective: question.objective,
        describes: question.describe(),
        seconds: arguments.seconds,
        candidates: all.iter().filter(|one| !one.samples.is_empty()).count(),
        advised: decision.model,
        fastest: decision.fastest,
        margin,
        outcome,
        best,
        behind: ratio.map_or(1.0, |ratio| ratio.estimate),
        interval: ratio.and_then(|ratio| ratio.interval),
        rounds: all.iter().map(|one| one.samples.len()).max().unwrap_or(0),
    })
}

fn print(all: &[Judged], wanted: usize) {
    println!("| workload | advised | next, as advised | best of all candidates | behind it | |");
    println!("|---|---|---|---|--:|---|");
    for one in all {
        let interval = one.interval.map_or_else(String::new, |(low, high)| {
            format!(" [{:+.0}, {:+.0}]", (low - 1.0) * 100.0, (high - 1.0) * 100.0)
        });
        let outcome = match one.outcome {
            Outcome::Best => "best",
            Outcome::Indistinguishable => "indistinguishable",
            Outcome::Within => "within 5 %",
            Outcome::Miss => "**miss**",
        };
        println!(
            "| {} | {} | {} | {} of {} | {:+.1} %{interval} | {outcome} |",
            one.describes,
            one.advised,
            one.margin.as_deref().unwrap_or("–"),
            one.best,
            one.candidates,
            (one.behind - 1.0) * 100.0,
        );
    }
    let count = |outcome| all.iter().filter(|one| one.outcome == outcome).count();
    let misses: Vec<&Judged> = all.iter().filter(|one| !one.outcome.is_right()).collect();
    let right = all.len() - misses.len();
    println!(
        "\n{right} of {} right ({:.0} %): best {}, indistinguishable from the best {}, within 5 % {}.",
        all.len(),
        right as f64 * 100.0 / all.len().max(1) as f64,
        count(Outcome::Best),
        count(Outcome::Indistinguishable),
        count(Outcome::Within)
    );
    for objective in Objective::ALL {
        let of: Vec<&Judged> = all.iter().filter(|one| one.objective == objective).collect();
        let right = of.iter().filter(|one| one.outcome.is_right()).count();
        println!("- {objective}: {right} of {}", of.len());
    }
    if !misses.is_empty() {
        println!("\nMisses:\n");
    }
    for miss in misses {
        println!(
            "- {} ({}): {} was advised, {} costs {:.1} % less",
            miss.name,
            miss.describes,
            miss.advised,
            miss.best,
            (1.0 - 1.0 / miss.behind) * 100.0
        );
    }
    if all.len() < wanted {
        println!("\n{} of {wanted} workloads are left to measure.", wanted - all.len());
    }
}

fn main() -> io::Result<()> {
    let arguments = arguments()?;
    let workloads = workloads()?;
    let names: HashSet<&str> = workloads.iter().map(|one| one.name.as_str()).collect();
    if names.len() != workloads.len() {
        return Err(io::Error::other("two workloads have the same name"));
    }
    let mut all = read(&arguments.results)?;
    all.retain(|one| names.contains(one.name.as_str()));
    let mut failed = Vec::new();
    if !arguments.table {
        let mut results = OpenOptions::new().create(true).append(true).open(&arguments.results)?;
        for (place, workload) in workloads.iter().enumerate() {
            let wanted = arguments.only.as_ref().is_none_or(|only| *only == workload.name);
            if !wanted || all.iter().any(|one| one.name == workload.name) {
                continue;
            }
            match judge(&arguments, workload) {
                Ok(judged) => {
                    eprintln!(
                        "{:>2} of {}  {:<28} {} · {:?}, best {} ({:+.1} %)",
                        place + 1,
                        workloads.len(),
                        judged.name,
                        judged.advised,
                        judged.outcome,
                        judged.best,
                        (judged.behind - 1.0) * 100.0
                    );
                    // On a line of its own, even after one that was cut off.
                    writeln!(results, "{}", serde_json::to_string(&judged)?)?;
                    results.flush()?;
                    all.push(judged);
                }
                Err(error) => {
                    eprintln!("{:>2} of {}  {error}", place + 1, workloads.len());
                    failed.push(error.to_string());
                }
            }
        }
    }
    let place = |one: &Judged| workloads.iter().position(|workload| workload.name == one.name);
    all.sort_by_key(place);
    print(&all, workloads.len());
    match failed.into_iter().next() {
        Some(error) => Err(io::Error::other(error)),
        None => Ok(()),
    }
}
