//! A fiber against a bare thread: random sequences of hooked calls, each made on both in a world of
//! its own. What they return, errno, the bytes, the flags and the order must agree.
//!
//! Waits end by time-outs of 2 ms, since whoever makes the calls is alone in its world.

#[path = "../backlog/mod.rs"]
mod backlog;
#[path = "../c_resolver/mod.rs"]
mod c_resolver;
mod names;
mod resolver;
mod scenes;
mod shares;
mod watchdog;
mod world;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use shares::Done;
use world::{Command, Outcome, SLOTS, World};

/// From when on a call counts as one that has waited.
const WAIT: Duration = Duration::from_millis(1);

fn scale<T>(ci: T, full: T) -> T {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => full,
        _ => ci,
    }
}

fn command() -> impl Strategy<Value = Command> {
    let slot = 0..SLOTS;
    let len = prop_oneof![Just(0usize), 1..64usize, 64..5000usize];
    // Most calls do not wait, so that the suite gets on.
    let receive = prop_oneof![
        16 => Just(libc::MSG_DONTWAIT),
        1 => Just(0),
        1 => Just(libc::MSG_WAITALL),
        8 => Just(libc::MSG_DONTWAIT | libc::MSG_PEEK),
        1 => Just(libc::MSG_PEEK),
        2 => Just(libc::MSG_DONTWAIT | libc::MSG_WAITALL),
        2 => Just(libc::MSG_DONTWAIT | libc::MSG_TRUNC),
        2 => Just(libc::MSG_OOB),
    ];
    let send = prop_oneof![
        4 => Just(libc::MSG_NOSIGNAL),
        2 => Just(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL),
        1 => Just(0),
    ];
    let timeout_ms = prop_oneof![25 => Just(0), 1 => Just(1)];
    prop_oneof![
        8 => (slot.clone(), len.clone(), send.clone()).prop_map(|(s, l, f)| Command::Send(s, l, f)),
        8 => (slot.clone(), len.clone(), receive.clone()).prop_map(|(s, l, f)| Command::Recv(s, l, f)),
        3 => (slot.clone(), len.clone(), receive.clone())
            .prop_map(|(s, l, f)| Command::RecvFrom(s, l, f)),
        3 => (slot.clone(), len.clone(), send.clone()).prop_map(|(s, l, f)| Command::SendMsg(s, l, f)),
        3 => (slot.clone(), len.clone(), receive.clone())
            .prop_map(|(s, l, f)| Command::RecvMsg(s, l, f)),
        2 => (slot.clone(), 0..5u32, receive, any::<bool>())
            .prop_map(|(s, n, f, t)| Command::RecvMmsg(s, n, f, t)),
        2 => (slot.clone(), 0..5u32, send).prop_map(|(s, n, f)| Command::SendMmsg(s, n, f)),
        6 => (slot.clone(), len.clone()).prop_map(|(s, l)| Command::Write(s, l)),
        3 => (slot.clone(), len.clone()).prop_map(|(s, l)| Command::Writev(s, l)),
        2 => (slot.clone(), len.clone()).prop_map(|(s, l)| Command::Read(s, l)),
        1 => (slot.clone(), len.clone()).prop_map(|(s, l)| Command::Readv(s, l)),
        1 => (slot.clone(), len.clone(), -1..6000i64).prop_map(|(s, l, o)| Command::Pread(s, l, o)),
        1 => (slot.clone(), len, -1..6000i64).prop_map(|(s, l, o)| Command::Pwrite(s, l, o)),
        6 => (vec((slot.clone(), 0..8i16), 0..5), timeout_ms.clone())
            .prop_map(|(set, t)| Command::Poll(set, t)),
        3 => (vec((slot.clone(), 0..8i16), 0..5), timeout_ms.clone())
            .prop_map(|(set, t)| Command::Select(set, t)),
        3 => timeout_ms.prop_map(Command::EpollWait),
        4 => (slot.clone(), prop::bool::weighted(0.6))
            .prop_map(|(s, on)| Command::Nonblocking(s, on)),
        1 => (slot.clone(), 0..3i32).prop_map(|(s, how)| Command::Shutdown(s, how)),
        1 => (slot.clone(), 1..3u32).prop_map(|(s, ms)| Command::TimeOut(s, ms)),
        2 => any::<bool>().prop_map(Command::Connect),
        2 => (any::<bool>(), 0..4u8).prop_map(|(a, f)| Command::Accept(a, f)),
        1 => prop_oneof![2 => 0..1u8, 1 => 1..2u8, 4 => 2..4u8].prop_map(Command::Sleep),
        1 => (slot.clone(), 0..9i32).prop_map(|(s, op)| Command::Flock(s, op)),
        1 => slot.clone().prop_map(Command::LockSection),
        1 => slot.clone().prop_map(Command::Sync),
        1 => (slot.clone(), slot.clone()).prop_map(|(a, b)| Command::Splice(a, b)),
        1 => (slot.clone(), slot.clone()).prop_map(|(a, b)| Command::SendFile(a, b)),
        1 => slot.clone().prop_map(Command::Renew),
        1 => (slot, 0..2000i32).prop_map(|(s, c)| Command::UnknownControl(s, c)),
        8 => (0..scenes::SCENES, any::<u8>()).prop_map(|(s, w)| Command::Scene(s, w)),
    ]
}

