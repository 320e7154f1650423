//! The watchdog: it tells which fiber blocks its loop, where and for how long, and keeps quiet about
//! all others.

mod harness;

use std::hint::black_box;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kapok::net::UnixStream;
use kapok::observe::{Stall, StallPhase};
use kapok::{Builder, Runtime, RuntimeBuilder};

use harness::{Watchdog, compute, in_child, scale, wait_until};

/// How long a handler blocks its loop.
const BLOCKED: Duration = Duration::from_millis(100);

/// What is too long.
const LIMIT: Duration = Duration::from_millis(40);

/// On a busy machine a thread may be kept from running for long, through no fault of its own.
const GENEROUS: Duration = Duration::from_secs(2);

type Told = Arc<Mutex<Vec<Stall>>>;

fn watched(limit: Duration) -> (RuntimeBuilder, Told) {
    let told = Told::default();
    let builder = Runtime::builder().watchdog(limit).on_stall({
        let told = Arc::clone(&told);
        move |stall| told.lock().unwrap().push(stall.clone())
    });
    (builder, told)
}

fn is_in(stall: &Stall, function: &str) -> bool {
    let mut names = stall.backtrace.frames().iter().filter_map(|frame| frame.function.as_deref());
    names.any(|name| name.contains(function))
}

#[inline(never)]
fn handler_that_sleeps() {
    std::thread::sleep(BLOCKED * 3);
    black_box(());
}

/// How long the thread has had a processor.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local of its type.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// By its own clock: on a busy machine a thread gets little of the time that passes.
#[inline(never)]
fn handler_that_computes() {
    let end = processor_time() + BLOCKED * 3;
    while processor_time() < end {
        compute(Duration::from_millis(1));
    }
    black_box(());
}

/// Runs a fiber that blocks, until its stall was told twice, and gives both.
fn told_of(name: &'static str, handler: fn()) -> [Stall; 2] {
    let _alive = Watchdog::new();
    let (builder, told) = watched(LIMIT);
    let seen = Arc::clone(&told);
    let id = builder.build().unwrap().run(move || {
        loop {
            let blocker = Builder::new().name(name).spawn_local(handler);
            let id = blocker.id();
            blocker.join().unwrap();
            // On a busy machine it may pass before the watchdog gets a processor: then another one does.
            let unseen = Instant::now() + GENEROUS;
            wait_until(|| match seen.lock().unwrap().len() {
                0 => Instant::now() >= unseen,
                told => told >= 2,
            });
            if !seen.lock().unwrap().is_empty() {
                return id;
            }
        }
    });
    let told = told.lock().unwrap().clone();
    for stall in &told {
        assert_eq!((stall.fiber, stall.name.as_deref()), (Some(id), Some(name)), "{stall}");
    }
    told.try_into().unwrap_or_else(|told: Vec<Stall>| panic!("told more than twice: {told:?}"))
}

#[test]
fn a_handler_that_sleeps_is_named_with_its_call_and_its_backtrace() {
    let [begun, over] = told_of("sleepy", handler_that_sleeps);
    assert_eq!((begun.phase, over.phase), (StallPhase::GoesOn, StallPhase::Over));
    assert!(is_in(&begun, "handler_that_sleeps"), "{begun}");
    assert!(!is_in(&begun, "kapok::runtime"), "{begun}");
    // A sleep that something has interrupted goes on under the other name, which does not say whose
    // sleep or wait it was: then the call is known from the backtrace alone.
    let calls = [Some("clock_nanosleep(2)"), Some("restart_syscall(2)")];
    assert!(calls.contains(&begun.system_call.as_deref()), "{begun}");
    assert!(begun.duration >= LIMIT && over.duration >= begun.duration, "{begun} {over}");
    assert!(over.duration <= BLOCKED * 3 + LIMIT, "{over}");
    let text = begun.to_string();
    assert!(text.contains("fiber \"sleepy\" (#") && text.contains("handler_that_sleeps"), "{text}");
}

unsafe extern "C" {
    fn popen(command: *const libc::c_char, mode: *const libc::c_char) -> *mut libc::FILE;
    fn pclose(stream: *mut libc::FILE) -> libc::c_int;
}

/// Waits in the C library, where nothing can suspend.
#[inline(never)]
fn handler_that_reads_lines() {
    let mut line = [0; 16];
    // SAFETY: strings that end with NUL; a buffer of the size that is told; a stream that is closed once.
    unsafe {
        let stream = popen(c"sleep 0.3; echo late".as_ptr(), c"r".as_ptr());
        assert!(!stream.is_null());
        assert!(!libc::fgets(line.as_mut_ptr(), 16, stream).is_null());
        pclose(stream);
    }
    black_box(());
}

#[test]
fn a_handler_that_waits_in_the_c_library_is_named_with_what_it_called() {
    let [begun, _] = told_of("lines", handler_that_reads_lines);
    assert!(is_in(&begun, "handler_that_reads_lines"), "{begun}");
    assert!(begun.function.as_deref().is_some_and(|name| name.contains("fgets")), "{begun}");
    let call = begun.system_call.as_deref().unwrap_or_default();
    assert!(call.starts_with("read(2) on descriptor "), "{begun}");
    assert!(begun.to_string().contains("fgets, by read(2)"), "{begun}");
}

/// A child that is waited for by the C library itself.
#[inline(never)]
fn handler_that_runs_a_command() {
    // SAFETY: a string that ends with NUL.
    assert_eq!(unsafe { libc::system(c"sleep 0.3".as_ptr()) }, 0);
    black_box(());
}

