//! The load generator held against wrk, on the same server in interleaved runs.
//!
//! The server burns CPU for each request, so that it is what limits: both generators must then find what
//! it can do. With `KAPOK_SCALE=full` (and `--release`, alone on the machine) the server has a core and
//! the generators another, and the requests per second must agree within 5 %. The default size is for
//! machines that do other things as well: there it is the requests per second of the server's CPU time
//! that must agree, which what else runs does not change.

use std::io::{BufRead, BufReader};
use std::mem::MaybeUninit;
use std::process::{Child, Command, Stdio};

use kapok_lab::compare::Ratio;
use kapok_lab::meters::Usage;
use serde_json::Value;

fn full() -> bool {
    std::env::var("KAPOK_SCALE").is_ok_and(|scale| scale == "full")
}

fn on_core(core: usize, program: &str) -> Command {
    if !full() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string(), program]);
    command
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Requests, requests per second, and the generator's CPU time per request in microseconds.
type Figures = (f64, f64, f64);

/// CPU time of all children that were waited for.
fn children_cpu_us() -> f64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is an rusage that outlives the call; zeroes are a value of it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let microseconds = |time: libc::timeval| time.tv_sec as f64 * 1e6 + time.tv_usec as f64;
    microseconds(usage.ru_utime) + microseconds(usage.ru_stime)
}

fn wrk(addr: &str, seconds: u32) -> Figures {
    let before = children_cpu_us();
    let said = on_core(1, "wrk")
        .args(["-t1", "-c64", &format!("-d{seconds}s"), &format!("http://{addr}/")])
        .output()
        .unwrap();
    let cpu = children_cpu_us() - before;
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(!said.contains("Socket errors"), "{said}");
    let requests: f64 = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .unwrap_or_else(|| panic!("{said}"));
    let rate =
        said.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    (requests, rate.unwrap(), cpu / requests)
}

fn load(addr: &str, seconds: u32) -> Figures {
    let said = on_core(1, env!("CARGO_BIN_EXE_kapok"))
        .args([
            "load",
            addr,
            "--protocol",
            "http",
            "--connections",
            "64",
            "--warmup",
            "0",
            "--json",
        ])
        .args(["--seconds", &seconds.to_string()])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(report["errors"]["verify"], 0, "{report}");
    (
        report["requests"].as_f64().unwrap(),
        report["requests_per_second"].as_f64().unwrap(),
        report["cpu_us_per_request"].as_f64().unwrap(),
    )
}

#[test]
fn both_generators_find_the_same_throughput_and_ours_costs_no_more() {
    let there = Command::new("wrk").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_err() {
        let required = std::env::var_os("KAPOK_REQUIRE_WRK").is_some_and(|value| value == "1");
        assert!(!required, "no wrk, and KAPOK_REQUIRE_WRK=1");
        eprintln!("SKIPPED: no wrk to be held against (apt install wrk)");
        return;
    }
    let mut child = on_core(0, env!("CARGO_BIN_EXE_kapok"))
        .args(["serve", "--addr", "127.0.0.1:0", "--protocol", "http", "--model", "epoll"])
        .args(["--cpu-us", if full() { "30" } else { "100" }])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
    let pid = child.id();
    let _server = Server(child);

    let (rounds, seconds) = if full() { (12, 2) } else { (5, 1) };
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    let measure = |generate: fn(&str, u32) -> Figures| {
        let before = Usage::at_start(pid).unwrap();
        let (requests, rate, cost) = generate(&addr, seconds);
        let used = Usage::at_end(pid).unwrap().since(&before).cpu.as_secs_f64();
        (if full() { rate } else { requests / used }, cost)
    };
    for round in 0..rounds {
        let (ours, theirs) = if round % 2 == 0 {
            let ours = measure(load);
            (ours, measure(wrk))
        } else {
            let theirs = measure(wrk);
            (measure(load), theirs)
        };
        println!(
            "kapok {:.0}/s {:.2} µs, wrk {:.0}/s {:.2} µs",
            ours.0, ours.1, theirs.0, theirs.1
        );
        rates.push(ours.0 / theirs.0);
        costs.push(ours.1 / theirs.1);
    }
    let (rate, cost) = (Ratio::of(&rates).unwrap(), Ratio::of(&costs).unwrap());
    println!("throughput {rate:?}\ncost {cost:?}");
    let margin = if full() { 0.05 } else { 0.25 };
    assert!((rate.estimate - 1.0).abs() <= margin, "kapok load to wrk: {rate:?} of {rates:?}");
    assert!(cost.estimate <= 1.0, "kapok load to wrk: {cost:?} of {costs:?}");
}
