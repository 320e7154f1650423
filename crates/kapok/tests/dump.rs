//! Dumps: every fiber is shown with what it waits for and where it is, and notices nothing of it.

mod harness;

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use kapok::net::{TcpListener, TcpStream, UnixStream};
use kapok::observe::{Dump, FiberReport, FiberState, RunningReport, StallPhase, WaitsFor};
use kapok::sync::{Condvar, Mutex, Semaphore, channel, oneshot};
use kapok::{Builder, Canceled, Runtime};

use harness::{alone, in_child, run, run_on, scale, wait_until};

const LONG: Duration = Duration::from_secs(3600);

fn find<'a>(dump: &'a Dump, name: &str) -> &'a FiberReport {
    let all = || dump.loops.iter().flat_map(|one| &one.fibers);
    let mut named = all().filter(|fiber| fiber.name.as_deref() == Some(name));
    match (named.next(), named.next()) {
        (Some(fiber), None) => fiber,
        _ => panic!("not one fiber {name:?} in:\n{dump}"),
    }
}

/// Whether a function of this name is in the backtrace.
fn is_in(fiber: &FiberReport, function: &str) -> bool {
    let mut names = fiber.backtrace.frames().iter().filter_map(|frame| frame.function.as_deref());
    names.any(|name| name.contains(function))
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, client)
}

/// A future of a test's own.
#[derive(Default)]
struct Signal(std::sync::Mutex<(bool, Option<Waker>)>);

