//! What a second worker adds, with one acceptor for all and with each worker accepting for itself.
//!
//! ```text
//! cargo build --release && cargo build --release --manifest-path bench/Cargo.toml
//! bench/target/release/workers --kapok target/release/kapok
//! ```
//!
//! Nothing is bound to cores: on a machine of two, the load shares them with the workers. So each
//! request burns CPU in its handler, beside which the load's share is small. Rounds are paired: each
//! arrangement runs once in each, in turn, and is compared with one worker in the same round.

use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use clap::Parser;

/// Compares one worker and more, on both layouts of accepting, and prints a Markdown table.
#[derive(Parser)]
struct Arguments {
    /// The program `kapok`.
    #[arg(long, default_value = "target/release/kapok")]
    kapok: PathBuf,
    /// The I/O models, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "fiber-uring,fiber-epoll,tokio")]
    models: Vec<String>,
    /// The most workers.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// CPU time that each request burns, in microseconds.
    #[arg(long, default_value_t = 50)]
    cpu_us: u64,
    /// Connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Rounds.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Length of one measured interval.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// A server that is killed when dropped.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(
        arguments: &Arguments,
        model: &str,
        threads: usize,
        accept: &str,
    ) -> io::Result<Server> {
        let mut process = Command::new(&arguments.kapok)
            .args(["serve", "--addr", "127.0.0.1:0", "--protocol", "echo", "--model", model])
            .args(["--threads", &threads.to_string(), "--accept", accept])
            .args(["--cpu-us", &arguments.cpu_us.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", arguments.kapok.display()))
            })?;
        let output = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut server = Server { process, address: String::new() };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        match line.trim().strip_prefix("listening on ") {
            Some(address) => address.clone_into(&mut server.address),
            None => return Err(io::Error::other(format!("kapok serve said {line:?}"))),
        }
        Ok(server)
    }

    /// Requests per second.
    fn measure(&self, arguments: &Arguments) -> io::Result<f64> {
        let output = Command::new(&arguments.kapok)
            .args(["load", &self.address, "--protocol", "echo", "--json", "--warmup", "0.1"])
            .args(["--connections", &arguments.connections.to_string()])
            .args(["--seconds", &arguments.seconds.to_string()])
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("kapok load: {}", output.status)));
        }
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        report["requests_per_second"]
            .as_f64()
            .ok_or_else(|| io::Error::other("kapok load reported no rate"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    println!("| | workers | accept | requests/s | × one worker | least to most |");
    println!("|---|--:|---|--:|--:|--:|");
    for model in &arguments.models {
        let mut arrangements = vec![(1, "thread")];
        for threads in 2..=arguments.threads {
            arrangements.extend([(threads, "thread"), (threads, "worker")]);
        }
        let servers = arrangements
            .iter()
            .map(|&(threads, accept)| Server::start(arguments, model, threads, accept))
            .collect::<io::Result<Vec<_>>>()?;
        let mut rates = vec![Vec::new(); servers.len()];
        for round in 0..arguments.rounds.max(1) {
            for at in 0..servers.len() {
                let at = (at + round) % servers.len();
                rates[at].push(servers[at].measure(arguments)?);
            }
        }
        for (at, (threads, accept)) in arrangements.iter().enumerate() {
            let mut ratios: Vec<f64> =
                rates[at].iter().zip(&rates[0]).map(|(own, one)| own / one).collect();
            ratios.sort_by(f64::total_cmp);
            let mut own = rates[at].clone();
            own.sort_by(f64::total_cmp);
            let middle = own.len() / 2;
            println!(
                "| {model} | {threads} | {accept} | {:.0} | {:.2} | {:.2} to {:.2} |",
                own[middle],
                ratios[middle],
                ratios[0],
                ratios[ratios.len() - 1],
            );
        }
    }
    Ok(())
}
