//! Looking at a server from outside while it works: what it asks of the kernel, its sockets, its
//! threads, its memory.
//!
//! An [`Observer`] takes a [`Sample`] now and then; a [`Report`] is what lies between two. What is not
//! allowed here is left out, and [`Report::not_seen`] says what and why: step by step from programs in
//! the kernel (root) over perf counters to what `/proc` and the kernel's list of sockets tell anybody.
//!
//! In none of these ways is the observed process stopped or woken. [`trace`] is the exception: it
//! follows one connection call by call, and slows the process down meanwhile.

mod report;
mod sample;
mod start;
pub mod trace;

use std::io;

pub use report::{CallLine, Report, RingLine, SocketLine, StateLine, ThreadLine};
pub use sample::{Held, Sample, Transfers};
pub use start::Started;

use crate::meters::{Census, Depth, process_of, with_descendants};

/// Watches a process and its children.
#[derive(Debug)]
pub struct Observer {
    process: u32,
    census: Option<Census>,
    not_counted: Vec<String>,
}

impl Observer {
    /// Begins to watch `process`, and with it its children, those it has and those it will make. The number
    /// of one of its threads stands for all of it.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such process.
    pub fn of(process: u32, depth: Depth) -> io::Result<Observer> {
        let process = process_of(process).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no process {process}"))
        })?;
        let mut not_counted = Vec::new();
        let census = match Census::in_kernel(&with_descendants(process), depth) {
            Ok(census) => {
                not_counted.extend(census.missing().iter().cloned());
                Some(census)
            }
            Err(error) => {
                not_counted.push(format!("system calls and operations of io_uring: {error}"));
                None
            }
        };
        Ok(Observer { process, census, not_counted })
    }

    /// The process that is watched.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process
    }

    /// How it is counted, if at all.
    #[must_use]
    pub fn counted_by(&self) -> Option<String> {
        self.census.as_ref().map(|census| census.source().to_string())
    }

    /// Reads everything that may be read.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn sample(&mut self) -> io::Result<Sample> {
        Sample::take(self.process, self.census.as_mut())
    }

    /// The sample at the end of a process that has ended since `last`: what was counted until then. Its
    /// CPU time is in it as long as nobody has reaped the process ([`Started::has_ended`] leaves that to
    /// be done); its memory and its sockets are those of `last`.
    #[must_use]
    pub fn sample_of_ended(&mut self, last: &Sample) -> Sample {
        Sample::of_ended(self.process, self.census.as_mut(), last)
    }

    /// What lies between two samples.
    #[must_use]
    pub fn report(&self, from: &Sample, to: &Sample) -> Report {
        let landings =
            self.census.as_ref().is_some_and(|census| census.depth() == Depth::Everything);
        let mut report =
            Report::between(self.process, self.counted_by(), &self.not_counted, from, to);
        if !landings {
            report.forget_landings();
        }
        report
    }
}
