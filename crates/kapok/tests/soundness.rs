//! What safe code might do to the core, and what must come of it: neither undefined behaviour, nor
//! a loop that is gone, nor a wait that never ends.

use std::cell::Cell;
use std::future::Future;
use std::io::{Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use kapok::net::TcpListener;
use kapok::{FiberLocal, Kind, Runtime};

const LONG: Duration = Duration::from_secs(20);

/// Runs `test` on every engine that is to be had here and that sleeps.
fn on_each_engine(test: impl Fn(&Runtime)) {
    for &kind in [Kind::Uring, Kind::Epoll, Kind::Poll].iter() {
        match Runtime::builder().engine(kind).close_limit(Duration::from_secs(2)).build() {
            Ok(runtime) => test(&runtime),
            Err(error) => eprintln!("no {kind} here: {error}"),
        }
    }
}

/// Polls once, for nobody.
fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// A future that was polled on a loop that has ended since.
fn stale_sleep(runtime: &Runtime) -> kapok::time::Sleep {
    runtime.run(|| {
        let mut sleep = kapok::time::sleep_async(LONG);
        assert!(poll_once(&mut sleep).is_pending());
        sleep
    })
}

fn polling_panics<F: Future + Unpin>(future: &mut F) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll_once(future).is_ready())).is_err()
}

#[test]
fn a_future_of_an_ended_loop_is_a_stranger_to_the_next_one() {
    on_each_engine(|runtime| {
        let mut stale = stale_sleep(runtime);
        runtime.run(move || {
            // Its timer has the place in the new loop's table that the old one's had in the old
            // loop's.
            let before = Instant::now();
            let sleeper = kapok::spawn_local(|| kapok::sleep(Duration::from_millis(50)));
            // Once to be queued behind it, once to see it wait.
            kapok::yield_now();
            kapok::yield_now();
            assert!(polling_panics(&mut stale), "polled on another loop");
            drop(stale);
            let joined = kapok::timeout(Duration::from_secs(5), || sleeper.join());
            assert!(matches!(joined, Ok(Ok(()))), "{joined:?}");
            assert!(before.elapsed() >= Duration::from_millis(50));
        });
        // The same if that place is a future's, which could be mistaken for it.
        let mut stale = stale_sleep(runtime);
        runtime.run(move || {
            let sleeper = kapok::spawn_local(|| {
                kapok::block_on(kapok::time::sleep_async(Duration::from_millis(50)));
            });
            kapok::yield_now();
            kapok::yield_now();
            assert!(polling_panics(&mut stale), "polled on another loop");
            drop(stale);
            let joined = kapok::timeout(Duration::from_secs(5), || sleeper.join());
            assert!(matches!(joined, Ok(())), "{joined:?}");
        });
    });
}

/// Says where it was dropped.
struct Tells(mpsc::Sender<ThreadId>);

impl Drop for Tells {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().id());
    }
}

#[test]
fn what_a_loop_dropped_unstarted_is_dropped_on_its_thread() {
    struct SpawnsOnDrop(mpsc::Sender<kapok::JoinHandle<()>>, mpsc::Sender<ThreadId>);
    impl Drop for SpawnsOnDrop {
        fn drop(&mut self) {
            let tells = Tells(self.1.clone());
            let _ = self.0.send(kapok::spawn_local(move || drop(tells)));
        }
    }
    on_each_engine(|runtime| {
        let (handles, handle) = mpsc::channel();
        let (dropped, told) = mpsc::channel();
        runtime.run(move || {
            let late = SpawnsOnDrop(handles, dropped);
            kapok::spawn_local(move || drop(late)).detach();
        });
        let handle = handle.recv_timeout(LONG).unwrap();
        let here = thread::current().id();
        let (joined, outcome) = mpsc::channel();
        thread::spawn(move || joined.send(handle.join().is_ok()));
        assert!(outcome.recv_timeout(LONG).is_ok(), "the handle never says what became of it");
        assert_eq!(told.recv_timeout(LONG), Ok(here));
    });
}

static LOCAL: FiberLocal<Cell<Option<Tells>>> = FiberLocal::new(|| Cell::new(None));
static FIRST: FiberLocal<Cell<Option<Tells>>> = FiberLocal::new(|| Cell::new(None));
static PANICS: FiberLocal<Cell<Option<PanicsOnDrop>>> = FiberLocal::new(|| Cell::new(None));

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("on purpose");
        }
    }
}

