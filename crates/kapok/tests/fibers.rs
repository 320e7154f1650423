//! Fibers and runtimes: starting, ending, joining, taking turns, and what is left at the end.

mod harness;

use std::cell::Cell;
use std::collections::HashSet;
use std::future::pending;
use std::io::{ErrorKind, Read, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use harness::{Watchdog, alone, compute, in_child, run, run_on, scale, wait_until};
use kapok::net::UnixStream;
use kapok::{Builder, Canceled, Interrupted, JoinError, Kind, Runtime};

#[test]
fn a_fiber_gives_its_result_to_who_joins_it() {
    run(|| {
        let text = String::from("moved in");
        assert_eq!(kapok::spawn(move || text + " and out").join().unwrap(), "moved in and out");
        // Over before it is joined, or not started yet: all the same.
        let early = kapok::spawn(|| 1);
        let late = kapok::spawn(|| kapok::sleep(Duration::from_millis(5)).map(|()| 2));
        wait_until(|| early.is_finished());
        assert_eq!(late.join().unwrap(), Ok(2));
        assert_eq!(early.join().unwrap(), 1);
    });
}

#[test]
fn numbers_and_names_tell_fibers_apart() {
    assert!(!kapok::on_fiber());
    assert_eq!((kapok::current_id(), kapok::current_name()), (None, None));
    run(|| {
        assert!(kapok::on_fiber());
        assert_eq!(kapok::current_name().as_deref(), Some("main"));
        let handles: Vec<_> = (0..100)
            .map(|number| {
                let builder = Builder::new().name(format!("worker {number}"));
                builder.spawn(|| (kapok::current_id(), kapok::current_name()))
            })
            .collect();
        let mut ids = HashSet::from([kapok::current_id().unwrap()]);
        for (number, handle) in handles.into_iter().enumerate() {
            let (id, name) = (handle.id(), handle.name().map(str::to_owned));
            assert_eq!(name, Some(format!("worker {number}")));
            assert_eq!(handle.join().unwrap(), (Some(id), name));
            assert!(ids.insert(id), "{id} twice");
        }
        let unnamed = kapok::spawn(kapok::current_name);
        assert_eq!(unnamed.name(), None);
        assert_eq!(unnamed.join().unwrap(), None);
    });
}

#[test]
fn a_panic_is_the_result_of_its_fiber_alone() {
    run(|| {
        let number = std::hint::black_box(7);
        let error = kapok::spawn(move || -> u32 { panic!("number {number}") }).join().unwrap_err();
        assert!(error.to_string().contains("number 7"), "{error}");
        let JoinError::Panicked(payload) = error else { panic!("{error:?}") };
        assert_eq!(payload.downcast_ref::<String>().unwrap(), "number 7");
        let error = kapok::spawn(|| std::panic::panic_any(7_u32)).join().unwrap_err();
        let JoinError::Panicked(payload) = error else { panic!("{error:?}") };
        assert_eq!(payload.downcast_ref::<u32>(), Some(&7));
        // Panicking ends with its fiber.
        assert!(!thread::panicking());
        assert_eq!(kapok::spawn(|| 1).join().unwrap(), 1);
    });
}

#[test]
fn a_panic_of_main_is_that_of_run() {
    let _watchdog = Watchdog::new();
    let caught = std::panic::catch_unwind(|| {
        Runtime::new().unwrap().run(|| {
            let _sleeper = kapok::spawn(|| kapok::sleep(Duration::from_secs(3600)));
            panic!("out of main");
        })
    });
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"out of main"));
    assert_eq!(Runtime::new().unwrap().run(|| 5), 5);
}

#[test]
fn a_detached_fiber_goes_on() {
    run(|| {
        let done = Arc::new(AtomicU32::new(0));
        let (of_one, of_other) = (Arc::clone(&done), Arc::clone(&done));
        kapok::spawn(move || {
            kapok::sleep(Duration::from_millis(2)).unwrap();
            of_one.fetch_add(1, Ordering::SeqCst);
        })
        .detach();
        drop(kapok::spawn(move || of_other.fetch_add(1, Ordering::SeqCst)));
        wait_until(|| done.load(Ordering::SeqCst) == 2);
    });
}

