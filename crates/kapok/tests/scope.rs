//! Scopes: children that borrow, and the order in which things end.

mod harness;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use harness::{compute, run, run_on, wait_until};
use kapok::{Builder, Interrupted, JoinError};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn children_borrow_and_give_results_that_borrow() {
    for threads in [1, 2] {
        run_on(threads, || {
            let mut words: Vec<String> = (0..100).map(|number| format!("word {number}")).collect();
            let longest = kapok::scope(|scope| {
                let halves: Vec<_> = words
                    .chunks(10)
                    .map(|chunk| {
                        scope.spawn(move || {
                            kapok::yield_now();
                            chunk.iter().max_by_key(|word| word.len()).unwrap().as_str()
                        })
                    })
                    .collect();
                let longest = halves.into_iter().map(|half| half.join().unwrap());
                longest.max_by_key(|word| word.len()).unwrap().len()
            });
            assert_eq!(longest, "word 10".len());
            // Each child has a part for itself.
            kapok::scope(|scope| {
                for word in &mut words {
                    scope.spawn(|| {
                        kapok::sleep(Duration::from_millis(1)).unwrap();
                        word.push('!');
                    });
                }
            });
            assert!(words.iter().all(|word| word.ends_with('!')));
        });
    }
}

#[test]
fn a_scope_waits_for_children_nobody_joins() {
    run_on(2, || {
        let ended = AtomicUsize::new(0);
        let handle_kept = kapok::scope(|scope| {
            for number in 0..50 {
                drop(scope.spawn(|| {
                    kapok::sleep(Duration::from_millis(1)).unwrap();
                    ended.fetch_add(1, Ordering::SeqCst);
                }));
                if number % 10 == 0 {
                    kapok::yield_now();
                }
            }
            7
        });
        assert_eq!((handle_kept, ended.load(Ordering::SeqCst)), (7, 50));
        assert_eq!(kapok::scope(|_| 5), 5);
    });
}

#[test]
fn scopes_nest_and_children_spawn_siblings() {
    run_on(2, || {
        let count = AtomicUsize::new(0);
        kapok::scope(|outer| {
            for _ in 0..4 {
                outer.spawn(|| {
                    let base = Cell::new(0);
                    kapok::scope(|inner| {
                        for _ in 0..4 {
                            inner.spawn(|| {
                                kapok::yield_now();
                                count.fetch_add(1, Ordering::SeqCst);
                            });
                        }
                        base.set(1);
                    });
                    count.fetch_add(base.get(), Ordering::SeqCst);
                    // Spawned from a child, waited for by the scope.
                    outer.spawn(|| {
                        kapok::sleep(Duration::from_millis(2)).unwrap();
                        count.fetch_add(100, Ordering::SeqCst);
                    });
                });
            }
        });
        assert_eq!(count.load(Ordering::SeqCst), 4 * (4 + 1 + 100));
    });
}

#[test]
fn a_panic_that_is_joined_stays_with_who_joined() {
    run(|| {
        let result = catch_unwind(AssertUnwindSafe(|| {
            kapok::scope(|scope| {
                let sibling = scope.spawn(|| kapok::sleep(Duration::from_millis(2)));
                let error = scope.spawn(|| panic!("on purpose")).join().unwrap_err();
                assert!(matches!(error, JoinError::Panicked(_)), "{error}");
                sibling.join().unwrap()
            })
        }));
        assert_eq!(result.unwrap(), Ok(()));
    });
}

#[test]
fn a_panic_that_nobody_joined_is_the_scopes() {
    for threads in [1, 2] {
        run_on(threads, || {
            let others = AtomicUsize::new(0);
            for keep in [false, true] {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    kapok::scope(|scope| {
                        let handle = scope.spawn(|| panic!("on purpose"));
                        scope.spawn(|| {
                            kapok::sleep(Duration::from_millis(5)).unwrap();
                            others.fetch_add(1, Ordering::SeqCst);
                        });
                        if keep {
                            wait_until(|| handle.is_finished());
                        }
                    })
                }));
                let payload = result.unwrap_err();
                let text = payload.downcast_ref::<&str>().unwrap();
                assert!(text.contains("fiber of the scope panicked"), "{text}");
            }
            assert_eq!(others.load(Ordering::SeqCst), 2, "siblings run to their end");
        });
    }
}