impl Signal {
    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap();
        state.1 = Some(context.waker().clone());
        if state.0 { Poll::Ready(()) } else { Poll::Pending }
    }

    fn give(&self) {
        let mut state = self.0.lock().unwrap();
        state.0 = true;
        let waker = state.1.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

#[inline(never)]
fn waits_in_read(stream: &mut TcpStream) -> [u8; 64] {
    let mut buf = [0; 64];
    stream.read_exact(&mut buf).unwrap();
    black_box(buf)
}

#[test]
fn a_fiber_that_reads_is_shown_with_its_peer_and_its_backtrace() {
    run(|| {
        let (mut server, mut client) = tcp_pair();
        let (fd, peer) = (std::os::fd::AsRawFd::as_raw_fd(&server), client.local_addr().unwrap());
        let reader = Builder::new().name("reader");
        let reader = reader.spawn_local(move || waits_in_read(&mut server));
        kapok::sleep(Duration::from_millis(50)).unwrap();
        let dump = kapok::dump();
        let fiber = find(&dump, "reader");
        assert_eq!(fiber.id, reader.id());
        let FiberState::Waiting(WaitsFor::Operation("recv"), descriptors) = &fiber.state else {
            panic!("{dump}");
        };
        assert_eq!(descriptors.len(), 1);
        assert_eq!(descriptors[0].fd, fd);
        assert_eq!(descriptors[0].peer.as_deref(), Some(&*peer.to_string()));
        assert!(fiber.suspended >= Duration::from_millis(40), "{dump}");
        assert!(fiber.age >= fiber.suspended, "{dump}");
        assert!(is_in(fiber, "waits_in_read"), "{dump}");
        assert!(!is_in(fiber, "kapok::runtime"), "{dump}");
        assert!(!is_in(fiber, "corosensei"), "{dump}");
        // What it called into Kapok, then std's, then its own.
        let first = fiber.backtrace.frames()[0].function.as_deref().unwrap_or_default();
        assert!(first.contains("kapok::net") && first.contains("read"), "{dump}");
        let text = dump.to_string();
        assert!(text.contains("waits for recv on descriptor"), "{text}");
        client.write_all(&[7; 64]).unwrap();
        assert_eq!(reader.join().unwrap(), [7; 64]);
    });
}

#[test]
fn receives_into_stacks_go_on_under_dumps() {
    run(|| {
        let over = Arc::new(AtomicBool::new(false));
        let dumps = Arc::new(AtomicUsize::new(0));
        let dumper = {
            let (over, dumps) = (Arc::clone(&over), Arc::clone(&dumps));
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert!(kapok::dump().error.is_none());
                    dumps.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        loop {
            let rounds: u32 = scale(3_000, 100_000);
            let (mut server, mut client) = tcp_pair();
            let echo = kapok::spawn_local(move || {
                for round in 0..rounds {
                    let expected = [round as u8; 64];
                    assert_eq!(waits_in_read(&mut server), expected);
                    server.write_all(&expected).unwrap();
                }
            });
            for round in 0..rounds {
                client.write_all(&[round as u8; 64]).unwrap();
                assert_eq!(waits_in_read(&mut client), [round as u8; 64]);
            }
            echo.join().unwrap();
            // Again if the dumper has had no processor meanwhile.
            if dumps.load(Ordering::Relaxed) > 0 || dumper.is_finished() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        kapok::blocking(move || dumper.join()).unwrap().unwrap();
    });
}

#[test]
fn every_wait_is_shown_as_what_it_is() {
    run(|| {
        let mutex = Arc::new(Mutex::new(()));
        let condvar = Arc::new(Condvar::new());
        let semaphore = Arc::new(Semaphore::new(0));
        let (sender, receiver) = channel::unbounded::<()>();
        let (one_sender, mut one_receiver) = oneshot::channel::<()>();
        let (stop, stopped) = mpsc::channel::<()>();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let signal = Arc::new(Signal::default());
        let held = mutex.lock();
        let spawn =
            |name: &'static str, f: Box<dyn FnOnce()>| Builder::new().name(name).spawn_local(f);
        let sleeper = spawn("sleeps", Box::new(|| assert!(kapok::sleep(LONG).is_err())));
        let sleeper_id = sleeper.id();
        let fibers = [
            spawn(
                "locks",
                Box::new({
                    let mutex = Arc::clone(&mutex);
                    move || drop(mutex.lock())
                }),
            ),
            spawn(
                "waits",
                Box::new({
                    let condvar = Arc::clone(&condvar);
                    move || {
                        let own = Mutex::new(());
                        drop(condvar.wait(own.lock()));
                    }
                }),
            ),
            spawn(
                "acquires",
                Box::new({
                    let semaphore = Arc::clone(&semaphore);
                    move || drop(semaphore.acquire())
                }),
            ),
            spawn("receives", Box::new(move || assert!(receiver.recv().is_err()))),
            spawn("receives one", Box::new(move || assert!(one_receiver.recv().is_err()))),
            spawn("joins", Box::new(move || drop(sleeper.join()))),
            spawn("accepts", Box::new(move || drop(listener.accept()))),
            spawn(
                "blocks elsewhere",
                Box::new(move || drop(kapok::blocking(move || stopped.recv()))),
            ),
            spawn(
                "awaits",
                Box::new({
                    let signal = Arc::clone(&signal);
                    move || kapok::block_on(std::future::poll_fn(|context| signal.poll(context)))
                }),
            ),
            spawn(
                "scopes",
                Box::new(|| {
                    kapok::scope(|scope| {
                        drop(scope.spawn(|| kapok::sleep(LONG)));
                    });
                }),
            ),
        ];
        kapok::sleep(Duration::from_millis(50)).unwrap();
        let late = spawn(
            "ready",
            Box::new(|| {
                while kapok::check_interrupted().is_ok() {
                    kapok::yield_now();
                }
            }),
        );
        let dump = kapok::dump();
        let state = |name| find(&dump, name).state.clone();
        let waits = |what| FiberState::Waiting(what, Vec::new());
        let left = match state("sleeps") {
            FiberState::Waiting(WaitsFor::Sleep(left), _) => left,
            other => panic!("{other:?}"),
        };
        assert!(left <= LONG && left >= LONG / 2, "{left:?}");
        assert_eq!(find(&dump, "sleeps").id, sleeper_id);
        assert_eq!(state("locks"), waits(WaitsFor::Lock));
        assert_eq!(state("waits"), waits(WaitsFor::Condition));
        assert_eq!(state("acquires"), waits(WaitsFor::Semaphore));
        assert_eq!(state("receives"), waits(WaitsFor::Channel));
        assert_eq!(state("receives one"), waits(WaitsFor::Channel));
        assert_eq!(state("joins"), waits(WaitsFor::Join));
        assert_eq!(state("scopes"), waits(WaitsFor::Scope));
        assert_eq!(state("blocks elsewhere"), waits(WaitsFor::Blocking));
        // Other tests have such a fiber too.
        let ours = dump.loops.iter().find(|one| one.fibers.iter().any(|one| one.id == sleeper_id));
        let ours = ours.unwrap();
        let mut main = ours.fibers.iter().filter(|one| one.name.as_deref() == Some("main"));
        assert_eq!(main.next().unwrap().state, waits(WaitsFor::Dump));
        assert!(matches!(state("awaits"), FiberState::Waiting(WaitsFor::Future(_), _)), "{dump}");
        assert_eq!(state("ready"), FiberState::Ready);
        let FiberState::Waiting(WaitsFor::Operation("accept"), on) = state("accepts") else {
            panic!("{dump}");
        };
        assert_eq!(on[0].local.as_deref(), Some(&*address), "{dump}");
        assert!(ours.blocked.is_none(), "{dump}");

        drop((held, sender, one_sender, stop));
        condvar.notify_all();
        semaphore.add_permits(1);
        signal.give();
        late.cancel();
        fibers.iter().for_each(|fiber| fiber.cancel());
    });
}

#[test]
fn fibers_that_are_being_cancelled_end_as_if_nobody_looked() {
    run(|| {
        let over = Arc::new(AtomicBool::new(false));
        let dumper = {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert!(kapok::dump().error.is_none());
                }
            })
        };
        for round in 0..scale(1_000u32, 100_000) {
            let (mut near, mut far) = UnixStream::pair().unwrap();
            let reader = kapok::spawn_local(move || {
                let mut buf = [0; 64];
                let result = near.read(&mut buf);
                (result, buf)
            });
            kapok::yield_now();
            let sent = round % 3 == 0;
            if sent {
                far.write_all(&[9; 64]).unwrap();
            }
            reader.cancel();
            match reader.join().unwrap() {
                (Ok(64), buf) => assert!(sent && buf == [9; 64]),
                (Err(error), _) => {
                    assert!(Canceled::is(&error), "{error}");
                    // What was sent and not read is there still.
                }
                other => panic!("{other:?}"),
            }
        }
        over.store(true, Ordering::Relaxed);
        kapok::blocking(move || dumper.join()).unwrap().unwrap();
    });
}

