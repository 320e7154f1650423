//! What the parts of the pool cost beside what could be in their place.
//!
//! ```text
//! cargo build --release --manifest-path bench/Cargo.toml -p disk
//! bench/target/release/pool > parts.md
//! ```
//!
//! Each case is one thing done in several ways, in rounds whose order rotates; the first way is the
//! pool's. Ratios are taken within a round. The pool's own files are compiled in, for what they have is
//! not public.

mod cases;
#[path = "../../../../crates/kapok-pool/src/cell.rs"]
#[allow(dead_code, unreachable_pub)]
mod cell;
#[path = "../../../../crates/kapok-pool/src/channel.rs"]
#[allow(dead_code)]
mod channel;
#[path = "../../../../crates/kapok-pool/src/free.rs"]
#[allow(dead_code)]
mod free;
mod misses;
#[path = "../../../../crates/kapok-pool/src/primitives.rs"]
#[allow(dead_code, unused_imports)]
mod primitives;
mod wakes;
mod whole;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use kapok_lab::compare::{Ratio, Spread};

/// Measures what the parts of the pool cost, and prints tables as Markdown.
#[derive(Parser)]
struct Arguments {
    /// How many rounds a case has.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Where a file is made, for what is not in the page cache.
    #[arg(long, default_value = "/tmp/kapok-disk")]
    directory: PathBuf,
    /// Only the cases with this in their name.
    filter: Option<String>,
}

/// One way of doing something so many times: how long it took.
type Way = Box<dyn FnMut(u64) -> io::Result<Duration>>;

/// One thing, done in several ways.
pub(crate) struct Case {
    name: &'static str,
    count: u64,
    ways: Vec<(&'static str, Way)>,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let mut cases = cases::all();
    cases.push(wakes::case()?);
    cases.push(misses::case(&arguments.directory)?);
    cases.extend(whole::cases(&arguments.directory)?);
    for mut case in cases {
        if arguments.filter.as_ref().is_some_and(|filter| !case.name.contains(filter.as_str())) {
            continue;
        }
        let mut nanos = vec![Vec::new(); case.ways.len()];
        for round in 0..arguments.rounds + 1 {
            for turn in 0..case.ways.len() {
                let at = (turn + round) % case.ways.len();
                let took = (case.ways[at].1)(case.count)?;
                // The first round only warms up.
                if round > 0 {
                    nanos[at].push(took.as_secs_f64() * 1e9 / case.count as f64);
                }
            }
        }
        println!("| {} | ns | × the first [95 %] |\n|---|--:|--:|", case.name);
        for (at, (name, _)) in case.ways.iter().enumerate() {
            let ratios: Vec<f64> =
                nanos[at].iter().zip(&nanos[0]).map(|(one, first)| one / first).collect();
            let median = Spread::of(nanos[at].iter().copied()).map_or(0.0, |spread| spread.median);
            let ratio = match Ratio::of(&ratios) {
                Some(Ratio { estimate, interval: Some((low, high)), .. }) => {
                    format!("{estimate:.2} [{low:.2} {high:.2}]")
                }
                _ => "–".to_owned(),
            };
            println!("| {name} | {median:.1} | {ratio} |");
        }
        println!();
    }
    Ok(())
}
