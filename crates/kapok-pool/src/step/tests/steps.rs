//! The five steps.

use super::*;

#[test]
fn step_1_takes_up_to_n_and_leaves_the_rest() {
    let mut bench = Bench::new(pace(), 16);
    bench.submit_many(6);
    assert_eq!(bench.step(), Event::Took(4));
    assert_eq!(bench.step(), Event::Submitted(4));
    // After submitting it looks for completions first, finds none, and then the channel.
    assert_eq!(bench.step(), Event::Spun { looks: 1, found: Found::Operations });
    assert_eq!(bench.steps(2), [Event::Took(2), Event::Submitted(2)]);
}

#[test]
fn step_2_prepares_in_order_and_enters_the_kernel_after_the_last() {
    let mut bench = Bench::new(pace(), 16);
    let operations = bench.submit_many(3);
    let keys: Vec<Key> = operations.iter().map(|&at| bench.key(at)).collect();
    bench.steps(2);
    // Nothing was to be entered for: the script's engine says so.
    assert_eq!(bench.calls(), keys.iter().map(|&key| Call::Submit(key)).collect::<Vec<_>>());
    let stats = bench.shared.ports[0].counters.read(0, 0, true);
    assert_eq!((stats.submitted, stats.batches[1]), (3, 1));
}

fn submit_reads(bench: &Bench, count: usize) {
    let op = Op::Read { fd: -1, buf: std::ptr::null_mut(), len: 0, offset: 0 };
    for _ in 0..count {
        let request = Plain { op, held: crate::descriptor::Held::new(NoDescriptor) };
        assert!(bench.shared.submit(request, false).is_ok());
    }
}

fn looks(bench: &Bench) -> Vec<bool> {
    bench.calls().iter().map(|call| *call == Call::Look).collect()
}

#[test]
fn step_2_does_not_keep_a_device_waiting_for_the_batch() {
    let mut bench = Bench::new(pace(), 16);
    submit_reads(&bench, 4);
    bench.steps(2);
    assert_eq!(looks(&bench), [false, false, true, false, false, true]);
}

#[test]
fn step_2_prepares_the_rest_while_the_device_has_enough() {
    const ENOUGH: usize = 32;
    let mut bench = Bench::new(Pace { take: 64, ..pace() }, 64);
    submit_reads(&bench, 40);
    assert_eq!(bench.steps(2), [Event::Took(40), Event::Submitted(40)]);
    let looks = looks(&bench);
    let (busy, reads) = (ENOUGH + ENOUGH / 2 - 1, 40);
    // One after each two, until the device has 32 without waiting for the rest.
    assert_eq!(looks[..busy], [false, false, true].repeat(ENOUGH / 2)[..busy]);
    assert_eq!(looks[busy..], vec![false; reads - ENOUGH]);
}

#[test]
fn step_3_looks_at_most_m_times_and_then_waits() {
    let mut bench = Bench::new(pace(), 16);
    assert_eq!(bench.step(), Event::Took(0));
    assert_eq!(bench.step(), Event::Spun { looks: 3, found: Found::Nothing });
    assert_eq!(bench.step(), Event::WaitedOnChannel(Woken::Limit));
    let stats = bench.shared.ports[0].counters.read(0, 0, true);
    assert_eq!((stats.spins, stats.spins_that_found), (1, 0));
    assert_eq!((stats.sleeps, stats.sleeps_to_the_limit), (1, 1));
}

#[test]
fn step_3_with_m_of_0_goes_to_sleep_at_once() {
    let mut bench = Bench::new(Pace { spin: 0, ..pace() }, 16);
    assert_eq!(bench.steps(2)[1], Event::Spun { looks: 0, found: Found::Nothing });
    assert_eq!(bench.script.borrow().asked, 0);
    // What has landed as it was submitted is not slept over.
    bench.script.borrow_mut().at_once = Some(5);
    let at = bench.submit();
    bench.step();
    assert_eq!(bench.steps(2), [Event::Took(1), Event::Submitted(1)]);
    bench.step();
    assert_eq!(bench.step(), Event::Completed(1));
    assert_eq!(bench.result(at).unwrap().res, 5);
}

#[test]
fn after_submitting_completions_are_looked_for_first() {
    let mut bench = Bench::new(pace(), 16);
    let first = bench.submit();
    bench.steps(2);
    bench.make_ready(&[first]);
    bench.submit();
    assert_eq!(bench.step(), Event::Spun { looks: 1, found: Found::Completions });
    assert_eq!(bench.step(), Event::Completed(1));
}

