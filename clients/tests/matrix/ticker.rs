//! A fiber that ticks every millisecond beside what a client does, on the same thread: it goes on.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use crate::place::Place;

const TICK: Duration = Duration::from_millis(1);

/// What a gap between two ticks may be, on a machine that does what it is told.
const LIMIT: Duration = Duration::from_millis(20);

/// The largest gap between two ticks of `sleep` while `over` is not set, without what `thread` waited for
/// a processor in it: a hundred processes of a server that wake at once go before whom they please.
fn largest_gap(sleep: impl Fn(), thread: &Waiting, over: &AtomicBool) -> Duration {
    // It may be put away between the two, and then that belongs to both gaps.
    let (mut waited, mut last) = (thread.so_far(), Instant::now());
    let mut largest = Duration::ZERO;
    while !over.load(Ordering::Acquire) {
        sleep();
        let (before, now, behind) = (thread.so_far(), Instant::now(), thread.so_far());
        largest = largest.max((now - last).saturating_sub(behind.saturating_sub(waited)));
        (last, waited) = (now, before);
    }
    largest
}

/// How long a thread has been ready while others had the processors: its schedstat, see proc(5).
struct Waiting(File);

impl Waiting {
    fn of_this_thread() -> Waiting {
        // By its number: a fiber may have a file opened by another thread.
        // SAFETY: it takes nothing.
        let thread = unsafe { libc::gettid() };
        Waiting(File::open(format!("/proc/self/task/{thread}/schedstat")).unwrap())
    }

    fn so_far(&self) -> Duration {
        let mut text = [0_u8; 128];
        // SAFETY: the call writes into `text`, which outlives it. It is made here and now, so that the
        // ticker does not become another of the calls it is held beside.
        let read = unsafe {
            let (fd, start): (_, libc::off_t) = (self.0.as_raw_fd(), 0);
            libc::syscall(libc::SYS_pread64, fd, text.as_mut_ptr(), text.len(), start)
        };
        let text = std::str::from_utf8(&text[..usize::try_from(read).unwrap()]).unwrap();
        Duration::from_nanos(text.split_whitespace().nth(1).unwrap().parse().unwrap())
    }
}

/// Calls `waits` with a ticker beside it, and says how long it took. Panics if the thread was blocked for
/// longer than this machine explains, or if nothing waited for `least`.
pub(crate) fn beside_a_ticker<R>(least: Duration, waits: impl FnOnce() -> R) -> (R, Duration) {
    let over = Arc::new(AtomicBool::new(false));
    // What a thread of its own gets here, at this moment.
    let seen = Arc::clone(&over);
    let bare = thread::spawn(move || {
        largest_gap(|| thread::sleep(TICK), &Waiting::of_this_thread(), &seen)
    });
    let seen = Arc::clone(&over);
    let ticks = Rc::new(Cell::new(0_u32));
    let counted = Rc::clone(&ticks);
    let tick = move || {
        kapok::sleep(TICK).unwrap();
        counted.set(counted.get() + 1);
    };
    let thread = Waiting::of_this_thread();
    let ticker = kapok::spawn_local(move || largest_gap(tick, &thread, &seen));
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

/// Holds what a hundred fibers took against `limit`, or, on a machine that is busy, against what a hundred
/// threads take for the same now.
pub(crate) fn in_time(
    what: &str,
    took: Duration,
    limit: Duration,
    on_threads: fn(&Place) -> Duration,
    place: &Place,
) {
    println!("{what} took {took:?}");
    if took < limit {
        return;
    }
    let threads = on_threads(place);
    println!("on threads {threads:?}");
    if took >= limit.max(threads * 3 / 2) {
        too_late(&format!("{what} took {took:?}, on threads {threads:?}"));
    }
}

/// A hundred threads get `ready`, and then do something that waits: how long that takes from then on.
pub(crate) fn on_threads<T: 'static>(
    place: &Place,
    ready: fn(&Place) -> T,
    waits: fn(T),
) -> Duration {
    let go = Arc::new(Barrier::new(101));
    let threads: Vec<_> = (0..100)
        .map(|_| {
            let (place, go) = (place.clone(), Arc::clone(&go));
            thread::spawn(move || {
                let ready = ready(&place);
                go.wait();
                waits(ready);
            })
        })
        .collect();
    go.wait();
    let began = Instant::now();
    for thread in threads {
        thread.join().unwrap();
    }
    began.elapsed()
}

/// Ends this process.
pub(crate) fn too_late(what: &str) -> ! {
    println!("{TOO_LATE}{what}");
    std::process::exit(1);
}
