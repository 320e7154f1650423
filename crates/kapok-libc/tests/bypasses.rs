//! Calls that the hooks leave alone: those from before they are installed, and those of plain threads.
//!
//! Each test runs in a process of its own, since hooks are a process's.

#![cfg(target_os = "linux")]

mod isolated;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use kapok_libc::Counts;

fn counts(name: &str) -> Counts {
    kapok_libc::hooks().find(|hook| hook.name() == name).unwrap().counts()
}

/// Runs the rest of a test in a process of its own. Whether this is that process.
fn is_apart(name: &str) -> bool {
    let Some(output) = isolated::apart(name) else { return true };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    false
}

/// Has something done while who calls this waits.
type Meanwhile = fn(Box<dyn FnOnce() + Send>);

/// By a thread, in a while.
fn by_a_thread(work: Box<dyn FnOnce() + Send>) {
    thread::spawn(|| {
        thread::sleep(Duration::from_millis(10));
        work();
    });
}

/// By another fiber, which runs only once this one has suspended.
fn by_a_fiber(work: Box<dyn FnOnce() + Send>) {
    kapok::spawn_local(work).detach();
}

/// Calls that wait, by whoever runs.
fn wait_for_this_and_that(meanwhile: Meanwhile) {
    let (mut one, mut other) = UnixStream::pair().unwrap();
    let lock = Arc::new(Mutex::new(()));
    let (there, held, over) = (Arc::clone(&lock), mpsc::channel(), mpsc::channel());
    let thread = thread::spawn(move || {
        let guard = there.lock().unwrap();
        held.0.send(()).unwrap();
        over.1.recv().unwrap();
        drop(guard);
    });
    held.1.recv().unwrap();
    meanwhile(Box::new(move || over.0.send(()).unwrap()));
    drop(lock.lock().unwrap());
    meanwhile(Box::new(move || other.write_all(b"x").unwrap()));
    assert_eq!(one.read(&mut [0; 4]).unwrap(), 1);
    thread::sleep(Duration::from_millis(1));
    thread.join().unwrap();
}

fn on_a_fiber(main: fn()) {
    let runtime = kapok::Runtime::builder().threads(1).build().unwrap();
    runtime.run(move || kapok::spawn_local(main).join().unwrap());
}

#[test]
fn hooks_do_nothing_before_they_are_installed() {
    if !is_apart("hooks_do_nothing_before_they_are_installed") {
        return;
    }
    // Whoever asks for more counts installs nothing by that.
    for ask in [|| (), kapok_libc::count_bypasses] {
        ask();
        on_a_fiber(|| wait_for_this_and_that(by_a_thread));
        wait_for_this_and_that(by_a_thread);
        for hook in kapok_libc::hooks() {
            assert_eq!(hook.counts(), Counts::default(), "{}", hook.name());
        }
    }
    kapok_libc::install();
    on_a_fiber(|| wait_for_this_and_that(by_a_fiber));
    assert!(counts("syscall").suspended > 0 && counts("clock_nanosleep").suspended == 1);
    assert!(counts("read").suspended + counts("recv").suspended == 1);
    // What was asked for before holds from then on.
    let before = counts("clock_nanosleep");
    thread::spawn(|| thread::sleep(Duration::from_millis(1))).join().unwrap();
    assert_eq!(counts("clock_nanosleep"), Counts { bypassed: before.bypassed + 1, ..before });
}

#[test]
fn calls_of_plain_threads_go_past_the_fibers() {
    if !is_apart("calls_of_plain_threads_go_past_the_fibers") {
        return;
    }
    fn receive(meanwhile: Meanwhile) {
        let (one, mut other) = UnixStream::pair().unwrap();
        meanwhile(Box::new(move || other.write_all(b"x").unwrap()));
        let (fd, mut byte) = (std::os::fd::AsRawFd::as_raw_fd(&one), [0_u8; 4]);
        // SAFETY: room of that length.
        let count = unsafe { libc::recv(fd, byte.as_mut_ptr().cast(), 4, 0) };
        assert_eq!((count, byte[0]), (1, b'x'));
    }
    let receive_on_a_thread = || thread::spawn(|| receive(by_a_thread)).join().unwrap();
    kapok_libc::install();
    // They are not counted unless somebody asks.
    receive_on_a_thread();
    assert_eq!(counts("recv"), Counts::default());
    kapok_libc::count_bypasses();
    // Of a thread that has nothing to do with Kapok, and of one beside a loop that runs.
    receive_on_a_thread();
    assert_eq!(counts("recv"), Counts { bypassed: 1, ..Counts::default() });
    on_a_fiber(|| {
        let before = counts("recv");
        thread::spawn(|| receive(by_a_thread)).join().unwrap();
        assert_eq!(counts("recv"), Counts { bypassed: 2, ..before });
        receive(by_a_fiber);
        assert_eq!(counts("recv"), Counts { bypassed: 2, suspended: 1, direct: 0 });
    });
}
