//! Whose turn it is: loops that try again and again, and writers that come before readers.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::calls::{Object, condition, plain, pthread_rwlock_timedwrlock, soon};
use crate::world::{on_fibers, until};

unsafe extern "C" {
    fn pthread_rwlockattr_setkind_np(
        attributes: *mut libc::pthread_rwlockattr_t,
        kind: c_int,
    ) -> c_int;
    fn thrd_yield();
}

#[test]
fn who_yields_the_thread_lets_fibers_run() {
    on_fibers(1, || {
        let yields: [fn(); 2] = [
            std::thread::yield_now,
            // SAFETY: it takes nothing.
            || unsafe { thrd_yield() },
        ];
        for yields in yields {
            let done = Arc::new(AtomicBool::new(false));
            let there = Arc::clone(&done);
            let other = kapok::spawn_local(move || {
                kapok::sleep(Duration::from_millis(2)).unwrap();
                there.store(true, Ordering::SeqCst);
            });
            while !done.load(Ordering::SeqCst) {
                yields();
            }
            other.join().unwrap();
        }
    });
}

#[test]
fn who_tries_again_and_again_lets_the_holder_run() {
    on_fibers(1, || {
        let mutex = Arc::new(plain(libc::PTHREAD_MUTEX_NORMAL));
        let held = Arc::new(AtomicBool::new(false));
        let (there, holds) = (Arc::clone(&mutex), Arc::clone(&held));
        let holder = kapok::spawn_local(move || {
            assert_eq!(there.lock(), 0);
            holds.store(true, Ordering::SeqCst);
            kapok::sleep(Duration::from_millis(2)).unwrap();
            assert_eq!(there.unlock(), 0);
        });
        until(|| held.load(Ordering::SeqCst));
        while mutex.try_lock() == libc::EBUSY {}
        assert_eq!(mutex.unlock(), 0);
        holder.join().unwrap();

        // Waits whose time has passed.
        let flag = Arc::new(AtomicBool::new(false));
        let condition = condition(libc::CLOCK_REALTIME);
        let there = Arc::clone(&flag);
        let other = kapok::spawn_local(move || {
            kapok::sleep(Duration::from_millis(2)).unwrap();
            there.store(true, Ordering::SeqCst);
        });
        assert_eq!(mutex.lock(), 0);
        while !flag.load(Ordering::SeqCst) {
            let past = soon(libc::CLOCK_REALTIME, -5);
            assert_eq!(condition.wait_until(&mutex, past), libc::ETIMEDOUT);
        }
        assert_eq!(mutex.unlock(), 0);
        other.join().unwrap();

        let semaphore = Arc::new(Object::<libc::sem_t>::made(|semaphore| {
            // SAFETY: memory for one.
            unsafe { libc::sem_init(semaphore, 0, 0) }
        }));
        let there = Arc::clone(&semaphore);
        let other = kapok::spawn_local(move || {
            kapok::sleep(Duration::from_millis(2)).unwrap();
            // SAFETY: initialised.
            assert_eq!(unsafe { libc::sem_post(there.get()) }, 0);
        });
        // SAFETY: initialised.
        while unsafe { libc::sem_trywait(semaphore.get()) } != 0 {
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EAGAIN));
        }
        other.join().unwrap();
    });
}

type Lock = Object<libc::pthread_rwlock_t>;

/// `PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP`.
fn preferring_writers() -> Lock {
    Object::made(|lock| {
        // SAFETY: attributes are initialised before they are used, and destroyed after.
        unsafe {
            let mut attributes: libc::pthread_rwlockattr_t = std::mem::zeroed();
            libc::pthread_rwlockattr_init(&raw mut attributes);
            pthread_rwlockattr_setkind_np(&raw mut attributes, 2);
            let error = libc::pthread_rwlock_init(lock, &raw const attributes);
            libc::pthread_rwlockattr_destroy(&raw mut attributes);
            error
        }
    })
}

