//! Allocators other than the C library's: nothing inside them suspends a fiber.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::calls::{Mutex, plain};
use crate::world::{on_fibers, rounds, suspended, until};

/// `PTHREAD_MUTEX_ADAPTIVE_NP`.
const ADAPTIVE: i32 = 3;

/// A mutex that a plain thread holds, and gives up some time after it was asked to.
struct Held {
    mutex: Arc<Mutex>,
    asked: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Held {
    fn new(mutex: &Arc<Mutex>) -> Held {
        let (holds, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let there = (Arc::clone(mutex), Arc::clone(&holds), Arc::clone(&asked));
        let thread = std::thread::spawn(move || {
            let (mutex, holds, asked) = there;
            assert_eq!(mutex.lock(), 0);
            holds.store(true, Ordering::SeqCst);
            while !asked.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_micros(100));
            }
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(mutex.unlock(), 0);
        });
        until(|| holds.load(Ordering::SeqCst));
        Held { mutex: Arc::clone(mutex), asked, thread }
    }

    /// How many turns others had while `f` took the mutex.
    fn turns_while(self, f: impl FnOnce(&Mutex)) -> usize {
        let turns = turns_during(|| {
            self.asked.store(true, Ordering::SeqCst);
            f(&self.mutex);
        });
        self.thread.join().unwrap();
        turns
    }
}

/// Counts the turns that another fiber of this thread had during `f`.
fn turns_during(f: impl FnOnce()) -> usize {
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    let ticker = kapok::spawn_local(move || {
        while kapok::sleep(Duration::from_micros(100)).is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    until(|| turns.load(Ordering::Relaxed) > 0);
    let before = turns.load(Ordering::Relaxed);
    f();
    let counted = turns.load(Ordering::Relaxed) - before;
    ticker.cancel();
    ticker.join().unwrap();
    counted
}

#[test]
fn an_adaptive_mutex_of_a_thread_blocks_the_fibers_thread() {
    on_fibers(1, || {
        let mutex = Arc::new(plain(ADAPTIVE));
        let turns = Held::new(&mutex).turns_while(|mutex| {
            assert_eq!(mutex.lock(), 0);
            assert_eq!(mutex.unlock(), 0);
        });
        assert_eq!(turns, 0, "a fiber ran while another was inside an allocator, perhaps");
        // Nor does who only tries.
        let turns = Held::new(&mutex).turns_while(|mutex| {
            while mutex.try_lock() == libc::EBUSY {}
            assert_eq!(mutex.unlock(), 0);
        });
        assert_eq!(turns, 0, "an attempt gave way inside an allocator, perhaps");
    });
}

#[test]
fn an_adaptive_mutex_of_another_fiber_parks() {
    on_fibers(1, || {
        let mutex = Arc::new(plain(ADAPTIVE));
        let before = suspended("pthread_mutex_lock");
        assert_eq!(mutex.lock(), 0);
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let mutex = Arc::clone(&mutex);
                kapok::spawn_local(move || {
                    assert_eq!(mutex.lock(), 0);
                    kapok::sleep(Duration::from_millis(1)).unwrap();
                    assert_eq!(mutex.unlock(), 0);
                })
            })
            .collect();
        // A hang of the thread, if they did not park.
        kapok::sleep(Duration::from_millis(5)).unwrap();
        assert_eq!(mutex.unlock(), 0);
        for waiter in waiters {
            waiter.join().unwrap();
        }
        // Other tests count there too.
        assert!(suspended("pthread_mutex_lock") >= before + 3);
    });
}

