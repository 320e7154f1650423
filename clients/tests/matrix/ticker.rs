//! A fiber that ticks every millisecond beside what a client does, on the same thread: it goes on.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(1);

/// What a gap between two ticks may be, on a machine that does what it is told.
const LIMIT: Duration = Duration::from_millis(20);

/// The largest gap between two ticks of `sleep` while `over` is not set.
fn largest_gap(sleep: impl Fn(), over: &AtomicBool) -> Duration {
    let (mut last, mut largest) = (Instant::now(), Duration::ZERO);
    while !over.load(Ordering::Acquire) {
        sleep();
        let now = Instant::now();
        largest = largest.max(now - last);
        last = now;
    }
    largest
}

/// Calls `waits` with a ticker beside it, and says how long it took. Panics if the thread was blocked for
/// longer than a machine this busy explains, or if nothing waited for `least`.
pub(crate) fn beside_a_ticker<R>(least: Duration, waits: impl FnOnce() -> R) -> (R, Duration) {
    let over = Arc::new(AtomicBool::new(false));
    // What a thread of its own gets here, at this moment.
    let seen = Arc::clone(&over);
    let bare = std::thread::spawn(move || largest_gap(|| std::thread::sleep(TICK), &seen));
    let seen = Arc::clone(&over);
    let ticks = Rc::new(Cell::new(0_u32));
    let counted = Rc::clone(&ticks);
    let tick = move || {
        kapok::sleep(TICK).unwrap();
        counted.set(counted.get() + 1);
    };
    let ticker = kapok::spawn_local(move || largest_gap(tick, &seen));
    // One that has not begun would see no gap, whatever blocks.
    while ticks.get() == 0 {
        kapok::sleep(TICK).unwrap();
    }
    let began = Instant::now();
    let result = waits();
    let took = began.elapsed();
    over.store(true, Ordering::Release);
    let (gap, bare) = (ticker.join().unwrap(), bare.join().unwrap());
    println!("took {took:?}, largest gap {gap:?}, of a bare thread {bare:?}");
    assert!(took >= least, "nothing waited: {took:?}");
    let limit = LIMIT.max(bare * 3);
    // A wait that is one gap is no wait.
    if gap >= limit || gap >= least.max(bare * 3) {
        too_late(&format!("a gap of {gap:?}, of a thread {bare:?}"));
    }
    (result, took)
}

/// The line with which a process says that something came too late. That is a failure, but a machine that
/// does other things at the time explains one, so it is tried again.
pub(crate) const TOO_LATE: &str = "too late: ";

/// Ends this process.
pub(crate) fn too_late(what: &str) -> ! {
    println!("{TOO_LATE}{what}");
    std::process::exit(1);
}
