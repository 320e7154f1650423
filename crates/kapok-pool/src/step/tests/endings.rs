//! What is cancelled, who retires and how it closes.

use super::*;

#[test]
fn a_retirement_is_taken_back_until_the_thread_has_ended() {
    let mut bench = Bench::new(pace(), 16);
    let endless = bench.submit();
    bench.steps(2);
    let shared = Arc::clone(&bench.shared);
    let port = &shared.ports[0];
    port.give(Order::Retire);
    bench.steps(6);
    assert_eq!(bench.try_submit().expect_err("it is closed").lacks, None);
    // What it has does not end, and it serves again.
    assert!(port.take_back());
    assert!(!port.take_back(), "there is nothing to take back");
    bench.steps(4);
    let late = bench.submit();
    bench.steps(4);
    bench.make_ready(&[endless, late]);
    bench.steps(6);
    assert!(bench.result(endless).is_some() && bench.result(late).is_some());
    port.give(Order::Retire);
    while bench.step() != Event::Ended {}
    assert!(!port.take_back(), "it has ended");
}

#[test]
fn a_retirement_that_is_taken_back_is_seen_before_the_thread_sleeps() {
    let mut bench = Bench::new(pace(), 16);
    bench.submit();
    bench.steps(2);
    let port = &Arc::clone(&bench.shared).ports[0];
    port.give(Order::Retire);
    while bench.step() != Event::WaitedForCompletions(Woken::Limit) {}
    bench.steps(2);
    bench.calls();
    // Between the last look and the sleep.
    port.take_back();
    assert_eq!(bench.step(), Event::WaitedForCompletions(Woken::Called));
    assert_eq!(bench.calls(), []);
    bench.step();
    bench.submit();
}

#[test]
fn what_was_to_be_cancelled_when_the_ring_broke_is_not_begun_again() {
    let mut bench = Bench::new(pace(), 16);
    let [wanted, gone] = [bench.submit(), bench.submit()];
    bench.steps(2);
    // SAFETY: the bench is the waiter, and leaves.
    assert_eq!(unsafe { bench.shared.slots[gone.slot].cell.abandon() }, None);
    let keys = [wanted, gone].map(|at| bench.key(at));
    bench.calls();
    keys.iter().for_each(|&key| bench.steps.give_nop_again(key));
    assert_eq!(bench.calls(), [Call::Submit(keys[0])]);
    // Its pool closes and has asked it to land; nobody will ask again.
    let mut bench = Bench::new(pace(), 16);
    let wanted = bench.submit();
    bench.steps(2);
    bench.shared.ports[0].give(Order::Close);
    while !bench.calls().iter().any(|call| matches!(call, Call::Cancel(_))) {
        bench.step();
    }
    bench.script.borrow_mut().ready.clear();
    bench.steps.give_nop_again(bench.key(wanted));
    assert_eq!(bench.calls(), []);
    let events = bench.steps(8);
    assert!(events.contains(&Event::Ended), "{events:?}");
    assert_eq!(bench.result(wanted), Some(Landed::CANCELLED));
}

#[test]
fn no_more_are_in_flight_than_may_be() {
    let mut bench = Bench::new(Pace { most_in_flight: 2, ..pace() }, 16);
    let operations = bench.submit_many(3);
    assert_eq!(bench.steps(2), [Event::Took(2), Event::Submitted(2)]);
    // The third is no reason to look at the channel, nor to stay awake.
    assert_eq!(bench.step(), Event::Spun { looks: 3, found: Found::Nothing });
    assert_eq!(bench.step(), Event::WaitedForCompletions(Woken::Limit));
    bench.make_ready(&operations[..1]);
    bench.steps(2);
    assert_eq!(bench.steps(3), [Event::Completed(1), Event::Took(1), Event::Submitted(1)]);
}

#[test]
fn an_abandoned_operation_is_cancelled_and_its_slot_comes_back_once() {
    let mut bench = Bench::new(pace(), 16);
    let (in_flight, queued) = (bench.submit(), bench.submit());
    let key = bench.key(in_flight);
    // One is taken, the other still in the channel when their futures go away.
    bench.steps.pace.take = 1;
    bench.steps(2);
    for at in [in_flight, queued] {
        // SAFETY: the bench is the waiter, and leaves.
        assert_eq!(unsafe { bench.shared.slots[at.slot].cell.abandon() }, None);
        bench.shared.ports[0].cancel(&bench.shared.slots, at.slot);
    }
    bench.steps(10);
    let calls = bench.calls();
    assert_eq!(calls.iter().filter(|&&call| call == Call::Cancel(key)).count(), 1, "{calls:?}");
    let submissions = calls.iter().filter(|call| matches!(call, Call::Submit(_))).count();
    assert_eq!(submissions, 1, "what nobody waits for any more was submitted");
    let mut free: Vec<u32> = std::iter::from_fn(|| bench.shared.slots.free.pop(0)).collect();
    free.sort_unstable();
    assert_eq!(free, (0..64).collect::<Vec<_>>());
}

