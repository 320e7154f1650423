//! A comparison against an older one: what has become worse.
//!
//! Absolute figures of two days differ by more than what is looked for, so what is compared is each
//! model's ratio to the baseline of its own rounds. A change is one that the rank-sum test finds at
//! [`SIGNIFICANCE`] over all that is looked at together (Holm's correction), so that a table of
//! thirteen models does not raise thirteen times as many false alarms.
//!
//! Whoever asks whether anything has become worse is not to hear "no" where nobody could tell: what was
//! measured then and is not now, servers on other resources, and too few rounds are findings of their own.

use serde::Serialize;

use super::rank_sum::{self, RankSum};
use super::table::{Measured, Row, Table};
use super::{CompareConfig, Comparison, Rounds, SIGNIFICANCE};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The server's CPU time per request: less is better.
    CpuPerRequest,
    /// Requests per second: more is better.
    RequestsPerSecond,
}

/// One model's figure then and now, both relative to the baseline of their own rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The table's protocol and point, in words.
    pub table: String,
    /// The model.
    pub model: String,
    /// What is compared.
    pub metric: Metric,
    /// The new ratio over the old one: 1.05 is 5 % more.
    pub change: f64,
    /// How likely such a change is if there is none, for this comparison alone.
    pub p: f64,
    /// The rounds then and now that it is from.
    pub rounds: (usize, usize),
    /// It is significant among all that were compared, and to the worse.
    pub regression: bool,
    /// It is significant among all that were compared, and to the better.
    pub improvement: bool,
}

/// Two comparisons, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changes {
    /// One for each model and metric that both have.
    pub changes: Vec<Change>,
    /// What was measured then and is not now, or not to the end, or is relative to something else.
    pub lost: Vec<String>,
    /// What the rounds are too few for: however much had changed there, it could not have been found.
    pub too_few: Vec<String>,
    /// Why the two must not be held against each other. If there is any reason, nothing was compared.
    pub unlike: Vec<String>,
    /// What else is to be known of them.
    pub notes: Vec<String>,
}

impl Changes {
    /// Compares `new` with `old`.
    #[must_use]
    pub fn between(old: &Comparison, new: &Comparison) -> Changes {
        let mut found = Changes {
            changes: Vec::new(),
            lost: Vec::new(),
            too_few: Vec::new(),
            unlike: unlike(old, new),
            notes: differences(old, new),
        };
        if !found.unlike.is_empty() {
            return found;
        }
        for earlier in &old.tables {
            match new.tables.iter().find(|table| table.is_like(earlier)) {
                Some(later) => found.compare(earlier, later),
                None if earlier.rows.iter().any(|row| !row.measured.is_empty()) => {
                    found.lost.push(format!("{}: measured then and not now", earlier.describe()));
                }
                None => {}
            }
        }
        let has_earlier = |later: &Table| old.tables.iter().any(|table| table.is_like(later));
        for later in new.tables.iter().filter(|later| !has_earlier(later)) {
            found.notes.push(format!("{}: not in the older one", later.describe()));
        }
        // What had failed then has few rounds in the older one, whatever is measured now.
        let had_failed = |change: &&Change| {
            let table = old.tables.iter().find(|table| table.describe() == change.table);
            let mut rows = table.into_iter().flat_map(|table| &table.rows);
            rows.any(|row| row.model == change.model && row.trouble.is_some())
        };
        let (failed, sound): (Vec<&Change>, Vec<&Change>) =
            found.changes.iter().partition(had_failed);
        found.too_few = too_few(&sound, found.changes.len());
        found.notes.extend(too_few(&failed, found.changes.len()));
        judge(&mut found.changes);
        if found.changes.is_empty() {
            found.too_few.push("nothing was compared".to_owned());
        }
        found
    }

    /// Whether anything has become significantly worse.
    #[must_use]
    pub fn has_regression(&self) -> bool {
        self.changes.iter().any(|change| change.regression)
    }