#[test]
fn entries_and_results_of_any_size_arrive() {
    // Of no size, as large as finds room in a control block, a little larger, and much larger.
    fn echo<const WORDS: usize>(movable: bool) {
        let words: [u64; WORDS] = std::array::from_fn(|word| word as u64 + 1);
        let handle =
            if movable { kapok::spawn(move || words) } else { kapok::spawn_local(move || words) };
        assert_eq!(handle.join().unwrap(), words);
    }
    for threads in [1, 2] {
        run_on(threads, || {
            for movable in [false, true] {
                echo::<0>(movable);
                echo::<1>(movable);
                echo::<7>(movable);
                echo::<8>(movable);
                echo::<9>(movable);
                echo::<1000>(movable);
            }
        });
    }
}

#[test]
fn what_nobody_takes_is_dropped_once() {
    for threads in [1, 2] {
        run_on(threads, || {
            let held = Arc::new(());
            let spawn = |room: usize| {
                let held = Arc::clone(&held);
                // The closure holds one, and the result another; with much beside them, or little.
                let padding = vec![0_u8; room];
                kapok::spawn(move || (Arc::clone(&held), padding, [0_u64; 20]))
            };
            // Detached before it starts, dropped when it is over, and joined.
            spawn(1).detach();
            let over = spawn(2);
            wait_until(|| over.is_finished());
            drop(over);
            drop(spawn(3).join().unwrap());
            wait_until(|| Arc::strong_count(&held) == 1);
        });
    }
}

#[test]
fn a_join_that_is_given_up_leaves_the_fiber_and_the_next_wait_alone() {
    run(|| {
        let (mut stream, mut peer) = UnixStream::pair().unwrap();
        let joined = Arc::new(AtomicU32::new(0));
        let slow = {
            let joined = Arc::clone(&joined);
            kapok::spawn_local(move || {
                kapok::sleep(Duration::from_millis(20)).unwrap();
                joined.fetch_add(1, Ordering::Relaxed);
            })
        };
        let waits = kapok::spawn_local(move || {
            let given_up = kapok::timeout(Duration::from_millis(2), || slow.join());
            assert!(matches!(given_up, Err(JoinError::DeadlineElapsed)), "{given_up:?}");
            // The other one ends while this one has lent its buffer.
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            byte[0]
        });
        wait_until(|| joined.load(Ordering::Relaxed) == 1);
        kapok::sleep(Duration::from_millis(5)).unwrap();
        assert!(!waits.is_finished(), "it was resumed by who ended");
        peer.write_all(&[9]).unwrap();
        assert_eq!(waits.join().unwrap(), 9);
        // By a cancellation, too: neither one that came before the wait nor one during it is lost.
        for turns in 0..3 {
            let sleeper = kapok::spawn_local(|| kapok::sleep(Duration::from_secs(3600)));
            let sleeper_waits = kapok::spawn_local(move || {
                let result = sleeper.join();
                assert!(matches!(result, Err(JoinError::Canceled)), "{result:?}");
            });
            (0..turns).for_each(|_| kapok::yield_now());
            sleeper_waits.cancel();
            sleeper_waits.join().unwrap();
        }
    });
}

#[test]
fn threads_and_futures_join_fibers_too() {
    run(|| {
        let handle = kapok::spawn(|| kapok::sleep(Duration::from_millis(10)).map(|()| 1));
        let thread = thread::spawn(move || handle.join().unwrap());
        let handle = kapok::spawn(|| kapok::sleep(Duration::from_millis(5)).map(|()| 2));
        assert_eq!(kapok::block_on(async { handle.await.unwrap() }), Ok(2));
        let mut slow = kapok::spawn(|| kapok::sleep(Duration::from_secs(3600)));
        let quick = kapok::spawn(|| 3);
        let won = kapok::select! {
            _ = &mut slow => panic!("an hour has passed"),
            result = quick => result.unwrap(),
        };
        assert_eq!(won, 3);
        slow.cancel();
        assert_eq!(slow.join().unwrap(), Err(Interrupted::Canceled));
        wait_until(|| thread.is_finished());
        assert_eq!(thread.join().unwrap(), Ok(1));
    });
}

#[test]
fn a_thread_joins_a_fiber_whose_runtime_is_gone() {
    let (sender, handles) = mpsc::channel();
    run(move || {
        sender.send(kapok::spawn(|| kapok::sleep(Duration::from_secs(3600)))).unwrap();
        kapok::yield_now();
        // More than a loop starts before it sees that main has ended: the last one never starts.
        (0..1000).for_each(|_| kapok::spawn(|| ()).detach());
        sender.send(kapok::spawn(|| kapok::sleep(Duration::from_secs(3600)))).unwrap();
    });
    let started = handles.recv().unwrap().join();
    assert!(matches!(started, Ok(Err(Interrupted::Canceled))), "{started:?}");
    let unstarted = handles.recv().unwrap().join();
    assert!(matches!(unstarted, Err(JoinError::Abandoned)), "{unstarted:?}");
}

