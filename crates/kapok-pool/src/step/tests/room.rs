//! Who finds no room waits, and hears of it.

use super::*;

#[test]
fn a_full_channel_refuses_and_loses_nothing() {
    let mut bench = Bench::new(pace(), 4);
    let taken = bench.submit_many(4);
    for _ in 0..3 {
        let refused = bench.try_submit().expect_err("the channel is full");
        assert_eq!(refused.lacks, Some(Lack::Room));
    }
    assert_eq!(bench.steps(2), [Event::Took(4), Event::Submitted(4)]);
    let more = bench.submit_many(4);
    bench.make_ready(&taken);
    let events = bench.steps(8);
    assert!(events.contains(&Event::Submitted(4)), "{events:?}");
    assert!(taken.iter().all(|&at| bench.result(at).is_some()), "{events:?}");
    bench.make_ready(&more);
    bench.steps(8);
    assert!(more.iter().all(|&at| bench.result(at).is_some()));
    // The slots of refused requests went back: all but the eight can be had.
    let free: Vec<u32> = std::iter::from_fn(|| bench.shared.slots.free.pop(0)).collect();
    assert_eq!(free.len(), 64 - 8);
}

#[test]
fn a_full_channel_holds_its_senders_back_until_there_is_room() {
    let mut bench = Bench::new(pace(), 4);
    let pool = crate::pool::tests_only(Arc::clone(&bench.shared));
    let mut context = Context::from_waker(Waker::noop());
    let mut operations: Vec<_> = (0..12).map(|_| Box::pin(pool.nop())).collect();
    let mut poll_all =
        |operations: &mut Vec<Pin<Box<crate::Operation<'_, Plain<NoDescriptor>>>>>| {
            operations.retain_mut(|operation| match operation.as_mut().poll(&mut context) {
                Poll::Ready(result) => {
                    result.unwrap();
                    false
                }
                Poll::Pending => true,
            });
        };
    poll_all(&mut operations);
    assert_eq!(bench.shared.ports[0].channel.len(), 4);
    let mut submitted = 0;
    for _ in 0..400 {
        bench.step();
        let keys: Vec<Key> = bench
            .calls()
            .into_iter()
            .filter_map(|call| if let Call::Submit(key) = call { Some(key) } else { None })
            .collect();
        submitted += keys.len();
        bench.script.borrow_mut().ready.extend(keys.into_iter().map(|key| (key, 0)));
        poll_all(&mut operations);
    }
    assert_eq!((submitted, operations.len()), (12, 0));
}

/// Counts how often it is woken.
struct Counting(AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn who_finds_the_channel_full_is_woken_when_there_is_room_and_not_before() {
    let mut bench = Bench::new(pace(), 4);
    let pool = crate::pool::tests_only(Arc::clone(&bench.shared));
    bench.submit_many(4);
    let counting = Arc::new(Counting(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&counting));
    let mut context = Context::from_waker(&waker);
    let mut operation = pool.nop();
    for _ in 0..3 {
        assert!(Pin::new(&mut operation).poll(&mut context).is_pending());
        assert_eq!(counting.0.load(Ordering::Relaxed), 0, "woken by the slot it gave back itself");
    }
    assert_eq!(bench.shared.waiting(), 1);
    assert_eq!(bench.step(), Event::Took(4));
    assert_eq!(counting.0.load(Ordering::Relaxed), 1);
    assert!(Pin::new(&mut operation).poll(&mut context).is_pending());
    assert_eq!((bench.shared.waiting(), bench.shared.ports[0].channel.len()), (0, 1));
}

#[test]
fn who_lacks_a_slot_and_then_room_changes_its_line() {
    let bench = Bench::new(pace(), 4);
    let pool = crate::pool::tests_only(Arc::clone(&bench.shared));
    bench.submit_many(4);
    let slots: Vec<u32> = std::iter::from_fn(|| bench.shared.slots.free.pop(0)).collect();
    let counting = Arc::new(Counting(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&counting));
    let mut context = Context::from_waker(&waker);
    let mut operations = [pool.nop(), pool.nop()];
    for operation in &mut operations {
        assert!(Pin::new(operation).poll(&mut context).is_pending());
    }
    assert_eq!(bench.shared.gate(Lack::Slot).waiting(), 2);
    // The first is woken, finds no room, and hands the slot on to the second.
    bench.shared.free(slots[0]);
    assert_eq!(counting.0.load(Ordering::Relaxed), 1);
    assert!(Pin::new(&mut operations[0]).poll(&mut context).is_pending());
    assert_eq!(bench.shared.gate(Lack::Room).waiting(), 1);
    assert!(counting.0.load(Ordering::Relaxed) > 1);
    assert!(Pin::new(&mut operations[1]).poll(&mut context).is_pending());
    assert_eq!(bench.shared.gate(Lack::Slot).waiting(), 0);
    assert_eq!(bench.shared.gate(Lack::Room).waiting(), 2);
}
