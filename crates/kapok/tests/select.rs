//! `select!`: who wins, what the losers lose (nothing), and what an arm's block may do.

use std::future::{pending, ready};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kapok::select;
use kapok::sync::channel::{self, RecvError, TryRecvError};
use kapok::sync::oneshot;

#[test]
fn arms_that_are_ready_take_turns() {
    let mut wins = [0; 3];
    for _ in 0..300 {
        select! {
            () = ready(()) => wins[0] += 1,
            () = ready(()) => wins[1] += 1,
            () = ready(()) => wins[2] += 1,
        }
    }
    assert_eq!(wins, [100, 100, 100]);
}

#[test]
fn biased_arms_go_by_the_text() {
    for _ in 0..10 {
        let won = select! {
            biased;
            () = pending() => 0,
            value = ready(1) => value,
            value = ready(2) => value,
        };
        assert_eq!(won, 1);
    }
}

#[test]
fn waits_for_whoever_comes_first() {
    let (sender, receiver) = channel::bounded(1);
    let (_never, mut silent) = oneshot::channel::<u32>();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        sender.send("late").unwrap();
    });
    let won = select! {
        word = receiver.recv_async() => word,
        // The receiver itself is a future; here it is lent, and can be used again.
        number = &mut silent => panic!("{number:?} from nowhere"),
    };
    assert_eq!(won, Ok("late"));
    assert_eq!(silent.try_recv(), Err(TryRecvError::Empty));
    thread.join().unwrap();
}

#[test]
fn losers_are_gone_before_the_block_runs_and_lose_nothing() {
    struct Gone<'a>(&'a AtomicBool);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let gone = AtomicBool::new(false);
    let (sender, receiver) = channel::bounded(1);
    let loser = async {
        let _gone = Gone(&gone);
        pending::<()>().await;
    };
    select! {
        biased;
        () = loser => unreachable!(),
        value = receiver.recv_async() => panic!("{value:?} from nowhere"),
        () = ready(()) => {
            assert!(gone.load(Ordering::Relaxed));
            sender.try_send(1).unwrap();
            assert_eq!(receiver.try_recv(), Ok(1));
        }
    }
}

#[test]
fn a_default_runs_if_nobody_is_ready() {
    let (sender, receiver) = channel::unbounded();
    for expected in [None, Some(Ok(7))] {
        let got = select! {
            value = receiver.recv_async() => Some(value),
            default => None,
        };
        assert_eq!(got, expected);
        sender.send(7).unwrap();
    }
    let mut defaults = 0;
    select! {
        biased;
        () = pending() => {}
        default => { defaults += 1; }
    }
    assert_eq!(defaults, 1);
}

#[test]
fn blocks_leave_the_loop_and_the_function_around() {
    fn sum_until_quiet(values: &channel::Receiver<u32>) -> Result<u32, RecvError> {
        let mut sum = 0;
        loop {
            select! {
                value = values.recv_async() => match value? {
                    0 => continue,
                    100 => break,
                    1000 => return Ok(1000),
                    value => sum += value,
                },
                default => return Ok(sum),
            }
        }
        Ok(sum + 1)
    }
    let (sender, receiver) = channel::unbounded();
    let sum = |values: &[u32]| {
        values.iter().for_each(|value| sender.send(*value).unwrap());
        sum_until_quiet(&receiver)
    };
    assert_eq!(sum(&[1, 0, 2]), Ok(3));
    assert_eq!(sum(&[1, 100]), Ok(2));
    assert_eq!(sum(&[5, 1000]), Ok(1000));
    drop(sender);
    assert_eq!(sum_until_quiet(&receiver), Err(RecvError::Disconnected));
}

#[test]
fn patterns_take_outputs_apart_and_temporaries_live_long_enough() {
    type Numbered = (u8, String);
    fn fresh() -> channel::Receiver<Numbered> {
        let (sender, receiver) = channel::unbounded();
        sender.send((3, "three".to_owned())).unwrap();
        receiver
    }
    let text = select! {
        // Borrows from a temporary.
        Ok((number, text)) | Err((number, text)) = first_of(&fresh()) => format!("{number} {text}")
    };
    assert_eq!(text, "3 three");

    async fn first_of(receiver: &channel::Receiver<Numbered>) -> Result<Numbered, Numbered> {
        receiver.recv_async().await.map_err(|_| (0, String::new()))
    }
}

#[test]
fn sixteen_arms_each_get_their_turn() {
    let mut won = [false; 16];
    for _ in 0..16 {
        let at = select! {
            n = ready(0) => n, n = ready(1) => n, n = ready(2) => n, n = ready(3) => n,
            n = ready(4) => n, n = ready(5) => n, n = ready(6) => n, n = ready(7) => n,
            n = ready(8) => { n } n = ready(9) => { n }, n = ready(10) => n, n = ready(11) => n,
            n = ready(12) => n, n = ready(13) => n, n = ready(14) => n, n = ready(15) => n,
        };
        won[at] = true;
    }
    assert_eq!(won, [true; 16]);
}

#[test]
fn selects_nest() {
    let inner = async {
        select! { value = ready(4) => value, () = pending() => 0 }
    };
    let value = select! {
        value = inner => select! { more = ready(value) => more + 1 },
        () = pending() => 0,
    };
    assert_eq!(value, 5);
}

#[test]
fn an_arm_hears_of_cancellation_and_deadlines() {
    use kapok::{Interrupted, interrupted_async};

    fn wait() -> Interrupted {
        select! {
            () = pending() => unreachable!("it is never ready"),
            interrupted = interrupted_async() => interrupted,
        }
    }

    kapok::Runtime::new().unwrap().run(|| {
        let waiting = kapok::spawn(wait);
        kapok::sleep(Duration::from_millis(2)).unwrap();
        assert!(!waiting.is_finished());
        waiting.cancel();
        assert_eq!(waiting.join().unwrap(), Interrupted::Canceled);

        let short = Duration::from_millis(2);
        assert_eq!(kapok::timeout(short, wait), Interrupted::DeadlineElapsed);
        // Cancelled from the start, and beneath a shield.
        let shielded =
            kapok::spawn(move || (wait(), kapok::shield(|| kapok::timeout(short, wait))));
        shielded.cancel();
        let expected = (Interrupted::Canceled, Interrupted::DeadlineElapsed);
        assert_eq!(shielded.join().unwrap(), expected);
    });
}

#[test]
fn cancellation_alone_ends_no_wait() {
    kapok::Runtime::new().unwrap().run(|| {
        let (sender, receiver) = channel::bounded::<u32>(1);
        let waiting = kapok::spawn(move || {
            select! { value = receiver.recv_async() => value.unwrap(), () = pending() => 0 }
        });
        kapok::sleep(Duration::from_millis(2)).unwrap();
        waiting.cancel();
        kapok::sleep(Duration::from_millis(2)).unwrap();
        assert!(!waiting.is_finished());
        sender.send(9).unwrap();
        assert_eq!(waiting.join().unwrap(), 9);
    });
}