    /// Whether everything that was measured then was compared, by rounds that could have shown a change,
    /// and nothing has become worse.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.has_regression()
            && self.lost.is_empty()
            && self.too_few.is_empty()
            && self.unlike.is_empty()
            && !self.changes.is_empty()
    }

    /// Compares the rows of a table that both have.
    fn compare(&mut self, earlier: &Table, later: &Table) {
        let table = later.describe();
        for before in earlier.rows.iter().filter(|before| !before.measured.is_empty()) {
            let name = format!("{table} · {}", before.model);
            let now = later.rows.iter().find(|row| row.model == before.model);
            let why = now.and_then(|row| row.trouble.as_deref());
            let because = why.map_or_else(String::new, |why| format!(": {why}"));
            match now {
                None => self.lost.push(format!("{name}: measured then and not now")),
                Some(row) if row.measured.is_empty() => {
                    self.lost.push(format!("{name}: measured then and could not be now{because}"));
                }
                Some(_) if why.is_some() && before.trouble.is_none() => {
                    self.lost.push(format!("{name}: measured then and failed now{because}"));
                }
                Some(_) => {}
            }
        }
        if earlier.baseline.is_none() || earlier.baseline != later.baseline {
            let named = |table: &Table| table.baseline.clone().unwrap_or_else(|| "nothing".into());
            self.lost.push(format!(
                "{table}: no common baseline: relative to {} then and to {} now",
                named(earlier),
                named(later)
            ));
            return;
        }
        for row in later.rows.iter().filter(|row| Some(&row.model) != later.baseline.as_ref()) {
            let before = earlier.rows.iter().find(|before| before.model == row.model);
            let Some(before) = before.filter(|before| !before.measured.is_empty()) else {
                self.notes.push(format!("{table} · {}: not in the older one", row.model));
                continue;
            };
            let changes = changes_of(earlier, before, later, row);
            if changes.is_empty() && !row.measured.is_empty() {
                self.lost
                    .push(format!("{table} · {}: no round together with the baseline", row.model));
            }
            self.changes.extend(changes);
        }
    }
}

impl Rounds {
    /// How many rounds, of `most` at most, it takes to find any change against `old` in what `config`
    /// measures; `None` where so many do not suffice, because `old` has too few.
    #[must_use]
    pub fn against(old: &Comparison, config: &CompareConfig, most: usize) -> Option<usize> {
        // Its rows that something can be held against, by how many rounds they have, and whether they failed.
        let mut rows = Vec::new();
        for table in &old.tables {
            for row in table.rows.iter().filter(|row| Some(&row.model) != table.baseline.as_ref()) {
                let rounds = row.paired(table.baseline_row(), |one| one.cpu_us_per_request).len();
                if rounds > 0 {
                    rows.push((rounds, row.trouble.is_some()));
                }
            }
        }
        let asked = config.cells().len() * config.contenders.len().saturating_sub(1);
        let comparisons = METRICS.len() * asked.min(rows.len());
        match rows.iter().filter(|(_, failed)| !failed).map(|(rounds, _)| *rounds).min() {
            Some(fewest) => {
                rank_sum::fewest(fewest, SIGNIFICANCE / comparisons.max(1) as f64, most)
            }
            None => Some(1),
        }
    }
}

/// A figure of a round.
type Pick = fn(&Measured) -> f64;

const METRICS: [(Metric, Pick); 2] = [
    (Metric::CpuPerRequest, |measured| measured.cpu_us_per_request),
    (Metric::RequestsPerSecond, |measured| measured.load.requests_per_second),
];

fn changes_of(then: &Table, before: &Row, now: &Table, row: &Row) -> Vec<Change> {
    let of_metric = |(metric, pick): (Metric, Pick)| {
        let logarithms = |table: &Table, row: &Row| -> Vec<f64> {
            let ratios = row.paired(table.baseline_row(), pick);
            ratios.into_iter().map(f64::ln).filter(|value| value.is_finite()).collect()
        };
        let (earlier, later) = (logarithms(then, before), logarithms(now, row));
        let found = RankSum::of(&earlier, &later)?;
        Some(Change {
            table: now.describe(),
            model: row.model.clone(),
            metric,
            change: found.shift.exp(),
            p: found.p,
            rounds: (earlier.len(), later.len()),
            regression: false,
            improvement: false,
        })
    };
    METRICS.into_iter().filter_map(of_metric).collect()
}