#[test]
fn a_panic_of_the_body_cancels_the_children_and_waits_for_them() {
    for threads in [1, 2] {
        run_on(threads, || {
            let ended = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                kapok::scope(|scope| {
                    for _ in 0..10 {
                        scope.spawn(|| {
                            assert_eq!(kapok::sleep(HOUR), Err(Interrupted::Canceled));
                            kapok::shield(|| kapok::sleep(Duration::from_millis(3))).unwrap();
                            ended.fetch_add(1, Ordering::SeqCst);
                        });
                    }
                    kapok::yield_now();
                    panic!("of the body");
                })
            }));
            assert_eq!(result.unwrap_err().downcast_ref(), Some(&"of the body"));
            assert_eq!(ended.load(Ordering::SeqCst), 10);
            // The fiber itself was not cancelled.
            kapok::sleep(Duration::from_millis(1)).unwrap();
        });
    }
}

#[test]
fn cancelling_a_parent_cancels_its_children_and_theirs() {
    run_on(2, || {
        let ended = Arc::new(AtomicUsize::new(0));
        let of_parent = Arc::clone(&ended);
        let parent = kapok::spawn(move || {
            kapok::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        kapok::scope(|inner| {
                            for _ in 0..3 {
                                inner.spawn(|| {
                                    assert_eq!(kapok::sleep(HOUR), Err(Interrupted::Canceled));
                                    of_parent.fetch_add(1, Ordering::SeqCst);
                                });
                            }
                        });
                        of_parent.fetch_add(10, Ordering::SeqCst);
                    });
                }
            });
            kapok::check_interrupted()
        });
        kapok::sleep(Duration::from_millis(5)).unwrap();
        parent.cancel();
        assert_eq!(parent.join().unwrap(), Err(Interrupted::Canceled));
        assert_eq!(ended.load(Ordering::SeqCst), 9 + 30);
    });
}

#[test]
fn one_child_is_cancelled_by_its_handle() {
    run(|| {
        kapok::scope(|scope| {
            let one = scope.spawn(|| kapok::sleep(HOUR));
            let other = scope.spawn(|| kapok::sleep(Duration::from_millis(5)));
            one.cancel();
            assert_eq!(one.join().unwrap(), Err(Interrupted::Canceled));
            assert_eq!(other.join().unwrap(), Ok(()));
        });
    });
}

/// Counts itself out, and looks at what it borrows then.
struct Borrowing<'a> {
    text: &'a String,
    dropped: &'a AtomicUsize,
}

