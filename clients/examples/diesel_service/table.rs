//! What was measured, as tables in Markdown.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use clap::ValueEnum;

use crate::Model;
use crate::process::Memory;
use crate::wrk::Seen;

/// One model in one round.
pub(crate) struct Measured {
    pub(crate) seen: Seen,
    /// CPU time: of the service, and of PostgreSQL.
    pub(crate) used: Duration,
    pub(crate) used_by_database: Duration,
    /// With all connections open, each after one request.
    pub(crate) memory: Memory,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.seen.requests as f64 / self.seen.duration.as_secs_f64()
    }

    /// The part of a time that falls to a request, in microseconds; not finite if there were none.
    fn each(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.seen.requests as f64
    }

    fn service(&self) -> f64 {
        self.each(self.used)
    }

    fn all(&self) -> f64 {
        self.each(self.used + self.used_by_database)
    }

    fn proportional(&self) -> f64 {
        self.memory.proportional as f64
    }
}

/// A figure, or a dash for one that there is not.
fn figure(value: f64, digits: usize, unit: &str) -> String {
    if value.is_finite() { format!("{value:.digits$}{unit}") } else { "–".to_owned() }
}

/// What is asked for on how many connections: rounds, in which each model has its turn.
pub(crate) struct Cell {
    pub(crate) kind: String,
    pub(crate) connections: usize,
    pub(crate) rounds: Vec<Vec<Measured>>,
}

pub(crate) struct Table<'a> {
    models: &'a [Model],
    seconds: u64,
    rounds: usize,
    pool: usize,
    cells: Vec<Cell>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(models: &'a [Model], seconds: u64, rounds: usize, pool: usize) -> Table<'a> {
        Table { models, seconds, rounds, pool, cells: Vec::new() }
    }

    pub(crate) fn add(&mut self, cell: Cell) {
        self.cells.push(cell);
    }

    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        writeln!(
            out,
            "{}; {} s a measurement, {} rounds in turns; {} connections to the database.\n",
            machine(),
            self.seconds,
            self.rounds,
            self.pool
        )
        .unwrap();
        out.push_str(
            "| request | connections | model | requests/s | p50 | p99 | CPU/request, service | \
             CPU/request, PostgreSQL | RSS | PSS | errors |\n\
             |---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        for cell in &self.cells {
            for (at, &model) in self.models.iter().enumerate() {
                row(&mut out, cell, model, median_round(cell, at));
            }
        }
        self.ratios(&mut out);
        self.shares(&mut out);
        out
    }

    fn index(&self, model: Model) -> Option<usize> {
        self.models.iter().position(|&one| one == model)
    }

    /// A model against another of the same round, with the extremes of the rounds.
    fn ratios(&self, out: &mut String) {
        let pairs = [
            (Model::Fibers1, Model::Threads),
            (Model::Fibers2, Model::Threads),
            (Model::Fibers1, Model::Tokio1),
            (Model::Fibers2, Model::Tokio2),
        ];
        let pairs: Vec<_> = pairs
            .into_iter()
            .filter_map(|(one, other)| Some((one, other, self.index(one)?, self.index(other)?)))
            .collect();
        if pairs.is_empty() {
            return;
        }
        out.push_str(
            "\nOne model's figure by another's in the same round: the median, and the extremes of all \
             rounds.\n\n\
             | request | connections | ratio | requests/s | CPU/request, service | CPU/request, all | \
             PSS |\n|---|---:|---|---:|---:|---:|---:|\n",
        );
        for cell in &self.cells {
            for &(one, other, this, that) in &pairs {
                let ratio = |of: fn(&Measured) -> f64| {
                    let mut all: Vec<f64> = cell
                        .rounds
                        .iter()
                        .map(|round| of(&round[this]) / of(&round[that]))
                        .collect();
                    if all.iter().any(|ratio| !ratio.is_finite()) {
                        return "–".to_owned();
                    }
                    all.sort_by(f64::total_cmp);
                    let last = all.len() - 1;
                    format!("{:.2} [{:.2} {:.2}]", all[last / 2], all[0], all[last])
                };
                writeln!(
                    out,
                    "| {} | {} | {} / {} | {} | {} | {} | {} |",
                    cell.kind,
                    cell.connections,
                    name(one),
                    name(other),
                    ratio(Measured::rate),
                    ratio(Measured::service),
                    ratio(Measured::all),
                    ratio(Measured::proportional),
                )
                .unwrap();
            }
        }
    }

    /// What the ORM and its driver add to a request: with the database, less a request without.
    fn shares(&self, out: &mut String) {
        let Some(none) = self.cells.iter().find(|cell| cell.kind == "none") else { return };
        let others: Vec<_> = self
            .cells
            .iter()
            .filter(|cell| cell.kind != "none" && cell.connections == none.connections)
            .collect();
        if others.is_empty() {
            return;
        }
        writeln!(
            out,
            "\nThe service's CPU time of a request on {} connections: without the database, and what \
             Diesel, its driver, the pool and the waiting add.\n",
            none.connections
        )
        .unwrap();
        let kinds: Vec<&str> = others.iter().map(|cell| cell.kind.as_str()).collect();
        writeln!(out, "| model | none | + {} |", kinds.join(" | + ")).unwrap();
        writeln!(out, "|---|---:|{}", "---:|".repeat(kinds.len())).unwrap();
        for (at, &model) in self.models.iter().enumerate() {
            let base = median_round(none, at).service();
            let added: Vec<String> = others
                .iter()
                .map(|cell| {
                    let more = median_round(cell, at).service() - base;
                    let share = more / (more + base) * 100.0;
                    format!("{}, {}", figure(more, 0, " µs"), figure(share, 0, " %"))
                })
                .collect();
            writeln!(
                out,
                "| {} | {} | {} |",
                name(model),
                figure(base, 0, " µs"),
                added.join(" | ")
            )
            .unwrap();
        }
    }
}

/// The round of a model's median throughput.
fn median_round(cell: &Cell, model: usize) -> &Measured {
    let mut all: Vec<&Measured> = cell.rounds.iter().map(|round| &round[model]).collect();
    all.sort_by(|one, other| one.rate().total_cmp(&other.rate()));
    all[all.len() / 2]
}

fn row(out: &mut String, cell: &Cell, model: Model, measured: &Measured) {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let mebibytes = |bytes: fn(&Memory) -> u64| {
        figure(bytes(&measured.memory) as f64 / f64::from(1 << 20), 1, " MiB")
    };
    writeln!(
        out,
        "| {} | {} | {} | {:.0} | {:.2} ms | {:.2} ms | {} | {} | {} | {} | {} |",
        cell.kind,
        cell.connections,
        name(model),
        measured.rate(),
        milliseconds(measured.seen.median),
        milliseconds(measured.seen.percentile_99),
        figure(measured.service(), 0, " µs"),
        figure(measured.each(measured.used_by_database), 0, " µs"),
        mebibytes(|memory| memory.resident),
        mebibytes(|memory| memory.proportional),
        measured.seen.wrong + measured.seen.broken,
    )
    .unwrap();
}

fn name(model: Model) -> String {
    model.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

/// What it was measured on.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("a processor without a name", |(_, name)| name)
        .to_owned();
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} × {model}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}
