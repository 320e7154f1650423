//! Whether `kapok advise` is right: over many workloads, what it advises beside what a longer,
//! independent measurement of all candidates finds.
//!
//! `cargo run --release -p kapok-lab --example advice -- target/release/kapok [--seconds 80]
//! [--results advice.jsonl] [--only NAME] [--table]`
//!
//! Each workload of `workloads.jsonl`, beside this file, takes `--seconds`: half for the advice, about as
//! long as `kapok advise` measures the workload itself, and half for the measurement that it is judged by,
//! of every candidate first and then of the best. If another than the advised model comes out first, the two
//! are held against each other once more, alone, for a third of `--seconds` on top: the best of several is
//! partly the luckiest. Its result is appended to `--results` as it ends, and what is there already is not
//! measured again, so that the whole can be stopped and continued. At the end, or at once with `--table`, it
//! prints a Markdown table of all results, and the misses.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kapok_lab::advise::{self, AdviseConfig, Objective, Observed, Outcome, Question};
use serde::{Deserialize, Serialize};

const WORKLOADS: &str = include_str!("workloads.jsonl");

/// The part of a workload's time that the advice has: as long as the command measures the workload itself.
const ADVICE: f64 = 0.5;

/// What holding two models against each other takes, relative to a workload's time.
const ONCE_MORE: f64 = 1.0 / 3.0;

/// One of the grid.
#[derive(Debug, Deserialize)]
struct Workload {
    name: String,
    question: Question,
}

/// How the advice for one fared.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// What the measurement of several said of it that found another to be the best; then the rest is what the
    /// two came to alone.
    #[serde(default)]
    among_several: Option<f64>,
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
        seconds: 80.0,
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
    let mut all: Vec<Judged> = Vec::new();
    for line in BufReader::new(file).lines() {
        match serde_json::from_str::<Judged>(&line?) {
            Ok(judged) => {
                // The last one counts.
                all.retain(|earlier| earlier.name != judged.name);
                all.push(judged);
            }
            Err(error) => eprintln!("{}: a line is left out: {error}", path.display()),
        }
    }
    Ok(all)
}

fn config(arguments: &Arguments, question: &Question, share: f64) -> AdviseConfig {
    AdviseConfig {
        program: arguments.program.clone(),
        build: String::new(),
        versions: Vec::new(),
        question: question.clone(),
        time: Duration::from_secs_f64(arguments.seconds * share),
        cross_over: false,
        stop: None,
    }
}

fn judge(arguments: &Arguments, workload: &Workload) -> io::Result<Judged> {
    let Workload { name, question } = workload;
    let config = |share: f64| config(arguments, question, share);
    let nothing = |what: &str| io::Error::other(format!("{name}: {what}"));
    let advice = advise::run(&config(ADVICE), &mut |_, _| {})?;
    let decision = advice.decision.ok_or_else(|| nothing("no model was advised"))?;
    let survey = advise::survey(&config(1.0 - ADVICE), &decision.model, &mut |_, _| {})?;
    let (outcome, best, ratio) = Outcome::of(&decision.model, &survey.best, question.objective)
        .ok_or_else(|| nothing("the advised model was not measured again"))?;
    let margin = decision
        .next()
        .map(|next| format!("{} {:.2} {}", next.model, next.ratio.estimate, next.ratio.verdict));
    Ok(Judged {
        name: name.clone(),
        objective: question.objective,
        describes: question.describe(),
        seconds: arguments.seconds,
        candidates: survey.everybody.len(),
        advised: decision.model,
        fastest: decision.fastest,
        margin,
        outcome,
        best,
        behind: ratio.map_or(1.0, |ratio| ratio.estimate),
        interval: ratio.and_then(|ratio| ratio.interval),
        rounds: most_rounds(&survey.best),
        among_several: None,
    })
}

fn most_rounds(observed: &[Observed]) -> usize {
    observed.iter().map(|one| one.samples.len()).max().unwrap_or(0)
}

/// Whether the two were not held against each other yet.
fn is_open(judged: &Judged) -> bool {
    judged.advised != judged.best && judged.among_several.is_none()
}

/// Holds the advised model and the best of several against each other alone. Which is better may turn round.
fn once_more(arguments: &Arguments, question: &Question, judged: Judged) -> io::Result<Judged> {
    let config = config(arguments, question, ONCE_MORE);
    let two = advise::again(&config, &[&judged.advised, &judged.best], &mut |_, _| {})?;
    let (outcome, best, ratio) = Outcome::of(&judged.advised, &two, question.objective)
        .ok_or_else(|| io::Error::other(format!("{}: nothing was measured", judged.name)))?;
    Ok(Judged {
        outcome,
        best,
        among_several: Some(judged.behind),
        behind: ratio.map_or(1.0, |ratio| ratio.estimate),
        interval: ratio.and_then(|ratio| ratio.interval),
        rounds: most_rounds(&two),
        ..judged
    })
}

/// Appends a result, on a line of its own, even after one that was cut off.
fn keep(results: &mut File, judged: &Judged) -> io::Result<()> {
    writeln!(results, "{}", serde_json::to_string(judged)?)?;
    results.flush()
}

