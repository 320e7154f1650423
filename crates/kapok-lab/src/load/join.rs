//! Several generators, on other hosts or in other namespaces, and one result.
//!
//! Generators are commands that are started here (`ssh host kapok load … --part`), or connect from
//! where something else started them (a Kubernetes Job, `kapok load … --part-of ADDR`). All of them
//! open their connections first; when the last is ready, all are told to begin at once. `part` has
//! what is said, `merge` how it is added up.
//!
//! All or nothing: when one generator fails, ends before its time or says something else than it
//! should, there is no result, and the error names it. A sum that lacks a part would pass for one that
//! does not.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::LoadReport;
use super::member::{Heard, Member};
use super::merge::merge;
use super::part::{Misheard, Plan, Said, hear, version_gap};
use crate::Stop;

/// How often to look for connections and whether a stop was asked for.
const LOOK: Duration = Duration::from_millis(20);

/// How much later than planned a part may come.
const GRACE: Duration = Duration::from_secs(30);

/// How long generators that were told to end early may take to say what they found until then.
const ENDING: Duration = Duration::from_secs(10);

/// More generators than this are a mistake.
const MOST: usize = 1024;

/// How much of a line that nobody understands is shown.
const SHOWN: usize = 80;

/// Which generators to join.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// Command lines for `/bin/sh`, each of which runs one generator and says its part
    /// ([`run_part`](super::run_part)) on standard output.
    pub commands: Vec<String>,
    /// Where to await generators that connect, and how many.
    pub listen: Option<(SocketAddr, usize)>,
    /// How long all of them together may take to be ready.
    pub wait: Duration,
    /// Version and commit of this program, for messages.
    pub build: String,
    /// Ends the run early; what was measured until then is put together.
    pub stop: Option<Stop>,
}

/// How far it has come.
#[derive(Clone, Debug)]
pub enum Gathering {
    /// Generators may connect here.
    Listening(SocketAddr),
    /// Somebody connected who is no generator, or one too many.
    TurnedAway(String),
    /// So many are ready, of all.
    Ready(usize, usize),
    /// They run, for so long now.
    Running(Duration),
    /// So many have said what they found, of all.
    Collected(usize, usize),
}

/// What they found.
#[derive(Clone, Debug, Serialize)]
pub struct Joined {
    /// All together.
    #[serde(flatten)]
    pub report: LoadReport,
    /// Each for itself, in the order of the commands, then of the connections.
    pub parts: Vec<LoadReport>,
}

/// Starts the commands, awaits the connections, has all begin at once, and puts together what they
/// found. The callback runs on the calling thread.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidInput`] if there is nobody to join. Any generator that fails, is not ready
/// in time, ends early, or does not match the others (version, protocol, length of the interval), with
/// its number and what it said: the others are then ended and what they found is dropped. A stop before
/// all were ready.
pub fn join(config: &JoinConfig, progress: &mut dyn FnMut(Gathering)) -> io::Result<Joined> {
    let awaited = config.listen.map_or(0, |(_, generators)| generators);
    let total = config.commands.len() + awaited;
    if total == 0 || total > MOST {
        let wrong = format!("{total} generators to join: from 1 to {MOST}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
    }
    let (heard, events) = mpsc::channel();
    let mut assembly = Assembly { config, total, seats: Vec::new(), heard, listener: None };
    if let Some((addr, _)) = config.listen {
        let listener = TcpListener::bind(addr)
            .map_err(|error| io::Error::new(error.kind(), format!("{addr}: {error}")))?;
        listener.set_nonblocking(true)?;
        progress(Gathering::Listening(listener.local_addr()?));
        assembly.listener = Some(listener);
    }
    for (number, command) in config.commands.iter().enumerate() {
        let member = Member::start(number, command, assembly.heard.clone())?;
        assembly.seats.push(Seat::of(member));
    }
    assembly.await_ready(&events, progress)?;
    assembly.listener = None;
    assembly.begin()?;
    assembly.collect(&events, progress)
}

/// A member and what it has said.
struct Seat {
    /// `None`: turned away.
    member: Option<Member>,
    plan: Option<Plan>,
    part: Option<(LoadReport, usize)>,
}

impl Seat {
    fn of(member: Member) -> Seat {
        Seat { member: Some(member), plan: None, part: None }
    }
}

struct Assembly<'a> {
    config: &'a JoinConfig,
    total: usize,
    seats: Vec<Seat>,
    heard: Sender<(usize, Heard)>,
    listener: Option<TcpListener>,
}

impl Drop for Assembly<'_> {
    /// All of them end at the same time, not one after the other.
    fn drop(&mut self) {
        self.dismiss();
    }
}

