//! What a child process complained about before it ended.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::ChildStderr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much of it is kept.
const LINES: usize = 5;

/// How long the last words of a child that has ended may take to be read: they are in the pipe already.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The last lines that a child wrote to its standard error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Complaints(Arc<Mutex<VecDeque<String>>>);

impl Complaints {
    /// Keeps reading, so that a child with a lot to say never blocks on the pipe.
    pub(crate) fn collect(from: ChildStderr) -> (Complaints, thread::JoinHandle<()>) {
        let complaints = Complaints::default();
        let kept = complaints.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let mut lines = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == LINES {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
        });
        (complaints, reader)
    }

    /// What a child that has ended had to say, as `reader` has read it, and whether nobody can say more:
    /// a process that it has left behind may hold its end of the pipe for as long as it lives.
    pub(crate) fn last_words(&self, reader: &thread::JoinHandle<()>) -> (String, bool) {
        let give_up = Instant::now() + LAST_WORDS;
        while !reader.is_finished() && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(2));
        }
        (self.text(), reader.is_finished())
    }

    pub(crate) fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> =
            lines.iter().map(|line| line.strip_prefix("kapok: ").unwrap_or(line)).collect();
        lines.join("; ")
    }
}
