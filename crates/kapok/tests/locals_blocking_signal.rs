//! What fibers have for themselves, what they leave to other threads, and what comes from outside:
//! fiber-locals, blocking code, futures, signals, and destructors that wait.

mod harness;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Watchdog, alone, run, run_on, wait_until};
use kapok::net::UnixStream;
use kapok::signal::Signals;
use kapok::{FiberLocal, Interrupted, JoinError};

#[test]
fn each_fiber_has_a_value_of_its_own() {
    static COUNT: FiberLocal<Cell<u32>> = FiberLocal::new(|| Cell::new(10));
    static NAMES: FiberLocal<RefCell<Vec<u64>>> = FiberLocal::new(|| RefCell::new(Vec::new()));
    COUNT.with(|count| count.set(1));
    run_on(2, || {
        COUNT.with(|count| assert_eq!(count.replace(2), 10));
        let fibers: Vec<_> = (0..100)
            .map(|number| {
                kapok::spawn(move || {
                    for round in 0..5 {
                        COUNT.with(|count| {
                            let before = count.get();
                            assert_eq!(before, 10 + round);
                            // Kept across a suspension, though others use theirs meanwhile.
                            kapok::yield_now();
                            assert_eq!(count.get(), before);
                            count.set(before + 1);
                        });
                        NAMES.with(|names| names.borrow_mut().push(number));
                    }
                    NAMES.with(|names| assert_eq!(*names.borrow(), [number; 5]));
                })
            })
            .collect();
        fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
        assert_eq!(COUNT.with(Cell::get), 2);
    });
    // The thread's own, beside those of the fibers that it ran.
    assert_eq!(COUNT.with(Cell::get), 1);
    assert_eq!(thread::spawn(|| COUNT.with(Cell::get)).join().unwrap(), 10);
}

