//! Locks of threads, on fibers: of one thread, of several, and beside plain threads.
//!
//! Each test goes over two engines: that of io_uring, where a fiber waits in the kernel's queues by its
//! ring, and epoll, where a thread stands in for it. `KAPOK_SCALE=full` makes the long ones 10⁶ rounds.

#[cfg(target_os = "linux")]
mod allocators;
#[cfg(target_os = "linux")]
mod c_program;
#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod conditions;
#[cfg(target_os = "linux")]
mod differential;
#[cfg(target_os = "linux")]
mod endings;
#[cfg(target_os = "linux")]
#[path = "../engines/mod.rs"]
mod engines;
#[cfg(target_os = "linux")]
mod mutexes;
#[cfg(target_os = "linux")]
mod others;
#[cfg(target_os = "linux")]
#[path = "../skipped/mod.rs"]
mod skipped;
#[cfg(target_os = "linux")]
mod standard;
#[cfg(target_os = "linux")]
mod turns;

#[cfg(target_os = "linux")]
mod world {
    use std::time::{Duration, Instant};

    use crate::engines;

    /// Longer than anything takes that works.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

    /// How many rounds the long tests have.
    pub(crate) fn rounds(everyday: usize) -> usize {
        match std::env::var("KAPOK_SCALE").as_deref() {
            Ok("full") => 1_000_000,
            _ => everyday,
        }
    }

    /// Runs `main` as the main fiber of runtimes with so many threads, over the engines.
    pub(crate) fn on_fibers(threads: usize, main: impl Fn() + Send + Clone + 'static) {
        kapok_libc::install();
        for (kind, builder) in engines::there() {
            let lost = engines::lost_edges();
            builder.threads(threads).build().unwrap().run(main.clone());
            assert_eq!(engines::lost_edges(), lost, "{kind}: edges were lost");
        }
    }

    /// Lets other fibers run until `done`.
    #[track_caller]
    pub(crate) fn until(mut done: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < PATIENCE, "it does not come");
            kapok::sleep(Duration::from_micros(200)).unwrap();
        }
    }

    /// How often a function suspended its fiber so far.
    pub(crate) fn suspended(name: &str) -> u64 {
        kapok_libc::hooks().find(|hook| hook.name() == name).unwrap().counts().suspended
    }
}