fn carry_out(who: &'static str, commands: &[Command]) -> Vec<Outcome> {
    watchdog::begin(who, commands);
    let mut world = World::new();
    let carry_out = |(index, command)| {
        watchdog::at(index);
        let begun = Instant::now();
        let outcome = world.carry_out(command);
        WAITED.fetch_add(usize::from(begun.elapsed() >= WAIT), Ordering::Relaxed);
        outcome
    };
    commands.iter().enumerate().map(carry_out).collect()
}

/// How many calls have waited, on the thread and on the fiber.
static WAITED: AtomicUsize = AtomicUsize::new(0);

/// How many calls the sequences of this engine have together: in CI a million over the five.
const CALLS: (usize, usize) = (200_000, 2_000_000);

/// How many of these may take as long as those that wait.
const WAITS: (usize, usize) = (10_000, 100_000);

/// Hooked functions that no sequence calls, and the test that does: they have no end by themselves, or are
/// about the whole process.
const ELSEWHERE: &[(&str, &str)] = &[
    ("__longjmp_chk", "preloaded"),
    ("__pthread_register_cancel", "threads"),
    ("__pthread_unregister_cancel", "threads"),
    ("__pthread_unwind_next", "threads"),
    ("__sigpause", "seldom"),
    ("__sigsuspend", "signals"),
    ("__sysv_signal", "preloaded"),
    ("__xpg_sigpause", "seldom"),
    ("_longjmp", "preloaded"),
    ("bsd_signal", "seldom"),
    ("closefrom", "descriptors"),
    ("cnd_wait", "locks"),
    ("longjmp", "preloaded"),
    ("pause", "signals"),
    ("pthread_cancel", "threads"),
    ("pthread_cond_wait", "locks"),
    ("pthread_detach", "threads"),
    ("pthread_exit", "threads"),
    ("pthread_getattr_np", "specific"),
    ("pthread_getcpuclockid", "preloaded"),
    ("pthread_kill", "threads"),
    ("pthread_setschedprio", "preloaded"),
    ("pthread_sigqueue", "preloaded"),
    ("pthread_tryjoin_np", "threads"),
    ("sighold", "preloaded"),
    ("siginterrupt", "preloaded"),
    ("siglongjmp", "preloaded"),
    ("sigpause", "seldom"),
    ("sigrelse", "preloaded"),
    ("sigset", "preloaded"),
    ("sigsuspend", "signals"),
    ("sigvec", "seldom"),
    ("ssignal", "preloaded"),
    ("sysv_signal", "preloaded"),
    ("thrd_create", "threads"),
    ("thrd_detach", "preloaded"),
    ("thrd_exit", "threads"),
    ("vfork", "processes"),
];

/// They are called, and count nothing on fibers.
const UNCOUNTED: &[&str] = &[
    "__sigaction",
    "call_once",
    "pthread_getaffinity_np",
    "pthread_getname_np",
    "pthread_getschedparam",
    "pthread_self",
    "pthread_setaffinity_np",
    "pthread_setname_np",
    "pthread_setschedparam",
    "sigaction",
    "signal",
    "thrd_current",
];

/// Where `KAPOK_SEED` names none: at full size another one each time, and otherwise always the same, so that
/// what a check says is about the change before it.
fn seed(share: u64, round: u64) -> RngSeed {
    let named = std::env::var("KAPOK_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    match named.or_else(|| scale(Some(1), None)) {
        Some(seed) => RngSeed::Fixed(seed.wrapping_add(share << 32).wrapping_add(round)),
        None => RngSeed::Random,
    }
}

