//! What the parts of a runtime cost, Kapok's beside tokio's and corosensei's, in one run.
//!
//! ```text
//! cargo run --release --manifest-path bench/Cargo.toml -p micro
//! ```
//!
//! Each case is a pair: the same thing done by Kapok and by a peer, in rounds that alternate which
//! of the two goes first. What is compared is the ratio within a round; the table has its median
//! with the range in which the middle half of the rounds lies.

mod cases;

use std::time::Duration;

use clap::Parser;
use comfy_table::Table;

/// Measures what spawning, switching, waking, channels, locks and timers cost.
#[derive(Parser)]
struct Arguments {
    /// How many rounds a case has.
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// How long each side of a round lasts, about, in milliseconds.
    #[arg(long, default_value_t = 20)]
    millis: u64,
    /// For a profiler: do Kapok's side of the cases so many times, once, and measure nothing else.
    #[arg(long)]
    count: Option<u64>,
    /// Only the cases with this in their name.
    filter: Option<String>,
}

/// One thing, done by two.
struct Case {
    name: &'static str,
    peer: &'static str,
    /// At most what this may cost, relative to the peer.
    goal: f64,
    /// Does it so many times; how long that took.
    ours: fn(u64) -> Duration,
    theirs: fn(u64) -> Duration,
}

fn main() {
    let arguments = Arguments::parse();
    let mut table = Table::new();
    table.set_header(["", "kapok", "peer", "", "ratio", "middle half", "goal"]);
    for case in cases::ALL {
        if arguments.filter.as_ref().is_some_and(|filter| !case.name.contains(filter.as_str())) {
            continue;
        }
        if let Some(count) = arguments.count {
            println!(
                "{}: {}",
                case.name,
                nanos((case.ours)(count).as_secs_f64() * 1e9 / count as f64)
            );
            continue;
        }
        let millis = Duration::from_millis(arguments.millis);
        let (our_count, their_count) =
            (calibrate(case.ours, millis), calibrate(case.theirs, millis));
        let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..arguments.rounds.max(1) {
            let measure =
                |f: fn(u64) -> Duration, count| f(count).as_secs_f64() * 1e9 / count as f64;
            let (one, other) = if round % 2 == 0 {
                let one = measure(case.ours, our_count);
                (one, measure(case.theirs, their_count))
            } else {
                let other = measure(case.theirs, their_count);
                (measure(case.ours, our_count), other)
            };
            ours.push(one);
            theirs.push(other);
            ratios.push(one / other);
        }
        table.add_row([
            case.name.to_owned(),
            nanos(quantile(&mut ours, 0.5)),
            nanos(quantile(&mut theirs, 0.5)),
            case.peer.to_owned(),
            format!("{:.2}", quantile(&mut ratios, 0.5)),
            format!("{:.2} to {:.2}", quantile(&mut ratios, 0.25), quantile(&mut ratios, 0.75)),
            format!("{:.2}", case.goal),
        ]);
    }
    if arguments.count.is_none() {
        println!("{table}");
    }
}

/// How many times fit into `length`.
fn calibrate(f: fn(u64) -> Duration, length: Duration) -> u64 {
    let mut count = 100;
    loop {
        let took = f(count);
        if took * 4 >= length {
            return ((count as f64) * length.as_secs_f64() / took.as_secs_f64()).max(1.0) as u64;
        }
        count *= 4;
    }
}

fn nanos(nanos: f64) -> String {
    format!("{nanos:.1} ns")
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}
