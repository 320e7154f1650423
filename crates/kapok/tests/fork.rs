//! fork(2) with loops running: the parent notices nothing, and the child can go on.

#![cfg(target_os = "linux")]

mod harness;

use std::cell::Cell;
use std::future::poll_fn;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use harness::{alone, run, scale, wait_until};
use kapok::Runtime;
use kapok::net::UnixStream;
use kapok::signal::Signals;
use kapok::sync::channel;

const LONG: Duration = Duration::from_secs(20);

/// Forks. The child does `child`, and then whatever is behind `None`.
fn fork(child: impl FnOnce()) -> Option<libc::pid_t> {
    // SAFETY: the processes of these tests have no thread that holds a lock for long, and the child
    // does nothing that the threads it lacks would have to do.
    match unsafe { libc::fork() } {
        0 => {
            // Not to be left behind if it hangs.
            // SAFETY: plain integers.
            unsafe { libc::alarm(20) };
            child();
            None
        }
        process => {
            assert!(process > 0, "{}", std::io::Error::last_os_error());
            Some(process)
        }
    }
}

/// Ends the process as it stands.
fn end(status: i32) -> ! {
    // SAFETY: async-signal-safe.
    unsafe { libc::_exit(status) }
}

/// Waits for a child, on a fiber or a thread: its exit status, or the signal that ended it.
fn wait(process: libc::pid_t) -> Result<i32, i32> {
    let mut status = 0;
    // SAFETY: writes to a local.
    wait_until(|| unsafe { libc::waitpid(process, &raw mut status, libc::WNOHANG) } == process);
    match libc::WIFEXITED(status) {
        true => Ok(libc::WEXITSTATUS(status)),
        false => Err(libc::WTERMSIG(status)),
    }
}

/// Fibers that send numbers to and fro, and check that none is missing.
struct Traffic {
    exchanged: Vec<Arc<AtomicUsize>>,
    stop: Arc<AtomicBool>,
    fibers: Vec<kapok::JoinHandle<()>>,
}

impl Traffic {
    fn start(pairs: usize) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut exchanged, mut fibers) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            let (mut client, mut server) = UnixStream::pair().unwrap();
            fibers.push(kapok::spawn(move || {
                let mut word = [0; 8];
                while server.read(&mut word).unwrap() > 0 {
                    server.write_all(&word).unwrap();
                }
            }));
            let count = Arc::new(AtomicUsize::new(0));
            exchanged.push(Arc::clone(&count));
            let stop = Arc::clone(&stop);
            fibers.push(kapok::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let word = count.load(Ordering::SeqCst).to_ne_bytes();
                    client.write_all(&word).unwrap();
                    let mut answer = [0; 8];
                    client.read_exact(&mut answer).unwrap();
                    assert_eq!(answer, word);
                    count.fetch_add(1, Ordering::SeqCst);
                    kapok::sleep(Duration::from_micros(100 * pair as u64)).unwrap();
                }
                client.shutdown(Shutdown::Both).unwrap();
            }));
        }
        Traffic { exchanged, stop, fibers }
    }

    /// Sees each pair get on.
    fn goes_on(&self) {
        for count in &self.exchanged {
            let before = count.load(Ordering::SeqCst);
            wait_until(|| count.load(Ordering::SeqCst) > before + 1);
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
    }
}

/// Everything that a plain thread may do.
fn live_as_a_thread() {
    assert!(!kapok::on_fiber());
    kapok::yield_now();
    kapok::sleep(Duration::from_millis(1)).unwrap();
    let (mut one, mut other) = UnixStream::pair().unwrap();
    let peer = thread::spawn(move || {
        let mut word = [0; 5];
        other.read_exact(&mut word).unwrap();
        other.write_all(&word).unwrap();
    });
    one.write_all(b"child").unwrap();
    let mut word = [0; 5];
    one.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"child");
    peer.join().unwrap();
    let (sender, receiver) = channel::bounded(1);
    let sending = thread::spawn(move || sender.send(7));
    assert_eq!(receiver.recv(), Ok(7));
    sending.join().unwrap().unwrap();
    assert_eq!(kapok::blocking(|| 8).unwrap(), 8);
}

