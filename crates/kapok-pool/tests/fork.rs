//! The child of a fork has a pool without threads, and hears so.

mod harness;

use std::io::ErrorKind;
use std::time::Duration;

use harness::{Scratch, has_uring};
use kapok_pool::{File, Pool, Via};

/// What the child finds wrong, as its status; 0 for nothing.
fn in_child(pool: &Pool, file: &File) -> i32 {
    let late = |kind: Result<(), ErrorKind>| kind == Err(ErrorKind::NotConnected);
    if !late(pool.nop().via(Via::Thread).block().map(drop).map_err(|error| error.kind())) {
        return 1;
    }
    let (read, buffer) = file.read_at(vec![0; 4], 0).via(Via::Thread).block();
    if !late(read.map(drop).map_err(|error| error.kind())) || buffer.len() != 4 {
        return 2;
    }
    // At once, for there is nobody to wait for.
    pool.shutdown(Duration::from_secs(3600));
    drop(pool.clone());
    // A pool of one's own is one.
    let Ok(own) = Pool::builder().build() else { return 3 };
    match own.nop().via(Via::Thread).block() {
        Ok(_) => 0,
        Err(_) => 4,
    }
}

#[test]
fn a_child_hears_that_it_has_no_threads_and_the_parent_goes_on() {
    has_uring();
    let scratch = Scratch::new("fork", b"content");
    let pool = Pool::builder().threads(2).via(Via::Thread).build().unwrap();
    let file = kapok_pool::block_on(File::open(&pool, &scratch.0)).unwrap();
    pool.nop().block().unwrap();
    // SAFETY: the child calls what is written for it and ends without unwinding into the test.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = in_child(&pool, &file);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(status) };
    }
    assert!(child > 0);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let mut status = 0;
    // SAFETY: writes to a local.
    while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
        if std::time::Instant::now() > deadline {
            // SAFETY: the child is this test's own, and not waited for yet.
            unsafe { libc::kill(child, libc::SIGKILL) };
            panic!("the child hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(libc::WIFEXITED(status), "the child ended by a signal: {status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 0, "see `in_child`");
    let (read, buffer) = file.read_at(vec![0; 7], 0).block();
    assert_eq!((read.unwrap(), &buffer[..]), (7, &b"content"[..]));
    pool.shutdown(Duration::from_secs(1));
}