#[test]
fn fiber_locals_end_on_their_fiber_and_may_wait() {
    static DROPPED: Mutex<Vec<(Option<u64>, &str)>> = Mutex::new(Vec::new());
    struct Slow(&'static str);
    impl Drop for Slow {
        fn drop(&mut self) {
            let id = kapok::current_id();
            kapok::sleep(Duration::from_millis(2)).unwrap();
            assert_eq!(kapok::current_id(), id);
            DROPPED.lock().unwrap().push((id, self.0));
        }
    }
    static FIRST: FiberLocal<Slow> = FiberLocal::new(|| Slow("first"));
    static SECOND: FiberLocal<Slow> = FiberLocal::new(|| {
        // Made while another is being made, and after a wait.
        FIRST.with(|_| kapok::yield_now());
        Slow("second")
    });
    run(|| {
        let fiber = kapok::spawn(|| SECOND.with(|_| kapok::current_id()));
        let id = fiber.join().unwrap();
        assert!(id.is_some());
        // The result is there only when the values are gone.
        assert_eq!(*DROPPED.lock().unwrap(), [(id, "second"), (id, "first")]);
        let fiber = kapok::spawn(|| FIRST.with(|_| panic!("with a value")));
        assert!(matches!(fiber.join(), Err(JoinError::Panicked(_))));
        assert_eq!(DROPPED.lock().unwrap().len(), 3);
    });
}

#[test]
fn blocking_code_runs_elsewhere_and_borrows() {
    run(|| {
        let here = thread::current().id();
        let words = ["sum", "of", "lengths"];
        let mut total = 0;
        let there = kapok::blocking(|| {
            assert!(!kapok::on_fiber());
            total = words.iter().map(|word| word.len()).sum::<usize>();
            thread::current().id()
        })
        .unwrap();
        assert_eq!(total, 12);
        assert_ne!(there, here);
        // Others run meanwhile.
        let ticks = std::rc::Rc::new(Cell::new(0));
        let of_ticker = std::rc::Rc::clone(&ticks);
        let ticker = kapok::spawn_local(move || {
            while kapok::sleep(Duration::from_millis(1)).is_ok() {
                of_ticker.set(of_ticker.get() + 1);
            }
        });
        kapok::yield_now();
        kapok::blocking(|| thread::sleep(Duration::from_millis(100))).unwrap();
        assert!(ticks.get() > 0, "nothing ran beside blocking code");
        ticker.cancel();
        ticker.join().unwrap();
    });
}

#[test]
fn a_panic_of_blocking_code_is_the_callers() {
    run(|| {
        let fiber = kapok::spawn(|| kapok::blocking(|| panic!("off the loop")));
        let error = fiber.join().unwrap_err();
        assert!(error.to_string().contains("off the loop"), "{error}");
        assert_eq!(kapok::blocking(|| 5).unwrap(), 5);
    });
}

#[test]
fn blocking_code_of_many_fibers_all_comes_back() {
    run_on(2, || {
        let done = AtomicUsize::new(0);
        kapok::scope(|scope| {
            for number in 0..300 {
                let done = &done;
                scope.spawn(move || {
                    let result = kapok::blocking(|| {
                        if number % 10 == 0 {
                            thread::sleep(Duration::from_millis(5));
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                        number
                    });
                    assert_eq!(result.unwrap(), number);
                });
            }
        });
        assert_eq!(done.load(Ordering::SeqCst), 300);
    });
}

#[test]
fn blocking_code_is_waited_for_by_who_is_cancelled() {
    run(|| {
        let ended = Arc::new(AtomicBool::new(false));
        let of_fiber = Arc::clone(&ended);
        let fiber = kapok::spawn(move || {
            kapok::blocking(|| {
                thread::sleep(Duration::from_millis(30));
                of_fiber.store(true, Ordering::SeqCst);
            })
            .unwrap();
            kapok::check_interrupted()
        });
        kapok::yield_now();
        fiber.cancel();
        assert_eq!(fiber.join().unwrap(), Err(Interrupted::Canceled));
        assert!(ended.load(Ordering::SeqCst));
    });
}

#[test]
fn on_a_plain_thread_blocking_code_runs_on_the_spot() {
    let _watchdog = Watchdog::new();
    let id = thread::current().id();
    assert_eq!(kapok::blocking(|| thread::current().id()).unwrap(), id);
}

/// A future written by hand: ready when a thread that it starts says so.
struct FromThread {
    shared: Arc<Mutex<(Option<u32>, Option<Waker>)>>,
    started: bool,
    value: u32,
}

impl FromThread {
    fn new(value: u32) -> FromThread {
        FromThread { shared: Arc::default(), started: false, value }
    }
}

impl Future for FromThread {
    type Output = u32;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<u32> {
        if !self.started {
            self.started = true;
            let (shared, value) = (Arc::clone(&self.shared), self.value);
            thread::spawn(move || {
                thread::sleep(Duration::from_micros(u64::from(value % 500)));
                let waker = {
                    let mut shared = shared.lock().unwrap();
                    shared.0 = Some(value);
                    shared.1.take()
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            });
        }
        let mut shared = self.shared.lock().unwrap();
        match shared.0 {
            Some(value) => Poll::Ready(value),
            None => {
                shared.1 = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[test]
fn futures_are_woken_by_threads() {
    run(|| {
        kapok::scope(|scope| {
            for fiber in 0..4 {
                scope.spawn(move || {
                    for round in 0..100 {
                        let value = fiber * 1000 + round;
                        assert_eq!(kapok::block_on(FromThread::new(value)), value);
                    }
                });
            }
        });
    });
}

#[test]
fn a_future_may_wait_for_another_while_it_is_polled() {
    run(|| {
        for round in 0..100 {
            let mut outer = FromThread::new(round);
            let sum = kapok::block_on(poll_fn(|context| {
                // The outer one's thread may wake the fiber while the inner one waits.
                let polled = Pin::new(&mut outer).poll(context);
                let inner = kapok::block_on(FromThread::new(round + 100));
                kapok::sleep(Duration::from_micros(20)).unwrap();
                polled.map(|outer| outer + inner)
            }));
            assert_eq!(sum, 2 * round + 100);
        }
    });
}

#[test]
fn wakers_outlive_their_fiber_and_their_runtime() {
    static KEPT: Mutex<Vec<Waker>> = Mutex::new(Vec::new());
    run(|| {
        let fibers: Vec<_> = (0..50)
            .map(|_| {
                kapok::spawn(|| {
                    kapok::block_on(poll_fn(|context| {
                        KEPT.lock().unwrap().push(context.waker().clone());
                        Poll::Ready(())
                    }));
                })
            })
            .collect();
        fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
        KEPT.lock().unwrap().iter().for_each(Waker::wake_by_ref);
        kapok::sleep(Duration::from_millis(1)).unwrap();
    });
    for waker in KEPT.lock().unwrap().drain(..) {
        waker.wake_by_ref();
        thread::spawn(move || waker.wake()).join().unwrap();
    }
}

fn raise(signal: i32) {
    // SAFETY: no memory is named; the signal has a handler.
    assert_eq!(unsafe { libc::kill(libc::getpid(), signal) }, 0);
}

#[test]
fn signals_are_told_to_everybody_who_asked() {
    alone("signals_are_told_to_everybody_who_asked", || {
        run(|| {
            let mut one = Signals::new([libc::SIGUSR1, libc::SIGUSR2]).unwrap();
            let mut other = Signals::new([libc::SIGUSR1]).unwrap();
            for _ in 0..2 {
                let waiting = kapok::spawn(move || {
                    let signal = other.recv();
                    (signal, other)
                });
                kapok::sleep(Duration::from_millis(2)).unwrap();
                raise(libc::SIGUSR1);
                assert_eq!(one.recv().unwrap(), libc::SIGUSR1);
                let signal;
                (signal, other) = waiting.join().unwrap();
                assert_eq!(signal.unwrap(), libc::SIGUSR1);
            }
            raise(libc::SIGUSR2);
            assert_eq!(one.recv().unwrap(), libc::SIGUSR2);
            let silent = kapok::timeout(Duration::from_millis(10), || other.recv());
            assert_eq!(silent.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
            // One that is gone takes nothing from the other.
            drop(one);
            raise(libc::SIGUSR1);
            assert_eq!(other.recv().unwrap(), libc::SIGUSR1);
            // Raised before anybody waits: kept.
            raise(libc::SIGUSR1);
            kapok::sleep(Duration::from_millis(2)).unwrap();
            assert_eq!(other.recv().unwrap(), libc::SIGUSR1);
        });
    });
}

#[test]
fn signals_are_told_to_threads_too_and_impossible_ones_are_refused() {
    alone("signals_are_told_to_threads_too_and_impossible_ones_are_refused", || {
        let _watchdog = Watchdog::new();
        let mut signals = Signals::new([libc::SIGUSR1]).unwrap();
        raise(libc::SIGUSR1);
        assert_eq!(signals.recv().unwrap(), libc::SIGUSR1);
        for impossible in [libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV, libc::SIGILL, -1, 4711] {
            let error = Signals::new([impossible]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{impossible}: {error}");
        }
        let error = Signals::new([libc::SIGUSR2, libc::SIGKILL]).unwrap_err();
        assert!(error.to_string().contains('9'), "{error}");
    });
}

#[test]
fn signals_interrupt_no_operation() {
    alone("signals_interrupt_no_operation", || {
        run(|| {
            let _signals = Signals::new([libc::SIGUSR1]).unwrap();
            let (mut one, mut other) = UnixStream::pair().unwrap();
            let reader = kapok::spawn(move || {
                let mut buf = [0; 4];
                one.read_exact(&mut buf).map(|()| buf)
            });
            let before = Instant::now();
            let sleeper = kapok::spawn(|| kapok::sleep(Duration::from_millis(50)));
            for _ in 0..20 {
                raise(libc::SIGUSR1);
                kapok::sleep(Duration::from_millis(1)).unwrap();
            }
            other.write_all(b"done").unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), *b"done");
            assert_eq!(sleeper.join().unwrap(), Ok(()));
            assert!(before.elapsed() >= Duration::from_millis(50));
        });
    });
}

/// Waits in its destructor, for something that does not come in time.
struct WaitsOnDrop<'a>(&'a UnixStream);

impl Drop for WaitsOnDrop<'_> {
    fn drop(&mut self) {
        assert!(thread::panicking());
        { self.0 }.write_all(b"farewell").unwrap();
        let _ = { self.0 }.read(&mut [0; 8]);
        let _ = kapok::sleep(Duration::from_secs(3600));
        kapok::yield_now();
        let _ = kapok::blocking(|| thread::sleep(Duration::from_millis(1)));
    }
}

#[test]
fn a_destructor_that_waits_while_panicking_switches_to_nobody() {
    run(|| {
        let (stream, mut peer) = UnixStream::pair().unwrap();
        let lock = Arc::new(Mutex::new(0));
        let of_neighbour = Arc::clone(&lock);
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let neighbour = kapok::spawn_local(move || {
            let mut rounds = 0;
            while !seen.load(Ordering::SeqCst) {
                // If this ran while the thread unwinds, the lock would be poisoned.
                let mut guard = of_neighbour.lock().unwrap();
                assert!(!thread::panicking(), "another fiber's panic is here");
                *guard += 1;
                drop(guard);
                rounds += 1;
                kapok::yield_now();
            }
            rounds
        });
        kapok::yield_now();
        let before = Instant::now();
        let panicking = kapok::spawn_local(move || {
            let _last = WaitsOnDrop(&stream);
            panic!("on purpose");
        });
        assert!(matches!(panicking.join(), Err(JoinError::Panicked(_))));
        assert!(before.elapsed() < Duration::from_secs(20), "the wait is bounded");
        let mut farewell = [0; 8];
        peer.read_exact(&mut farewell).unwrap();
        assert_eq!(&farewell, b"farewell");
        over.store(true, Ordering::SeqCst);
        assert!(neighbour.join().unwrap() > 0);
        assert!(!lock.is_poisoned());
        wait_until(|| !thread::panicking());
    });
}