/// A dump while the fiber of this name keeps its loop from answering. On a busy machine a thread may not
/// take the signal in time, and the dump says so in leaving the name out: then another is taken.
fn dump_with_blocked(name: &str) -> Dump {
    let mut left = 10;
    loop {
        let dump = kapok::dump();
        left -= 1;
        if left == 0 || dump.error.is_some() || find_blocked(&dump, name).is_some() {
            return dump;
        }
    }
}

fn find_blocked<'a>(dump: &'a Dump, name: &str) -> Option<&'a RunningReport> {
    let mut all = dump.loops.iter().filter_map(|one| one.blocked.as_ref());
    all.find(|running| running.name.as_deref() == Some(name))
}

#[inline(never)]
fn blocks_its_thread(until: &mpsc::Receiver<()>) {
    let _ = until.recv();
    black_box(());
}

#[test]
fn a_loop_that_does_not_answer_is_shown_with_what_it_runs() {
    let (blocked, is_blocked) = mpsc::channel();
    let (free, freed) = mpsc::channel();
    let dumper = std::thread::spawn(move || {
        is_blocked.recv().unwrap();
        let dump = dump_with_blocked("blocker");
        free.send(()).unwrap();
        dump
    });
    run(move || {
        let blocker = Builder::new().name("blocker");
        let blocker = blocker.spawn_local(move || {
            blocked.send(()).unwrap();
            blocks_its_thread(&freed);
        });
        blocker.join().unwrap();
    });
    let dump = dumper.join().unwrap();
    let running = find_blocked(&dump, "blocker").unwrap_or_else(|| panic!("{dump}"));
    let names = running.backtrace.frames().iter().filter_map(|frame| frame.function.as_deref());
    assert!({ names }.any(|name| name.contains("blocks_its_thread")), "{dump}");
    let calls = [Some("futex(2)"), Some("restart_syscall(2)")];
    assert!(calls.contains(&running.system_call.as_deref()), "{dump}");
}

