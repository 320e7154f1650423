//! An operation of the pool that a fiber blocks for, on the ring of its own loop, allocates nothing.

mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use harness::{Watchdog, scale};
use kapok::pool::{Buffers, Moved, OpenFile, Pool, Source, Via};
use kapok::{Kind, Runtime};

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

/// How many fibers have an operation in flight at once.
const FIBERS: usize = 32;

/// The whole of a buffer was moved, which comes back.
fn whole<B: Source>((count, buffer): Moved<B>) -> B {
    assert!(count.unwrap() == buffer.bytes().len() && !buffer.bytes().is_empty());
    buffer
}

/// What one fiber has for its operations.
struct Means {
    pool: Pool,
    file: OpenFile,
    known: Buffers,
    near: Arc<UnixStream>,
    far: Arc<UnixStream>,
    buffer: Vec<u8>,
}

impl Means {
    /// Blocks for one operation after the other: how many it were, at least so many.
    fn operate(&mut self, least: usize) -> usize {
        let Means { pool, file, known, near, far, buffer } = self;
        let mut bytes = std::mem::take(buffer);
        let mut over = 0;
        while over < least {
            assert_eq!(pool.nop().block().unwrap(), 0);
            for via in [Via::Ring, Via::Auto] {
                bytes = whole(pool.write_at(file, bytes, 64).via(via).block());
                bytes = whole(pool.read_at(file, bytes, 64).via(via).block());
            }
            let mut lease = known.try_lease().unwrap();
            lease.set_len(4096);
            lease = whole(pool.write_at(file, lease, 0).block());
            drop(whole(pool.read_at(file, lease, 0).block()));
            bytes = whole(pool.send(near, bytes, 0).block());
            bytes = whole(pool.recv(far, bytes, 0).block());
            over += 9;
        }
        *buffer = bytes;
        over
    }
}

/// The only test of its process: others would allocate meanwhile.
#[test]
fn a_million_operations_on_the_ring_of_their_fibers_allocate_nothing() {
    let _watchdog = Watchdog::new();
    let runtime = match Runtime::builder().threads(1).engine(Kind::Uring).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let required = std::env::var("KAPOK_REQUIRE_URING").is_ok_and(|value| value == "1");
            assert!(!required, "KAPOK_REQUIRE_URING=1: {error}");
            eprintln!("without io_uring files are read by offload threads, whose jobs are boxed");
            return;
        }
    };
    let least: usize = scale(300_000, 1_000_000);
    let (allocations, over) = runtime.run(move || {
        let path = std::env::temp_dir().join(format!("kapok-allocations-{}", std::process::id()));
        std::fs::write(&path, [7; 8192]).unwrap();
        let mut options = std::fs::File::options();
        let file = OpenFile::from(options.read(true).write(true).open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let known = Buffers::new(FIBERS as u32, 4096).unwrap();
        let pool = Pool::builder().via(Via::Ring).buffers(known.clone()).build().unwrap();
        // Before any fiber counts all have what they keep: stacks, slots, buffers.
        let (warm, over) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let fibers = (0..FIBERS).map(|_| {
            let (near, far) = UnixStream::pair().unwrap();
            let (near, far) = (Arc::new(near), Arc::new(far));
            let (pool, file, known) = (pool.clone(), file.clone(), known.clone());
            let mut means = Means { pool, file, known, near, far, buffer: vec![7; 512] };
            let (warm, over) = (warm.clone(), over.clone());
            kapok::spawn_local(move || {
                means.operate(1000);
                warm.set(warm.get() + 1);
                while warm.get() < FIBERS {
                    kapok::yield_now();
                }
                let before = ALLOCATIONS.load(Ordering::Relaxed);
                let operations = means.operate(least.div_ceil(FIBERS));
                let after = ALLOCATIONS.load(Ordering::Relaxed);
                over.set(over.get() + operations);
                // Its end is another's.
                warm.set(warm.get() + 1);
                while warm.get() < 2 * FIBERS {
                    kapok::yield_now();
                }
                after - before
            })
        });
        let fibers: Vec<_> = fibers.collect();
        let allocations = fibers.into_iter().map(|fiber| fiber.join().unwrap()).max().unwrap();
        assert_eq!(pool.stats().threads[0].submitted, 0, "not all were on the fibers' ring");
        (allocations, over.get())
    });
    assert!(over >= least, "only {over} operations");
    assert_eq!(allocations, 0, "over {over} operations");
}
