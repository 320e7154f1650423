//! One generator's part of a load that several generators make together.
//!
//! A generator and who joins it exchange lines of JSON, over the generator's standard input and output
//! or over a connection:
//!
//! 1. The generator opens its connections, has each served once, and says `ready`, with what it is
//!    about to do.
//! 2. It is told to begin: `go`, a line of its own. It warms up and measures.
//! 3. It says what it found: its `part`. Or, at any time, why it `failed`.
//!
//! No line holds a time of day. What is measured is durations, each on one machine's own clock. That
//! the intervals overlap follows from `go`, which reaches all generators within the time that a line
//! takes to them. The end of its input tells a generator that nobody wants its part any more: it ends.

use std::io::{self, BufRead, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::slices::{self, Slices};
use super::{LoadConfig, LoadReport, Phase, Progress};
use crate::Stop;

/// The version of the lines. It grows when a generator of before could be misunderstood.
const VERSION: u32 = 1;

/// What every line begins with; its value is the version.
const KEY: &str = "kapok_load_part";

/// The line that has a generator begin.
pub(super) const GO: &str = "go";

/// How often a generator that waits for it looks whether it was stopped.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Serialize, Deserialize)]
struct Line {
    kapok_load_part: u32,
    /// Version and commit of who says it.
    build: String,
    #[serde(flatten)]
    said: Said,
}

/// What a generator says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    Ready(Plan),
    Part(Box<Part>),
    Failed(String),
}

/// What a generator is about to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) protocol: String,
    pub(super) pipeline: usize,
    pub(super) rate: Option<f64>,
    pub(super) warmup_seconds: f64,
    pub(super) seconds: f64,
    pub(super) timeout_seconds: f64,
}

/// What a generator found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) report: LoadReport,
    pub(super) threads: usize,
    slice_ns: u64,
    slices: Vec<EncodedSlice>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct EncodedSlice {
    replies: u64,
    /// An HDR histogram of nanoseconds, version 2, deflated, in Base64.
    latencies: String,
}

/// Why a line is not what it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misheard {
    /// No line of a generator at all.
    Foreign,
    /// One of another version, with what the line was made by.
    OtherVersion { version: u64, build: String },
    /// One of this version that says something else.
    Broken(String),
}

impl Plan {
    fn of(config: &LoadConfig) -> Plan {
        Plan {
            protocol: config.protocol.to_string(),
            pipeline: config.pipeline,
            rate: config.rate,
            warmup_seconds: config.warmup.as_secs_f64(),
            seconds: config.duration.as_secs_f64(),
            timeout_seconds: config.timeout.as_secs_f64(),
        }
    }

    /// What would make figures of the two together mean nothing.
    pub(super) fn contradiction(&self, other: &Plan) -> Option<String> {
        let pace = |plan: &Plan| match plan.rate {
            Some(_) => "at a fixed rate",
            None => "in a closed loop",
        };
        if self.protocol != other.protocol {
            Some(format!("speaks {}, and {}", self.protocol, other.protocol))
        } else if self.seconds != other.seconds {
            Some(format!("measures {} s, and {} s", self.seconds, other.seconds))
        } else if self.warmup_seconds != other.warmup_seconds {
            Some(format!("warms up for {} s, and {} s", self.warmup_seconds, other.warmup_seconds))
        } else if self.pipeline != other.pipeline {
            Some(format!("keeps {} requests outstanding, and {}", self.pipeline, other.pipeline))
        } else if self.rate.is_some() != other.rate.is_some() {
            Some(format!("works {}, and {}", pace(self), pace(other)))
        } else {
            None
        }
    }
}

impl Part {
    pub(super) fn of(config: &LoadConfig, report: LoadReport) -> io::Result<Part> {
        let (slice_ns, slices) = report.slices.parts();
        let encoded = slices.iter().map(|(replies, latencies)| {
            let mut bytes = Vec::new();
            V2DeflateSerializer::new()
                .serialize(latencies, &mut bytes)
                .map_err(|error| io::Error::other(format!("a histogram: {error:?}")))?;
            Ok(EncodedSlice { replies: *replies, latencies: STANDARD.encode(bytes) })
        });
        let slices = encoded.collect::<io::Result<_>>()?;
        Ok(Part { threads: config.threads, slice_ns, slices, report })
    }

