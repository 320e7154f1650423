//! Writes allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use kapok_pool::{Pool, block_on};
use kapok_tokio::File;
use tokio::io::AsyncWriteExt;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Counts what the whole process allocates.
struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The only test of its process: others would allocate meanwhile. Through a pipe, since no engine needs
/// a job on another thread for one.
#[test]
fn writes_allocate_nothing_where_the_pool_has_room() {
    const ROUNDS: usize = 2000;
    let pool = Pool::builder().build().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut file: File =
        kapok_pool::File::from_open(&pool, std::os::fd::OwnedFd::from(writer)).into();
    let mut found = [0; 512];
    let mut run = |rounds: usize| {
        for _ in 0..rounds {
            // The second waits for the first.
            block_on(file.write_all(&[1; 256])).unwrap();
            block_on(file.write_all(&[2; 256])).unwrap();
            block_on(file.flush()).unwrap();
            reader.read_exact(&mut found).unwrap();
        }
    };
    run(ROUNDS);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    run(ROUNDS);
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    // What is kept may still grow now and then; one a write would be 4,000.
    assert!(after - before < 40, "{} over {} writes", after - before, 2 * ROUNDS);
    assert_eq!((found[0], found[511]), (1, 2));
}
