//! Scopes: how a deadline and a cancellation around one reach its children.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use kapok::{Canceled, Runtime};

const FOR_EVER: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(20);

fn nap() -> io::Result<()> {
    Ok(kapok::sleep(FOR_EVER)?)
}

#[test]
fn a_deadline_around_a_scope_is_a_time_out_to_its_children() {
    Runtime::new().unwrap().run(|| {
        let mut outcomes: [io::Result<()>; 3] = [Ok(()), Ok(()), Ok(())];
        let began = Instant::now();
        kapok::timeout(SHORT, || {
            kapok::scope(|scope| {
                for outcome in &mut outcomes {
                    scope.spawn(move || *outcome = nap());
                }
            });
        });
        assert!(began.elapsed() >= SHORT);
        for outcome in outcomes {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TimedOut);
        }
    });
}

#[test]
fn a_deadline_around_a_scope_cancels_children_that_were_spawned_in_a_shield() {
    Runtime::new().unwrap().run(|| {
        let mut outcome = Ok(());
        kapok::timeout(SHORT, || {
            kapok::scope(|scope| {
                let outcome = &mut outcome;
                kapok::shield(|| scope.spawn(move || *outcome = nap()));
            });
        });
        assert!(Canceled::is(&outcome.unwrap_err()));
    });
}

#[test]
fn cancelling_who_waits_for_a_scope_cancels_its_children() {
    Runtime::new().unwrap().run(|| {
        let parent = kapok::spawn(|| {
            let mut outcome = Ok(());
            kapok::scope(|scope| {
                scope.spawn(|| outcome = nap());
            });
            outcome
        });
        kapok::sleep(SHORT).unwrap();
        parent.cancel();
        assert!(Canceled::is(&parent.join().unwrap().unwrap_err()));
    });
}