/// Marks what is significant among all: the surest must hold against the number of all changes, the
/// next against one fewer, until one does not hold (Holm).
fn judge(changes: &mut [Change]) {
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by(|a, b| changes[*a].p.total_cmp(&changes[*b].p));
    for (place, index) in order.into_iter().enumerate() {
        let left = (changes.len() - place) as f64;
        let change = &mut changes[index];
        if change.p * left >= SIGNIFICANCE {
            return;
        }
        let worse = match change.metric {
            Metric::CpuPerRequest => change.change > 1.0,
            Metric::RequestsPerSecond => change.change < 1.0,
        };
        change.regression = worse;
        change.improvement = !worse;
    }
}

/// Which of `changes` could not have been found as the only one among `all`: a line for each table and
/// numbers of rounds.
fn too_few(changes: &[&Change], all: usize) -> Vec<String> {
    let level = SIGNIFICANCE / all as f64;
    let mut groups: Vec<(&str, (usize, usize), Vec<&str>)> = Vec::new();
    for change in changes {
        let (then, now) = change.rounds;
        if rank_sum::least_p(then, now) < level {
            continue;
        }
        let group = groups
            .iter_mut()
            .find(|(table, rounds, _)| *table == change.table && *rounds == change.rounds);
        match group {
            // Both metrics of a model come one after the other.
            Some((.., models)) if models.last() == Some(&change.model.as_str()) => {}
            Some((.., models)) => models.push(&change.model),
            None => groups.push((&change.table, change.rounds, vec![&change.model])),
        }
    }
    let describe = |(table, (then, now), models): (&str, (usize, usize), Vec<&str>)| {
        let enough = match rank_sum::fewest(then, level, MOST_ADVISED) {
            Some(enough) => format!("{enough} would do"),
            None => {
                let both = (1..).find(|rounds| rank_sum::least_p(*rounds, *rounds) < level);
                format!("{} in both would do", both.unwrap_or(MOST_ADVISED))
            }
        };
        format!(
            "{table} · {}: too few rounds to find any change, {then} then and {now} now: {enough}",
            models.join(", ")
        )
    };
    groups.into_iter().map(describe).collect()
}

/// No more rounds than this are advised: who has fewer in the older one measures that again as well.
const MOST_ADVISED: usize = 200;

/// What makes another server of the same model, so that its ratios are others.
fn unlike(old: &Comparison, new: &Comparison) -> Vec<String> {
    let mut reasons = Vec::new();
    if let (Some(then), Some(now)) = (old.workers, new.workers)
        && then != now
    {
        reasons.push(format!("servers had {then} worker(s) then and have {now} now"));
    }
    let (then, now) = (old.server_cores.len(), new.server_cores.len());
    if then != now {
        reasons.push(format!("servers had {then} core(s) then and have {now} now"));
    }
    let shared = |one: &Comparison| one.server_cores == one.load_cores;
    if shared(old) != shared(new) {
        let when = if shared(old) { "then" } else { "now" };
        reasons.push(format!("servers shared their core with the load, but only {when}"));
    }
    reasons
}

/// What is to be known to read the changes with care.
fn differences(old: &Comparison, new: &Comparison) -> Vec<String> {
    let mut notes = Vec::new();
    let (then, now) = (&old.environment, &new.environment);
    if then.cpu != now.cpu || then.kernel != now.kernel {
        notes.push(format!(
            "another machine or kernel: {} on {}, then {} on {}",
            then.kernel, then.cpu, now.kernel, now.cpu
        ));
    }
    if old.seconds != new.seconds {
        notes.push(format!(
            "rounds of another length: {} s then and {} s now",
            old.seconds, new.seconds
        ));
    }
    // How many rounds there are is looked at where they are counted.
    let only_in = |one: &Comparison, other: &Comparison| -> Vec<String> {
        let of_rounds = |condition: &&String| condition.contains("interleaved rounds");
        let new = |condition: &&String| !other.conditions.contains(condition);
        one.conditions.iter().filter(|it| !of_rounds(it)).filter(new).cloned().collect()
    };
    notes.extend(only_in(old, new).into_iter().map(|it| format!("a condition only then: {it}")));
    notes.extend(only_in(new, old).into_iter().map(|it| format!("a condition only now: {it}")));
    notes
}

#[cfg(test)]
mod tests;
