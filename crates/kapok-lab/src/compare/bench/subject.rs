//! A model and what is known of it, from the first round to its row in the table.

use hdrhistogram::Histogram;

use crate::Model;
use crate::compare::contender::Contender;
use crate::compare::server::Server;
use crate::compare::statistics::{Ratio, Spread};
use crate::compare::table::{Measured, Percentile, Row, Untimed, paired};

/// The percentiles that a row has.
const PERCENTILES: [f64; 9] = [0.0, 25.0, 50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0];

/// A model on its way through the rounds.
pub(super) struct Subject {
    pub(super) contender: Contender,
    pub(super) server: Option<Server>,
    pub(super) trouble: Option<String>,
    pub(super) untimed: Option<Untimed>,
    #[cfg(target_os = "linux")]
    pub(super) costs: Option<crate::costs::Costs>,
    pub(super) idle_cpu_share: Option<f64>,
    pub(super) measured: Vec<Measured>,
    pub(super) latencies: Option<Histogram<u64>>,
    /// Rounds without a reply, or without a processor, up to now.
    pub(super) silent: usize,
    /// The same in all.
    pub(super) dropped_rounds: usize,
}

impl Subject {
    pub(super) fn new(contender: Contender) -> Subject {
        Subject {
            contender,
            server: None,
            trouble: None,
            untimed: None,
            #[cfg(target_os = "linux")]
            costs: None,
            idle_cpu_share: None,
            measured: Vec::new(),
            latencies: None,
            silent: 0,
            dropped_rounds: 0,
        }
    }

    /// Takes in a round. The latencies of all its rounds are kept together.
    pub(super) fn add(&mut self, mut measured: Measured) {
        let latencies = std::mem::take(&mut measured.load.slices).all();
        match &mut self.latencies {
            Some(all) => all.add(latencies).expect("all have the same bounds"),
            None => self.latencies = Some(latencies),
        }
        self.silent = 0;
        self.measured.push(measured);
    }

    /// Says why there is nothing of it, where too few rounds were silent to give it up and none was not.
    pub(super) fn own_up_to_silence(&mut self) {
        if self.measured.is_empty() && self.dropped_rounds > 0 {
            self.trouble.get_or_insert_with(|| "no reply in any of its rounds".to_owned());
        }
    }

    /// What `pick` takes from each round, relative to the baseline's in the same round.
    pub(super) fn ratio(&self, baseline: &Subject, pick: fn(&Measured) -> f64) -> Option<Ratio> {
        Ratio::of(&paired(&self.measured, &baseline.measured, pick))
    }

    /// Whether it uses its core while it is not its turn.
    pub(super) fn is_restless(&self) -> bool {
        self.contender == Contender::Model(Model::BusyPoll)
    }

    pub(super) fn row(self, baseline: &[Measured]) -> Row {
        let measured = &self.measured;
        let spread = |pick: fn(&Measured) -> f64| Spread::of(measured.iter().map(pick));
        // At a fixed rate that is far too high no request of the interval may have been answered in it.
        let latency = |pick: fn(&Measured) -> f64| {
            Spread::of(measured.iter().filter(|one| one.load.latency.count > 0).map(pick))
        };
        let shares = measured.iter().filter_map(|measured| measured.system_share);
        let ratio = |pick: fn(&Measured) -> f64| Ratio::of(&paired(measured, baseline, pick));
        let percentiles = self.latencies.as_ref().map_or_else(Vec::new, |latencies| {
            let at = |percentile| Percentile {
                percentile,
                us: latencies.value_at_percentile(percentile) as f64 / 1e3,
            };
            PERCENTILES.into_iter().map(at).collect()
        });
        Row {
            model: self.contender.to_string(),
            requests_per_second: spread(|measured| measured.load.requests_per_second),
            p50_us: latency(|measured| measured.load.latency.p50_us),
            p99_us: latency(|measured| measured.load.latency.p99_us),
            p999_us: latency(|measured| measured.load.latency.p999_us),
            slowest_share: spread(|measured| measured.load.slowest_share),
            cpu_us_per_request: spread(|measured| measured.cpu_us_per_request),
            system_share: Spread::of(shares).map(|spread| spread.median),
            cpu_ratio: ratio(|measured| measured.cpu_us_per_request),
            rate_ratio: ratio(|measured| measured.load.requests_per_second),
            p99_ratio: ratio(|measured| measured.load.latency.p99_us),
            voluntary_switches: spread(|measured| measured.voluntary_switches),
            involuntary_switches: spread(|measured| measured.involuntary_switches),
            server_cores_used: spread(|measured| measured.cpu_seconds / measured.load.seconds),
            generator_limited: !measured.is_empty()
                && measured.iter().filter(|measured| measured.load.generator_limited).count() * 2
                    >= measured.len(),
            generator_cpu_share: spread(|measured| measured.load.cpu_share),
            load_waited_share: spread(|measured| measured.load.waited_share),
            trouble: self.trouble,
            untimed: self.untimed,
            #[cfg(target_os = "linux")]
            costs: self.costs,
            idle_cpu_share: self.idle_cpu_share,
            percentiles,
            dropped_rounds: self.dropped_rounds,
            measured: self.measured,
            latencies: self.latencies,
        }
    }
}
