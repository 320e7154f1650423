//! What can be asked for, and what is soaked.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) const USAGE: &str = "usage: soak [OPTION VALUE]…
  --seconds S      how long to run (7200)
  --engine A,B     uring, epoll, poll, select or auto: a set of servers on each (auto)
  --servers A,B    echo, http, chat (all three)
  --rate R         exchanges per second of each client that behaves, and new clients per second that
                   do not, for each server (20)
  --period S       time between two kills of the clients that do not behave (30, or a twelfth of a
                   shorter run)
  --patience S     how long a client that behaves may wait for its next byte (15)
  --descriptors N  what each server may have open (200)
  --seed N         where the random numbers begin (the time)
  --csv FILE       write what was sampled";

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speech {
    Echo,
    Http,
    Chat,
}

impl Speech {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Speech::Echo => "echo",
            Speech::Http => "http",
            Speech::Chat => "chat",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Speech> {
        [Speech::Echo, Speech::Http, Speech::Chat].into_iter().find(|speech| speech.name() == name)
    }
}

/// One server to soak.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) speech: Speech,
    /// As `KAPOK_ENGINE` has it.
    pub(crate) engine: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) duration: Duration,
    pub(crate) engines: Vec<String>,
    pub(crate) speeches: Vec<Speech>,
    pub(crate) rate: f64,
    pub(crate) period: Duration,
    pub(crate) patience: Duration,
    pub(crate) descriptors: u64,
    pub(crate) seed: u64,
    pub(crate) csv: Option<String>,
}

impl Options {
    pub(crate) fn from_arguments(
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Options, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut options = Options {
            duration: Duration::from_secs(7200),
            engines: vec!["auto".to_owned()],
            speeches: vec![Speech::Echo, Speech::Http, Speech::Chat],
            rate: 20.0,
            period: Duration::ZERO,
            patience: Duration::from_secs(15),
            descriptors: 200,
            seed: now.as_nanos() as u64,
            csv: None,
        };
        while let Some(option) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{option} wants a value"))?;
            let wrong = || format!("{option} {value}: no such value");
            let seconds = || {
                let seconds = value.parse().ok().filter(|seconds| *seconds > 0.0);
                let seconds = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                seconds.ok_or_else(wrong)
            };
            match option.as_str() {
                "--seconds" => options.duration = seconds()?,
                "--period" => options.period = seconds()?,
                "--patience" => options.patience = seconds()?,
                "--rate" => {
                    let rate = value.parse().ok().filter(|rate| (0.1..=1000.0).contains(rate));
                    options.rate = rate.ok_or_else(|| format!("{} (0.1 to 1000)", wrong()))?;
                }
                "--descriptors" => {
                    let count = value.parse().ok().filter(|count| (64..=10_000).contains(count));
                    options.descriptors =
                        count.ok_or_else(|| format!("{} (64 to 10000)", wrong()))?;
                }
                "--seed" => options.seed = value.parse().map_err(|_| wrong())?,
                "--csv" => options.csv = Some(value),
                "--engine" => {
                    let known = ["uring", "epoll", "poll", "select", "auto"];
                    options.engines = value.split(',').map(str::to_owned).collect();
                    if !options.engines.iter().all(|engine| known.contains(&engine.as_str())) {
                        return Err(wrong());
                    }
                }
                "--servers" => {
                    let speeches = value.split(',').map(Speech::named).collect::<Option<_>>();
                    options.speeches = speeches.ok_or_else(wrong)?;
                }
                _ => return Err(format!("{option} is no option")),
            }
        }
        if options.period.is_zero() {
            options.period = Duration::from_secs(30).min(options.duration / 12);
        }
        Ok(options)
    }

    /// Every server on every engine.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        let on = |engine: &String| {
            let engine = engine.clone();
            self.speeches.iter().map(move |&speech| Subject { speech, engine: engine.clone() })
        };
        self.engines.iter().flat_map(on).collect()
    }
}
