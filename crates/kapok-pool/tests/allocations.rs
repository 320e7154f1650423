//! An operation allocates nothing.

mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use std::task::Poll;

use harness::{Scratch, has_uring, poll_once, scale};
use kapok_pool::{Pool, Via};

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

/// The only test of its process: others would allocate meanwhile.
#[test]
fn a_million_operations_allocate_nothing() {
    if !has_uring() {
        eprintln!("without io_uring files are read by offload threads, whose jobs are boxed");
        return;
    }
    let file = Scratch::new("allocations", &[7; 8192]).open();
    let pool = Pool::builder().threads(2).build().unwrap();
    const DEPTH: usize = 32;
    // Each round is 2 × DEPTH operations on threads and DEPTH in the caller.
    let rounds = scale(300_000, 1_000_000) / (3 * DEPTH);
    let mut buffers: Vec<Vec<u8>> = (0..DEPTH).map(|_| vec![0; 512]).collect();
    let run = |rounds: usize, buffers: &mut Vec<Vec<u8>>| {
        for _ in 0..rounds {
            let mut nops: [_; DEPTH] = std::array::from_fn(|_| pool.nop().via(Via::Thread));
            let nops_over = nops.each_mut().map(poll_once);
            let mut reads: [_; DEPTH] = std::array::from_fn(|at| {
                let buffer = buffers.pop().unwrap();
                pool.read_at(&file, buffer, at as u64 * 64).via(Via::Thread)
            });
            let reads_over = reads.each_mut().map(poll_once);
            for (nop, over) in nops.into_iter().zip(nops_over) {
                let outcome = if let Poll::Ready(outcome) = over { outcome } else { nop.block() };
                outcome.unwrap();
            }
            for (read, over) in reads.into_iter().zip(reads_over) {
                let outcome = if let Poll::Ready(outcome) = over { outcome } else { read.block() };
                let (count, buffer) = pool.read_at(&file, outcome.1, 0).via(Via::Caller).block();
                assert_eq!((outcome.0.unwrap(), count.unwrap()), (512, 512));
                buffers.push(buffer);
            }
        }
    };
    run(20, &mut buffers);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    run(rounds, &mut buffers);
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    assert_eq!(after - before, 0, "over {} operations", rounds * 3 * DEPTH);
    assert!(rounds * 3 * DEPTH >= 299_000);
    assert_eq!(buffers.len(), DEPTH);
}
