//! What one user does wrong on an I/O thread is no other user's trouble.

mod harness;

use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use harness::{eventually, has_uring, poll_once};
use kapok_pool::{Buffer, Pool, Source, Via};

/// A buffer whose destructor reports where it ran, and panics.
struct Bomb<const QUIET: bool> {
    memory: Vec<u8>,
    armed: Arc<Mutex<Vec<String>>>,
}

impl<const QUIET: bool> Drop for Bomb<QUIET> {
    fn drop(&mut self) {
        let name = std::thread::current().name().unwrap_or("").to_owned();
        self.armed.lock().unwrap().push(name);
        std::panic::resume_unwind(Box::new("on purpose"));
    }
}

// SAFETY: the memory is a vector's.
unsafe impl<const QUIET: bool> Source for Bomb<QUIET> {
    const QUIET: bool = QUIET;

    fn bytes(&self) -> &[u8] {
        &self.memory
    }
}

// SAFETY: as above.
unsafe impl<const QUIET: bool> Buffer for Bomb<QUIET> {
    fn room(&mut self) -> NonNull<[u8]> {
        self.memory.room()
    }

    unsafe fn filled(&mut self, _count: usize) {}
}

/// Abandons fifty, one after the other, and says on which threads they were destroyed.
fn drop_bombs<const QUIET: bool>(pool: &Pool) -> Vec<String> {
    let (near, _far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let armed = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..50 {
        let bomb = Bomb::<QUIET> { memory: vec![0; 8], armed: Arc::clone(&armed) };
        let mut receive = pool.recv(&near, bomb, 0);
        assert!(poll_once(&mut receive).is_pending());
        drop(receive);
        // The neighbours.
        pool.nop().block().unwrap();
    }
    eventually("all destructors ran", || armed.lock().unwrap().len() == 50);
    eventually("all has landed", || pool.stats().pending() == 0);
    pool.nop().block().unwrap();
    armed.lock().unwrap().clone()
}

#[test]
fn destructors_of_users_run_elsewhere_and_may_panic() {
    has_uring();
    let pool = Pool::builder().via(Via::Thread).build().unwrap();
    let names = drop_bombs::<false>(&pool);
    assert!(names.iter().all(|name| name == "kapok-offload"), "{names:?}");
}

#[test]
fn a_destructor_that_promised_to_be_quiet_and_panics_harms_nobody() {
    has_uring();
    let pool = Pool::builder().via(Via::Thread).build().unwrap();
    let names = drop_bombs::<true>(&pool);
    assert!(names.iter().all(|name| name == "kapok-io-0"), "{names:?}");
}

/// A buffer that panics when it is asked for its room, and counts how many of it are gone.
struct Roomless(Vec<u8>, Arc<AtomicUsize>);

impl Drop for Roomless {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: the memory is a vector's.
unsafe impl Source for Roomless {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

// SAFETY: as above; no room is ever given.
unsafe impl Buffer for Roomless {
    fn room(&mut self) -> NonNull<[u8]> {
        std::panic::resume_unwind(Box::new("on purpose"));
    }

    unsafe fn filled(&mut self, _count: usize) {}
}

#[test]
fn a_buffer_that_panics_leaves_its_slot_to_others() {
    has_uring();
    let pool = Pool::builder().slots(1).via(Via::Thread).build().unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let gone = Arc::new(AtomicUsize::new(0));
    for number in 1..=3 {
        let mut receive = pool.recv(&near, Roomless(vec![0; 8], Arc::clone(&gone)), 0);
        let polled = std::panic::AssertUnwindSafe(|| poll_once(&mut receive).is_pending());
        assert!(std::panic::catch_unwind(polled).is_err());
        drop(receive);
        assert_eq!(gone.load(Ordering::Relaxed), number);
        let mut nop = pool.nop();
        assert!(poll_once(&mut nop).is_ready() || pool.stats().waiting == 0, "the slot is lost");
        drop(nop);
        eventually("all has landed", || pool.stats().pending() == 0);
    }
}

struct Panics(AtomicUsize);

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::panic::resume_unwind(Box::new("on purpose"));
    }
}

#[test]
fn a_waker_that_panics_harms_nobody() {
    has_uring();
    let pool = Pool::builder().via(Via::Thread).build().unwrap();
    let panics = Arc::new(Panics(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&panics));
    let deadline = std::time::Instant::now() + Duration::from_millis(20);
    let mut sleeps: Vec<_> = (0..50).map(|_| pool.sleep_until(deadline)).collect();
    for sleep in &mut sleeps {
        let polled =
            std::future::Future::poll(std::pin::Pin::new(sleep), &mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    pool.sleep_until(deadline).block().unwrap();
    eventually("all were woken", || panics.0.load(Ordering::Relaxed) == 50);
    for sleep in sleeps {
        sleep.block().unwrap();
    }
}

#[test]
fn a_refused_option_says_why() {
    for (builder, word) in [
        (Pool::builder().threads(0), "thread"),
        (Pool::builder().take(0), "take"),
        (Pool::builder().completion_batch(0), "completion_batch"),
        (Pool::builder().slots(0), "slots"),
        (Pool::builder().in_flight(0), "in_flight"),
        (Pool::builder().pin([100_000]), "processor 100000"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_future_that_nobody_polls_any_more_holds_nobodys_turn() {
    for (slots, channel) in [(1, 2), (64, 2)] {
        let pool = Pool::builder().slots(slots).channel(channel).in_flight(1).build().unwrap();
        let pool = &pool;
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        // One is carried out, and others fill the channel, if there are slots for them.
        let mut begun: Vec<_> =
            (0..slots.min(3)).map(|_| pool.recv(&near, vec![0; 1], 0).via(Via::Thread)).collect();
        for receive in &mut begun {
            assert!(poll_once(receive).is_pending());
            eventually("the first is taken", || pool.stats().threads[0].in_flight == 1);
        }
        // They wait for room before anybody else does, and never come for it.
        let mut idlers: Vec<_> = (0..3).map(|_| pool.nop().via(Via::Thread)).collect();
        for idler in &mut idlers {
            assert!(poll_once(idler).is_pending());
        }
        assert_eq!(pool.stats().waiting, 3, "{slots} slots");
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let tell = tell.clone();
                scope.spawn(move || tell.send(pool.nop().via(Via::Thread).block().is_ok()));
            }
            eventually("they wait as well", || pool.stats().waiting == 5);
            std::io::Write::write_all(&mut far, &vec![1; begun.len()]).unwrap();
            for receive in begun {
                receive.block().0.unwrap();
            }
            for _ in 0..2 {
                let outcome = told.recv_timeout(Duration::from_secs(20));
                // Whoever waits still would keep the scope.
                idlers.clear();
                assert_eq!(outcome, Ok(true), "{slots} slots: its turn was held");
            }
        });
    }
}
