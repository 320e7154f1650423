//! Verdicts with a known answer, live: a server compared with itself, and with itself made slower.
//!
//! `cargo run --release -p kapok-lab --example verdicts -- target/release/kapok [COMPARISONS] [MODEL]`
//!
//! Each comparison has three servers of the same model: the baseline, the same again, and one that burns
//! 5 % of the baseline's CPU time per request on top. Takes some minutes for each comparison.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kapok_lab::Protocol;
use kapok_lab::compare::{
    self, Beside, CompareConfig, Comparison, Contender, External, Point, Rounds, Verdict,
};

/// How much slower the third server is.
const EFFECT: f64 = 0.05;

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
        warmup: Duration::from_millis(100),
        duration: Duration::from_millis(500),
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

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = arguments.next().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "usage: verdicts KAPOK [COMPARISONS] [MODEL]")
    })?;
    let comparisons = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(10);
    let model = arguments.next().unwrap_or_else(|| "tokio".to_owned());
    let none = Duration::ZERO;

    let alone = measure(&program, vec![server("alone", &program, &model, none)], Rounds::Fixed(6))?;
    let cost = alone.tables[0].rows[0].cpu_us_per_request.map_or(0.0, |spread| spread.median);
    let burn = Duration::from_nanos((cost * EFFECT * 1e3) as u64);
    println!("{model}: {cost:.2} µs a request, the slower one burns {burn:?} more\n");
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