#[test]
fn a_handler_that_runs_a_command_is_named_with_what_it_called() {
    let [begun, _] = told_of("command", handler_that_runs_a_command);
    assert!(is_in(&begun, "handler_that_runs_a_command"), "{begun}");
    // It jumps to a function whose name is known only where the C library has its symbols.
    let named = ["do_system", "system", "wait4"];
    assert!(begun.function.as_deref().is_some_and(|name| named.contains(&name)), "{begun}");
    assert_eq!(begun.system_call.as_deref(), Some("wait4(2)"), "{begun}");
}

#[test]
fn a_handler_that_computes_is_named_with_its_backtrace() {
    let [begun, over] = told_of("busy", handler_that_computes);
    assert_eq!((begun.phase, over.phase), (StallPhase::GoesOn, StallPhase::Over));
    assert!(is_in(&begun, "handler_that_computes"), "{begun}");
    assert_eq!(begun.system_call, None, "{begun}");
    assert!(begun.duration >= LIMIT && over.duration >= begun.duration, "{begun} {over}");
}

#[test]
fn each_stall_is_told_of_on_its_own() {
    let _alive = Watchdog::new();
    let (builder, told) = watched(LIMIT);
    let seen = Arc::clone(&told);
    builder.build().unwrap().run(move || {
        while seen.lock().unwrap().len() < 6 {
            handler_that_sleeps();
            // On a busy machine one may pass before the watchdog gets a processor.
            kapok::sleep(LIMIT).unwrap();
        }
    });
    let told = told.lock().unwrap();
    let phases: Vec<StallPhase> = told.iter().map(|stall| stall.phase).collect();
    assert_eq!(phases[..6], [StallPhase::GoesOn, StallPhase::Over].repeat(3));
    // Each by its own length: the third would take three times as long as it did with the others'.
    for stall in told.iter() {
        assert!(stall.duration < BLOCKED * 6, "{stall}");
    }
}

#[test]
fn fibers_that_wait_and_loops_that_idle_are_not_told_of() {
    let _alive = Watchdog::new();
    let (builder, told) = watched(GENEROUS);
    let end = Instant::now() + GENEROUS * scale(2, 10);
    builder.threads(2).build().unwrap().run(move || {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let echo = kapok::spawn(move || {
            let mut buf = [0; 64];
            while let Ok(count @ 1..) = far.read(&mut buf) {
                far.write_all(&buf[..count]).unwrap();
            }
        });
        let mut buf = [7; 64];
        // Half the time in traffic and computing in bits, half the time idle.
        while Instant::now() < end {
            for _ in 0..100 {
                near.write_all(&buf).unwrap();
                near.read_exact(&mut buf).unwrap();
                compute(Duration::from_micros(100));
                kapok::yield_now();
            }
            kapok::sleep(Duration::from_millis(20)).unwrap();
        }
        kapok::sleep(GENEROUS + GENEROUS / 2).unwrap();
        drop(near);
        echo.join().unwrap();
    });
    let told = told.lock().unwrap();
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn a_stall_that_the_end_of_its_loop_cuts_short_is_over() {
    let _alive = Watchdog::new();
    let (builder, told) = watched(LIMIT);
    builder.build().unwrap().run(handler_that_sleeps);
    wait_until(|| told.lock().unwrap().len() >= 2);
    assert_eq!(told.lock().unwrap()[1].phase, StallPhase::Over);
}

#[test]
fn a_panic_of_the_callback_does_not_end_the_watch() {
    let _alive = Watchdog::new();
    let told = Told::default();
    let runtime = Runtime::builder().watchdog(LIMIT).on_stall({
        let told = Arc::clone(&told);
        move |stall| {
            told.lock().unwrap().push(stall.clone());
            panic!("on purpose");
        }
    });
    let seen = Arc::clone(&told);
    runtime.build().unwrap().run(move || {
        for round in 1..=2 {
            handler_that_sleeps();
            // All but the first are told by a monitor that a panic has come to.
            wait_until(|| seen.lock().unwrap().len() >= 2 * round);
        }
    });
}

#[test]
fn the_callback_may_ask_for_a_dump() {
    let _alive = Watchdog::new();
    let told = Arc::new(Mutex::new(0));
    let runtime = Runtime::builder().watchdog(LIMIT).on_stall({
        let told = Arc::clone(&told);
        move |_| {
            kapok::dump();
            *told.lock().unwrap() += 1;
        }
    });
    runtime.build().unwrap().run(move || {
        handler_that_sleeps();
        wait_until(|| *told.lock().unwrap() > 0);
        // And so may others.
        kapok::dump();
    });
}

#[test]
fn the_environment_turns_it_on_and_stalls_are_logged() {
    let name = "the_environment_turns_it_on_and_stalls_are_logged";
    let output = in_child(name, &[(kapok::observe::WATCHDOG_VARIABLE, "40")], || {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        Runtime::new().unwrap().run(|| {
            Builder::new().name("logged").spawn_local(handler_that_sleeps).join().unwrap();
            kapok::sleep(Duration::from_millis(500)).unwrap();
            // What was found by now is told before a dump is taken.
            kapok::dump();
        });
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("WARN") && text.contains("\"logged\""), "{text}");
    assert!(text.contains("handler_that_sleeps") && text.contains("blocked loop"), "{text}");
}

#[test]
fn a_limit_that_is_no_number_is_refused() {
    let name = "a_limit_that_is_no_number_is_refused";
    let output = in_child(name, &[(kapok::observe::WATCHDOG_VARIABLE, "soon")], || {
        let error = Runtime::new().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("\"soon\""), "{error}");
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