/// Asks for a dump when it is dropped.
struct DumpsOnDrop(mpsc::Sender<Dump>);

impl Drop for DumpsOnDrop {
    fn drop(&mut self) {
        self.0.send(dump_with_blocked("doomed")).unwrap();
    }
}

/// What a fiber called "doomed" sees that asks for a dump while it unwinds.
fn dump_while_unwinding(before: impl FnOnce() + 'static) -> Dump {
    let (sender, receiver) = mpsc::channel();
    let doomed = Builder::new().name("doomed").spawn_local(move || {
        let _dumps = DumpsOnDrop(sender);
        before();
        panic!("on purpose");
    });
    assert!(doomed.join().is_err());
    receiver.recv().unwrap()
}

#[test]
fn a_fiber_that_unwinds_may_ask_for_a_dump() {
    let dump = run(|| dump_while_unwinding(|| ()));
    assert!(find_blocked(&dump, "doomed").is_some(), "{dump}");
}

/// Other waits of a fiber that unwinds end the process after five seconds.
#[test]
fn a_dump_for_a_fiber_that_unwinds_may_take_its_time() {
    alone("a_dump_for_a_fiber_that_unwinds_may_take_its_time", || {
        // Keeps the monitor, which takes the dump, busy.
        let (begun, has_begun) = mpsc::channel();
        let runtime =
            Runtime::builder().watchdog(Duration::from_millis(40)).on_stall(move |stall| {
                if stall.phase == StallPhase::GoesOn {
                    begun.send(()).unwrap();
                    std::thread::sleep(Duration::from_secs(6));
                }
            });
        let dump = runtime.build().unwrap().run(move || {
            // A stall until it is noticed.
            dump_while_unwinding(move || has_begun.recv().unwrap())
        });
        assert!(dump.error.is_none());
    });
}

#[test]
fn a_thousand_fibers_on_several_loops_are_dumped_in_reasonable_time() {
    const FIBERS: usize = 1000;
    run_on(2, || {
        let started = Arc::new(AtomicUsize::new(0));
        let parked: Vec<_> = (0..FIBERS)
            .map(|number| {
                let parked = Builder::new().name(format!("thousand {number}"));
                let started = Arc::clone(&started);
                parked.spawn(move || {
                    started.fetch_add(1, Ordering::Relaxed);
                    kapok::sleep(LONG)
                })
            })
            .collect();
        // Who has not started has no backtrace.
        wait_until(|| started.load(Ordering::Relaxed) == FIBERS);
        kapok::sleep(Duration::from_millis(50)).unwrap();
        let before = Instant::now();
        let dump = kapok::blocking(kapok::dump).unwrap();
        let took = before.elapsed();
        let text = dump.to_string();
        let ours = || {
            dump.loops.iter().flat_map(|one| &one.fibers).filter(|fiber| {
                fiber.name.as_deref().is_some_and(|name| name.starts_with("thousand "))
            })
        };
        assert_eq!(ours().count(), FIBERS);
        for fiber in ours() {
            assert!(is_in(fiber, "a_thousand_fibers_on_several_loops"), "{}", fiber.backtrace);
        }
        assert!(dump.loops.len() >= 2, "{text}");
        assert!(took < Duration::from_secs(20), "{took:?}");
        parked.iter().for_each(|fiber| fiber.cancel());
        for fiber in parked {
            assert_eq!(fiber.join().unwrap(), Err(kapok::Interrupted::Canceled));
        }
    });
}