#[test]
fn fibers_that_yield_take_turns() {
    run(|| {
        let turns = Rc::new(std::cell::RefCell::new(Vec::new()));
        let workers: Vec<_> = ['a', 'b']
            .map(|name| {
                let turns = Rc::clone(&turns);
                kapok::spawn_local(move || {
                    for _ in 0..1000 {
                        turns.borrow_mut().push(name);
                        kapok::yield_now();
                    }
                })
            })
            .into_iter()
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        let turns = turns.borrow();
        assert_eq!(turns.len(), 2000);
        assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "one ran twice in a row");
    });
}

#[test]
fn a_fiber_whose_operations_never_wait_starves_nobody() {
    run(|| {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let over = Rc::new(Cell::new(false));
        let of_neighbour = Rc::clone(&over);
        let neighbour = kapok::spawn_local(move || {
            for _ in 0..10 {
                kapok::yield_now();
            }
            of_neighbour.set(true);
        });
        let mut operations = 0;
        let mut buf = [0; 1];
        while !over.get() {
            one.write_all(b"x").unwrap();
            other.read_exact(&mut buf).unwrap();
            operations += 2;
            assert!(operations < 100_000, "the neighbour does not get to run");
        }
        neighbour.join().unwrap();
    });
}

#[test]
fn a_fiber_that_computes_and_yields_does_not_hold_up_timers() {
    run(|| {
        let over = Rc::new(Cell::new(false));
        let of_timer = Rc::clone(&over);
        let timer = kapok::spawn_local(move || {
            kapok::sleep(Duration::from_millis(5)).unwrap();
            of_timer.set(true);
        });
        while !over.get() {
            kapok::yield_now();
        }
        timer.join().unwrap();
    });
}

#[test]
fn work_that_has_not_started_moves_to_idle_loops_and_started_fibers_stay() {
    run_on(2, || {
        let mut seen: HashSet<ThreadId> = HashSet::new();
        while seen.len() < 2 {
            let handles: Vec<_> = (0..16)
                .map(|_| {
                    kapok::spawn(|| {
                        let id = thread::current().id();
                        for round in 0..20 {
                            match round % 3 {
                                0 => kapok::yield_now(),
                                1 => kapok::sleep(Duration::from_micros(100)).unwrap(),
                                _ => compute(Duration::from_micros(50)),
                            }
                            assert_eq!(thread::current().id(), id, "moved after its start");
                        }
                        id
                    })
                })
                .collect();
            seen.extend(handles.into_iter().map(|handle| handle.join().unwrap()));
        }
        // What must not leave the thread does not.
        let here = thread::current().id();
        let local: Vec<_> =
            (0..64).map(|_| kapok::spawn_local(|| thread::current().id())).collect();
        for handle in local {
            assert_eq!(handle.join().unwrap(), here);
        }
    });
}

#[test]
fn a_loop_that_computes_has_its_queue_served_by_another() {
    run_on(2, || {
        // Spawned while the other loop waits; this one goes on computing and lets nobody run.
        for _ in 0..20 {
            kapok::sleep(Duration::from_millis(2)).unwrap();
            let done = Arc::new(AtomicBool::new(false));
            let of_fiber = Arc::clone(&done);
            let handle = kapok::spawn(move || of_fiber.store(true, Ordering::SeqCst));
            let limit = Instant::now() + Duration::from_millis(500);
            while !done.load(Ordering::SeqCst) && Instant::now() < limit {
                std::hint::spin_loop();
            }
            let elsewhere = done.load(Ordering::SeqCst);
            handle.join().unwrap();
            if elsewhere {
                return;
            }
        }
        panic!("in 20 attempts the idle loop took nothing");
    });
}

#[test]
fn many_sleepers_wake_in_order() {
    let count = scale(10_000, 1_000_000);
    // Far enough that they all sleep before the first is due, or else farther.
    let mut lead = Duration::from_millis(scale(300, 60_000));
    while !sleepers_wake_in_order(count, lead) {
        lead *= 2;
    }
}