#[test]
fn a_slot_waits_for_its_entry_in_the_list_of_cancels() {
    let mut bench = Bench::new(pace(), 16);
    let at = bench.submit();
    bench.steps(2);
    // SAFETY: as above.
    assert_eq!(unsafe { bench.shared.slots[at.slot].cell.abandon() }, None);
    bench.make_ready(&[at]);
    bench.steps(2);
    let free = || {
        let all: Vec<u32> = std::iter::from_fn(|| bench.shared.slots.free.pop(0)).collect();
        all.iter().for_each(|&index| bench.shared.slots.free.push(index, 0));
        all.len()
    };
    assert_eq!(free(), 63, "the slot is linked into the list, or will be");
    bench.shared.ports[0].cancel(&bench.shared.slots, at.slot);
    for _ in 0..4 {
        bench.steps.step().unwrap();
    }
    let all: Vec<u32> = std::iter::from_fn(|| bench.shared.slots.free.pop(0)).collect();
    assert_eq!(all.len(), 64);
}

#[test]
fn a_thread_that_retires_takes_nothing_new_and_ends_when_all_has_landed() {
    let mut bench = Bench::new(pace(), 16);
    let operations = bench.submit_many(5);
    bench.steps(2);
    bench.shared.ports[0].give(Order::Retire);
    // What was in the channel is carried out, not thrown away.
    let events = bench.steps(4);
    assert!(events.contains(&Event::Submitted(1)), "{events:?}");
    assert_eq!(bench.try_submit().expect_err("it is closed").lacks, None);
    let events = bench.steps(6);
    assert!(!events.contains(&Event::Ended), "it ended with operations in flight: {events:?}");
    bench.make_ready(&operations);
    let events = bench.steps(8);
    assert!(events.contains(&Event::Ended), "{events:?}");
    assert!(operations.iter().all(|&at| bench.result(at).unwrap().res == 0));
    assert!(bench.calls().iter().all(|call| !matches!(call, Call::Cancel(_))));
}

#[test]
fn a_thread_that_closes_cancels_what_does_not_land_in_time() {
    const GRACE: Duration = Duration::from_millis(30);
    let mut bench = Bench::new(pace(), 16);
    let operations = bench.submit_many(2);
    bench.steps(2);
    bench.shared.set_grace(GRACE);
    bench.shared.ports[0].give(Order::Close);
    bench.make_ready(&operations[..1]);
    let mut waited = Duration::ZERO;
    for _ in 0..40 {
        let event = bench.step();
        for call in bench.calls() {
            match call {
                Call::Wait(time) => waited += time,
                Call::Cancel(_) => assert_eq!(waited, GRACE, "cancelled too early or too late"),
                _ => {}
            }
        }
        if event == Event::Ended {
            assert_eq!(bench.result(operations[0]).unwrap().res, 0);
            assert_eq!(bench.result(operations[1]).unwrap().res, -libc::ECANCELED);
            return;
        }
    }
    panic!("it does not end");
}

#[test]
fn spinning_adapts_to_how_long_the_waits_are() {
    let pace = Pace { spin: 100, adaptive: true, ..pace() };
    let mut bench = Bench::new(pace, 64);
    // The most of each round: what is over at once needs no look.
    let mut looks = [0; 30];
    for (round, most) in looks.iter_mut().enumerate() {
        // First nothing comes, then what is over at once, then what stays in flight.
        bench.script.borrow_mut().at_once = (round < 20).then_some(0);
        if round >= 10 {
            let shared = Arc::clone(&bench.shared);
            // Called at once, as the script's clock has it.
            bench.script.borrow_mut().during_wait = Some(Box::new(move || {
                assert!(shared.submit(Plain::nop(), false).is_ok());
            }));
        }
        loop {
            match bench.step() {
                Event::Spun { looks: count, found: Found::Nothing } => {
                    *most = count.max(*most);
                }
                Event::WaitedOnChannel(_) | Event::WaitedForCompletions(_) => break,
                _ => {}
            }
        }
    }
    let [idle, called, in_vain, in_flight] = [9, 17, 19, 27].map(|round| looks[round]);
    assert_eq!(looks[0], 100);
    assert_eq!(idle, 0, "it spins although every wait was long: {looks:?}");
    assert_eq!(called, 100, "it sleeps although every wait was short: {looks:?}");
    assert_eq!(in_vain, 0, "it spins although no spin has found anything: {looks:?}");
    // A device takes longer than another thread.
    assert_eq!(in_flight, 12, "{looks:?}");
}

#[test]
fn a_batch_is_handed_out_before_anybody_is_woken() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Notes how many have landed when it is woken for the first time.
    struct First(Arc<Shared>, Vec<u32>, AtomicUsize);
    impl std::task::Wake for First {
        fn wake(self: Arc<Self>) {
            // SAFETY: each of them was submitted, polled once, and is not polled again.
            let landed = |slot: &&u32| unsafe {
                self.0.slots[**slot].cell.poll(std::task::Waker::noop()).is_some()
            };
            let count = self.1.iter().filter(landed).count();
            let _ = self.2.compare_exchange(0, count, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    let mut bench = Bench::new(pace(), 16);
    bench.script.borrow_mut().at_once = Some(0);
    let slots: Vec<u32> = (0..2)
        .map(|_| match bench.shared.submit(Plain::nop(), false) {
            Ok(at) => at.slot,
            Err(_) => panic!("there is room"),
        })
        .collect();
    let first = Arc::new(First(Arc::clone(&bench.shared), slots.clone(), AtomicUsize::new(0)));
    let waker = std::task::Waker::from(Arc::clone(&first));
    for &slot in &slots {
        // SAFETY: this test is the waiter, and nothing has landed yet.
        assert!(unsafe { bench.shared.slots[slot].cell.poll(&waker) }.is_none());
    }
    while bench.step() != Event::Completed(2) {}
    assert_eq!(first.2.load(Ordering::SeqCst), 2, "woken with a part of the batch");
}