#[test]
fn a_wrapped_allocator_blocks_the_fibers_thread() {
    on_fibers(1, || {
        let lock = Arc::new(plain(libc::PTHREAD_MUTEX_NORMAL));
        struct Shared(Arc<Mutex>);
        // SAFETY: every call is the system allocator's.
        unsafe impl GlobalAlloc for Shared {
            unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
                assert_eq!(self.0.lock(), 0);
                // SAFETY: by the caller.
                let block = unsafe { System.alloc(layout) };
                assert_eq!(self.0.unlock(), 0);
                block
            }

            unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
                // SAFETY: by the caller.
                unsafe { System.dealloc(block, layout) }
            }
        }
        let allocate = |allocator: &dyn GlobalAlloc| {
            let layout = Layout::new::<[u64; 8]>();
            // SAFETY: the layout has a size; what was allocated is given back.
            unsafe {
                let block = allocator.alloc(layout);
                assert!(!block.is_null());
                allocator.dealloc(block, layout);
            }
        };
        // By itself it suspends, if it comes while the thread still holds the lock.
        let suspends = || {
            let shared = Shared(Arc::clone(&lock));
            Held::new(&lock).turns_while(|_| allocate(&shared)) > 0
        };
        assert!((0..50).any(|_| suspends()));
        let wrapped = kapok_libc::Unsuspended(Shared(Arc::clone(&lock)));
        for _ in 0..5 {
            assert_eq!(Held::new(&lock).turns_while(|_| allocate(&wrapped)), 0);
        }
    });
}

const UNDER_JEMALLOC: &str = "KAPOK_TEST_UNDER_JEMALLOC";

/// Blocks of the sizes of one bin, made by fibers of two threads and freed by others: each must have
/// kept what was written into it.
#[test]
fn under_jemalloc_no_block_is_handed_out_twice() {
    if std::env::var_os(UNDER_JEMALLOC).is_none() {
        return;
    }
    let total = rounds(100).min(10_000);
    on_fibers(4, move || {
        let before = suspended("pthread_mutex_lock");
        let (sender, receiver) = kapok::sync::channel::bounded::<Vec<Box<[u64; 12]>>>(64);
        let senders: Vec<_> = (0..8_u64)
            .map(|index| {
                let sender = sender.clone();
                kapok::spawn(move || {
                    for round in 0..total as u64 {
                        // More than the thread's cache has, so that its arena is asked, and locked.
                        let blocks: Vec<_> = (0..500)
                            .map(|at| Box::new([index << 48 | round << 16 | at; 12]))
                            .collect();
                        kapok::yield_now();
                        for (at, block) in (0..).zip(&blocks) {
                            assert!(**block == [index << 48 | round << 16 | at; 12]);
                        }
                        sender.send(blocks).unwrap();
                    }
                })
            })
            .collect();
        drop(sender);
        let receivers: Vec<_> = (0..4)
            .map(|_| {
                let receiver = receiver.clone();
                kapok::spawn(move || {
                    while let Ok(blocks) = receiver.recv() {
                        for block in blocks {
                            assert!(block.iter().all(|word| *word == block[0]));
                        }
                    }
                })
            })
            .collect();
        for fiber in senders {
            fiber.join().unwrap();
        }
        drop(receiver);
        for fiber in receivers {
            fiber.join().unwrap();
        }
        // Nobody else has such a mutex here.
        assert_eq!(suspended("pthread_mutex_lock"), before, "suspended inside malloc");
    });
}

#[test]
fn jemalloc_serves_fibers_of_two_threads() {
    let places = ["x86_64-linux-gnu", "aarch64-linux-gnu", ""];
    let library = places
        .iter()
        .map(|place| Path::new("/usr/lib").join(place).join("libjemalloc.so.2"))
        .find(|path| path.exists());
    let Some(library) = library else {
        crate::skipped::skip("there is no libjemalloc.so.2 (apt-get install libjemalloc2)");
        return;
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["under_jemalloc_no_block_is_handed_out_twice", "--nocapture"])
        .env(UNDER_JEMALLOC, "1")
        .env("LD_PRELOAD", library)
        // One arena for all: they contend.
        .env("MALLOC_CONF", "narenas:1,lg_tcache_max:8")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let _ = std::io::stderr().write_all(said.as_bytes());
    assert!(output.status.success(), "{}: {said}", output.status);
}