/// False if some were not asleep before the first was due: then their order says nothing.
fn sleepers_wake_in_order(count: usize, lead: Duration) -> bool {
    run(move || {
        let woken = Rc::new(std::cell::RefCell::new(Vec::with_capacity(count)));
        let first = Instant::now() + lead;
        let asleep = Rc::new(Cell::new(0));
        let handles: Vec<_> = (0..count)
            .map(|number| {
                // Spawned in an order that is not theirs: 7919 is prime to the count.
                let place = number * 7919 % count;
                let (woken, asleep) = (Rc::clone(&woken), Rc::clone(&asleep));
                kapok::spawn_local(move || {
                    asleep.set(asleep.get() + 1);
                    let at = first + Duration::from_micros(place as u64 * 20);
                    kapok::time::sleep_until(at).unwrap();
                    assert!(Instant::now() >= at, "woken before its time");
                    woken.borrow_mut().push(place);
                })
            })
            .collect();
        wait_until(|| asleep.get() == count);
        let in_time = Instant::now() < first;
        for handle in handles {
            handle.join().unwrap();
        }
        let woken = woken.borrow();
        assert_eq!(woken.len(), count);
        let late = woken.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!(
            !in_time || late * 100 <= count,
            "{late} of {count} woke after one with a later deadline"
        );
        in_time
    })
}

/// Uses about `bytes` of stack.
#[inline(never)]
fn recurse(bytes: usize) -> u64 {
    let frame = std::hint::black_box([1_u64; 128]);
    match bytes.checked_sub(size_of_val(&frame)) {
        Some(left) => recurse(left) + frame[left % 128],
        None => 0,
    }
}

#[test]
fn a_big_stack_takes_a_deep_recursion() {
    run(|| {
        for megabytes in [1, 8, 64] {
            let builder = Builder::new().stack_size(megabytes << 20);
            // A debug build's frames are larger than what they hold.
            let deep = builder.spawn(move || recurse((megabytes << 20) / 4));
            assert!(deep.join().unwrap() > 0);
        }
        // Stacks are used again.
        for _ in 0..1000 {
            kapok::spawn(|| recurse(16 << 10)).join().unwrap();
        }
    });
}

#[test]
fn an_overflow_is_reported_with_the_name_of_the_fiber() {
    let output = in_child("an_overflow_is_reported_with_the_name_of_the_fiber", &[], || {
        run(|| {
            let builder = Builder::new().name("bottomless").stack_size(128 << 10);
            let _ = builder.spawn(|| recurse(1 << 30)).join();
        });
    });
    use std::os::unix::process::ExitStatusExt;
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.signal().is_some(), "{:?}: {report}", output.status);
    assert!(report.contains("bottomless") && report.contains("overflowed its stack"), "{report}");
    assert!(report.contains("Builder::stack_size"), "{report}");
}

#[test]
fn a_runtime_runs_again_and_in_several_threads_at_once() {
    let _watchdog = Watchdog::new();
    let runtime = Runtime::new().unwrap();
    for round in 0..10 {
        assert_eq!(runtime.run(move || kapok::spawn(move || round).join().unwrap()), round);
    }
    let runtime = Arc::new(Runtime::builder().threads(2).build().unwrap());
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let runtime = Arc::clone(&runtime);
            thread::spawn(move || {
                runtime.run(move || {
                    let fibers: Vec<_> = (0..50)
                        .map(|part| {
                            kapok::spawn(move || {
                                kapok::sleep(Duration::from_millis(1)).unwrap();
                                number * part
                            })
                        })
                        .collect();
                    fibers.into_iter().map(|fiber| fiber.join().unwrap()).sum::<usize>()
                })
            })
        })
        .collect();
    for (number, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), number * (49 * 50 / 2));
    }
}

#[test]
fn run_within_run_is_refused() {
    run(|| {
        let nested = kapok::spawn(|| Runtime::new().unwrap().run(|| ()));
        let error = nested.join().unwrap_err();
        assert!(error.to_string().contains("inside another"), "{error}");
    });
    let outside = std::panic::catch_unwind(|| kapok::spawn(|| ()).detach());
    let payload = outside.unwrap_err();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or(payload.downcast_ref::<&str>().copied()).unwrap();
    assert!(text.contains("inside a runtime"), "{text}");
}