impl Assembly<'_> {
    fn dismiss(&mut self) {
        self.seats.iter_mut().filter_map(|seat| seat.member.as_mut()).for_each(Member::dismiss);
    }

    fn stopped(&self) -> bool {
        self.config.stop.as_ref().is_some_and(Stop::requested)
    }

    /// Whether as many as were to connect have, and are ready.
    fn has_all_connections(&self) -> bool {
        let connected = |seat: &&Seat| {
            seat.plan.is_some() && seat.member.as_ref().is_some_and(|member| !member.is_command())
        };
        let awaited = self.total - self.config.commands.len();
        self.seats.iter().filter(connected).count() >= awaited
    }

    fn ready(&self) -> usize {
        self.seats.iter().filter(|seat| seat.plan.is_some()).count()
    }

    fn await_ready(
        &mut self,
        events: &Receiver<(usize, Heard)>,
        progress: &mut dyn FnMut(Gathering),
    ) -> io::Result<()> {
        let begun = Instant::now();
        progress(Gathering::Ready(0, self.total));
        while self.ready() < self.total {
            if self.stopped() {
                return Err(io::Error::other("stopped before all generators were ready"));
            }
            if begun.elapsed() > self.config.wait {
                return Err(self.late());
            }
            self.admit(progress)?;
            if let Some((number, heard)) = next(events) {
                self.hear_plan(number, heard, progress)?;
                progress(Gathering::Ready(self.ready(), self.total));
            }
        }
        Ok(())
    }

    /// Who was not ready in time.
    fn late(&self) -> io::Error {
        let present = self.seats.iter().filter(|seat| seat.member.is_some());
        let slow: Vec<&str> = present
            .clone()
            .filter(|seat| seat.plan.is_none())
            .filter_map(|seat| seat.member.as_ref().map(Member::name))
            .collect();
        let absent = self.total.saturating_sub(present.count());
        let mut why = slow.join(", ");
        if absent > 0 {
            let comma = if why.is_empty() { "" } else { "; " };
            why += &format!("{comma}{absent} never connected");
        }
        io::Error::other(format!(
            "{} of {} generators were ready within {:?}; missing: {why} (--wait gives them longer)",
            self.ready(),
            self.total,
            self.config.wait
        ))
    }

    /// Lets in who has connected.
    fn admit(&mut self, progress: &mut dyn FnMut(Gathering)) -> io::Result<()> {
        loop {
            let Some(listener) = &self.listener else { return Ok(()) };
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // One that has gone again is as good as one that never came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            // Who has only connected takes nobody's place: it may be no generator.
            let unknown = self.seats.iter().filter(|seat| seat.member.is_some()).count();
            let everybody = self.has_all_connections();
            if everybody || unknown >= MOST {
                let why =
                    if everybody { "all are here already" } else { "too many have connected" };
                progress(Gathering::TurnedAway(format!("{peer}: {why}")));
                continue;
            }
            let number = self.seats.len();
            let member = Member::accept(number, stream, peer, self.heard.clone())?;
            self.seats.push(Seat::of(member));
        }
    }

    fn hear_plan(
        &mut self,
        number: usize,
        heard: Heard,
        progress: &mut dyn FnMut(Gathering),
    ) -> io::Result<()> {
        let build = &self.config.build;
        let was_ready = self.seats[number].plan.is_some();
        let is_full = self.has_all_connections();
        let Some(member) = &mut self.seats[number].member else { return Ok(()) };
        let plan = match heard {
            Heard::End(error) if was_ready => {
                return Err(ended(member, error, "before all were ready"));
            }
            Heard::Line(line) => match hear(&line) {
                Ok(Said::Ready(_)) if is_full && !was_ready && !member.is_command() => {
                    let why = format!("{}: all are here already", member.name());
                    self.seats[number].member = None;
                    progress(Gathering::TurnedAway(why));
                    return Ok(());
                }
                Ok(Said::Ready(plan)) if !was_ready => plan,
                Err(Misheard::Foreign) if !member.is_command() && !was_ready => {
                    // A health check, or a port scan: this is an open port.
                    let why = format!("{} is no generator", member.name());
                    self.seats[number].member = None;
                    progress(Gathering::TurnedAway(why));
                    return Ok(());
                }
                other => return Err(unexpected(member, other, &line, build, "ready")),
            },
            // In good order or by a reset, as those who only look whether a port is open like to.
            Heard::End(_) if !member.is_command() => {
                let why = format!("{} went away before it was ready", member.name());
                self.seats[number].member = None;
                progress(Gathering::TurnedAway(why));
                return Ok(());
            }
            Heard::End(error) => return Err(ended(member, error, "before it was ready")),
        };
        let others =
            self.seats.iter().filter_map(|seat| seat.plan.as_ref().zip(seat.member.as_ref()));
        for (known, theirs) in others {
            if let Some(contradiction) = plan.contradiction(known) {
                let name = self.seats[number].member.as_ref().map_or("", Member::name);
                return Err(io::Error::other(format!(
                    "{name} {contradiction} for {}: they cannot be added up",
                    theirs.name()
                )));
            }
        }
        self.seats[number].plan = Some(plan);
        Ok(())
    }

    /// Only those that are ready remain, and all are told to begin.
    fn begin(&mut self) -> io::Result<()> {
        for seat in &mut self.seats {
            if seat.plan.is_none() {
                seat.member = None;
            }
            let Some(member) = &mut seat.member else { continue };
            member.go().map_err(|error| io::Error::other(format!("{}: {error}", member.name())))?;
        }
        Ok(())
    }

    fn collect(
        mut self,
        events: &Receiver<(usize, Heard)>,
        progress: &mut dyn FnMut(Gathering),
    ) -> io::Result<Joined> {
        let plans = self.seats.iter().filter_map(|seat| seat.plan.as_ref());
        let planned =
            plans.clone().map(|plan| plan.warmup_seconds + plan.seconds).fold(0.0, f64::max);
        let timeout = plans.map(|plan| plan.timeout_seconds).fold(0.0, f64::max);
        let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let limit = seconds(planned + timeout).saturating_add(GRACE);
        let begun = Instant::now();
        let mut ending: Option<Instant> = None;
        loop {
            let collected = self.seats.iter().filter(|seat| seat.part.is_some()).count();
            if collected == self.total {
                break;
            }
            progress(if begun.elapsed() < seconds(planned) && ending.is_none() {
                Gathering::Running(begun.elapsed())
            } else {
                Gathering::Collected(collected, self.total)
            });
            if self.stopped() && ending.is_none() {
                ending = Some(Instant::now());
                self.dismiss();
            }
            let late = ending.map_or(begun.elapsed() > limit, |at| at.elapsed() > ENDING);
            if late {
                let silent = self.seats.iter().filter(|seat| seat.part.is_none());
                let names: Vec<&str> =
                    silent.filter_map(|seat| Some(seat.member.as_ref()?.name())).collect();
                return Err(io::Error::other(format!(
                    "no part came from {}, {} s after it was due",
                    names.join(", "),
                    if ending.is_some() { ENDING } else { GRACE }.as_secs()
                )));
            }
            if let Some((number, heard)) = next(events) {
                self.hear_part(number, heard)?;
            }
        }
        let parts: Vec<(LoadReport, usize)> =
            self.seats.iter_mut().filter_map(|seat| seat.part.take()).collect();
        let report = merge(&parts).map_err(io::Error::other)?;
        Ok(Joined { report, parts: parts.into_iter().map(|(part, _)| part).collect() })
    }

    fn hear_part(&mut self, number: usize, heard: Heard) -> io::Result<()> {
        let stopped = self.stopped();
        let seat = &mut self.seats[number];
        let Some(member) = &mut seat.member else { return Ok(()) };
        let line = match heard {
            // It has said all that it had to say.
            Heard::End(_) if seat.part.is_some() => return Ok(()),
            Heard::End(error) => return Err(ended(member, error, "before it said what it found")),
            Heard::Line(line) => line,
        };
        let part = match hear(&line) {
            Ok(Said::Part(part)) if seat.part.is_none() => part,
            other => return Err(unexpected(member, other, &line, &self.config.build, "part")),
        };
        let (report, threads) = part
            .decode()
            .map_err(|why| io::Error::other(format!("{}: its part: {why}", member.name())))?;
        if report.stopped_early && !stopped {
            let planned = seat.plan.as_ref().map_or(0.0, |plan| plan.seconds);
            return Err(io::Error::other(format!(
                "{} ended early: {:.1} s of {planned} s measured",
                member.name(),
                report.seconds
            )));
        }
        seat.part = Some((report, threads));
        member.dismiss();
        Ok(())
    }
}

