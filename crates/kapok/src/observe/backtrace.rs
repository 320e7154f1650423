//! Backtraces: walking the frames of a fiber, naming them, and leaving out what is Kapok's own.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// How many frames of a fiber are taken, the innermost first.
pub(super) const MAX_FRAMES: usize = 128;

/// How many frames of the walk itself may be in front of them.
const MAX_FOREIGN_FRAMES: usize = 64;

/// The function under a fiber's own code, as symbols call it.
const BEGIN: &str = "kapok::fiber::begin";

/// The return addresses of the calls on the stack at `bounds`, the innermost first. The caller has
/// been called from there, and runs elsewhere.
pub(crate) fn walk(bounds: &Range<usize>) -> Vec<usize> {
    let mut frames = Vec::new();
    let mut foreign = 0;
    let each = |frame: &backtrace::Frame| {
        if bounds.contains(&frame.sp().addr()) {
            frames.push(frame.ip().addr());
        } else if frames.is_empty() {
            foreign += 1;
        } else {
            // Below the fiber is its loop.
            return false;
        }
        frames.len() < MAX_FRAMES && foreign < MAX_FOREIGN_FRAMES
    };
    // SAFETY: what has to be synchronized is looking up names, and the unwinders of Unix, which
    // this is, keep no state. (The lock would have loops wait for the monitor's look-ups.)
    unsafe { backtrace::trace_unsynchronized(each) };
    frames
}

/// A function on a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame {
    /// Where the program is in it: the address to which a call returns.
    pub address: usize,
    /// Its name, if the program has symbols.
    pub function: Option<String>,
    /// The source file, if the program has line tables.
    pub file: Option<PathBuf>,
    /// The line in it.
    pub line: Option<u32>,
}

/// Where a fiber is: its calls, the innermost first.
///
/// What is Kapok's own is left out on both ends: below the function that the fiber runs, and
/// above the outermost call into Kapok by which it waits. Shown by `{}`, a frame a line or two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backtrace {
    frames: Vec<Frame>,
}

impl Backtrace {
    /// The frames, the innermost first. None if the fiber has not started, or could not be asked.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }
}

impl fmt::Display for Backtrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, frame) in self.frames.iter().enumerate() {
            match &frame.function {
                Some(function) => writeln!(f, "    {number:>3}: {function}")?,
                None => writeln!(f, "    {number:>3}: {:#x}", frame.address)?,
            }
            if let (Some(file), Some(line)) = (&frame.file, frame.line) {
                writeln!(f, "           at {}:{line}", file.display())?;
            }
        }
        Ok(())
    }
}

/// What is Kapok's own and not of interest at the top.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Top {
    /// The fiber waits: above the call by which it does are only Kapok's frames.
    Waits,
    /// The fiber runs: every frame tells something.
    Runs,
}

/// How many names are kept from one report to the next.
const MAX_KEPT_NAMES: usize = 65_536;

/// Names of addresses, looked up once each, and the backtraces of one report, made once for each
/// stack.
#[derive(Default)]
pub(super) struct Symbols {
    named: HashMap<usize, Vec<Frame>>,
    waiting: HashMap<Arc<[usize]>, Arc<Backtrace>>,
}

impl Symbols {
    /// Forgets the last report's backtraces, which are its reader's.
    pub(super) fn begin(&mut self) {
        self.waiting.clear();
        if self.named.len() > MAX_KEPT_NAMES {
            self.named.clear();
        }
    }

    /// The backtrace of a fiber that waits. Many wait in the same place, and share it.
    pub(super) fn of_waiting(&mut self, addresses: &Arc<[usize]>) -> Arc<Backtrace> {
        if let Some(known) = self.waiting.get(addresses) {
            return Arc::clone(known);
        }
        let backtrace = Arc::new(self.backtrace(addresses, Top::Waits));
        self.waiting.insert(Arc::clone(addresses), Arc::clone(&backtrace));
        backtrace
    }

    pub(super) fn backtrace(&mut self, addresses: &[usize], top: Top) -> Backtrace {
        let mut frames = Vec::new();
        for &address in addresses {
            frames.extend_from_slice(self.name(address));
        }
        let name = |frame: &Frame| frame.function.clone().unwrap_or_default();
        if let Some(end) = frames.iter().position(|frame| name(frame).starts_with(BEGIN)) {
            frames.truncate(end);
        }
        // What calls the fiber's closure tells nothing.
        while frames.last().is_some_and(|frame| name(frame).starts_with("core::ops::function::")) {
            frames.pop();
        }
        if top == Top::Waits {
            // The outermost of Kapok's own frames at the top is what the fiber called.
            let own = frames.iter().map(name).take_while(|name| is_library(name));
            let called = own.enumerate().filter(|(_, name)| is_kapok(name)).last();
            if let Some((index, _)) = called {
                frames.drain(..index);
            }
        }
        Backtrace { frames }
    }

    /// The name of the function that an address is in, into which others may have been inlined.
    pub(super) fn outermost_name(&mut self, address: usize) -> Option<String> {
        self.name(address).last().and_then(|frame| frame.function.clone())
    }

    fn name(&mut self, address: usize) -> &[Frame] {
        self.named.entry(address).or_insert_with(|| {
            let mut frames = Vec::new();
            // Calls that were inlined come first, the innermost at the front.
            backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
                frames.push(Frame {
                    address,
                    // Without the hash that makes symbols unique.
                    function: symbol.name().map(|name| format!("{name:#}")),
                    file: symbol.filename().map(ToOwned::to_owned),
                    line: symbol.lineno(),
                });
            });
            if frames.is_empty() {
                frames.push(Frame { address, function: None, file: None, line: None });
            }
            frames
        })
    }
}

/// The crate that a function belongs to; of `<A as B>::f`, that of `A`.
fn crate_of(function: &str) -> &str {
    let start = function.trim_start_matches(['<', '&', '*', '(', '[', ' ']);
    let start = start.strip_prefix("mut ").unwrap_or(start);
    start.split("::").next().unwrap_or(start)
}

fn is_kapok(function: &str) -> bool {
    crate_of(function) == "kapok"
}

/// Whether it may be between a fiber's own code and the suspension.
fn is_library(function: &str) -> bool {
    matches!(crate_of(function), "kapok" | "kapok_engine" | "corosensei" | "core" | "std" | "alloc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_of_a_method_is_that_of_its_type() {
        assert_eq!(crate_of("<kapok::net::tcp::TcpStream as std::io::Read>::read"), "kapok");
        assert_eq!(crate_of("<&mut kapok::net::tcp::TcpStream as std::io::Read>::read"), "kapok");
        assert_eq!(crate_of("kapok_lab::serve::main"), "kapok_lab");
        assert_eq!(crate_of("main"), "main");
    }

    #[test]
    fn frames_without_a_name_are_shown_by_address() {
        let mut symbols = Symbols::default();
        let backtrace = symbols.backtrace(&[1], Top::Waits);
        assert_eq!(backtrace.to_string(), "      0: 0x1\n");
    }
}
