//! The workload that somebody has, and what they want of it.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Protocol;
use crate::compare::{Network, Point};
use crate::serve::{UnknownName, by_name};

/// What is to be small or large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// As many requests per second as can be.
    Throughput,
    /// A low 99th percentile of the latency.
    P99,
    /// Little memory with all connections open.
    Memory,
    /// Little CPU time per request.
    Cpu,
}

impl Objective {
    /// Every objective.
    pub const ALL: [Objective; 4] =
        [Objective::Throughput, Objective::P99, Objective::Memory, Objective::Cpu];

    /// What is compared, with its unit: of all of them less is better.
    #[must_use]
    pub fn cost(self) -> &'static str {
        match self {
            Objective::Throughput => "µs a request at saturation",
            Objective::P99 => "µs at the 99th percentile",
            Objective::Memory => "bytes with all connections open",
            Objective::Cpu => "µs of CPU a request",
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Objective::Throughput => "throughput",
            Objective::P99 => "p99",
            Objective::Memory => "memory",
            Objective::Cpu => "cpu",
        })
    }
}

impl FromStr for Objective {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Objective, UnknownName> {
        by_name("objective", &Objective::ALL, name)
    }
}

/// A workload by what it is for: what is not said otherwise is taken from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preset {
    /// A command-line tool that talks to a server: one connection.
    Cli,
    /// A database server: some hundred clients, and CPU time and files for each query.
    Database,
    /// A web server: many connections, most of them idle, small files.
    WebServer,
    /// A service in a web framework: many connections, and a database to wait for.
    WebFramework,
    /// A program that needs control itself: only what is written by hand (mio, epoll, io_uring).
    Control,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 5] =
        [Preset::Cli, Preset::Database, Preset::WebServer, Preset::WebFramework, Preset::Control];

    /// The workload that it stands for.
    #[must_use]
    pub fn question(self) -> Question {
        let question = Question::default();
        match self {
            Preset::Cli => Question {
                connections: 1,
                response_bytes: 4096,
                objective: Objective::Cpu,
                ..question
            },
            Preset::Database => Question {
                connections: 200,
                response_bytes: 1024,
                cpu_per_request: Duration::from_micros(200),
                file_share: 0.2,
                ..question
            },
            Preset::WebServer => Question {
                connections: 2000,
                active_share: 0.1,
                response_bytes: 4096,
                file_share: 1.0,
                ..question
            },
            Preset::WebFramework => Question {
                connections: 500,
                response_bytes: 1024,
                cpu_per_request: Duration::from_micros(20),
                delay: Duration::from_millis(5),
                ..question
            },
            Preset::Control => Question { by_hand: true, ..question },
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Preset::Cli => "cli",
            Preset::Database => "database",
            Preset::WebServer => "web-server",
            Preset::WebFramework => "web-framework",
            Preset::Control => "control",
        })
    }
}

impl FromStr for Preset {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Preset, UnknownName> {
        by_name("preset", &Preset::ALL, name)
    }
}

/// A workload, and what is wanted of it. In JSON, fields that are missing are the default's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Question {
    /// Connections that are open at once.
    pub connections: usize,
    /// The part of them that carries traffic, above 0 and up to 1.
    pub active_share: f64,
    /// Bytes of a request. A response of another size makes it HTTP, whose requests have their own.
    pub request_bytes: usize,
    /// Bytes of a response.
    pub response_bytes: usize,
    /// Requests on a connection before it is closed and another opened; `None`: it stays.
    pub requests_per_connection: Option<u64>,
    /// CPU time that the handler takes for each request; `cpu_us` in JSON.
    #[serde(rename = "cpu_us", with = "micros")]
    pub cpu_per_request: Duration,
    /// What each request waits for another server; zero: there is none. `delay_us` in JSON.
    #[serde(rename = "delay_us", with = "micros")]
    pub delay: Duration,
    /// The part of the requests that reads a file, from 0 to 1.
    pub file_share: f64,
    /// Bytes that the server may use with all connections open.
    pub memory_limit_bytes: Option<u64>,
    /// It must run where io_uring is denied.
    pub without_ring: bool,
    /// Models may be taken that use a core while there is nothing to do.
    pub may_spin: bool,
    /// Only models that are written by hand, for programs that need control over every call.
    pub by_hand: bool,
    /// Requests per second over all connections, at fixed times; `None` is saturation.
    pub rate: Option<f64>,
    /// What is to be best.
    pub objective: Objective,
}

/// A time as a number of microseconds.
mod micros {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_nanos() as f64 / 1e3)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let us = f64::deserialize(from)?;
        Duration::try_from_secs_f64(us / 1e6).map_err(D::Error::custom)
    }
}

impl Default for Question {
    /// 64 busy connections that echo 64 bytes, for throughput.
    fn default() -> Question {
        Question {
            connections: 64,
            active_share: 1.0,
            request_bytes: 64,
            response_bytes: 64,
            requests_per_connection: None,
            cpu_per_request: Duration::ZERO,
            delay: Duration::ZERO,
            file_share: 0.0,
            memory_limit_bytes: None,
            without_ring: false,
            may_spin: false,
            by_hand: false,
            rate: None,
            objective: Objective::Throughput,
        }
    }
}

