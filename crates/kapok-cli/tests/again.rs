//! Load again without restarting (row T3): the same server, ten loads in a row.
//!
//! The notes that this project comes from saw a server answer 3.6 million requests a second that
//! nobody had asked for, with 14,000 read errors, and 5.9 thousand a second when loaded again. So
//! every reply is counted and verified, and the tenth load is held against the first.
//!
//! With `KAPOK_SCALE=full` the load is wrk's twelve threads and 500 connections where wrk is
//! installed, for 2 s a run, server and load on a core each, and the figures of the runs are held
//! against each other and printed; run it with `--release -- --nocapture --test-threads=1`, alone on
//! the machine. The default size is too short for figures: it looks for errors and for servers that
//! do not come to rest.
//!
//! A machine changes too: on a virtual one the cost of a request drifts by a fifth within half a
//! minute, on every server alike. So right beside each run there is one on a server that was just
//! started, and what is held against each other, the first five runs and the last, is what the old
//! server does relative to the new one.

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

/// A command that at full size has a core to itself, so that no figure depends on where the
/// scheduler puts whom.
fn on_core(core: usize, program: &str) -> Command {
    if !full() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string(), program]);
    command
}

struct Server {
    child: Child,
    addr: String,
}

impl Server {
    fn start(model: Model, body: &str) -> Server {
        // Where a worker keeps its connection, every connection needs one.
        let threads = if model == Model::ThreadPool { "500" } else { "1" };
        let mut child = on_core(0, env!("CARGO_BIN_EXE_kapok"))
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
    // Where each connection has a thread, 500 of them take seconds until the last one is accepted.
    let output = on_core(1, "wrk")
        .args(["-t12", "-c500", "-d2s", "--timeout", "10s", &format!("http://{}/", server.addr)])
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

    /// The median of the last five over that of the first five.
    fn change(values: &[f64]) -> f64 {
        let (first, last) = values.split_at(values.len() / 2);
        median(last) / median(first)
    }
}

fn relative(values: &[f64], to: &[f64]) -> Vec<f64> {
    values.iter().zip(to).map(|(value, other)| value / other).collect()
}

fn load_again(model: Model, body: usize) {
    let (mut same, mut fresh) = (Series::default(), Series::default());
    let server = Server::start(model, &body.to_string());
    for round in 0..RUNS {
        let load_fresh = |series: &mut Series| {
            if full() {
                series.load(&Server::start(model, &body.to_string()), body);
            }
        };
        // Neither is always the first.
        if round % 2 == 0 {
            same.load(&server, body);
            load_fresh(&mut fresh);
        } else {
            load_fresh(&mut fresh);
            same.load(&server, body);
        }
    }
    if model != Model::BusyPoll {
        assert!(server.rests_within(Duration::from_secs(1)), "{model} does not come to rest");
    }
    if full() {
        hold_against_each_other(model, body, &same, &fresh);
    }
}

fn hold_against_each_other(model: Model, body: usize, same: &Series, fresh: &Series) {
    let (rates, costs) = (relative(&same.rates, &fresh.rates), relative(&same.costs, &fresh.costs));
    let (kept, cost) = (Series::change(&rates), Series::change(&costs));
    let least = same.rates.iter().copied().fold(f64::MAX, f64::min) / median(&same.rates);
    println!(
        "{model:<14} {body:>5} bytes  {:>8.0}/s, last/first {kept:.2} (by itself {:.2})  \
         {:>5.2} µs of CPU a request, last/first {cost:.2} (by itself {:.2})  least run {least:.2}",
        median(&same.rates),
        Series::change(&same.rates),
        median(&same.costs),
        Series::change(&same.costs),
    );
    assert!(kept >= 0.9, "{model}: the last five runs have {kept:.2} of the first: {rates:?}");
    assert!(
        (0.9..=1.1).contains(&cost),
        "{model}: CPU per request changed by {cost:.2}: {costs:?}"
    );
    assert!(least >= 0.5, "{model}: a run has {least:.2} of the median: {:?}", same.rates);
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
