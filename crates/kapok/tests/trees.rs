//! Trees of fibers that spawn, join, cancel, time out, select, panic and scope at random: each ends
//! once, the cancelled ones soon, and no child outlives its scope.

mod harness;

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::{run_on, scale};
use kapok::JoinError;
use kapok::net::UnixStream;
use proptest::prelude::*;

/// How many turns a cancelled tree may take to its end.
const SOON: usize = 2_000;

/// How long it may take, should another loop that has a part of it get no processor meanwhile.
const GENEROUS: Duration = Duration::from_secs(10);

type Script = Vec<Step>;

/// What a fiber does next.
#[derive(Clone, Debug)]
enum Step {
    Yield,
    /// In microseconds, as all numbers here that are not places.
    Sleep(u64),
    /// Waits for what never comes.
    Read,
    /// Waits for the first of two.
    Select(u64),
    Shield(u64),
    Timeout(u64, Script),
    /// Has children, one of which it may cancel, and panics perhaps while they run.
    Scope(Vec<Script>, Option<usize>, bool),
    /// Spawns a fiber, lets it run for so many turns, cancels it perhaps, and joins it.
    Spawn(Script, usize, bool),
    Panic,
}

fn script() -> impl Strategy<Value = Script> {
    let leaf = prop_oneof![
        4 => Just(Step::Yield),
        2 => (0..200_u64).prop_map(Step::Sleep),
        2 => Just(Step::Read),
        2 => (0..200_u64).prop_map(Step::Select),
        1 => (0..50_u64).prop_map(Step::Shield),
        1 => Just(Step::Panic),
    ];
    let step = leaf.prop_recursive(4, 40, 4, |step| {
        let script = prop::collection::vec(step, 0..4);
        let scripts = prop::collection::vec(script.clone(), 0..4);
        prop_oneof![
            (0..300_u64, script.clone()).prop_map(|(limit, script)| Step::Timeout(limit, script)),
            (scripts, prop::option::of(0..4_usize), any::<bool>())
                .prop_map(|(scripts, cancelled, panics)| Step::Scope(scripts, cancelled, panics)),
            (script, 0..4_usize, any::<bool>())
                .prop_map(|(script, turns, cancels)| Step::Spawn(script, turns, cancels)),
        ]
    });
    prop::collection::vec(step, 1..6)
}

#[derive(Default)]
struct World {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// The life of one fiber: from when it is spawned until nothing of it is left.
struct Life {
    world: Arc<World>,
    over: Arc<AtomicBool>,
}

impl Life {
    fn new(world: &Arc<World>) -> Life {
        world.begun.fetch_add(1, Ordering::SeqCst);
        Life { world: Arc::clone(world), over: Arc::default() }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        assert!(!self.over.swap(true, Ordering::SeqCst), "a fiber has ended twice");
        self.world.ended.fetch_add(1, Ordering::SeqCst);
    }
}

fn live(life: Life, script: &[Step]) {
    let (mut quiet, _peer) = UnixStream::pair().unwrap();
    for step in script {
        perform(&life.world, step, &mut quiet);
    }
}

fn perform(world: &Arc<World>, step: &Step, quiet: &mut UnixStream) {
    match step {
        Step::Yield => kapok::yield_now(),
        Step::Sleep(limit) => drop(kapok::sleep(Duration::from_micros(*limit))),
        Step::Read => {
            let result = quiet.read(&mut [0; 64]);
            assert!(result.is_err(), "{result:?} though nobody has written");
        }
        Step::Select(limit) => kapok::select! {
            ready = quiet.readable_async() => panic!("{ready:?} though nobody has written"),
            () = kapok::time::sleep_async(Duration::from_micros(*limit)) => {}
        },
        Step::Shield(limit) => {
            kapok::shield(|| kapok::sleep(Duration::from_micros(*limit))).unwrap();
        }
        Step::Timeout(limit, script) => kapok::timeout(Duration::from_micros(*limit), || {
            script.iter().for_each(|step| perform(world, step, quiet));
        }),
        Step::Scope(scripts, cancelled, panics) => {
            let lives: Vec<Life> = scripts.iter().map(|_| Life::new(world)).collect();
            let over: Vec<_> = lives.iter().map(|life| Arc::clone(&life.over)).collect();
            let result = catch_unwind(AssertUnwindSafe(|| {
                kapok::scope(|scope| {
                    let mut children = Vec::new();
                    for (life, script) in lives.into_iter().zip(scripts) {
                        children.push(scope.spawn(move || live(life, script)));
                    }
                    kapok::yield_now();
                    if let Some(child) = cancelled.and_then(|at| children.get(at)) {
                        child.cancel();
                    }
                    if *panics {
                        resume_unwind(Box::new("on purpose"));
                    }
                });
            }));
            assert!(
                over.iter().all(|over| over.load(Ordering::SeqCst)),
                "a child outlives its scope"
            );
            if let Err(panic) = result {
                resume_unwind(panic);
            }
        }
        Step::Spawn(script, turns, cancels) => {
            let (life, script) = (Life::new(world), script.clone());
            let over = Arc::clone(&life.over);
            let fiber = kapok::spawn(move || live(life, &script));
            (0..*turns).for_each(|_| kapok::yield_now());
            if *cancels {
                fiber.cancel();
            }
            match fiber.join() {
                Ok(()) | Err(JoinError::Panicked(_)) => {
                    assert!(over.load(Ordering::SeqCst), "joined before its end");
                }
                Err(JoinError::Canceled | JoinError::DeadlineElapsed) => {}
                Err(error @ (JoinError::Abandoned | JoinError::NoStack(_))) => panic!("{error}"),
            }
        }
        Step::Panic => resume_unwind(Box::new("on purpose")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: scale(64, 4_000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_fiber_of_a_tree_ends_once(
        script in script(), turns in 0..20_usize, pause in 0..500_u64, threads in 1..3_usize,
    ) {
        let world = Arc::new(World::default());
        let of_main = Arc::clone(&world);
        run_on(threads, move || {
            let life = Life::new(&of_main);
            let root = kapok::spawn_local(move || live(life, &script));
            (0..turns).for_each(|_| kapok::yield_now());
            kapok::sleep(Duration::from_micros(pause)).unwrap();
            root.cancel();
            let (cancelled, mut taken) = (Instant::now(), 0);
            while !root.is_finished() {
                taken += 1;
                assert!(
                    taken < SOON || cancelled.elapsed() < GENEROUS,
                    "cancelled, and still there after {taken} turns"
                );
                // Other loops, and shields, have their time.
                kapok::sleep(Duration::from_micros(20)).unwrap();
            }
            assert!(!matches!(root.join(), Err(JoinError::Abandoned)));
        });
        let (begun, ended) =
            (world.begun.load(Ordering::SeqCst), world.ended.load(Ordering::SeqCst));
        prop_assert_eq!(begun, ended, "a fiber was lost or left behind");
    }
}