/// Runs fibers on a runtime of its own.
fn live_as_a_runtime() {
    let sum = Runtime::new().unwrap().run(|| {
        let traffic = Traffic::start(3);
        traffic.goes_on();
        traffic.end();
        let fibers: Vec<_> = (0..10).map(|number| kapok::spawn(move || number)).collect();
        let blocking = kapok::blocking(|| 9).unwrap();
        fibers.into_iter().map(|fiber| fiber.join().unwrap()).sum::<i32>() + blocking
    });
    assert_eq!(sum, 54);
}

/// What children do; the number of each is its exit status.
const LIVES: [fn(); 4] = [
    || {},
    live_as_a_thread,
    live_as_a_runtime,
    || {
        live_as_a_thread();
        live_as_a_runtime();
    },
];

#[test]
fn a_fiber_forks_and_the_parent_goes_on() {
    alone("a_fiber_forks_and_the_parent_goes_on", || {
        run(|| {
            let traffic = Traffic::start(4);
            // From now on there is a thread for what blocks, which no child inherits.
            kapok::blocking(|| ()).unwrap();
            for number in 0..scale(12, 400) {
                traffic.goes_on();
                let life = number % LIVES.len();
                let child = fork(|| {
                    LIVES[life]();
                    end(life as i32);
                });
                traffic.goes_on();
                assert_eq!(wait(child.unwrap()), Ok(life as i32));
                traffic.goes_on();
            }
            traffic.end();
        });
    });
}

#[test]
fn a_thread_forks_and_the_parent_goes_on() {
    alone("a_thread_forks_and_the_parent_goes_on", || {
        run(|| {
            let traffic = Traffic::start(4);
            // From now on there is a thread for what blocks, which no child inherits.
            kapok::blocking(|| ()).unwrap();
            for number in 0..scale(12, 400) {
                let life = number % LIVES.len();
                let forking = thread::spawn(move || {
                    let child = fork(|| {
                        LIVES[life]();
                        end(life as i32);
                    });
                    wait(child.unwrap())
                });
                wait_until(|| forking.is_finished());
                assert_eq!(forking.join().unwrap(), Ok(life as i32));
                traffic.goes_on();
            }
            traffic.end();
        });
    });
}

/// What a program that is executed here has open.
fn descriptors_of_a_program() -> String {
    let listed = std::process::Command::new("ls").arg("/proc/self/fd").output().unwrap();
    assert!(listed.status.success());
    String::from_utf8(listed.stdout).unwrap()
}

#[test]
fn a_child_that_executes_a_program_takes_nothing_along() {
    alone("a_child_that_executes_a_program_takes_nothing_along", || {
        let before = descriptors_of_a_program();
        run(move || {
            let traffic = Traffic::start(4);
            for _ in 0..scale(5, 100) {
                assert_eq!(descriptors_of_a_program(), before);
                traffic.goes_on();
            }
            traffic.end();
        });
    });
}

#[test]
fn the_end_of_the_fiber_is_that_of_the_child() {
    alone("the_end_of_the_fiber_is_that_of_the_child", || {
        let parent = std::process::id();
        run(|| {
            let traffic = Traffic::start(2);
            for panics in [false, true] {
                let (children, seen) = channel::unbounded();
                let fiber = kapok::spawn_local(move || match fork(|| {}) {
                    Some(child) => children.send(child).unwrap(),
                    // In the child, out of the fiber and out of everything it is in.
                    None if panics => kapok::timeout(LONG, || panic!("on purpose, in a child")),
                    None => {}
                });
                fiber.join().unwrap();
                let child = seen.recv().unwrap();
                traffic.goes_on();
                assert_eq!(wait(child), Ok(if panics { 101 } else { 0 }));
            }
            traffic.end();
            // The main fiber's, too, and the code behind `run` belongs to the parent.
            let child = fork(|| {});
            if let Some(child) = child {
                assert_eq!(wait(child), Ok(0));
            }
        });
        assert_eq!(std::process::id(), parent, "a child has come out of `run`");
    });
}