/// The results, and what they come to.
fn report(all: &[Judged], wanted: usize) -> String {
    let mut text =
        "| workload | advised | next, as advised | best of all candidates | behind it | |\n\
                    |---|---|---|---|--:|---|\n"
            .to_owned();
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
        text += &format!(
            "| {} | {} | {} | {} of {} | {:+.1} %{interval} | {outcome} |\n",
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
    text += &format!(
        "\n{right} of {} right ({:.1} %): best {}, indistinguishable from the best {}, within 5 % {}.\n",
        all.len(),
        right as f64 * 100.0 / all.len().max(1) as f64,
        count(Outcome::Best),
        count(Outcome::Indistinguishable),
        count(Outcome::Within)
    );
    for objective in Objective::ALL {
        let of: Vec<&Judged> = all.iter().filter(|one| one.objective == objective).collect();
        let right = of.iter().filter(|one| one.outcome.is_right()).count();
        text += &format!("- {objective}: {right} of {}\n", of.len());
    }
    if !misses.is_empty() {
        text += "\nMisses:\n\n";
    }
    for miss in misses {
        text += &format!(
            "- {} ({}): {} was advised, {} costs {:.1} % less\n",
            miss.name,
            miss.describes,
            miss.advised,
            miss.best,
            (1.0 - 1.0 / miss.behind) * 100.0
        );
    }
    if all.len() < wanted {
        text += &format!("\n{} of {wanted} workloads are left to measure.\n", wanted - all.len());
    }
    text
}

/// In the order of the workloads.
fn sort(all: &mut [Judged], workloads: &[Workload]) {
    let place = |one: &Judged| workloads.iter().position(|workload| workload.name == one.name);
    all.sort_by_key(place);
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
            let known = all.iter().position(|one| one.name == workload.name);
            if !wanted || known.is_some_and(|known| !is_open(&all[known])) {
                continue;
            }
            // What is known is kept, also if what is still to be measured fails.
            let judged = match known {
                Some(known) => Ok(all.remove(known)),
                None => judge(&arguments, workload),
            };
            let outcome = judged.and_then(|judged| {
                if known.is_none() {
                    keep(&mut results, &judged)?;
                }
                all.push(judged.clone());
                if is_open(&judged) {
                    let judged = once_more(&arguments, &workload.question, judged)?;
                    keep(&mut results, &judged)?;
                    all.pop();
                    all.push(judged);
                }
                Ok(())
            });
            match (outcome, all.last()) {
                (Ok(()), Some(judged)) => eprintln!(
                    "{:>2} of {}  {:<28} {} · {:?}, best {} ({:+.1} %)",
                    place + 1,
                    workloads.len(),
                    judged.name,
                    judged.advised,
                    judged.outcome,
                    judged.best,
                    (judged.behind - 1.0) * 100.0
                ),
                (Err(error), _) => {
                    eprintln!("{:>2} of {}  {error}", place + 1, workloads.len());
                    failed.push(error.to_string());
                }
                (Ok(()), None) => {}
            }
        }
    }
    sort(&mut all, &workloads);
    print!("{}", report(&all, workloads.len()));
    match failed.into_iter().next() {
        Some(error) => Err(io::Error::other(error)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was measured last of each workload.
    fn kept() -> Vec<Judged> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/advice/results.jsonl");
        let mut all = read(&beside).unwrap();
        sort(&mut all, &workloads().unwrap());
        all
    }

    #[test]
    fn at_least_forty_workloads_were_judged_and_nine_of_ten_advices_were_right() {
        let all = kept();
        let names: HashSet<String> = workloads().unwrap().into_iter().map(|one| one.name).collect();
        assert!(names.len() >= 40, "{} workloads", names.len());
        let judged: HashSet<String> = all.iter().map(|one| one.name.clone()).collect();
        assert_eq!(judged, names);
        let right = all.iter().filter(|one| one.outcome.is_right()).count();
        assert!(right * 10 >= all.len() * 9, "{right} of {}", all.len());
        assert!(!all.iter().any(is_open), "a best of several was not measured beside the advised");
    }

    #[test]
    fn outcomes_are_those_of_the_figures_beside_them() {
        for one in kept() {
            let name = &one.name;
            match one.outcome {
                Outcome::Best => assert!(one.advised == one.best && one.behind == 1.0, "{name}"),
                Outcome::Indistinguishable => {
                    let (low, _) = one.interval.unwrap();
                    assert!(low <= 1.0 && one.behind <= 1.05, "{name}: {} {low}", one.behind);
                }
                Outcome::Within => assert!(one.behind <= 1.05, "{name}: {}", one.behind),
                Outcome::Miss => assert!(one.behind > 1.05, "{name}: {}", one.behind),
            }
        }
    }

    #[test]
    fn the_design_document_has_them_all() {
        let all = kept();
        let page = include_str!("../../../../docs/design/advise.md");
        assert!(page.contains(&report(&all, all.len())), "--table prints what belongs there");
    }
}