#[test]
fn fiber_locals_are_dropped_on_their_thread_whatever_destructors_do() {
    struct MakesALocal(mpsc::Sender<ThreadId>);
    impl Drop for MakesALocal {
        fn drop(&mut self) {
            LOCAL.with(|local| local.set(Some(Tells(self.0.clone()))));
        }
    }
    on_each_engine(|runtime| {
        let here = thread::current().id();
        let (dropped, told) = mpsc::channel();
        let handle = runtime.run(move || {
            let from_local = dropped.clone();
            let handle = kapok::spawn(move || {
                FIRST.with(|local| local.set(Some(Tells(from_local))));
                PANICS.with(|local| local.set(Some(PanicsOnDrop)));
            });
            // Nobody takes this result: it goes after the fiber's locals did.
            kapok::spawn_local(move || MakesALocal(dropped)).detach();
            for _ in 0..10 {
                kapok::yield_now();
            }
            handle
        });
        thread::spawn(move || handle.join().is_ok()).join().unwrap();
        assert_eq!(told.recv_timeout(LONG), Ok(here));
        assert_eq!(told.recv_timeout(LONG), Ok(here));
    });
}

#[test]
fn destructors_that_panic_end_no_loop() {
    on_each_engine(|runtime| {
        let value = runtime.run(|| {
            kapok::spawn(|| PanicsOnDrop).detach();
            kapok::spawn(|| std::panic::panic_any(PanicsOnDrop)).detach();
            kapok::sleep(Duration::from_millis(5)).unwrap();
            // Dropped by the loop when it closes.
            let late = PanicsOnDrop;
            kapok::spawn(move || drop(late)).detach();
            7
        });
        assert_eq!(value, 7);
    });
}

#[test]
fn a_waker_that_panics_ends_no_loop() {
    struct Panics(AtomicUsize);
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("on purpose");
        }
    }
    on_each_engine(|runtime| {
        let panics = Arc::new(Panics(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&panics));
        runtime.run(move || {
            let mut sleep = kapok::time::sleep_async(Duration::from_millis(1));
            assert!(Pin::new(&mut sleep).poll(&mut Context::from_waker(&waker)).is_pending());
            kapok::sleep(Duration::from_millis(20)).unwrap();
            assert!(poll_once(&mut sleep).is_ready());
        });
        assert_eq!(panics.0.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_future_that_always_wakes_itself_lets_other_fibers_run() {
    on_each_engine(|runtime| {
        let before = Instant::now();
        runtime.run(move || {
            let flag = Rc::new(Cell::new(false));
            let seen = Rc::clone(&flag);
            kapok::spawn_local(move || flag.set(true)).detach();
            kapok::block_on(std::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                assert!(before.elapsed() < LONG, "the other fiber never ran");
                if seen.get() { Poll::Ready(()) } else { Poll::Pending }
            }));
        });
    });
}

#[test]
fn an_accept_that_was_given_up_takes_nothing_from_the_next_listener() {
    on_each_engine(|runtime| {
        runtime.run(|| {
            let old = TcpListener::bind("127.0.0.1:0").unwrap();
            {
                let mut accept = Box::pin(old.accept_async());
                assert!(poll_once(&mut accept).is_pending());
            }
            drop(old);
            // It gets the number of the old one, before the engine has had a turn.
            let new = TcpListener::bind("127.0.0.1:0").unwrap();
            let _client = std::net::TcpStream::connect(new.local_addr().unwrap()).unwrap();
            let accepted = kapok::timeout(Duration::from_secs(5), || new.accept());
            accepted.unwrap();
        });
    });
}

#[test]
fn each_connection_that_is_given_back_wakes_an_accept() {
    struct Counts(AtomicUsize);
    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    on_each_engine(|runtime| {
        runtime.run(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let counts = Arc::new(Counts(AtomicUsize::new(0)));
            let waker = Waker::from(Arc::clone(&counts));
            let mut context = Context::from_waker(&waker);
            // First in line for what comes, and given up after it has come.
            let mut first: Vec<_> = (0..2).map(|_| Box::pin(listener.accept_async())).collect();
            for accept in &mut first {
                assert!(poll_once(accept).is_pending());
            }
            let mut waits = Box::pin(listener.accept_async());
            assert!(waits.as_mut().poll(&mut context).is_pending());
            let _clients = [0; 2].map(|_| std::net::TcpStream::connect(address).unwrap());
            kapok::sleep(Duration::from_millis(50)).unwrap();
            assert_eq!(counts.0.load(Ordering::Relaxed), 0, "others were first in line");
            for round in 1..=2 {
                drop(first.pop());
                assert_eq!(counts.0.load(Ordering::Relaxed), round);
                // Somebody else takes it, and the waker finds nothing.
                assert!(poll_once(&mut Box::pin(listener.accept_async())).is_ready());
                assert!(waits.as_mut().poll(&mut context).is_pending());
            }
        });
    });
}