#[test]
fn what_lands_after_a_fork_lands_in_the_parent_alone() {
    alone("what_lands_after_a_fork_lands_in_the_parent_alone", || {
        run(|| {
            for _ in 0..scale(20, 1_000) {
                let (mut stream, mut peer) = UnixStream::pair().unwrap();
                let (mut landed, mut tell) = StdUnixStream::pair().unwrap();
                let place = Rc::new(Cell::new(std::ptr::null::<u8>()));
                let of_fiber = Rc::clone(&place);
                let reader = kapok::spawn_local(move || {
                    let mut buf = [b'.'; 4096];
                    of_fiber.set(buf.as_ptr());
                    stream.read_exact(black_box(&mut buf)).unwrap();
                    buf
                });
                kapok::sleep(Duration::from_micros(200)).unwrap();
                let child = fork(|| {
                    landed.read_exact(&mut [0]).unwrap();
                    let place = place.get();
                    // SAFETY: the fiber's stack was copied, and the fiber never goes on here.
                    let changed =
                        (0..4096).any(|at| unsafe { place.add(at).read_volatile() } != b'.');
                    end(i32::from(changed));
                });
                peer.write_all(&[b'!'; 4096]).unwrap();
                assert_eq!(reader.join().unwrap(), [b'!'; 4096]);
                tell.write_all(&[0]).unwrap();
                assert_eq!(wait(child.unwrap()), Ok(0), "bytes of the parent came to the child");
            }
        });
    });
}

#[test]
fn a_child_does_not_go_back_into_a_wait_of_the_parent() {
    alone("a_child_does_not_go_back_into_a_wait_of_the_parent", || {
        run(|| {
            let traffic = Traffic::start(2);
            // Another fiber that is always ready: it must not go on in the child.
            let (mut written, mut write) = StdUnixStream::pair().unwrap();
            let parent = std::process::id();
            let stop = Rc::new(Cell::new(false));
            let stopped = Rc::clone(&stop);
            let other = kapok::spawn_local(move || {
                while !stopped.get() {
                    if std::process::id() != parent {
                        write.write_all(b"!").unwrap();
                    }
                    kapok::yield_now();
                }
            });
            kapok::yield_now();
            let mut child = None;
            kapok::block_on(poll_fn(|context| match child {
                Some(_) => Poll::Ready(()),
                None => {
                    child = fork(|| {});
                    if child.is_some() {
                        context.waker().wake_by_ref();
                    }
                    Poll::Pending
                }
            }));
            traffic.goes_on();
            assert_eq!(wait(child.unwrap()), Err(libc::SIGABRT));
            stop.set(true);
            other.join().unwrap();
            assert_eq!(
                written.read(&mut [0]).unwrap(),
                0,
                "a fiber of the parent ran in the child"
            );
            traffic.end();
        });
    });
}

#[test]
fn a_signal_to_the_child_is_not_told_to_the_parent() {
    alone("a_signal_to_the_child_is_not_told_to_the_parent", || {
        run(|| {
            let mut signals = Signals::new([libc::SIGUSR1]).unwrap();
            let child = fork(|| {
                // SAFETY: a signal to ourselves.
                unsafe { libc::raise(libc::SIGUSR1) };
                end(0);
            });
            assert_eq!(wait(child.unwrap()), Ok(0));
            let told = kapok::timeout(Duration::from_millis(20), || signals.recv());
            assert!(told.is_err(), "told of {told:?}");
            // SAFETY: a signal to ourselves.
            unsafe { libc::raise(libc::SIGUSR1) };
            assert_eq!(kapok::timeout(LONG, || signals.recv()).unwrap(), libc::SIGUSR1);
        });
    });
}

#[test]
fn the_loops_of_the_parent_are_not_the_childs() {
    alone("the_loops_of_the_parent_are_not_the_childs", || {
        run(|| {
            let others: Vec<_> = (0..3).map(|_| kapok::spawn(|| kapok::sleep(LONG))).collect();
            kapok::yield_now();
            let child = fork(|| {
                // More than a busy machine keeps the child's only loop from running.
                let limit = Duration::from_millis(200);
                let stalls = Arc::new(AtomicUsize::new(0));
                let seen = Arc::clone(&stalls);
                let runtime = Runtime::builder().watchdog(limit).on_stall(move |_| {
                    seen.fetch_add(1, Ordering::SeqCst);
                });
                let loops = runtime.build().unwrap().run(move || {
                    kapok::sleep(limit * 5).unwrap();
                    kapok::dump().loops.len()
                });
                // The fiber that has forked runs for ever, for all that anybody sees.
                end(i32::from(loops != 1) + 2 * i32::from(stalls.load(Ordering::SeqCst) > 0));
            });
            assert_eq!(wait(child.expect("the child ends by itself")), Ok(0));
            others.iter().for_each(kapok::JoinHandle::cancel);
        });
    });
}
