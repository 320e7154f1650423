//! Load again without restarting (row T3): the same server, ten loads in a row.
//!
//! The notes that this project comes from saw a server answer 3.6 million requests a second that
//! nobody had asked for, with 14,000 read errors, and 5.9 thousand a second when loaded again. So
//! every reply is counted and verified, and the tenth load is held against the first.
//!
//! With `KAPOK_SCALE=full` the load is wrk's twelve threads and 500 connections where wrk is
//! installed, for 2 s a run, and the figures of the runs are held against each other and printed;
//! run it with `--release --nocapture --test-threads=1`, alone on the machine. The default size is
//! too short for figures: it looks for errors and for servers that do not come to rest.
//!
//! A machine changes too: on a virtual one the cost of a request moves by a fifth for seconds, on
//! every server alike. So a server that is started anew for each load runs beside the one that is
//! not, and if *its* costs changed between the first five loads and the last, the series says
//! nothing of the server and is run again. What the tested server did has no say in that.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kapok_lab::load::{LoadConfig, run};
use kapok_lab::meters::Usage;
use kapok_lab::{Model, Protocol};

const RUNS: usize = 10;

fn full() -> bool {
    std::env::var("KAPOK_SCALE").is_ok_and(|scale| scale == "full")
}

struct Server {
    child: Child,
    addr: String,
}

impl Server {
    fn start(model: Model, body: &str) -> Server {
        // Where a worker keeps its connection, every connection needs one.
        let threads = if model == Model::ThreadPool { "500" } else { "1" };
        let mut child = Command::new(env!("CARGO_BIN_EXE_kapok"))
            .args(["serve", "--addr", "127.0.0.1:0", "--protocol", "http", "--body", body])
            .args(["--model", &model.to_string(), "--threads", threads])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
        Server { child, addr }
    }

    fn cpu(&self) -> Duration {
        Usage::at_end(self.child.id()).unwrap().cpu
    }

    /// How long it took to come to rest, or none if it did not.
    fn rests_within(&self, limit: Duration) -> bool {
        let start = Instant::now();
        let window = Duration::from_millis(100);
        while start.elapsed() < limit {
            let before = self.cpu();
            std::thread::sleep(window);
            if self.cpu() - before <= window / 20 {
                return true;
            }
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a load came to: requests a second, and requests.
type Outcome = (f64, f64);

fn own_load(server: &Server, body: usize) -> Outcome {
    let mut config = LoadConfig::new(server.addr.parse().unwrap(), Protocol::Http);
    config.connections = if full() { 500 } else { 64 };
    config.body_bytes = Some(body);
    config.duration = if full() { Duration::from_secs(2) } else { Duration::from_millis(100) };
    config.warmup = Duration::ZERO;
    config.patience = Duration::from_secs(30);
    let report = run(&config, &mut |_| {}).unwrap();
    let errors = &report.errors;
    assert_eq!(report.served, config.connections, "{report:?}");
    assert_eq!(
        errors.connect + errors.read + errors.write + errors.timeout + errors.verify,
        0,
        "{report:?}"
    );
    (report.requests_per_second, report.requests as f64)
}

fn wrk_load(server: &Server) -> Option<Outcome> {
    let output = Command::new("wrk")
        .args(["-t12", "-c500", "-d2s", &format!("http://{}/", server.addr)])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"))?.trim();
    let requests = text.lines().find(|line| line.contains("requests in"))?.trim();
    let requests = requests.split(' ').next()?;
    Some((rate.parse().ok()?, requests.parse().ok()?))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// What ten loads in a row came to.
#[derive(Default)]
struct Series {
    rates: Vec<f64>,
    /// CPU time of the server for a request, in µs.
    costs: Vec<f64>,
}

impl Series {
    fn load(&mut self, server: &Server, body: usize) {
        let before = server.cpu();
        let wrk = if full() { wrk_load(server) } else { None };
        let (rate, requests) = wrk.unwrap_or_else(|| own_load(server, body));
        self.rates.push(rate);
        self.costs.push((server.cpu() - before).as_secs_f64() * 1e6 / requests);
    }

    /// The last five over the first five.
    fn change(values: &[f64]) -> f64 {
        let (first, last) = values.split_at(values.len() / 2);
        median(last) / median(first)
    }
}

/// By how much a fresh server's CPU per request may change in a series that is to say something.
const QUIET: std::ops::RangeInclusive<f64> = 0.95..=1.05;

/// How many series there may be until one is on a quiet machine.
const SERIES: usize = 5;

fn load_again(model: Model, body: usize) {
    for _ in 0..if full() { SERIES } else { 1 } {
        let (mut same, mut fresh) = (Series::default(), Series::default());
        let server = Server::start(model, &body.to_string());
        for _ in 0..RUNS {
            same.load(&server, body);
            if full() {
                fresh.load(&Server::start(model, &body.to_string()), body);
            }
        }
        if model != Model::BusyPoll {
            assert!(server.rests_within(Duration::from_secs(1)), "{model} does not come to rest");
        }
        if !full() {
            return;
        }
        let machine = Series::change(&fresh.costs);
        if !QUIET.contains(&machine) {
            println!("{model:<14} {body:>5} bytes  a fresh server's cost changed by {machine:.2}");
            continue;
        }
        return hold_against_each_other(model, body, &same, machine);
    }
    panic!("{model}: {SERIES} series, and the machine was quiet in none");
}

fn hold_against_each_other(model: Model, body: usize, same: &Series, machine: f64) {
    let (rates, costs) = (&same.rates, &same.costs);
    let (kept, cost) = (Series::change(rates), Series::change(costs));
    let least = rates.iter().copied().fold(f64::MAX, f64::min) / median(rates);
    println!(
        "{model:<14} {body:>5} bytes  {:>8.0}/s  last/first {kept:.2}  CPU/request {cost:.2} of \
         {:.2} µs (a fresh server's {machine:.2})  least run {least:.2}",
        median(rates),
        median(&costs[..RUNS / 2]),
    );
    assert!(kept >= 0.9, "{model}: the last five runs have {kept:.2} of the first five: {rates:?}");
    assert!(
        (0.9..=1.1).contains(&cost),
        "{model}: CPU per request changed by {cost:.2}: {costs:?}"
    );
    assert!(least >= 0.5, "{model}: a run has {least:.2} of the median: {rates:?}");
}

#[test]
fn ten_loads_in_a_row_are_alike_on_every_model() {
    for model in Model::ALL {
        load_again(model, 13);
    }
}

#[test]
fn ten_loads_in_a_row_are_alike_with_the_replies_of_the_notes() {
    for model in [Model::Mio, Model::Fiber] {
        load_again(model, 1800);
    }
}
