//! The watchdog: it tells which fiber blocks its loop, where and for how long, and keeps quiet about
//! all others.

mod harness;

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::atomic::AtomicPtr;
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

/// Blocks until something is told: on a busy machine a stall may pass before the watchdog gets a processor,
/// and then there is another.
fn block_until(is_told: impl Fn() -> bool, mut block: impl FnMut()) {
    while !is_told() {
        block();
        let unseen = Instant::now() + GENEROUS;
        wait_until(|| is_told() || Instant::now() >= unseen);
    }
}

/// What was told of the fiber's stalls.
fn stalls_of(told: &Told, id: u64) -> Vec<Stall> {
    let told = told.lock().unwrap();
    told.iter().filter(|stall| stall.fiber == Some(id)).cloned().collect()
}

/// Runs a fiber that blocks, until its stall was told twice, and gives both. On a busy machine the thread
/// may not take the signal in time: then nobody is named, and another one blocks.
fn told_of(name: &'static str, handler: impl Fn() + Clone + 'static) -> [Stall; 2] {
    let _alive = Watchdog::new();
    let (builder, told) = watched(LIMIT);
    let seen = Arc::clone(&told);
    let ids = builder.build().unwrap().run(move || {
        let ids = RefCell::new(Vec::new());
        let pairs = || -> Vec<_> { ids.borrow().iter().map(|id| stalls_of(&seen, *id)).collect() };
        block_until(
            || pairs().iter().any(|pair| pair.len() >= 2),
            || {
                let blocker = Builder::new().name(name).spawn_local(handler.clone());
                ids.borrow_mut().push(blocker.id());
                blocker.join().unwrap();
            },
        );
        // Of an earlier one it may have been told late, and of a later one by half.
        wait_until(|| pairs().iter().all(|pair| pair.len() != 1));
        ids.into_inner()
    });
    for stall in told.lock().unwrap().iter().filter(|stall| stall.fiber.is_some()) {
        assert!(ids.contains(&stall.fiber.unwrap()), "{stall}");
        assert_eq!(stall.name.as_deref(), Some(name), "{stall}");
    }
    let mut pairs = ids.iter().map(|id| stalls_of(&told, *id)).filter(|pair| !pair.is_empty());
    let first = pairs.next().unwrap();
    for pair in std::iter::once(&first).chain(&pairs.collect::<Vec<_>>()) {
        let phases: Vec<_> = pair.iter().map(|stall| stall.phase).collect();
        assert_eq!(phases, [StallPhase::GoesOn, StallPhase::Over], "{pair:?}");
    }
    first.try_into().expect("two")
}

#[test]
fn a_handler_that_sleeps_is_named_with_its_call_and_its_backtrace() {
    // The longest, if there was more than one.
    let slept = Rc::new(Cell::new(Duration::ZERO));
    let of_handler = Rc::clone(&slept);
    let [begun, over] = told_of("sleepy", move || {
        let before = Instant::now();
        handler_that_sleeps();
        of_handler.set(of_handler.get().max(before.elapsed()));
    });
    assert!(is_in(&begun, "handler_that_sleeps"), "{begun}");
    assert!(!is_in(&begun, "kapok::runtime"), "{begun}");
    // A sleep that something has interrupted goes on under the other name, which does not say whose
    // sleep or wait it was: then the call is known from the backtrace alone.
    let calls = [Some("clock_nanosleep(2)"), Some("restart_syscall(2)")];
    assert!(calls.contains(&begun.system_call.as_deref()), "{begun}");
    assert!(begun.duration >= LIMIT && over.duration >= begun.duration, "{begun} {over}");
    assert!(over.duration <= slept.get() + LIMIT, "{over} {slept:?}");
    let text = begun.to_string();
    assert!(text.contains("fiber \"sleepy\" (#") && text.contains("handler_that_sleeps"), "{text}");
}

/// How long the thread has waited for a processor, as the kernel counts it.
#[cfg(target_os = "linux")]
fn queued() -> Duration {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = counted.split_whitespace().nth(1).and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Where the thread may run.
#[cfg(target_os = "linux")]
fn processors() -> libc::cpu_set_t {
    // SAFETY: a set of processors, for which zero is a value, and which the call writes.
    unsafe {
        let mut may: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&may), &raw mut may), 0);
        may
    }
}

/// Has the thread run on these processors, and `when_idle` only when nobody else would.
#[cfg(target_os = "linux")]
fn run_where(processors: &libc::cpu_set_t, when_idle: bool) {
    let policy = if when_idle { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads a set of processors, and a parameter that is a local.
    unsafe {
        assert_eq!(libc::sched_setaffinity(0, size_of_val(processors), processors), 0);
        let set = libc::sched_setscheduler(0, policy, &raw const none);
        // To go back takes a privilege.
        assert!(set == 0 || !when_idle);
    }
}

/// The sleep ends while somebody else has the processor.
#[cfg(target_os = "linux")]
#[test]
fn a_wait_for_a_processor_at_the_end_of_a_stall_does_not_count() {
    let (begin, begun) = std::sync::mpsc::channel();
    let all = processors();
    // SAFETY: zero is a value of sets; the number is of a processor that is in one.
    let one = unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        let mut numbers = 0..libc::CPU_SETSIZE as usize;
        libc::CPU_SET(numbers.find(|&number| libc::CPU_ISSET(number, &all)).unwrap(), &mut one);
        one
    };
    let crowd = std::thread::spawn(move || {
        run_where(&one, false);
        while begun.recv().is_ok() {
            std::thread::sleep(BLOCKED * 2);
            compute(BLOCKED * 6);
        }
    });
    // Without what it has waited for a processor.
    let took = Rc::new(Cell::new(Duration::ZERO));
    let of_handler = Rc::clone(&took);
    let [_, over] = told_of("starved", move || {
        // Only meanwhile: threads that it makes would be like it.
        run_where(&one, true);
        begin.send(()).unwrap();
        let before = (Instant::now(), queued());
        handler_that_sleeps();
        let took = before.0.elapsed().saturating_sub(queued() - before.1);
        of_handler.set(of_handler.get().max(took));
        run_where(&all, false);
    });
    crowd.join().unwrap();
    assert!(over.duration <= took.get() + LIMIT, "{over} {took:?}");
}