#[test]
fn a_plain_thread_accepts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (_stream, peer) = listener.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
}

#[test]
fn a_file_is_written_while_its_fiber_unwinds() {
    struct Flushes(kapok::fs::File);
    impl Drop for Flushes {
        fn drop(&mut self) {
            self.0.write_all(b"last words").unwrap();
        }
    }
    on_each_engine(|runtime| {
        let path = std::env::temp_dir().join(format!("kapok-soundness-{}", std::process::id()));
        let there = path.clone();
        runtime.run(move || {
            let file = Flushes(kapok::fs::File::create(&there).unwrap());
            let fiber = kapok::spawn_local(move || {
                let _file = file;
                panic!("on purpose");
            });
            assert!(fiber.join().is_err());
        });
        let written = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(written, b"last words");
    });
}

#[test]
fn a_runtime_may_wait_for_ever_for_what_is_left() {
    let runtime = Runtime::builder().close_limit(Duration::MAX).build().unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&ended);
    runtime.run(move || {
        kapok::spawn(move || {
            let _ = kapok::sleep(LONG);
            ended.store(true, Ordering::Relaxed);
        })
        .detach();
        kapok::yield_now();
    });
    assert!(seen.load(Ordering::Relaxed));
}

#[test]
fn the_handle_of_a_fiber_that_was_left_behind_says_so() {
    on_each_engine(|_| {
        let runtime = Runtime::builder().close_limit(Duration::from_millis(50)).build().unwrap();
        let handle = runtime.run(|| {
            let stuck = kapok::spawn(|| kapok::block_on(std::future::pending::<()>()));
            kapok::yield_now();
            stuck
        });
        let (joined, outcome) = mpsc::channel();
        thread::spawn(move || {
            joined.send(matches!(handle.join(), Err(kapok::JoinError::Abandoned)))
        });
        assert_eq!(outcome.recv_timeout(LONG), Ok(true));
    });
}

/// Offered to a loop before the runtime stopped, taken up when the loop was closing already.
#[test]
fn fibers_that_come_to_a_closing_loop_are_cancelled() {
    for round in 0..200 {
        let began = Instant::now();
        let ended = Arc::new(AtomicUsize::new(0));
        let drops = DropCount(Arc::clone(&ended));
        let runtime = Runtime::builder().threads(2).close_limit(Duration::from_secs(20)).build();
        runtime.unwrap().run(move || {
            // Keeps the other loop, if that starts it, from ending at once.
            let (started, mut has_started) = kapok::sync::oneshot::channel();
            kapok::spawn(move || {
                let _ = started.send(());
                kapok::shield(|| kapok::sleep(Duration::from_millis(3))).unwrap();
            })
            .detach();
            has_started.recv().unwrap();
            kapok::spawn(move || {
                let _drops = drops;
                let (mut quiet, _peer) = kapok::net::UnixStream::pair().unwrap();
                quiet.read(&mut [0; 8]).unwrap_err();
            })
            .detach();
        });
        assert!(began.elapsed() < Duration::from_secs(10), "round {round}: nobody cancelled it");
        assert_eq!(ended.load(Ordering::SeqCst), 1, "round {round}");
    }
}

struct DropCount(Arc<AtomicUsize>);

