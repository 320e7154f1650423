//! Models of how threads meet at a loop: each runs under every interleaving, and every order of
//! memory accesses, that loom finds.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p kapok --lib model`. A lost wake-up shows as a
//! deadlock.

use std::ptr::NonNull;
use std::sync::Arc;

use kapok_engine::Sleeper;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::{Group, Remote, Unstarted};
use crate::fiber::{self, Fiber, FiberRef};

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    // How often a thread is stopped where it need not: more finds nothing more, and takes hours.
    model.preemption_bound = Some(3);
    model.check(f);
}

fn new_fiber() -> FiberRef {
    unstarted().take_up()
}

fn unstarted() -> Unstarted {
    fiber::prepare(fiber::Builder::new(), true, || ()).0
}

/// A loop, as far as other threads can tell.
struct Modelled {
    remote: Arc<Remote>,
    sleeper: Sleeper,
}

impl Modelled {
    fn new() -> Modelled {
        let sleeper = Sleeper::new();
        Modelled { remote: Arc::new(Remote::new(sleeper.bell())), sleeper }
    }

    /// Turns until fibers are ready.
    fn ready(&self) -> Vec<NonNull<Fiber>> {
        loop {
            let mut ready = Vec::new();
            self.remote.take_ready(|fiber| ready.push(fiber));
            if !ready.is_empty() {
                return ready;
            }
            self.sleeper.turn();
        }
    }

    /// What a fiber does that waits for `condition`, its suspension included.
    fn park_until(&self, fiber: &FiberRef, condition: impl Fn() -> bool) {
        while !condition() {
            if fiber.prepare_park() {
                assert_eq!(self.ready(), [Fiber::pointer(fiber)], "made ready once");
                fiber.take_token();
            }
        }
    }
}

#[test]
fn model_of_a_park_that_two_threads_end() {
    model(|| {
        let lp = Modelled::new();
        let fiber = new_fiber();
        fiber.set_home(&lp.remote);
        let messages = Arc::new(AtomicUsize::new(0));
        let threads = [0, 1].map(|_| {
            let (fiber, messages) = (fiber.clone(), Arc::clone(&messages));
            thread::spawn(move || {
                messages.fetch_add(1, Ordering::Relaxed);
                fiber.unpark();
            })
        });
        lp.park_until(&fiber, || messages.load(Ordering::Relaxed) == 2);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // A last token may be left, but nobody is queued who does not wait.
        lp.remote.take_ready(|_| panic!("ready without having been parked"));
    });
}

