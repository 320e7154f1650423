//! The world outside the engine under test: the kernel, or a simulated one, and its clock.
//!
//! Tests make their sockets and act as the peer by [`act`], and ask [`now`] for the time, so the
//! same tests run over both. A simulated world is an engine. It begins with the first thing that a
//! test makes, or with its driver, which then has it; with the driver it ends.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use kapok_engine::{AnyEngine, Config, Engine as _, Kind, Op, sim, sys};

use crate::driver::PATIENCE;

thread_local! {
    /// The simulated world that is there now, or null.
    static PRESENT: Cell<*mut AnyEngine> = const { Cell::new(std::ptr::null_mut()) };
    /// Whether a driver has that world.
    static IS_TAKEN: Cell<bool> = const { Cell::new(false) };
    /// What simulated worlds are made from; none if this test's world is the kernel.
    static SIMULATION: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Has this thread's world be a simulated one from now on.
pub(crate) fn simulate(seed: u64) {
    SIMULATION.set(Some(seed));
}

pub(crate) fn is_simulated() -> bool {
    SIMULATION.get().is_some()
}

/// How simulated worlds are made here: without faults, which most tests do not expect.
pub(crate) fn simulation(seed: u64) -> sim::Config {
    let mut config = sim::Config::new(seed);
    config.stuck_after = Some(PATIENCE);
    config
}

/// An engine of this kind, to be given back to [`end`]. A simulated one is the world that is there.
pub(crate) fn engine(kind: Kind, config: &Config) -> *mut AnyEngine {
    if kind == Kind::Sim {
        let present = if IS_TAKEN.get() { begin(config) } else { present(config) };
        IS_TAKEN.set(true);
        return present;
    }
    make(kind, config)
}

fn make(kind: Kind, config: &Config) -> *mut AnyEngine {
    let engine = AnyEngine::new(kind, config)
        .unwrap_or_else(|error| panic!("the {kind} engine cannot be made: {error}"));
    Box::into_raw(Box::new(engine))
}

/// The world that is there, which begins now if there is none.
fn present(config: &Config) -> *mut AnyEngine {
    if PRESENT.get().is_null() { begin(config) } else { PRESENT.get() }
}

fn begin(config: &Config) -> *mut AnyEngine {
    let mut config = config.clone();
    let seed = SIMULATION.get().unwrap_or_default();
    config.simulation.get_or_insert_with(|| simulation(seed));
    PRESENT.set(make(Kind::Sim, &config));
    PRESENT.get()
}

/// Drops an engine, and the world with it if it is one.
pub(crate) fn end(engine: *mut AnyEngine) {
    if PRESENT.get() == engine {
        PRESENT.set(std::ptr::null_mut());
        IS_TAKEN.set(false);
    }
    // SAFETY: made by `engine`, and given back once, by its driver.
    drop(unsafe { Box::from_raw(engine) });
}

/// Carries out `op` as a call of somebody else: it does not wait in a simulated world, and not in
/// the kernel if the operation or its descriptor says so.
pub(crate) fn act(op: &Op) -> i32 {
    if !is_simulated() {
        // SAFETY: callers name locals that outlive the call.
        return unsafe { sys::perform(op, true) };
    }
    let present = present(&Config::default());
    // SAFETY: the engine is there until its driver gives it back, and nobody is inside it now: its
    // driver is on this thread, and its calls do not come here.
    let AnyEngine::Sim(sim) = (unsafe { &mut *present }) else { unreachable!() };
    // SAFETY: callers name locals that outlive the call.
    unsafe { sim.perform(op) }
}

/// The same, as a result.
pub(crate) fn act_once(op: &Op) -> std::io::Result<usize> {
    match act(op) {
        res @ 0.. => Ok(res as usize),
        res => Err(std::io::Error::from_raw_os_error(-res)),
    }
}

/// Closes a descriptor, of this world or not.
pub(crate) fn close(fd: RawFd) {
    let is_there = is_simulated() && !PRESENT.get().is_null();
    if !is_there || act(&Op::Close { fd }) == -libc::EBADF {
        // SAFETY: the number is the caller's.
        unsafe { libc::close(fd) };
    }
}

/// The time by this world's clock.
pub(crate) fn now() -> Instant {
    let present = PRESENT.get();
    if present.is_null() {
        return Instant::now();
    }
    // SAFETY: as in `act`.
    unsafe { &*present }.now()
}

/// How long ago that was, by this world's clock.
pub(crate) fn since(start: Instant) -> Duration {
    now().saturating_duration_since(start)
}

/// Tests of what a simulated world does not have, and why.
pub(crate) const NOT_SIMULATED: &[(&str, &str)] = &[
    ("pipes::through", PIPES),
    ("pipes::end", PIPES),
    ("pipes::an_empty_buffer_is_no_end", PIPES),
    ("pipes::an_empty_buffer_waits_for_nobody", PIPES),
    ("pipes::full", PIPES),
    ("pipes::read_and_write_pend_together", PIPES),
    ("pipes::a_blocking_pipe_does_not_block_the_loop", PIPES),
    ("pipes::cancel_loses_nothing", PIPES),
    ("pipes::fifo", PIPES),
    ("pooled::a_buffer_is_taken_when_bytes_have_come", POOLED),
    ("pooled::neither_an_end_nor_a_cancel_takes_a_buffer", POOLED),
    ("pooled::when_all_are_taken_nothing_is_received", POOLED),
    ("pooled::large_messages_come_in_parts", POOLED),
    ("pooled::beside_receives_with_memory_of_their_own", POOLED),
    ("closing::number_reused_by_another_sort", PIPES),
    ("files::devices", "there are no devices"),
    ("poll::connecting", "it connects by a call of its own, which is the kernel's"),
    ("stream::wait_all_meets_a_notification", "nothing is told of what was sent"),
    ("stream::descriptors_are_passed", "ancillary data is not carried"),
    ("contract::dropped_before_the_first_turn", WORLD),
    ("contract::dropped_with_operations_pending", WORLD),
    ("contract::many_engines", WORLD),
    ("pressure::descriptors_beyond_the_limit", "no number is too large"),
    ("bell::rings_and_bytes_race_with_sleep", THREADS),
    ("cancel::no_byte_is_lost_in_a_race", THREADS),
    ("cancel::no_datagram_is_lost_in_a_race", THREADS),
    ("cancel::no_connection_is_lost_in_a_race", THREADS),
    ("timers::far_deadlines", THREADS),
    ("broken::what_a_dead_ring_had_is_all_accounted_for", "its sockets are the kernel's"),
];

const PIPES: &str = "there are no pipes";
const POOLED: &str = "it has no buffers of its own: loans are what it is there for";
const WORLD: &str =
    "an engine is a world of its own: its sockets end with it, and no other has them";
const THREADS: &str = "another thread is the peer; `random` has the same races from a seed";

/// The list names tests that there are.
#[test]
fn what_is_not_simulated_is_a_test() {
    let this = std::env::current_exe().expect("this test has a path");
    let listed = std::process::Command::new(this).arg("--list").output().expect("this test starts");
    let listed = String::from_utf8_lossy(&listed.stdout);
    for (test, _) in NOT_SIMULATED {
        let line = format!("{test}::sim: test");
        assert!(listed.lines().any(|there| there == line), "there is no test {test}");
    }
}
