//! The reports of several generators as one.
//!
//! What was counted is added. What is a rate is the sum of the generators' own rates, each over the
//! interval that this generator measured on its own clock. Latencies are added histogram to histogram,
//! which loses nothing: percentiles are those of all replies together, and never means of percentiles.

use super::report::{Backlog, Errors, Latency, LoadReport};

/// Puts together what generators found, each with its number of threads. They ran the same plan.
pub(super) fn merge(parts: &[(LoadReport, usize)]) -> Result<LoadReport, String> {
    let Some(((first, _), others)) = parts.split_first() else {
        return Err("there are no parts".to_owned());
    };
    let mut slices = first.slices.clone();
    for (report, _) in others {
        if !slices.is_like(&report.slices) {
            return Err("their intervals are divided in different ways".to_owned());
        }
        slices.merge(&report.slices);
    }
    let reports = || parts.iter().map(|(report, _)| report);
    let count = |pick: fn(&LoadReport) -> u64| reports().map(pick).sum::<u64>();
    let sum = |pick: fn(&LoadReport) -> f64| reports().map(pick).sum::<f64>();
    let connections = |pick: fn(&LoadReport) -> usize| reports().map(pick).sum::<usize>();
    let threads: usize = parts.iter().map(|(_, threads)| threads).sum();
    let of_cores = |pick: fn(&LoadReport) -> f64| {
        parts.iter().map(|(report, threads)| pick(report) * *threads as f64).sum::<f64>()
            / threads.max(1) as f64
    };

    let requests = count(|report| report.requests);
    let active = connections(|report| report.active);
    // Replies on the slowest connection of each, by its definition.
    let least = reports()
        .map(|report| report.slowest_share * report.requests.max(1) as f64 / report.active as f64)
        .fold(f64::INFINITY, f64::min);
    let seconds = reports().map(|report| report.seconds).fold(0.0, f64::max);
    let mut addresses: Vec<&str> = reports().map(|report| report.addr.as_str()).collect();
    addresses.dedup();
    let mut errors = Errors::default();
    for report in reports() {
        errors.add(report.errors.clone());
    }
    Ok(LoadReport {
        addr: addresses.join(", "),
        protocol: first.protocol.clone(),
        connections: connections(|report| report.connections),
        active,
        served: connections(|report| report.served),
        pipeline: first.pipeline,
        rate: reports().map(|report| report.rate).sum(),
        seconds,
        requests,
        requests_per_second: sum(|report| report.requests_per_second),
        slowest_share: least * active as f64 / requests.max(1) as f64,
        bytes_received: count(|report| report.bytes_received),
        bytes_sent: count(|report| report.bytes_sent),
        errors,
        other_bodies: count(|report| report.other_bodies),
        latency: Latency::of(&slices.all()),
        reopened: count(|report| report.reopened),
        backlog: reports().filter_map(|report| report.backlog).reduce(|all, one| Backlog {
            most: all.most + one.most,
            unsent: all.unsent + one.unsent,
        }),
        cpu_share: of_cores(|report| report.cpu_share),
        waited_share: of_cores(|report| report.waited_share),
        cpu_us_per_request: sum(|report| report.cpu_us_per_request * report.requests as f64)
            / requests.max(1) as f64,
        generator_limited: reports().any(|report| report.generator_limited),
        stopped_early: reports().any(|report| report.stopped_early),
        series: slices.series(seconds),
        slices,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::part::{self, Part, Said};
    use super::super::report::Tally;
    use super::super::{LoadConfig, Slices};
    use super::*;
    use crate::Protocol;

    const SERVER: ([u8; 4], u16) = ([127, 0, 0, 1], 9);

    fn config(connections: usize) -> LoadConfig {
        let config = LoadConfig::new(SERVER.into(), Protocol::Echo);
        LoadConfig { connections, duration: Duration::from_secs(1), ..config }
    }

    /// A generator that measured for `seconds` and recorded these latencies, one reply each, evenly
    /// over the first second.
    fn found(connections: usize, seconds: f64, latencies: &[u64]) -> (LoadReport, usize) {
        let config = config(connections);
        let mut tally = Tally::new(config.duration);
        record(&mut tally.slices, latencies);
        tally.requests = latencies.len() as u64;
        tally.least = 7;
        tally.served = connections;
        tally.measured = Duration::from_secs_f64(seconds);
        tally.cpu = Duration::from_secs_f64(seconds / 4.0);
        tally.backlog = Backlog { most: 3, unsent: 2 };
        (tally.report(&LoadConfig { rate: Some(1000.0), ..config }), 1)
    }

    /// The same as it arrives from another process.
    fn sent((report, _): (LoadReport, usize)) -> (LoadReport, usize) {
        let part = Part::of(&config(report.connections), report).unwrap();
        let line = part::encode("a build", Said::Part(Box::new(part))).unwrap();
        let Ok(Said::Part(part)) = part::hear(&line) else { panic!("{line}") };
        part.decode().unwrap()
    }

    #[test]
    fn a_part_whose_histograms_are_not_of_its_report_is_refused() {
        let (mut report, _) = found(4, 1.0, &[1, 2, 3]);
        report.latency.count += 1;
        let part = Part::of(&config(4), report).unwrap();
        let why = part.decode().unwrap_err();
        assert!(why.contains("3 latencies") && why.contains("4 in its report"), "{why}");
    }

    fn record(slices: &mut Slices, latencies: &[u64]) {
        slices.begin(0);
        for (at, latency) in latencies.iter().enumerate() {
            slices.advance(at as u64 * 1_000_000_000 / latencies.len() as u64);
            slices.record(*latency);
            slices.replies(1);
        }
    }

    fn latencies(seed: u64, count: usize) -> Vec<u64> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..count).map(|_| (40_000.0 * -random.f64().max(1e-9).ln() * 50.0) as u64 + 1).collect()
    }

    #[test]
    fn merged_histograms_equal_one_that_recorded_everything() {
        let series = [latencies(1, 5_000), latencies(2, 11_000), latencies(3, 400)];
        let parts: Vec<_> = series.iter().map(|one| sent(found(4, 1.0, one))).collect();
        let merged = merge(&parts).unwrap();
        let mut all = super::super::slices::histogram();
        for latency in series.iter().flatten() {
            all.record(*latency).unwrap();
        }
        // Every bucket, and so every percentile, the mean and the longest.
        assert_eq!(merged.slices.all(), all);
        assert_eq!(merged.latency.count, 16_400);
        for (ours, quantile) in [
            (merged.latency.p50_us, 0.5),
            (merged.latency.p99_us, 0.99),
            (merged.latency.p999_us, 0.999),
            (merged.latency.max_us, 1.0),
        ] {
            assert_eq!(ours, all.value_at_quantile(quantile) as f64 / 1e3, "{quantile}");
        }
        let replies: f64 = merged.series.iter().map(|slice| slice.requests_per_second / 10.0).sum();
        assert_eq!(replies.round(), 16_400.0);
    }

    #[test]
    fn rates_are_summed_over_each_generators_own_interval() {
        // The second's clock says that its interval took twice as long.
        let parts = [found(4, 1.0, &latencies(1, 1000)), found(6, 2.0, &latencies(2, 3000))];
        let merged = merge(&parts).unwrap();
        assert_eq!(merged.requests, 4000);
        assert_eq!(merged.requests_per_second, 1000.0 + 1500.0);
        assert_eq!((merged.connections, merged.active, merged.served), (10, 10, 10));
        assert_eq!(merged.rate, Some(2000.0));
        let backlog = merged.backlog.unwrap();
        assert_eq!((backlog.most, backlog.unsent), (6, 4));
        // A quarter of a core each, 0.75 s for 4,000 requests.
        assert!((merged.cpu_share - 0.25).abs() < 1e-9, "{}", merged.cpu_share);
        assert!((merged.cpu_us_per_request - 187.5).abs() < 1e-9, "{}", merged.cpu_us_per_request);
        // Seven replies on the slowest of ten connections that had 400 on average.
        assert!((merged.slowest_share - 7.0 / 400.0).abs() < 1e-9, "{}", merged.slowest_share);
    }

    #[test]
    fn intervals_of_different_lengths_are_refused() {
        let mut other = found(4, 1.0, &[1]);
        other.0.slices = Slices::new(Duration::from_millis(300));
        assert!(merge(&[found(4, 1.0, &[1]), other]).is_err());
        assert!(merge(&[]).is_err());
    }
}
