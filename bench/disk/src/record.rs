//! What rounds have brought, and what their ratios are worth.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use kapok_lab::compare::Ratio;
use serde::{Deserialize, Serialize};

use crate::job::Figures;

/// One contender in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Tells rounds of all runs apart.
    pub(crate) round: u64,
    pub(crate) case: String,
    pub(crate) contender: String,
    pub(crate) figures: Figures,
}

/// Rounds, of one run or of several.
#[derive(Default)]
pub(crate) struct Records(pub(crate) Vec<Record>);

impl Records {
    pub(crate) fn read(path: &Path) -> io::Result<Records> {
        let mut records = Vec::new();
        for line in BufReader::new(File::open(path)?).lines() {
            records.push(serde_json::from_str(&line?)?);
        }
        Ok(Records(records))
    }

    pub(crate) fn append(path: &Path, record: &Record) -> io::Result<()> {
        let mut file = File::options().append(true).create(true).open(path)?;
        writeln!(file, "{}", serde_json::to_string(record)?)
    }

    pub(crate) fn contenders<'r>(&'r self, case: &'r str) -> impl Iterator<Item = &'r Record> {
        self.0.iter().filter(move |record| record.case == case)
    }

    fn of<'r>(&'r self, case: &'r str, name: &'r str) -> impl Iterator<Item = &'r Record> {
        self.contenders(case).filter(move |record| record.contender == name)
    }

    pub(crate) fn has(&self, case: &str, name: &str) -> bool {
        self.of(case, name).next().is_some()
    }

    /// The median of something.
    pub(crate) fn median(
        &self,
        case: &str,
        name: &str,
        value: impl Fn(&Figures) -> f64,
    ) -> Option<f64> {
        let values = self.of(case, name).map(|record| value(&record.figures));
        kapok_lab::compare::Spread::of(values).map(|spread| spread.median)
    }

    /// One contender's `value` relative to another's, in the rounds that have both.
    pub(crate) fn ratio(
        &self,
        case: &str,
        name: &str,
        other: &str,
        value: impl Fn(&Figures) -> f64,
    ) -> Option<Ratio> {
        let ratios: Vec<f64> = self
            .of(case, name)
            .filter_map(|one| {
                let other = self.of(case, other).find(|other| other.round == one.round)?;
                Some(value(&one.figures) / value(&other.figures))
            })
            .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
            .collect();
        Ratio::of(&ratios)
    }

    /// Of several the one with the highest rate, over all rounds.
    pub(crate) fn best<'n>(&self, case: &str, names: &[&'n str]) -> Option<&'n str> {
        let rate = |name: &str| self.median(case, name, Figures::rate).unwrap_or(0.0);
        names
            .iter()
            .copied()
            .filter(|name| self.has(case, name))
            .max_by(|one, other| rate(one).total_cmp(&rate(other)))
    }
}