fn read(lock: &Lock) -> c_int {
    // SAFETY: initialised, and shared as such objects are; here and below.
    unsafe { libc::pthread_rwlock_rdlock(lock.get()) }
}

fn write(lock: &Lock) -> c_int {
    // SAFETY: as above.
    unsafe { libc::pthread_rwlock_wrlock(lock.get()) }
}

fn unlock(lock: &Lock) -> c_int {
    // SAFETY: as above.
    unsafe { libc::pthread_rwlock_unlock(lock.get()) }
}

#[test]
fn readers_wait_for_a_writer_that_waits() {
    on_fibers(1, || {
        let lock = Arc::new(preferring_writers());
        let order = Arc::new(AtomicUsize::new(0));
        assert_eq!(read(&lock), 0);
        let (there, next) = (Arc::clone(&lock), Arc::clone(&order));
        let writer = kapok::spawn_local(move || {
            assert_eq!(write(&there), 0);
            let written = next.fetch_add(1, Ordering::SeqCst);
            assert_eq!(unlock(&there), 0);
            written
        });
        kapok::sleep(Duration::from_millis(2)).unwrap();
        let (there, next) = (Arc::clone(&lock), Arc::clone(&order));
        let reader = kapok::spawn_local(move || {
            assert_eq!(read(&there), 0);
            let was = next.fetch_add(1, Ordering::SeqCst);
            assert_eq!(unlock(&there), 0);
            was
        });
        kapok::sleep(Duration::from_millis(2)).unwrap();
        assert_eq!(order.load(Ordering::SeqCst), 0);
        assert_eq!(unlock(&lock), 0);
        assert_eq!((writer.join().unwrap(), reader.join().unwrap()), (0, 1));
    });
}

/// Waits until a writer waits, which the lock's next reader has to wait for.
fn until_a_writer_waits(lock: &Lock) {
    until(|| {
        // SAFETY: initialised, and shared as such objects are.
        let tried = unsafe { libc::pthread_rwlock_tryrdlock(lock.get()) };
        if tried == 0 {
            assert_eq!(unlock(lock), 0);
        }
        tried == libc::EBUSY
    });
}

fn a_reader_goes_on_when_the_writer_gives_up(gives_up: impl FnOnce(Arc<Lock>)) {
    let lock = Arc::new(preferring_writers());
    assert_eq!(read(&lock), 0);
    let begun = Instant::now();
    gives_up(Arc::clone(&lock));
    until_a_writer_waits(&lock);
    let done = Arc::new(AtomicBool::new(false));
    let (there, reads) = (Arc::clone(&lock), Arc::clone(&done));
    let reader = kapok::spawn_local(move || {
        assert_eq!(read(&there), 0);
        reads.store(true, Ordering::SeqCst);
        assert_eq!(unlock(&there), 0);
    });
    kapok::yield_now();
    // On a busy machine the writer may have given up by now.
    let came = done.load(Ordering::SeqCst);
    assert!(!came || begun.elapsed() >= IN_VAIN, "it came before a writer");
    // While this one goes on reading.
    until(|| done.load(Ordering::SeqCst));
    reader.join().unwrap();
    assert_eq!(unlock(&lock), 0);
}

/// How long a writer waits that gives up.
const IN_VAIN: Duration = Duration::from_millis(500);

fn write_in_vain(lock: &Lock) {
    let at = soon(libc::CLOCK_REALTIME, IN_VAIN.as_millis() as _);
    // SAFETY: initialised; a local.
    let error = unsafe { pthread_rwlock_timedwrlock(lock.get(), &raw const at) };
    assert_eq!(error, libc::ETIMEDOUT);
}

#[test]
fn readers_go_on_when_a_writer_gives_up() {
    on_fibers(1, || {
        a_reader_goes_on_when_the_writer_gives_up(|lock| {
            kapok::spawn_local(move || write_in_vain(&lock)).detach();
        });
        a_reader_goes_on_when_the_writer_gives_up(|lock| {
            std::thread::spawn(move || write_in_vain(&lock));
        });
    });
}
