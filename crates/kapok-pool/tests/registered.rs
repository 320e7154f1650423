//! Buffers that rings know.

mod harness;

use harness::{Scratch, block_on, eventually, has_uring, poll_once, scale};
use kapok_engine::Kind;
use kapok_pool::{Balance, Buffers, OpenFile, Part, Pool, Via};

const BYTES: usize = 4096;

fn content() -> Vec<u8> {
    (0..64 * BYTES).map(|at| (at / BYTES * 31 + at % 251) as u8).collect()
}

#[test]
fn transfers_go_through_what_the_rings_know() {
    let uring = has_uring();
    let scratch = Scratch::new("registered", &content());
    let file =
        OpenFile::from(std::fs::File::options().read(true).write(true).open(&scratch.0).unwrap());
    for engine in [Kind::Uring, Kind::Epoll] {
        if engine == Kind::Uring && !uring {
            continue;
        }
        let buffers = Buffers::new(8, BYTES).unwrap();
        let pool = Pool::builder()
            .threads(3)
            .balance(Balance::RoundRobin)
            .engine(engine)
            .buffers(buffers.clone())
            .via(Via::Thread)
            .build()
            .unwrap();
        assert!(pool.has_registered(&buffers));
        // Of others it knows nothing.
        let others = Buffers::new(1, BYTES).unwrap();
        assert!(!pool.has_registered(&others));
        let expected = content();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (pool, buffers, file, expected) = (&pool, &buffers, &file, &expected);
                scope.spawn(move || {
                    for round in 0..scale(200, 20_000) {
                        let at = (round * 7 + thread * 13) % 63 * BYTES + round % 100;
                        let lease = block_on(buffers.lease());
                        let (count, mut lease) = block_on(pool.read_at(file, lease, at as u64));
                        let count = count.unwrap();
                        assert_eq!(lease[..count], expected[at..at + count]);
                        // A part, and back to where it came from.
                        lease.set_len(count);
                        let part = Part::of_bytes(lease, 10..20);
                        let (count, part) = block_on(pool.write_at(file, part, at as u64 + 10));
                        assert_eq!(count.unwrap(), 10);
                        let part = Part::of_room(part.into_inner(), 100..200);
                        let (count, _) = block_on(pool.read_at(file, part, at as u64));
                        assert_eq!(count.unwrap(), 100);
                    }
                });
            }
        });
        assert_eq!(std::fs::read(&scratch.0).unwrap(), expected);
    }
}

#[test]
fn a_dropped_transfer_returns_its_buffer() {
    has_uring();
    let scratch = Scratch::new("registered-dropped", &content());
    let file = scratch.open();
    let buffers = Buffers::new(4, BYTES).unwrap();
    let pool = Pool::builder().buffers(buffers.clone()).via(Via::Thread).build().unwrap();
    for _ in 0..scale(2000, 200_000) {
        let lease = block_on(buffers.lease());
        let mut read = pool.read_at(&file, lease, 0);
        let _ = poll_once(&mut read);
    }
    let mut all = Vec::new();
    eventually("all are back", || {
        all.extend(buffers.try_lease());
        all.len() == 4
    });
}

#[test]
fn what_a_ring_does_not_take_is_a_buffer_like_others() {
    let uring = has_uring();
    // More than it takes as one.
    let buffers = Buffers::new(1, (1 << 30) + 4096).unwrap();
    let pool = Pool::builder().threads(2).engine(if uring { Kind::Uring } else { Kind::Epoll });
    let pool = pool.buffers(buffers.clone()).via(Via::Thread).build().unwrap();
    assert_eq!(pool.has_registered(&buffers), !uring);
    let scratch = Scratch::new("registered-not", b"content");
    let (count, lease) = pool.read_at(&scratch.open(), buffers.try_lease().unwrap(), 0).block();
    assert_eq!((count.unwrap(), &lease[..]), (7, &b"content"[..]));
}
