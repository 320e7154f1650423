//! Results of known figures, for tests of what is made of them.

use std::path::PathBuf;
use std::time::Duration;

use super::table::{Measured, Row, Table};
use super::{
    Beside, CompareConfig, Comparison, Contender, Environment, FORMAT, Network, Point, Rounds,
    VERSION,
};
use crate::Protocol;
use crate::load::LoadReport;

/// Three rounds of a second each, of echo on 64 connections.
pub(crate) fn config(contenders: Vec<Contender>) -> CompareConfig {
    CompareConfig {
        program: PathBuf::new(),
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
        rounds: Rounds::Fixed(3),
        warmup: Duration::ZERO,
        duration: Duration::from_secs(1),
        time_limit: None,
        beside: Beside::Nothing,
        costs: false,
        stop: None,
    }
}

/// A round in which a request cost so many microseconds.
pub(crate) fn measured(round: usize, cpu_us: f64) -> Measured {
    Measured {
        round,
        cpu_us_per_request: cpu_us,
        cpu_seconds: 1.0,
        system_share: None,
        voluntary_switches: 0.0,
        involuntary_switches: 0.0,
        load: LoadReport {
            addr: String::new(),
            protocol: "echo".to_owned(),
            connections: 64,
            active: 64,
            served: 64,
            pipeline: 1,
            rate: None,
            seconds: 1.0,
            requests: 300_000,
            requests_per_second: 300_000.0 / cpu_us,
            slowest_share: 1.0,
            bytes_received: 0,
            bytes_sent: 0,
            errors: Default::default(),
            other_bodies: 0,
            latency: Default::default(),
            reopened: 0,
            backlog: None,
            cpu_share: 0.5,
            waited_share: 0.0,
            cpu_us_per_request: 1.0,
            generator_limited: false,
            stopped_early: false,
            series: Vec::new(),
            slices: Default::default(),
        },
    }
}

/// A model with so many rounds around a cost, none like another.
pub(crate) fn row(model: &str, cpu_us: f64, rounds: usize) -> Row {
    // The same for every call, and another for every model.
    let seed = model.bytes().map(u64::from).sum();
    let mut random = fastrand::Rng::with_seed(seed);
    let cost = |_| cpu_us * (1.0 + 0.01 * random.f64());
    let costs: Vec<f64> = (0..rounds).map(cost).collect();
    Row {
        model: model.to_owned(),
        trouble: None,
        requests_per_second: None,
        p50_us: None,
        p99_us: None,
        p999_us: None,
        slowest_share: None,
        cpu_us_per_request: None,
        system_share: None,
        cpu_ratio: None,
        rate_ratio: None,
        p99_ratio: None,
        voluntary_switches: None,
        involuntary_switches: None,
        server_cores_used: None,
        untimed: None,
        #[cfg(target_os = "linux")]
        costs: None,
        idle_cpu_share: None,
        generator_cpu_share: None,
        generator_limited: false,
        load_waited_share: None,
        percentiles: Vec::new(),
        dropped_rounds: 0,
        measured: costs.into_iter().enumerate().map(|(at, cost)| measured(at, cost)).collect(),
        latencies: None,
    }
}

/// A table of rows, of which the first is the baseline.
pub(crate) fn table(connections: usize, rows: Vec<Row>) -> Table {
    Table {
        protocol: "echo".to_owned(),
        connections,
        active: connections,
        bytes: 64,
        pipeline: 1,
        churn: None,
        cpu_us: 0.0,
        delay_ms: 0.0,
        rate: None,
        network: Network::Loopback,
        rounds: rows.iter().map(|row| row.measured.len()).max().unwrap_or(0),
        capped: false,
        baseline: rows.first().map(|row| row.model.clone()),
        rows,
    }
}

/// A comparison on a machine of two cores.
pub(crate) fn comparison(tables: Vec<Table>) -> Comparison {
    Comparison {
        format: FORMAT.to_owned(),
        version: VERSION,
        first_look: false,
        environment: Environment::look("test", &[]),
        server_cores: vec![0],
        load_cores: vec![1],
        workers: Some(1),
        conditions: vec!["20 interleaved rounds, the order changing".to_owned()],
        seconds: 0.5,
        syscalls_counted: String::new(),
        stopped_early: false,
        tables,
        slopes: Vec::new(),
    }
}
