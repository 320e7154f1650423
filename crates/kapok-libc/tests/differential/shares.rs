//! The calls of an engine, in shares: most of the time goes to waits, so processes beside each other make
//! them sooner. Processes and not threads: handlers of signals, children and numbers of descriptors are a
//! process's, and those who compare must be alone with theirs.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

/// How many there are.
const SHARES: usize = 4;

/// By which a process knows which share is its own.
const VARIABLE: &str = "KAPOK_DIFFERENTIAL_SHARE";

/// Before what a share has come to, in its output.
const MARK: &str = "in this share: ";

/// What came of a share, or of all of them.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) calls: usize,
    /// Calls that suspended the fiber.
    pub(crate) suspended: u64,
    /// Calls that took long enough to have waited, on the thread and on the fiber.
    pub(crate) waited: usize,
    /// The hooked functions that were called on the fiber.
    pub(crate) called: BTreeSet<String>,
}

impl Done {
    pub(crate) fn tell(&self) {
        let called: Vec<&str> = self.called.iter().map(String::as_str).collect();
        let (calls, suspended, waited) = (self.calls, self.suspended, self.waited);
        println!("\n{MARK}{calls} {suspended} {waited} {}", called.join(" "));
    }

    fn told(output: &str) -> Option<Done> {
        let line = output.lines().find_map(|line| line.strip_prefix(MARK))?;
        let mut words = line.split(' ');
        Some(Done {
            calls: words.next()?.parse().ok()?,
            suspended: words.next()?.parse().ok()?,
            waited: words.next()?.parse().ok()?,
            called: words.map(str::to_owned).collect(),
        })
    }
}

/// Which share this process is to make, if one.
pub(crate) fn mine() -> Option<u64> {
    std::env::var(VARIABLE).ok().map(|share| share.parse().unwrap())
}

/// Has all shares of `calls` made by the test of this name, in processes of their own.
pub(crate) fn all(test: &str, calls: usize, make: impl Fn(&mut Command, usize)) -> Done {
    let begin = |share: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(VARIABLE, share.to_string());
        make(&mut command, calls.div_ceil(SHARES));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let shares: Vec<Child> = (0..SHARES).map(begin).collect();
    // All of them, whatever came of the first.
    let ended: Vec<_> = shares.into_iter().map(|share| share.wait_with_output().unwrap()).collect();
    let mut all = Done::default();
    for (share, output) in ended.into_iter().enumerate() {
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "share {share}: {}: {said}", output.status);
        let done = Done::told(&said).unwrap_or_else(|| panic!("share {share} says: {said}"));
        all.calls += done.calls;
        all.suspended += done.suspended;
        all.waited += done.waited;
        all.called.extend(done.called);
    }
    all
}
