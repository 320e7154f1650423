//! An operation allocates nothing. Those of fibers, on their own ring, are in the tests of `kapok`.

mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use harness::{Scratch, block_on, has_uring, poll_once, scale};
use kapok_pool::{Buffers, Moved, OpenOptions, Operation, Pool, Request, Source, Via};

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

/// How many operations are in flight at once.
const DEPTH: usize = 32;

/// What operations come to that are in flight together.
fn outcomes<R: Request>(mut operations: [Operation<'_, R>; DEPTH]) -> [R::Output; DEPTH] {
    let mut over = operations.each_mut().map(poll_once).into_iter();
    operations.map(|operation| match over.next() {
        Some(Poll::Ready(outcome)) => outcome,
        _ => operation.block(),
    })
}

/// Transfers that are in flight together, each of the whole of a buffer, which goes back.
fn transfers<'p, B: Source, R: Request<Output = Moved<B>>>(
    buffers: &mut Vec<B>,
    transfer: impl Fn(B, u64) -> Operation<'p, R>,
) -> usize {
    let transfer = |at| transfer(buffers.pop().unwrap(), at as u64 * 64);
    for (count, buffer) in outcomes(std::array::from_fn(transfer)) {
        assert!(count.unwrap() == buffer.bytes().len() && !buffer.bytes().is_empty());
        buffers.push(buffer);
    }
    DEPTH
}

/// The only test of its process: others would allocate meanwhile.
#[test]
fn a_million_operations_allocate_nothing() {
    if !has_uring() {
        eprintln!("without io_uring files are read by offload threads, whose jobs are boxed");
        return;
    }
    let scratch = Scratch::new("allocations", &[7; 8192]);
    let (near, far) = UnixStream::pair().unwrap();
    let (near, far) = (Arc::new(near), Arc::new(far));
    let known = Buffers::new(DEPTH as u32, 4096).unwrap();
    let pool = Pool::builder().threads(2).buffers(known.clone()).build().unwrap();
    assert!(pool.has_registered(&known));
    // With the path that an error would name.
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(&pool, &scratch.0);
    let file = block_on(file).unwrap().handle().clone();
    let mut buffers: Vec<_> = (0..DEPTH).map(|_| vec![7; 512]).collect();
    let mut leases = Vec::with_capacity(DEPTH);
    // At least so many, each counted when its outcome is there.
    let mut run = |least: usize| {
        let mut over = 0;
        while over < least {
            let nops = std::array::from_fn(|_| pool.nop().via(Via::Thread));
            over += outcomes(nops).map(Result::unwrap).len();
            for via in [Via::Thread, Via::Caller, Via::Auto] {
                let write = |buffer, at| pool.write_at(&file, buffer, at).via(via);
                over += transfers(&mut buffers, write);
                let read = |buffer, at| pool.read_at(&file, buffer, at).via(via);
                over += transfers(&mut buffers, read);
            }
            leases.extend((0..DEPTH).map(|_| known.try_lease().unwrap()));
            leases.iter_mut().for_each(|lease| lease.set_len(4096));
            let write = |lease, at| pool.write_at(&file, lease, at).via(Via::Thread);
            over += transfers(&mut leases, write);
            let read = |lease, at| pool.read_at(&file, lease, at).via(Via::Thread);
            over += transfers(&mut leases, read);
            leases.clear();
            let send = |buffer, _| pool.send(&near, buffer, 0).via(Via::Thread);
            over += transfers(&mut buffers, send);
            let recv = |buffer, _| pool.recv(&far, buffer, libc::MSG_WAITALL).via(Via::Thread);
            over += transfers(&mut buffers, recv);
        }
        over
    };
    run(20_000);
    let least = scale(300_000, 1_000_000);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let over = run(least);
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(over >= least, "only {over} operations");
    assert_eq!(after - before, 0, "over {over} operations");
}