/// Goes down the stack until `left` bytes of it are left, by its size, and waits there.
#[inline(never)]
fn waits_deep_down(from: usize, left: usize) {
    let here = 0u8;
    let used = from - (&raw const here).addr();
    if used + left >= 128 * 1024 - 64 * 1024 {
        kapok::yield_now();
        assert!(kapok::sleep(LONG).is_err());
    } else {
        waits_deep_down(from, left);
    }
    black_box(&here);
}

#[test]
fn a_fiber_with_little_stack_left_is_dumped_without_using_it() {
    run(|| {
        let deep = Builder::new().name("deep").stack_size(1).spawn_local(|| {
            let here = 0u8;
            waits_deep_down((&raw const here).addr(), 2000);
        });
        kapok::sleep(Duration::from_millis(20)).unwrap();
        let dump = kapok::dump();
        assert!(is_in(find(&dump, "deep"), "waits_deep_down"), "{dump}");
        deep.cancel();
        deep.join().unwrap();
    });
}

#[test]
fn a_signal_prints_a_dump() {
    let name = "a_signal_prints_a_dump";
    let is_whole = |text: &str| {
        let lines = ["\"reads in the child\" (#", "waits for recv on descriptor", name];
        lines.iter().all(|line| text.contains(line))
    };
    let output = in_child(name, &[], || {
        let runtime = Runtime::builder().dump_on_signal(true).build().unwrap();
        // Standard error is read here, so that nothing but the signal asks for the dump.
        // SAFETY: descriptors of this process, which are its own.
        let (mut printed, before) = unsafe {
            let (mut ends, before) = ([-1; 2], libc::dup(2));
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            assert_eq!(libc::dup2(ends[1], 2), 2);
            libc::close(ends[1]);
            (std::fs::File::from_raw_fd(ends[0]), std::fs::File::from_raw_fd(before))
        };
        let teller = std::thread::spawn(move || {
            let mut before = before;
            let (mut text, mut part) = (Vec::new(), [0; 4096]);
            while !is_whole(&String::from_utf8_lossy(&text)) {
                let count = printed.read(&mut part).unwrap();
                before.write_all(&part[..count]).unwrap();
                text.extend_from_slice(&part[..count]);
            }
        });
        runtime.run(|| {
            let (mut near, far) = UnixStream::pair().unwrap();
            let reader = Builder::new().name("reads in the child");
            let reader = reader.spawn_local(move || near.read(&mut [0; 64]).unwrap());
            kapok::sleep(Duration::from_millis(20)).unwrap();
            // SAFETY: sends a signal to this process.
            assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGUSR2) }, 0);
            kapok::blocking(|| teller.join().unwrap()).unwrap();
            drop(far);
            assert_eq!(reader.join().unwrap(), 0);
        });
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(is_whole(&text), "{text}");
}

/// Whoever asks for a dump has been told before what was found until then.
#[test]
fn a_stall_is_told_of_before_a_dump_that_was_asked_for_after_it() {
    let name = "a_stall_is_told_of_before_a_dump_that_was_asked_for_after_it";
    let output = in_child(name, &[], || {
        let (go, gone) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let runtime = Runtime::builder().dump_on_signal(true).watchdog(Duration::from_millis(40));
        let runtime = runtime.on_stall(move |stall| {
            if stall.phase == StallPhase::GoesOn {
                // The stall ends, which is found while this is still being told.
                go.send(()).unwrap();
                std::thread::sleep(Duration::from_secs(1));
                // SAFETY: sends a signal to this process.
                assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGUSR2) }, 0);
                // Another thread takes it.
                std::thread::sleep(Duration::from_millis(500));
            } else {
                eprintln!("told of the end");
                end.send(()).unwrap();
            }
        });
        runtime.build().unwrap().run(move || {
            let _sleeper = Builder::new().name("shown by the dump").spawn(|| kapok::sleep(LONG));
            gone.recv().unwrap();
            kapok::blocking(move || ended.recv().unwrap()).unwrap();
            // Answered after the one that was asked for before.
            assert!(kapok::dump().error.is_none());
            std::process::exit(0);
        });
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let [told, dumped] = ["told of the end", "shown by the dump"].map(|line| text.find(line));
    assert!(told.is_some() && told < dumped, "{text}");
}