#[test]
fn after_completing_operations_are_looked_for_first() {
    let mut bench = Bench::new(pace(), 16);
    let operations = bench.submit_many(2);
    bench.steps(2);
    bench.make_ready(&operations[..1]);
    assert_eq!(bench.steps(2)[1], Event::Completed(1));
    bench.make_ready(&operations[1..]);
    bench.submit();
    assert_eq!(bench.step(), Event::Spun { looks: 1, found: Found::Operations });
    assert_eq!(bench.step(), Event::Took(1));
}

#[test]
fn step_4_waits_for_completions_while_something_is_in_flight_and_else_on_the_channel() {
    let mut bench = Bench::new(pace(), 16);
    bench.steps(2);
    assert_eq!(bench.step(), Event::WaitedOnChannel(Woken::Limit));
    assert_eq!(bench.calls(), [Call::Wait(CHANNEL)]);
    let at = bench.submit();
    bench.steps(3);
    bench.calls();
    assert_eq!(bench.step(), Event::WaitedForCompletions(Woken::Limit));
    assert_eq!(bench.calls(), [Call::Wait(COMPLETIONS)]);
    // A wait that found nothing goes back to the channel.
    assert_eq!(bench.steps(2)[0], Event::Took(0));
    bench.make_ready(&[at]);
    assert_eq!(bench.step(), Event::WaitedForCompletions(Woken::Landed));
    assert_eq!(bench.step(), Event::Completed(1));
    assert!(bench.result(at).is_some());
}

#[test]
fn step_4_is_ended_by_a_new_operation() {
    for in_flight in [0, 1] {
        let mut bench = Bench::new(pace(), 16);
        bench.submit_many(in_flight);
        bench.steps(2 + in_flight);
        let shared = Arc::clone(&bench.shared);
        bench.script.borrow_mut().during_wait = Some(Box::new(move || {
            assert!(shared.submit(Plain::nop(), false).is_ok());
        }));
        let woken = match in_flight {
            0 => Event::WaitedOnChannel(Woken::Called),
            _ => Event::WaitedForCompletions(Woken::Called),
        };
        assert_eq!(bench.steps(2), [woken, Event::Took(1)]);
        // The submitter saw that the thread slept, and rang.
        assert_eq!(bench.shared.ports[0].counters.read(0, 0, true).wake_ups, 1);
    }
}

#[test]
fn step_4_looks_a_second_time_before_it_sleeps() {
    let mut bench = Bench::new(pace(), 16);
    bench.steps(2);
    // Between the last look and the sleep.
    bench.submit();
    assert_eq!(bench.step(), Event::WaitedOnChannel(Woken::Called));
    assert_eq!(bench.calls(), [], "it slept over an operation");
    assert_eq!(bench.step(), Event::Took(1));
}

#[test]
fn step_5_completes_at_most_a_batch_before_it_looks_at_the_channel() {
    let mut bench = Bench::new(pace(), 16);
    let operations = bench.submit_many(4);
    bench.steps(2);
    bench.make_ready(&operations);
    bench.step();
    // Nothing to submit: batch after batch.
    assert_eq!(bench.step(), Event::Completed(2));
    let late = bench.submit();
    assert_eq!(bench.step(), Event::Completed(2));
    assert_eq!(bench.steps(2), [Event::Took(1), Event::Submitted(1)]);
    assert!(operations.iter().all(|&at| bench.result(at).is_some()));
    assert!(bench.result(late).is_none());
}

#[test]
fn step_5_is_interrupted_by_submissions_and_loses_nothing() {
    let mut bench = Bench::new(pace(), 16);
    let operations = bench.submit_many(4);
    bench.steps(2);
    bench.make_ready(&operations);
    bench.step();
    let late = bench.submit();
    assert_eq!(
        bench.steps(5),
        [
            Event::Completed(2),
            Event::Took(1),
            Event::Submitted(1),
            // The rest of what had landed.
            Event::Spun { looks: 1, found: Found::Completions },
            Event::Completed(2),
        ]
    );
    assert!(operations.iter().all(|&at| bench.result(at).is_some()));
    bench.make_ready(&[late]);
    bench.steps(2);
    assert!(bench.result(late).is_some());
}

#[test]
fn what_waits_lands_beside_operations_that_are_over_at_once() {
    let mut bench = Bench::new(pace(), 16);
    let waiting = bench.submit();
    bench.steps(2);
    {
        let mut script = bench.script.borrow_mut();
        script.is_silent = true;
        script.at_once = Some(0);
        let key = bench.key(waiting);
        script.ready.push_back((key, 7));
    }
    // Whoever submits is as fast as the thread.
    for _ in 0..50 {
        bench.submit();
        bench.step();
    }
    assert!(bench.script.borrow().ready.is_empty(), "nobody has looked");
}