/// A shared library that the C compiler makes of this; none without a C compiler.
fn library(name: &str, source: &str) -> Option<PathBuf> {
    if Command::new("cc").arg("--version").output().is_err() {
        crate::skipped::skip("there is no cc");
        return None;
    }
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut compiler = Command::new("cc");
    compiler.args(["-x", "c", "-", "-O1", "-shared", "-fPIC", "-o"]).arg(&library);
    let mut compiler = compiler.stdin(Stdio::piped()).spawn().unwrap();
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success());
    Some(library)
}

/// One with an ordinary mutex, which says nothing of what it is.
#[test]
fn an_allocator_of_another_library_blocks_threads() {
    let source = "#include <pthread.h>\n#include <stddef.h>\n\
        void *__libc_malloc(size_t); void __libc_free(void *);\n\
        static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;\n\
        static volatile int spent;\n\
        static void spend(void) { for (int i = 0; i < 300; i++) spent++; }\n\
        void *malloc(size_t size) { pthread_mutex_lock(&mutex); spend();\n\
          void *block = __libc_malloc(size); pthread_mutex_unlock(&mutex); return block; }\n\
        void free(void *block) { pthread_mutex_lock(&mutex); spend();\n\
          __libc_free(block); pthread_mutex_unlock(&mutex); }\n";
    let Some(library) = library("liblocked.so", source) else { return };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["under_jemalloc_no_block_is_handed_out_twice", "--nocapture"])
        .env(UNDER_JEMALLOC, "1")
        .env("LD_PRELOAD", &library)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
}

const UNDER_ONE_THAT_LOCKS_LATE: &str = "KAPOK_TEST_UNDER_ONE_THAT_LOCKS_LATE";

#[test]
fn under_one_that_locks_late_nothing_is_looked_up() {
    if std::env::var_os(UNDER_ONE_THAT_LOCKS_LATE).is_none() {
        return;
    }
    // SAFETY: names with NULs; the function takes and returns nothing.
    unsafe {
        let lock_from_now_on = libc::dlsym(libc::RTLD_DEFAULT, c"lock_from_now_on".as_ptr());
        assert!(!lock_from_now_on.is_null());
        // The next call of dlsym(3) by this thread, whoever makes it, frees what this one leaves.
        assert!(libc::dlsym(libc::RTLD_DEFAULT, c"there_is_none".as_ptr()).is_null());
        std::mem::transmute::<*mut libc::c_void, extern "C" fn()>(lock_from_now_on)();
    }
    drop(std::hint::black_box(Box::new(1)));
}

/// jemalloc takes the lock of an arena only when another thread has it, which may be for the first time in
/// the process: that is no time for its hook to ask dlsym(3) where the C library's function is.
#[test]
fn a_hook_that_an_allocator_calls_first_allocates_and_frees_nothing() {
    let source = "#include <pthread.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
        void *__libc_malloc(size_t); void __libc_free(void *);\n\
        static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;\n\
        static __thread int inside; static volatile int locks;\n\
        void lock_from_now_on(void) { locks = 1; }\n\
        static int enter(void) { int with = locks;\n\
          if (inside++) { write(2, \"malloc inside malloc\\n\", 21); abort(); }\n\
          if (with) pthread_rwlock_wrlock(&lock); return with; }\n\
        static void leave(int with) { if (with) pthread_rwlock_unlock(&lock); inside--; }\n\
        void *malloc(size_t size) { int with = enter();\n\
          void *block = __libc_malloc(size); leave(with); return block; }\n\
        void free(void *block) { int with = enter(); __libc_free(block); leave(with); }\n";
    let Some(library) = library("liblate.so", source) else { return };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["under_one_that_locks_late_nothing_is_looked_up", "--nocapture"])
        .env(UNDER_ONE_THAT_LOCKS_LATE, "1")
        .env("LD_PRELOAD", &library)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
}