    /// The report with its latencies, which its JSON has not, and the number of threads.
    pub(super) fn decode(self) -> Result<(LoadReport, usize), String> {
        let decoded = self.slices.into_iter().map(|slice| {
            let bytes = STANDARD.decode(slice.latencies).map_err(|error| error.to_string())?;
            let latencies: Histogram<u64> = Deserializer::new()
                .deserialize(&mut bytes.as_slice())
                .map_err(|e| e.to_string())?;
            let ours = slices::histogram();
            let bounds = |one: &Histogram<u64>| (one.low(), one.high(), one.sigfig());
            if bounds(&latencies) != bounds(&ours) {
                return Err("a histogram with other bounds".to_owned());
            }
            Ok((slice.replies, latencies))
        });
        let slices = decoded.collect::<Result<Vec<_>, _>>()?;
        let count: u64 = slices.iter().map(|(_, latencies)| latencies.len()).sum();
        let mut report = self.report;
        if count != report.latency.count {
            return Err(format!(
                "{count} latencies in its histograms, and {} in its report",
                report.latency.count
            ));
        }
        report.slices = Slices::from_parts(self.slice_ns, slices);
        Ok((report, self.threads))
    }
}

pub(super) fn encode(build: &str, said: Said) -> io::Result<String> {
    let line = Line { kapok_load_part: VERSION, build: build.to_owned(), said };
    Ok(serde_json::to_string(&line)? + "\n")
}

/// Understands a line of a generator.
pub(super) fn hear(line: &str) -> Result<Said, Misheard> {
    let value: Value = serde_json::from_str(line).map_err(|_| Misheard::Foreign)?;
    let version = value.get(KEY).and_then(Value::as_u64).ok_or(Misheard::Foreign)?;
    if version != u64::from(VERSION) {
        let build = value.get("build").and_then(Value::as_str).unwrap_or("an unknown build");
        return Err(Misheard::OtherVersion { version, build: build.to_owned() });
    }
    // Not from the value: that would keep large numbers as floating point.
    let line: Line =
        serde_json::from_str(line).map_err(|error| Misheard::Broken(error.to_string()))?;
    Ok(line.said)
}

/// What this program says when another one speaks `version`.
pub(super) fn version_gap(version: u64, build: &str, ours: &str) -> String {
    format!(
        "it speaks version {version} of joining ({build}) and this is version {VERSION} ({ours}): use \
         the same build everywhere"
    )
}

/// What a generator is told.
enum Order {
    Go,
    Unknown(String),
    End,
}

/// Runs the load as one of several generators that somebody joins: says on `to` that it is ready,
/// begins when `go` comes from `orders`, and says on `to` what it found. The end of `orders` ends the
/// run at any time.
///
/// `build` is the version of this program, for messages about generators that do not match.
///
/// # Errors
///
/// What [`run`](super::run) gives, which is also said on `to`; orders that end before `go`, or are
/// others; what writing gave.
pub fn run_part(
    config: &LoadConfig,
    build: &str,
    orders: impl BufRead + Send + 'static,
    to: &mut dyn Write,
    progress: &mut dyn FnMut(Progress),
) -> io::Result<LoadReport> {
    let stop = match &config.stop {
        Some(stop) => stop.clone(),
        None => Stop::new()?,
    };
    let config = LoadConfig { stop: Some(stop.clone()), ..config.clone() };
    let orders = listen(orders, stop.clone());
    let mut trouble = None;
    let mut begun = false;
    let report = super::run(&config, &mut |now| {
        if now.phase == Phase::WarmUp && !begun && trouble.is_none() {
            // Every connection is open and nothing is being sent: this is where all wait for each other.
            match await_go(&config, build, &orders, to, &stop) {
                Ok(()) => begun = true,
                Err(error) => {
                    trouble = Some(error);
                    stop.stop();
                }
            }
        }
        progress(now);
    });
    let outcome = match (trouble, report) {
        (Some(error), _) | (None, Err(error)) => Err(error),
        (None, Ok(_)) if !begun => Err(io::Error::other("it was stopped before it was ready")),
        (None, Ok(report)) => Ok(report),
    };
    let said = match &outcome {
        Ok(report) => Said::Part(Box::new(Part::of(&config, report.clone())?)),
        Err(error) => Said::Failed(error.to_string()),
    };
    let told = to.write_all(encode(build, said)?.as_bytes()).and_then(|()| to.flush());
    let report = outcome?;
    told?;
    Ok(report)
}