impl Drop for DropCount {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A control block is used again, and still names the loop that had it.
#[test]
fn a_fiber_spawned_while_its_loop_closes_belongs_to_who_starts_it() {
    for kind in [Kind::Uring, Kind::Epoll] {
        // Each spawn asks whether the other loop idles: one that gets no processor just then takes none.
        let taken = (0..5).any(|_| spawn_as_the_loop_closes(kind) != Some(false));
        assert!(taken, "the other loop took none");
    }
}

/// Whether the other loop took one; `None` without that engine.
fn spawn_as_the_loop_closes(kind: Kind) -> Option<bool> {
    let builder = Runtime::builder().engine(kind).threads(2);
    let runtime = builder.close_limit(Duration::from_secs(5)).build().ok()?;
    let (sender, started_on) = mpsc::channel();
    runtime.run(move || {
        // Keeps the other loop, which closes too, from ending before there is something to take.
        let (here, moved) = (thread::current().id(), Arc::new(AtomicUsize::new(0)));
        while moved.load(Ordering::SeqCst) == 0 {
            let moved = Arc::clone(&moved);
            kapok::spawn(move || {
                if thread::current().id() != here && moved.fetch_add(1, Ordering::SeqCst) == 0 {
                    kapok::sleep(LONG).unwrap_err();
                    kapok::shield(|| kapok::sleep(Duration::from_secs(1))).unwrap();
                }
            })
            .detach();
            kapok::sleep(Duration::from_millis(1)).unwrap();
        }
        // By then the other loop has nothing to do.
        kapok::sleep(Duration::from_millis(50)).unwrap();
        // Leaves its control block to the next that is spawned here.
        kapok::spawn_local(|| ()).join().unwrap();
        kapok::spawn_local(move || {
            assert!(kapok::sleep(LONG).is_err());
            let closing = thread::current().id();
            for _ in 0..20 {
                let sender = sender.clone();
                kapok::spawn(move || {
                    let here = thread::current().id();
                    // Cancelled already; this wait heeds it not, but is woken for it.
                    kapok::block_on(kapok::time::sleep_async(Duration::from_millis(30)));
                    let after = thread::current().id();
                    sender.send((here == after, here != closing)).unwrap();
                })
                .detach();
            }
            // The other loop may take them; this one reads what was sent to it meanwhile.
            thread::sleep(Duration::from_millis(200));
        })
        .detach();
        kapok::yield_now();
    });
    let ran: Vec<(bool, bool)> = started_on.iter().collect();
    assert!(ran.iter().all(|(stayed, _)| *stayed), "one has changed its thread: {ran:?}");
    Some(ran.iter().any(|(_, moved)| *moved))
}

#[test]
fn a_scope_on_a_plain_thread_panics_and_does_not_hang() {
    let (sender, outcome) = mpsc::channel();
    thread::spawn(move || {
        let panicked = std::panic::catch_unwind(|| {
            kapok::scope(|scope| {
                scope.spawn(|| ());
            });
        });
        sender.send(panicked.is_err()).unwrap();
    });
    assert_eq!(outcome.recv_timeout(LONG), Ok(true));
}

/// Connects as its fiber unwinds.
struct Connects(std::net::SocketAddr, mpsc::Sender<(bool, Duration)>);

impl Drop for Connects {
    fn drop(&mut self) {
        let began = Instant::now();
        let connected = kapok::net::TcpStream::connect(self.0).is_ok();
        let _ = self.1.send((connected, began.elapsed()));
    }
}

#[test]
fn a_destructor_connects_while_its_fiber_unwinds() {
    // A backlog that is full takes no other, and says nothing.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let silent = full.local_addr().unwrap().as_socket().unwrap();
    let filled: Vec<_> = (0..4)
        .map(|_| std::net::TcpStream::connect_timeout(&silent, Duration::from_millis(50)))
        .collect();
    let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = open.local_addr().unwrap();
    on_each_engine(|runtime| {
        for (address, is_there) in [(there, true), (silent, false)] {
            let (sender, outcome) = mpsc::channel();
            runtime.run(move || {
                let fiber = kapok::spawn_local(move || {
                    let _connects = Connects(address, sender);
                    panic!("on purpose");
                });
                assert!(fiber.join().is_err());
            });
            let (connected, took) = outcome.recv().unwrap();
            assert_eq!(connected, is_there);
            assert!(took < LONG / 2, "{took:?}");
        }
    });
    drop(filled);
}
