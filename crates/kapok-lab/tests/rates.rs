//! How often the verdicts of a comparison are right, on recordings with a known answer.
//!
//! Each recording is the CPU time per request of one server measured as if it were two, in the rounds of
//! a real comparison. A comparison is played by drawing stretches of its rounds (so that what drifts
//! together stays together), swapping the two sides of a stretch at random (so that neither is faster), and
//! making one side slower by what is to be found. Rounds are added until the rule says that they
//! suffice.
//!
//! `cargo test -p kapok-lab --test rates -- --nocapture` prints the table of `docs/design/comparing.md`.

use kapok_lab::compare::{Ratio, Rounds, Verdict};

const QUIET: &str = include_str!("recordings/quiet.csv");
const BUSY: &str = include_str!("recordings/busy.csv");

/// Rounds that are drawn together.
const STRETCH: usize = 4;

/// The pairs of a recording: the server, and the same server under another name.
fn pairs(recording: &str) -> Vec<(f64, f64)> {
    let lines = recording.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (one, other) = line.split_once(',').unwrap();
            (one.parse().unwrap(), other.parse().unwrap())
        })
        .collect()
}

/// One comparison of servers of which one is slower by `effect` (0.05 is 5 %).
fn compare(pairs: &[(f64, f64)], effect: f64, rounds: Rounds, random: &mut fastrand::Rng) -> Ratio {
    let mut ratios = Vec::new();
    loop {
        let (start, swapped) = (random.usize(..pairs.len()), random.bool());
        for (one, other) in pairs.iter().cycle().skip(start).take(STRETCH) {
            let (slow, fast) = if swapped { (other, one) } else { (one, other) };
            ratios.push(slow * (1.0 + effect) / fast);
            let ratio = Ratio::of(&ratios).unwrap();
            if rounds.suffice(&ratio) {
                return ratio;
            }
        }
    }
}

/// What came out of many comparisons.
#[derive(Debug, Default)]
struct Outcome {
    slower: usize,
    faster: usize,
    indistinguishable: usize,
    unsettled: usize,
    rounds: Vec<usize>,
}

impl Outcome {
    fn of(recording: &str, effect: f64, rounds: Rounds, comparisons: usize) -> Outcome {
        let pairs = pairs(recording);
        let mut random = fastrand::Rng::with_seed(20_261_121);
        let mut outcome = Outcome::default();
        for _ in 0..comparisons {
            let ratio = compare(&pairs, effect, rounds, &mut random);
            match ratio.verdict {
                Verdict::Higher => outcome.slower += 1,
                Verdict::Lower => outcome.faster += 1,
                Verdict::Indistinguishable => outcome.indistinguishable += 1,
                Verdict::Unsettled => outcome.unsettled += 1,
            }
            outcome.rounds.push(ratio.rounds);
        }
        outcome.rounds.sort_unstable();
        outcome
    }

    fn comparisons(&self) -> usize {
        self.rounds.len()
    }

    fn row(&self, recording: &str, effect: f64) -> String {
        let share = |count: usize| count as f64 * 100.0 / self.comparisons() as f64;
        format!(
            "| {recording} | {:.0} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {} | {} |",
            effect * 100.0,
            share(self.slower),
            share(self.faster),
            share(self.indistinguishable),
            share(self.unsettled),
            self.rounds[self.comparisons() / 2],
            self.rounds[self.comparisons() * 9 / 10],
        )
    }
}

/// Comparisons of each kind.
fn comparisons() -> usize {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => 2000,
        _ => 100,
    }
}

#[test]
fn identical_servers_are_indistinguishable_and_five_percent_are_found() {
    let comparisons = comparisons();
    for (name, recording) in [("quiet", QUIET), ("busy", BUSY)] {
        let same = Outcome::of(recording, 0.0, Rounds::FULL, comparisons);
        assert!(same.indistinguishable * 100 >= comparisons * 95, "{name}: {same:?}");
        let slower = Outcome::of(recording, 0.05, Rounds::FULL, comparisons);
        assert!(slower.slower * 100 >= comparisons * 90, "{name}: {slower:?}");
        assert_eq!(slower.faster, 0, "{name}: a slower server was called faster");
    }
}

#[test]
fn the_rates_of_every_effect() {
    println!(
        "| recording | slower by | slower | faster | indistinguishable | unsettled | rounds, median | 9 in 10 |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for (name, recording) in [("quiet", QUIET), ("busy", BUSY)] {
        let mut last = 0;
        for effect in [0.0, 0.01, 0.02, 0.03, 0.05, 0.1] {
            let outcome = Outcome::of(recording, effect, Rounds::FULL, comparisons());
            println!("{}", outcome.row(name, effect));
            // The larger a difference, the surer it is found.
            assert!(outcome.slower * 100 + 3 * comparisons() >= last * 100, "{name}: {outcome:?}");
            last = outcome.slower;
        }
        assert_eq!(last, comparisons(), "{name}: 10 % is always found");
    }
}

#[test]
fn the_first_look_never_calls_two_servers_the_same() {
    for recording in [QUIET, BUSY] {
        let outcome = Outcome::of(recording, 0.0, Rounds::Fixed(3), comparisons());
        assert_eq!(outcome.unsettled, comparisons(), "{outcome:?}");
    }
}