unsafe extern "C" {
    fn popen(command: *const libc::c_char, mode: *const libc::c_char) -> *mut libc::FILE;
    fn pclose(stream: *mut libc::FILE) -> libc::c_int;
}

/// Waits in the C library, where nothing can suspend. It does so in fgets(3) alone: the child is made and
/// waited for elsewhere.
#[inline(never)]
fn handler_that_reads_lines() {
    let mut line = [0; 16];
    // SAFETY: strings that end with NUL.
    let made = || AtomicPtr::new(unsafe { popen(c"sleep 0.3; echo late".as_ptr(), c"r".as_ptr()) });
    let stream = kapok::blocking(made).unwrap().into_inner();
    assert!(!stream.is_null());
    // SAFETY: a buffer of the size that is told; a stream that is open.
    assert!(!unsafe { libc::fgets(line.as_mut_ptr(), 16, stream) }.is_null());
    let stream = AtomicPtr::new(stream);
    // SAFETY: the stream is closed once.
    kapok::blocking(move || unsafe { pclose(stream.into_inner()) }).unwrap();
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
    let _alive = Watchdog::new();
    let begun = loop {
        let [begun, _] = told_of("command", handler_that_runs_a_command);
        // On a busy machine the child may not have come to its exec, for which its making waits.
        if !begun.system_call.as_deref().is_some_and(|call| call.starts_with("clone")) {
            break begun;
        }
    };
    assert!(is_in(&begun, "handler_that_runs_a_command"), "{begun}");
    // It jumps to a function whose name is known only where the C library has its symbols.
    let named = ["do_system", "system", "wait4"];
    assert!(begun.function.as_deref().is_some_and(|name| named.contains(&name)), "{begun}");
    assert_eq!(begun.system_call.as_deref(), Some("wait4(2)"), "{begun}");
}

#[test]
fn a_handler_that_computes_is_named_with_its_backtrace() {
    let [begun, over] = told_of("busy", handler_that_computes);
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
    let runtime = builder.build().unwrap();
    block_until(|| told.lock().unwrap().len() >= 2, || runtime.run(handler_that_sleeps));
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
            // All but the first are told by a monitor that a panic has come to.
            block_until(|| seen.lock().unwrap().len() >= 2 * round, handler_that_sleeps);
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
        block_until(|| *told.lock().unwrap() > 0, handler_that_sleeps);
        // And so may others.
        kapok::dump();
    });
}

#[test]
fn the_environment_turns_it_on_and_stalls_are_logged() {
    let name = "the_environment_turns_it_on_and_stalls_are_logged";
    let is_whole = |text: &str| {
        let parts = ["WARN", "\"logged\"", "handler_that_sleeps", "blocked loop"];
        parts.iter().all(|part| text.contains(part))
    };
    let run = || {
        in_child(name, &[(kapok::observe::WATCHDOG_VARIABLE, "40")], || {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            Runtime::new().unwrap().run(|| {
                Builder::new().name("logged").spawn_local(handler_that_sleeps).join().unwrap();
                kapok::sleep(Duration::from_millis(500)).unwrap();
                // What was found by now is told before a dump is taken.
                kapok::dump();
            });
        })
    };
    // On a busy machine a stall may pass before the watchdog gets a processor.
    let logs = (0..5).any(|_| {
        let output = run();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        if !is_whole(&text) {
            eprintln!("{text}");
        }
        is_whole(&text)
    });
    assert!(logs, "not one of them was logged whole");
}

#[test]
fn without_a_log_stalls_are_told_on_standard_error() {
    let name = "without_a_log_stalls_are_told_on_standard_error";
    let run = || {
        in_child(name, &[(kapok::observe::WATCHDOG_VARIABLE, "40")], || {
            Runtime::new().unwrap().run(|| {
                Builder::new().name("untold").spawn_local(handler_that_sleeps).join().unwrap();
                kapok::sleep(Duration::from_millis(500)).unwrap();
                kapok::dump();
            });
        })
    };
    let tells = (0..5).any(|_| {
        let output = run();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        let begun = text.lines().any(|line| {
            line.starts_with("kapok: fiber \"untold\"") && line.contains(" blocks loop ")
        });
        begun && text.contains("handler_that_sleeps") && text.contains(" blocked loop ")
    });
    assert!(tells, "not one of them was told whole");
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
