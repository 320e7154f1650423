//! The end of a runtime: what its fibers leave behind harms nobody.

mod harness;

use std::future::Future;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Watchdog, alone, open_descriptors, wait_until};
use kapok::interpose::Operation;
use kapok::sync::{Condvar, Mutex, RwLock};
use kapok::{Kind, Runtime};
use kapok_engine::Op;

const HOUR: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(50);

struct Heir(Arc<AtomicUsize>);

impl Drop for Heir {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn what_an_operation_in_flight_may_write_to_outlives_the_loop() {
    let _watchdog = Watchdog::new();
    for kind in [Kind::Uring, Kind::Epoll] {
        let builder = Runtime::builder().engine(kind).close_limit(Duration::ZERO);
        let Ok(runtime) = builder.build() else { continue };
        let dropped = Arc::new(AtomicUsize::new(0));
        let heir = Heir(Arc::clone(&dropped));
        runtime.run(move || {
            let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
            let mut memory = Box::new([0_u8; 64]);
            let (buf, len) = (memory.as_mut_ptr(), memory.len());
            let op = Op::Recv { fd: near.as_raw_fd(), buf, len, flags: 0 };
            // SAFETY: the memory is the heir's.
            let operation =
                unsafe { Operation::new(op, Some(Box::new(move |_| drop((memory, heir))))) };
            let mut operation = pin!(operation);
            assert!(operation.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            // Open for as long as the operation may last.
            std::mem::forget((near, far));
        });
        // It has not landed: nobody has turned the engine since.
        assert_eq!(dropped.load(Ordering::SeqCst), 0, "{kind}: freed under the operation");
    }
}

/// Runs `waits` on a fiber that is left behind in it, and ends the runtime.
fn leave_behind(waits: impl FnOnce() + 'static) {
    Runtime::builder().close_limit(SHORT).build().unwrap().run(move || {
        kapok::spawn_local(waits).detach();
        kapok::sleep(SHORT).unwrap();
    });
}

/// Starts a thread that is to end soon, once others are in its way.
fn starts(waits: impl FnOnce() + Send + 'static) -> mpsc::Receiver<()> {
    let (sender, done) = mpsc::channel();
    thread::spawn(move || {
        waits();
        sender.send(()).unwrap();
    });
    thread::sleep(SHORT);
    done
}

#[test]
fn a_lock_goes_to_others_than_who_was_left_behind_in_its_queue() {
    let _watchdog = Watchdog::new();
    let lock = Arc::new(Mutex::new(()));
    let held = lock.lock();
    let theirs = Arc::clone(&lock);
    leave_behind(move || drop(theirs.lock()));
    let theirs = Arc::clone(&lock);
    let done = starts(move || drop(theirs.lock()));
    drop(held);
    done.recv_timeout(Duration::from_secs(10)).expect("the lock is nobody's");

    let lock = Arc::new(RwLock::new(()));
    let held = lock.read();
    let theirs = Arc::clone(&lock);
    leave_behind(move || drop(theirs.write()));
    drop(held);
    let theirs = Arc::clone(&lock);
    starts(move || drop((theirs.read(), theirs.try_write())))
        .recv_timeout(Duration::from_secs(10))
        .expect("the lock is reserved for nobody");
}

#[test]
fn a_notification_goes_to_others_than_who_was_left_behind() {
    let _watchdog = Watchdog::new();
    for limited in [false, true] {
        let both = Arc::new((Mutex::new(false), Condvar::new()));
        let theirs = Arc::clone(&both);
        leave_behind(move || {
            let guard = theirs.0.lock();
            if limited {
                drop(theirs.1.wait_timeout(guard, HOUR));
            } else {
                drop(theirs.1.wait(guard));
            }
        });
        let theirs = Arc::clone(&both);
        let done = starts(move || {
            let mut waits = theirs.0.lock();
            *waits = true;
            drop(theirs.1.wait(waits));
        });
        // By then it is in the queue: it gives the lock back there.
        wait_until(|| *both.0.lock());
        both.1.notify_one();
        done.recv_timeout(Duration::from_secs(10)).expect("it went to who is gone");
    }
}

#[test]
fn all_loops_close_at_once() {
    let _watchdog = Watchdog::new();
    let lock = Arc::new(Mutex::new(()));
    let (waited, freed) = (Arc::new(AtomicBool::new(false)), Arc::clone(&lock));
    let got = Arc::clone(&waited);
    Runtime::builder().threads(2).close_limit(Duration::MAX).build().unwrap().run(move || {
        let here = thread::current().id();
        let (holds, held) = (Arc::new(AtomicBool::new(false)), Arc::clone(&lock));
        // Until one of them is on the other loop, and keeps the lock there.
        while !holds.load(Ordering::SeqCst) {
            let (holds, held) = (Arc::clone(&holds), Arc::clone(&held));
            kapok::spawn(move || {
                if thread::current().id() != here
                    && let Some(_guard) = held.try_lock()
                {
                    holds.store(true, Ordering::SeqCst);
                    kapok::sleep(HOUR).unwrap_err();
                }
            })
            .detach();
            kapok::sleep(Duration::from_millis(1)).unwrap();
        }
        kapok::spawn_local(move || {
            drop(lock.lock());
            got.store(true, Ordering::SeqCst);
        })
        .detach();
        kapok::sleep(SHORT).unwrap();
    });
    assert!(waited.load(Ordering::SeqCst), "nobody was cancelled for it");
    drop(freed.lock());
}

#[test]
fn what_was_to_be_interrupted_keeps_nothing_of_an_ended_loop_open() {
    alone("what_was_to_be_interrupted_keeps_nothing_of_an_ended_loop_open", || {
        let runtime = Runtime::builder().build().unwrap();
        let once = || {
            let handle = runtime.run(|| {
                let handle = kapok::spawn(|| ());
                wait_until(|| handle.is_finished());
                handle
            });
            handle.cancel();
            runtime.run(|| {
                kapok::spawn(|| {
                    kapok::sleep(HOUR).unwrap_err();
                    kapok::spawn(|| ()).detach();
                })
                .detach();
                kapok::yield_now();
            });
        };
        once();
        let before = open_descriptors();
        (0..20).for_each(|_| once());
        // The thread of a library may open one meanwhile, and not twenty.
        let begun = Instant::now();
        while open_descriptors() > before + 5 {
            assert!(begun.elapsed() < Duration::from_secs(10), "{before}, {}", open_descriptors());
            thread::sleep(SHORT);
        }
    });
}