/// Makes sequences of calls until there are enough, on a thread and on the fiber that runs.
fn compare(share: u64, enough: usize) -> usize {
    let calls = Rc::new(Cell::new(0));
    for round in 0.. {
        if calls.get() >= enough {
            break;
        }
        let config = Config {
            cases: 50,
            failure_persistence: None,
            max_shrink_iters: 100,
            rng_seed: seed(share, round),
            ..Config::default()
        };
        let counted = Rc::clone(&calls);
        TestRunner::new(config)
            .run(&vec(command(), 1..400), |commands| {
                let theirs = commands.clone();
                let on_thread = std::thread::spawn(move || carry_out("the thread", &theirs));
                let on_thread = on_thread.join().unwrap();
                let on_fiber = carry_out("the fiber", &commands);
                counted.set(counted.get() + commands.len());
                for (index, command) in commands.iter().enumerate() {
                    prop_assert_eq!(
                        &on_thread[index],
                        &on_fiber[index],
                        "thread against fiber, call {}: {:?}",
                        index,
                        command
                    );
                }
                Ok(())
            })
            .unwrap();
    }
    calls.get()
}

/// By which a process knows how many calls its share has.
const ENOUGH: &str = "KAPOK_DIFFERENTIAL_CALLS";

fn make_share(share: u64) {
    kapok_libc::install();
    let _watchdog = watchdog::Watchdog::start();
    let enough = std::env::var(ENOUGH).unwrap().parse().unwrap();
    let calls = kapok::Runtime::builder().threads(1).build().unwrap().run(move || {
        let fiber = kapok::Builder::new().stack_size(8 << 20);
        fiber.spawn_local(move || compare(share, enough)).join().unwrap()
    });
    let mut done = Done { calls, waited: WAITED.load(Ordering::Relaxed), ..Done::default() };
    for hook in kapok_libc::hooks() {
        let counts = hook.counts();
        done.suspended += counts.suspended;
        if counts.suspended + counts.direct > 0 {
            done.called.insert(hook.name().to_owned());
        }
    }
    done.tell();
}

#[test]
fn a_fiber_gets_what_a_thread_gets() {
    if let Some(share) = shares::mine() {
        return make_share(share);
    }
    let enough = scale(CALLS.0, CALLS.1);
    let done = shares::all("a_fiber_gets_what_a_thread_gets", enough, |command, calls| {
        command.env(ENOUGH, calls.to_string());
    });
    let (calls, suspended, waited) = (done.calls, done.suspended, done.waited / 2);
    println!("{calls} calls, {suspended} suspended the fiber, about {waited} took a millisecond");
    assert!(calls >= enough);
    // On the thread and on the fiber; a machine with much to do has others that took as long.
    assert!(waited <= scale(WAITS.0, WAITS.1), "{waited} calls took a millisecond or more");
    // A comparison of the kernel with itself would agree too.
    let missing: Vec<_> = kapok_libc::hooks()
        .map(|hook| hook.name())
        .filter(|name| {
            let elsewhere =
                ELSEWHERE.iter().any(|(other, _)| other == name) || UNCOUNTED.contains(name);
            !done.called.contains(*name) && !elsewhere
        })
        .collect();
    assert!(missing.is_empty(), "never called on the fiber: {missing:?}");
    assert!(suspended > calls as u64 / 100, "hardly any call has waited");
}

/// Where the test of this name has its calls.
fn sources(test: &str) -> Vec<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    match test {
        // Programs that the tests start.
        "preloaded" => vec![tests.join("c/signals.c"), tests.join("c/threads.c")],
        "threads" => vec![tests.join("../../kapok-cli/tests/c/threads.c")],
        "locks" => ["calls.rs", "c_program.rs"].map(|file| tests.join("locks").join(file)).into(),
        _ => vec![tests.join(test).with_extension("rs")],
    }
}

/// What calls a function, where that is a macro of the C library's.
fn word(name: &str) -> &str {
    match name {
        "__pthread_register_cancel" | "__pthread_unregister_cancel" | "__pthread_unwind_next" => {
            "pthread_cleanup_push"
        }
        name => name,
    }
}

#[test]
fn what_no_sequence_calls_is_written_down() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/design/interposition.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (name, test) in ELSEWHERE {
        assert!(kapok_libc::hooks().any(|hook| hook.name() == *name), "no hook is called {name}");
        let plain = name.trim_start_matches('_');
        let row = page
            .lines()
            .find(|line| line.starts_with('|') && line.ends_with(&format!("| `{test}` |")));
        assert!(
            row.is_some_and(|row| row.contains(&format!("`{plain}`"))),
            "{plain} is not in the page's row of the test {test}"
        );
        let is_called = sources(test).into_iter().any(|source| {
            let text = std::fs::read_to_string(&source).unwrap();
            let mut words = text.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
            words.any(|one| one == word(name))
        });
        assert!(is_called, "the test {test} has no call of {name}");
    }
}
