//! Verdicts with a known answer, live: a server compared with itself, and with itself made slower.
//!
//! `cargo run --release -p kapok-lab --example verdicts -- target/release/kapok [COMPARISONS] [MODEL]
//! [RECORDING]`
//!
//! Each comparison has three servers of the same model: the baseline, the same again, and one that burns so
//! much CPU time for each request that it costs 5 % more. How much that is, is measured first, last with what
//! will be burnt: a loop takes longer than it did alone while the load runs on the other thread of its core,
//! a server that is slower waits less often, and what is short is computed beside something else. And one process
//! costs a little more than the next of the same program for as long as both live, which of ten pairs of them
//! cancels out. Takes five minutes, and half a minute for each comparison. What the first two cost in each round is
//! written to RECORDING, a line a round.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use kapok_lab::Protocol;
use kapok_lab::compare::{
    self, Beside, CompareConfig, Comparison, Contender, External, Point, Rounds, Row, Verdict,
};

/// How much slower the third server is.
const EFFECT: f64 = 0.05;

/// By so much is the server slowed that tells how much to burn, in how many pairs of processes, and the rounds
/// in which each tells.
const CALIBRATION: [(f64, u32, usize); 3] = [(1.0, 1, 20), (0.25, 2, 30), (EFFECT, 10, 30)];

fn server(name: &str, program: &str, model: &str, burn: Duration) -> Contender {
    let burn = burn.as_nanos() as f64 / 1e3;
    let arguments =
        format!("serve --addr {{addr}} --protocol {{protocol}} --model {model} --cpu-us {burn}");
    Contender::External(External {
        name: name.to_owned(),
        program: PathBuf::from(program),
        arguments: arguments.split_whitespace().map(str::to_owned).collect(),
    })
}

fn measure(program: &str, contenders: Vec<Contender>, rounds: Rounds) -> io::Result<Comparison> {
    let config = CompareConfig {
        program: PathBuf::from(program),
        build: String::new(),
        versions: Vec::new(),
        protocols: vec![Protocol::Echo],
        contenders,
        baseline: None,
        points: vec![Point::new(64)],
        directory: None,
        body_bytes: 13,
        pipeline: 1,
        rate: None,
        threads: 1,
        rounds,
        warmup: Duration::from_millis(50),
        duration: Duration::from_millis(200),
        time_limit: None,
        beside: Beside::Everything,
        costs: false,
        stop: None,
    };
    let comparison = compare::run(&config, &mut |_| {})?;
    let troubles = comparison.tables[0].rows.iter().filter_map(|row| row.trouble.clone());
    match troubles.into_iter().next() {
        Some(trouble) => Err(io::Error::other(trouble)),
        None => Ok(comparison),
    }
}

/// What both cost in the rounds that both were measured in: CPU time per request in microseconds.
fn record(file: &mut File, one: &Row, other: &Row) -> io::Result<()> {
    for measured in &one.measured {
        if let Some(beside) = other.measured.iter().find(|other| other.round == measured.round) {
            writeln!(file, "{:.4},{:.4}", measured.cpu_us_per_request, beside.cpu_us_per_request)?;
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = arguments.next().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "usage: verdicts KAPOK [COMPARISONS] [MODEL] [RECORDING]",
        )
    })?;
    let comparisons = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(10);
    let model = arguments.next().unwrap_or_else(|| "tokio".to_owned());
    let mut recording = arguments.next().map(File::create).transpose()?;
    let none = Duration::ZERO;

    let alone =
        measure(&program, vec![server("alone", &program, &model, none)], Rounds::Fixed(20))?;
    let cost = alone.tables[0].rows[0].cpu_us_per_request.map_or(0.0, |spread| spread.median);
    // What is burnt for all of a cost again, to begin with: as much as that.
    let mut whole = Duration::from_nanos((cost * 1e3) as u64);
    for (slowed, pairs, rounds) in CALIBRATION {
        let burn = whole.mul_f64(slowed);
        let mut ratios = Vec::new();
        for _ in 0..pairs {
            let slowed = server("slowed", &program, &model, burn);
            let contenders = vec![server("base", &program, &model, none), slowed];
            let compared = measure(&program, contenders, Rounds::Fixed(rounds))?;
            ratios.push(compared.tables[0].rows[1].cpu_ratio.map_or(1.0, |ratio| ratio.estimate));
        }
        let ratio = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / f64::from(pairs)).exp();
        println!(
            "{model}: {cost:.2} µs a request, and with {burn:?} to burn {ratio:.3} times that {ratios:.3?}"
        );
        if ratio <= 1.0 {
            return Err(io::Error::other("the burnt time is not seen: the machine is not quiet"));
        }
        whole = burn.div_f64(ratio - 1.0);
    }
    let burn = whole.mul_f64(EFFECT);
    println!("The slower one burns {burn:?}.\n");
    println!("| comparison | rounds | the same | slower by {:.0} % |", EFFECT * 100.0);
    println!("|--:|--:|---|---|");
    let (mut same, mut found, mut rounds) = (0, 0, 0);
    for number in 1..=comparisons {
        let contenders = vec![
            server("base", &program, &model, none),
            server("same", &program, &model, none),
            server("slower", &program, &model, burn),
        ];
        let comparison = measure(&program, contenders, Rounds::FULL)?;
        let table = &comparison.tables[0];
        if let Some(recording) = &mut recording {
            record(recording, &table.rows[0], &table.rows[1])?;
        }
        let say = |row: usize| {
            table.rows[row].cpu_ratio.map_or_else(String::new, |ratio| {
                let (low, high) = ratio.interval.unwrap_or_default();
                format!(
                    "{}, {:.3} [{low:.3} {high:.3}], {} rounds",
                    ratio.verdict, ratio.estimate, ratio.rounds
                )
            })
        };
        println!("| {number} | {} | {} | {} |", table.rounds, say(1), say(2));
        let verdict = |row: usize| table.rows[row].cpu_ratio.map(|ratio| ratio.verdict);
        same += usize::from(verdict(1) == Some(Verdict::Indistinguishable));
        found += usize::from(verdict(2) == Some(Verdict::Higher));
        rounds += table.rounds;
    }
    println!(
        "\n{same} of {comparisons} called indistinguishable, {found} of {comparisons} slowdowns found, {} \
         rounds on average",
        rounds / comparisons.max(1)
    );
    Ok(())
}