impl Drop for Borrowing<'_> {
    fn drop(&mut self) {
        assert_eq!(self.text, "still here");
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn results_that_borrow_are_dropped_before_the_scope_returns() {
    for threads in [1, 2] {
        run_on(threads, || {
            for round in 0..200 {
                let dropped = AtomicUsize::new(0);
                let text = String::from("still here");
                let make = || Borrowing { text: &text, dropped: &dropped };
                kapok::scope(|scope| {
                    // Dropped before the child starts, while it runs, after it has ended.
                    drop(scope.spawn(make));
                    let running = scope.spawn(|| {
                        kapok::yield_now();
                        make()
                    });
                    let ended = scope.spawn(make);
                    for _ in 0..round % 5 {
                        kapok::yield_now();
                    }
                    drop(running);
                    wait_until(|| ended.is_finished());
                    drop(ended);
                    // And one that is kept to the end of the body, and one whose capture borrows.
                    let _kept = scope.spawn(make);
                    let captured = make();
                    scope.spawn(move || drop(captured));
                });
                assert_eq!(dropped.load(Ordering::SeqCst), 5, "round {round}");
                drop(text);
            }
        });
    }
}

#[test]
fn local_children_borrow_what_stays_on_the_thread() {
    run_on(2, || {
        let list = Rc::new(RefCell::new(Vec::new()));
        let count = Cell::new(0);
        let home = thread::current().id();
        kapok::scope(|scope| {
            for number in 0..100 {
                let list = Rc::clone(&list);
                let count = &count;
                scope.spawn_local(move || {
                    kapok::yield_now();
                    assert_eq!(thread::current().id(), home);
                    list.borrow_mut().push(number);
                    count.set(count.get() + 1);
                    list
                });
            }
        });
        assert_eq!((count.get(), Rc::strong_count(&list)), (100, 1));
        let mut list = list.take();
        list.sort_unstable();
        assert!(list.into_iter().eq(0..100));
    });
}

#[test]
fn children_move_to_another_loop_with_their_borrows() {
    run_on(2, || {
        let mut numbers: Vec<u64> = vec![1; 4096];
        let mut threads = HashSet::new();
        let mut rounds = 0;
        while threads.len() < 2 {
            rounds += 1;
            kapok::scope(|scope| {
                let children: Vec<_> = numbers
                    .chunks_mut(256)
                    .map(|chunk| {
                        let builder = Builder::new().name("adder");
                        scope.spawn_named(builder, move || {
                            compute(Duration::from_micros(100));
                            chunk.iter_mut().for_each(|number| *number += 1);
                            assert_eq!(kapok::current_name().as_deref(), Some("adder"));
                            thread::current().id()
                        })
                    })
                    .collect();
                threads.extend(children.into_iter().map(|child| child.join().unwrap()));
            });
        }
        assert!(numbers.iter().all(|number| *number == 1 + rounds));
    });
}

#[test]
fn a_runtime_that_ends_waits_for_scopes_it_cancels() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let of_run = Arc::clone(&dropped);
    run_on(2, move || {
        let started = Arc::new(AtomicUsize::new(0));
        let of_children = Arc::clone(&started);
        kapok::spawn(move || {
            let borrowed = String::from("on the stack of a fiber that is cancelled");
            kapok::scope(|scope| {
                for _ in 0..10 {
                    scope.spawn(|| {
                        of_children.fetch_add(1, Ordering::SeqCst);
                        let _ = kapok::sleep(HOUR);
                        kapok::yield_now();
                        of_run.fetch_add(borrowed.len().min(1), Ordering::SeqCst);
                    });
                }
            });
        })
        .detach();
        // Those that have not started by the end never run.
        wait_until(|| started.load(Ordering::SeqCst) == 10);
        kapok::sleep(Duration::from_millis(10)).unwrap();
    });
    assert_eq!(dropped.load(Ordering::SeqCst), 10);
}

#[test]
fn children_that_come_after_the_cancel_are_cancelled_too() {
    run(|| {
        let parent = kapok::spawn_local(|| {
            kapok::scope(|scope| {
                scope.spawn_local(|| {
                    // As an accept that has just landed: the cancel comes in its midst.
                    kapok::shield(|| kapok::sleep(Duration::from_millis(30))).unwrap();
                    scope.spawn_local(|| kapok::sleep(HOUR).unwrap_err());
                });
            });
        });
        kapok::sleep(Duration::from_millis(5)).unwrap();
        parent.cancel();
        parent.join().unwrap();
    });
}

#[test]
fn a_cancel_after_the_deadline_reaches_the_children() {
    run(|| {
        let parent = kapok::spawn_local(|| {
            kapok::timeout(Duration::from_millis(5), || {
                kapok::scope(|scope| {
                    scope.spawn_local(|| {
                        // A limit that has passed is a tick to it.
                        while kapok::sleep(HOUR) == Err(Interrupted::DeadlineElapsed) {
                            kapok::yield_now();
                        }
                    });
                });
            });
        });
        kapok::sleep(Duration::from_millis(30)).unwrap();
        parent.cancel();
        parent.join().unwrap();
    });
}