impl Question {
    /// Connections that carry traffic: at least one.
    #[must_use]
    pub fn active(&self) -> usize {
        let active = (self.connections as f64 * self.active_share).round() as usize;
        active.clamp(1, self.connections.max(1))
    }

    /// Refuses what makes no sense.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`], with the value and what it may be.
    pub fn check(&self) -> io::Result<()> {
        let share = |share: f64| (0.0..=1.0).contains(&share);
        let wrong = if self.connections == 0 {
            "there must be at least one connection".to_owned()
        } else if !share(self.active_share) || self.active_share == 0.0 {
            format!("an active share of {}: above 0 and up to 1", self.active_share)
        } else if !share(self.file_share) {
            format!("a share of {} that reads a file: from 0 to 1", self.file_share)
        } else if self.response_bytes == 0 || self.request_bytes == 0 {
            "requests and responses have at least one byte".to_owned()
        } else if self.rate.is_some() && self.objective == Objective::Throughput {
            "at a fixed rate every model has the same throughput: leave the rate out, or ask for p99, \
             cpu or memory"
                .to_owned()
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, wrong))
    }

    /// The protocols to measure, each with its part of the requests.
    pub(super) fn protocols(&self) -> Vec<(Protocol, f64)> {
        let plain = match self.request_bytes == self.response_bytes {
            true => Protocol::Echo,
            false => Protocol::Http,
        };
        // Files are HTTP: what stands beside them must be so too.
        let plain = if self.file_share > 0.0 { Protocol::Http } else { plain };
        let parts = [(plain, 1.0 - self.file_share), (Protocol::Files, self.file_share)];
        parts.into_iter().filter(|(_, share)| *share > 0.0).collect()
    }

    /// The point of compare's grid.
    pub(super) fn point(&self) -> Point {
        let active = self.active();
        Point {
            connections: self.connections,
            active: (active < self.connections).then_some(active),
            size_bytes: self.request_bytes,
            churn: self.requests_per_connection,
            cpu_per_request: self.cpu_per_request,
            delay: self.delay,
            network: Network::Loopback,
        }
    }

    /// The question in one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("{} connections", self.connections);
        if self.active() < self.connections {
            text += &format!(", {} active", self.active());
        }
        text += &match self.protocols()[0].0 {
            Protocol::Echo => format!(" · echo of {} bytes", self.request_bytes),
            _ => format!(" · HTTP with {} bytes back", self.response_bytes),
        };
        if let Some(requests) = self.requests_per_connection {
            text += &format!(" · {requests} requests a connection");
        }
        if !self.cpu_per_request.is_zero() {
            text += &format!(" · {} µs of CPU a request", self.cpu_per_request.as_secs_f64() * 1e6);
        }
        if !self.delay.is_zero() {
            text += &format!(" · {} ms at a backend", self.delay.as_secs_f64() * 1e3);
        }
        if self.file_share > 0.0 {
            text += &format!(" · {:.0} % read a file", self.file_share * 100.0);
        }
        if let Some(bytes) = self.memory_limit_bytes {
            text += &format!(" · within {:.1} MiB", bytes as f64 / 1_048_576.0);
        }
        if self.without_ring {
            text += " · without io_uring";
        }
        if self.by_hand {
            text += " · by hand";
        }
        if self.may_spin {
            text += " · may spin";
        }
        if let Some(rate) = self.rate {
            text += &format!(" · {rate} requests/s");
        }
        text + &format!(" · for {}", self.objective)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_its_value() {
        for (question, said) in [
            (Question { connections: 0, ..Question::default() }, "one connection"),
            (Question { active_share: 0.0, ..Question::default() }, "active share of 0"),
            (Question { active_share: f64::NAN, ..Question::default() }, "active share of NaN"),
            (Question { file_share: 1.5, ..Question::default() }, "share of 1.5"),
            (Question { rate: Some(10.0), ..Question::default() }, "leave the rate out"),
        ] {
            let refused = question.check().unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
        assert!(Preset::ALL.iter().all(|preset| preset.question().check().is_ok()));
    }

    #[test]
    fn a_share_of_connections_is_never_none_of_them() {
        let active = |connections, active_share| {
            Question { connections, active_share, ..Question::default() }.active()
        };
        assert_eq!((active(10_000, 0.001), active(64, 0.5), active(3, 0.01)), (10, 32, 1));
    }

    #[test]
    fn in_json_what_is_missing_is_the_default_and_what_is_unknown_is_refused() {
        let read: Question =
            serde_json::from_str(r#"{"connections": 9, "cpu_us": 2.5, "objective": "p99"}"#)
                .unwrap();
        let expected = Question {
            connections: 9,
            cpu_per_request: Duration::from_nanos(2500),
            objective: Objective::P99,
            ..Question::default()
        };
        assert_eq!(read, expected);
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Question>(&written).unwrap(), expected);
        assert!(serde_json::from_str::<Question>(r#"{"conections": 9}"#).is_err());
    }

    #[test]
    fn files_stand_beside_http_and_shares_add_up() {
        let protocols = |file_share| Question { file_share, ..Question::default() }.protocols();
        assert_eq!(protocols(0.0), [(Protocol::Echo, 1.0)]);
        assert_eq!(protocols(0.25), [(Protocol::Http, 0.75), (Protocol::Files, 0.25)]);
        assert_eq!(protocols(1.0), [(Protocol::Files, 1.0)]);
    }
}