fn next(events: &Receiver<(usize, Heard)>) -> Option<(usize, Heard)> {
    // Never without a sender: the assembly itself holds one.
    events.recv_timeout(LOOK).ok()
}

/// A line that does not belong where it came.
fn unexpected(
    member: &mut Member,
    said: Result<Said, Misheard>,
    line: &str,
    build: &str,
    awaited: &str,
) -> io::Error {
    let shown: String = line.chars().take(SHOWN).collect();
    let why = match said {
        Ok(Said::Failed(why)) => why,
        Ok(Said::Ready(_) | Said::Part(_)) => {
            format!("it said something else where its `{awaited}` was due")
        }
        Err(Misheard::OtherVersion { version, build: theirs }) => {
            version_gap(version, &theirs, build)
        }
        Err(Misheard::Broken(why)) => format!("it said `{shown}`: {why}"),
        Err(Misheard::Foreign) => format!(
            "it printed `{shown}`, which is no line of a generator: the command must run kapok load with \
             --part, and print nothing else"
        ),
    };
    io::Error::other(format!("{}: {why}", member.name()))
}

fn ended(member: &mut Member, error: Option<io::Error>, when: &str) -> io::Error {
    let how = error.map_or_else(|| member.last_words(), |error| error.to_string());
    io::Error::other(format!("{} ended {when}: {how}", member.name()))
}