#[test]
fn model_of_an_inbox_that_two_threads_fill() {
    model(|| {
        let lp = Modelled::new();
        let fibers = [0, 1].map(|_| new_fiber());
        for fiber in &fibers {
            fiber.set_home(&lp.remote);
            assert!(fiber.prepare_park());
        }
        let threads = fibers.clone().map(|fiber| thread::spawn(move || fiber.unpark()));
        let mut ready = Vec::new();
        while ready.len() < fibers.len() {
            ready.extend(lp.ready());
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        lp.remote.take_ready(|fiber| ready.push(fiber));
        assert_eq!(ready.len(), fibers.len(), "each once");
        assert!(fibers.iter().all(|fiber| ready.contains(&Fiber::pointer(fiber))));
    });
}

#[test]
fn model_of_a_fiber_that_parks_again_while_others_are_unparked() {
    model(|| {
        let lp = Modelled::new();
        let (fiber, other) = (new_fiber(), new_fiber());
        fiber.set_home(&lp.remote);
        other.set_home(&lp.remote);
        assert!(fiber.prepare_park());
        assert!(other.prepare_park());
        let messages = Arc::new(AtomicUsize::new(0));
        let thread = {
            let (fiber, other) = (fiber.clone(), other.clone());
            let messages = Arc::clone(&messages);
            thread::spawn(move || {
                fiber.unpark();
                messages.store(1, Ordering::Relaxed);
                fiber.unpark();
                other.unpark();
            })
        };
        let mut others = 0;
        let (mut parked, mut seen) = (true, false);
        while others == 0 || !seen {
            for ready in lp.ready() {
                if ready == Fiber::pointer(&other) {
                    others += 1;
                    continue;
                }
                assert!(parked, "ready without having been parked");
                fiber.take_token();
                seen = messages.load(Ordering::Relaxed) == 1;
                parked = false;
                while !seen && !parked {
                    parked = fiber.prepare_park();
                    seen = !parked && messages.load(Ordering::Relaxed) == 1;
                }
            }
        }
        assert_eq!(others, 1);
        thread.join().unwrap();
    });
}

#[test]
fn model_of_a_fiber_that_is_cancelled_while_it_starts() {
    model(|| {
        let lp = Modelled::new();
        let fiber = new_fiber();
        let starter = {
            let (fiber, remote) = (fiber.clone(), Arc::clone(&lp.remote));
            thread::spawn(move || {
                fiber.set_home(&remote);
                fiber.cancel_requested()
            })
        };
        let canceller = thread::spawn(move || fiber.request_cancel());
        let seen = starter.join().unwrap();
        canceller.join().unwrap();
        let interrupted = lp.remote.take_interrupts();
        assert!(seen || interrupted.len() == 1, "the request is lost");
    });
}

#[test]
fn model_of_an_interrupt_of_a_loop_that_falls_asleep() {
    model(|| {
        let lp = Modelled::new();
        let fibers = [0, 1].map(|_| new_fiber());
        fibers.iter().for_each(|fiber| fiber.set_home(&lp.remote));
        let threads = fibers.map(|fiber| thread::spawn(move || fiber.request_cancel()));
        let mut interrupted = 0;
        while interrupted < 2 {
            match lp.remote.take_interrupts().len() {
                0 => lp.sleeper.turn(),
                some => interrupted += some,
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// What a loop does that has nothing to do, until it has been given something or has to stop.
fn idle(group: &Group, index: usize, lp: &Modelled) -> usize {
    let mut taken = 0;
    while !group.is_stopping() {
        let offered = group.take_offered().or_else(|| group.become_idle(index));
        match offered {
            Some(offered) => {
                taken += offered.len();
                group.stop();
            }
            None => {
                lp.sleeper.turn();
                group.become_busy(index);
            }
        }
    }
    taken
}

#[test]
fn model_of_a_fiber_offered_to_a_loop_that_falls_asleep() {
    model(|| {
        let group = Arc::new(Group::new(2));
        let (lp, other) = (Modelled::new(), Modelled::new());
        group.join(0, Arc::clone(&lp.remote));
        group.join(1, Arc::clone(&other.remote));
        let others = {
            let group = Arc::clone(&group);
            thread::spawn(move || idle(&group, 1, &other))
        };
        let taken = if group.someone_is_idle() {
            group.offer([unstarted()]);
            // Whoever takes it ends both.
            idle(&group, 0, &lp)
        } else {
            group.stop();
            1
        };
        let taken = taken + others.join().unwrap();
        assert_eq!(taken + group.take_all().len(), 1, "lost or doubled");
    });
}

/// What a loop does until it has been given something to run, for good: it does not come back for
/// more.
fn take_once(group: &Group, index: usize, lp: &Modelled) -> usize {
    loop {
        if let Some(offered) = group.take_offered().or_else(|| group.become_idle(index)) {
            return offered.len();
        }
        lp.sleeper.turn();
        group.become_busy(index);
    }
}

#[test]
fn model_of_fibers_offered_to_loops_of_which_each_takes_one() {
    model(|| {
        let group = Arc::new(Group::new(3));
        let offering = Modelled::new();
        group.join(0, Arc::clone(&offering.remote));
        let others = [1, 2].map(|index| {
            let lp = Modelled::new();
            group.join(index, Arc::clone(&lp.remote));
            let group = Arc::clone(&group);
            thread::spawn(move || take_once(&group, index, &lp))
        });
        // Whoever offers runs something else and takes none of it back.
        group.offer([unstarted(), unstarted()]);
        assert_eq!(others.map(|other| other.join().unwrap()), [1, 1]);
    });
}
