//! Fibers that compute leave the engine its turns.

mod harness;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use harness::{compute, run};

/// Fibers that compute for a millisecond each, and let others run.
const COMPUTING: u32 = 32;
const MILLISECOND: Duration = Duration::from_millis(1);

/// How many milliseconds others have computed while `wait` waits beside them: the median of many times.
fn computed_while(wait: impl Fn() + 'static) -> u32 {
    run(move || {
        let (over, computed) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let computing: Vec<_> = (0..COMPUTING)
            .map(|_| {
                let (over, computed) = (Rc::clone(&over), Rc::clone(&computed));
                kapok::spawn_local(move || {
                    while !over.get() {
                        compute(MILLISECOND);
                        computed.set(computed.get() + 1);
                        kapok::yield_now();
                    }
                })
            })
            .collect();
        let mut meanwhile: Vec<u32> = (0..20)
            .map(|_| {
                let before = computed.get();
                wait();
                computed.get() - before
            })
            .collect();
        over.set(true);
        for fiber in computing {
            fiber.join().unwrap();
        }
        println!("{meanwhile:?}");
        meanwhile.sort_unstable();
        meanwhile[meanwhile.len() / 2]
    })
}

/// What has come meanwhile is seen before all of those that compute have run again and again.
#[test]
fn who_sleeps_runs_after_each_of_the_others_has_run_once() {
    let median = computed_while(|| kapok::sleep(MILLISECOND).unwrap());
    // It is due when the first of them is done, and comes after those that were ready then.
    assert!(median <= COMPUTING + COMPUTING / 4, "{median}");
}

/// Who is to be started is, however many are ready all the time.
#[test]
fn who_has_not_begun_does_not_wait_until_the_others_are_done() {
    let median = computed_while(|| kapok::spawn_local(|| ()).join().unwrap());
    // Begun at once, and joined after those that were ready.
    assert!(median <= COMPUTING + COMPUTING / 4, "{median}");
}