/// Reads orders on a thread of its own, which ends with them.
fn listen(mut orders: impl BufRead + Send + 'static, stop: Stop) -> Receiver<Order> {
    let (heard, to) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        loop {
            line.clear();
            let order = match orders.read_line(&mut line) {
                Ok(1..) if line.trim() == GO => Order::Go,
                Ok(1..) => Order::Unknown(line.trim().to_owned()),
                Ok(0) | Err(_) => Order::End,
            };
            let ends = matches!(order, Order::End);
            // Who waited for `go` has it and listens no more.
            let _ = heard.send(order);
            if ends {
                stop.stop();
                return;
            }
        }
    });
    to
}

fn await_go(
    config: &LoadConfig,
    build: &str,
    orders: &Receiver<Order>,
    to: &mut dyn Write,
    stop: &Stop,
) -> io::Result<()> {
    to.write_all(encode(build, Said::Ready(Plan::of(config)))?.as_bytes())?;
    to.flush()?;
    loop {
        match orders.recv_timeout(LOOK) {
            Ok(Order::Go) => return Ok(()),
            Ok(Order::Unknown(line)) => {
                return Err(io::Error::other(format!(
                    "it was told `{line}` and knows only `{GO}`"
                )));
            }
            Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other(format!(
                    "who joins the generators went away before saying `{GO}`"
                )));
            }
            Err(RecvTimeoutError::Timeout) if stop.requested() => {
                return Err(io::Error::other(format!("it was stopped before it was told `{GO}`")));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_other_versions_and_other_programs_are_told_apart() {
        let said = encode("kapok 1", Said::Failed("no reply".into())).unwrap();
        assert!(matches!(hear(&said), Ok(Said::Failed(why)) if why == "no reply"));
        for foreign in ["", "Welcome to host a", "17", "{}", "{\"requests\":1}"] {
            assert_eq!(hear(foreign).unwrap_err(), Misheard::Foreign, "{foreign}");
        }
        let newer = said.replace(":1,", ":2,");
        let other = Misheard::OtherVersion { version: 2, build: "kapok 1".into() };
        assert_eq!(hear(&newer).unwrap_err(), other);
        let broken = said.replace("failed", "rejoiced");
        assert!(matches!(hear(&broken).unwrap_err(), Misheard::Broken(_)));
    }

    #[test]
    fn plans_that_cannot_be_added_up_say_why() {
        let plan = Plan {
            protocol: "echo".into(),
            pipeline: 1,
            rate: None,
            warmup_seconds: 0.5,
            seconds: 5.0,
            timeout_seconds: 5.0,
        };
        assert_eq!(plan.contradiction(&Plan { timeout_seconds: 1.0, ..plan.clone() }), None);
        for (other, word) in [
            (Plan { protocol: "http".into(), ..plan.clone() }, "speaks"),
            (Plan { seconds: 4.0, ..plan.clone() }, "measures"),
            (Plan { warmup_seconds: 1.0, ..plan.clone() }, "warms up"),
            (Plan { pipeline: 2, ..plan.clone() }, "outstanding"),
            (Plan { rate: Some(10.0), ..plan.clone() }, "fixed rate"),
        ] {
            let said = plan.contradiction(&other).unwrap();
            assert!(said.contains(word), "{said}");
        }
    }
}