#[test]
fn fibers_left_at_the_end_are_cancelled_and_run_out() {
    let ended = Arc::new(Mutex::new(Vec::new()));
    let of_run = Arc::clone(&ended);
    run_on(2, move || {
        let (mut quiet, peer) = UnixStream::pair().unwrap();
        let (of_reader, of_sleeper) = (Arc::clone(&of_run), Arc::clone(&of_run));
        let started = Arc::new(AtomicUsize::new(0));
        let (reader_started, sleeper_started) = (Arc::clone(&started), Arc::clone(&started));
        kapok::spawn(move || {
            reader_started.fetch_add(1, Ordering::SeqCst);
            let error = quiet.read(&mut [0; 8]).unwrap_err();
            assert!(Canceled::is(&error), "{error}");
            // It may still clean up, which takes its time.
            kapok::shield(|| kapok::sleep(Duration::from_millis(20))).unwrap();
            drop(peer);
            of_reader.lock().unwrap().push("reader");
        })
        .detach();
        kapok::spawn(move || {
            sleeper_started.fetch_add(1, Ordering::SeqCst);
            assert_eq!(kapok::sleep(Duration::from_secs(3600)), Err(Interrupted::Canceled));
            of_sleeper.lock().unwrap().push("sleeper");
        })
        .detach();
        // Those that have not started by the end never run.
        wait_until(|| started.load(Ordering::SeqCst) == 2);
        kapok::sleep(Duration::from_millis(20)).unwrap();
    });
    let mut ended = ended.lock().unwrap().clone();
    ended.sort_unstable();
    assert_eq!(ended, ["reader", "sleeper"]);
}

#[test]
fn a_fiber_that_ignores_its_cancellation_is_leaked_and_the_process_goes_on() {
    struct Witness(Arc<AtomicUsize>);
    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let _watchdog = Watchdog::new();
    let dropped = Arc::new(AtomicUsize::new(0));
    let runtime = Runtime::builder().close_limit(Duration::from_millis(100)).build().unwrap();
    let before = Instant::now();
    let witness = Witness(Arc::clone(&dropped));
    let handle = runtime.run(move || {
        let handle = kapok::spawn(move || {
            let _witness = witness;
            kapok::block_on(pending::<()>());
        });
        kapok::sleep(Duration::from_millis(5)).unwrap();
        handle
    });
    assert!(before.elapsed() >= Duration::from_millis(100));
    assert_eq!(dropped.load(Ordering::SeqCst), 0, "what is on a leaked stack is not dropped");
    handle.cancel();
    assert!(matches!(handle.join(), Err(kapok::JoinError::Abandoned)));
    assert_eq!(runtime.run(|| kapok::spawn(|| 3).join().unwrap()), 3);
}

#[test]
fn an_engine_that_does_not_exist_is_invalid_input() {
    let name = "an_engine_that_does_not_exist_is_invalid_input";
    let output = in_child(name, &[(kapok::ENGINE_VARIABLE, "nonsense")], || {
        let error = Runtime::new().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let text = error.to_string();
        assert!(text.contains("nonsense") && text.contains(kapok::ENGINE_VARIABLE), "{text}");
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_engine_that_can_be_had_runs_fibers() {
    let _watchdog = Watchdog::new();
    for &kind in Kind::ALL {
        let runtime = match Runtime::builder().engine(kind).build() {
            Ok(runtime) => runtime,
            Err(error) => {
                println!("skipped: {error}");
                continue;
            }
        };
        let text = runtime.run(|| {
            let (mut one, mut other) = UnixStream::pair().unwrap();
            let reader = kapok::spawn(move || {
                let mut text = String::new();
                other.read_to_string(&mut text).map(|_| text)
            });
            kapok::sleep(Duration::from_millis(1)).unwrap();
            one.write_all(b"across").unwrap();
            drop(one);
            reader.join().unwrap().unwrap()
        });
        assert_eq!(text, "across", "{kind}");
    }
}

#[test]
fn stacks_that_nobody_uses_any_more_go_back_to_the_kernel() {
    alone("stacks_that_nobody_uses_any_more_go_back_to_the_kernel", || {
        const FIBERS: usize = 300;
        let _watchdog = Watchdog::new();
        let runtime = Runtime::builder().keep_stacks(Duration::from_millis(50)).build().unwrap();
        runtime.run(|| {
            let round = || {
                // All of them at once, so that each has a stack of its own.
                let gate = Arc::new(kapok::sync::Semaphore::new(0));
                let fibers: Vec<_> = (0..FIBERS)
                    .map(|_| {
                        let gate = Arc::clone(&gate);
                        kapok::spawn(move || drop(gate.acquire().unwrap()))
                    })
                    .collect();
                wait_until(|| {
                    kapok::yield_now();
                    kapok::stack_usage().stacks - kapok::stack_usage().free > FIBERS
                });
                gate.add_permits(1);
                fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
            };
            // Again after they were given back: the next watch is armed anew.
            for _ in 0..2 {
                round();
                let kept = kapok::stack_usage();
                assert!(kept.stacks > FIBERS && kept.free < FIBERS, "{kept:?}");
                wait_until(|| {
                    kapok::sleep(Duration::from_millis(10)).unwrap();
                    kapok::stack_usage().free >= FIBERS
                });
            }
            round();
        });
    });
}
