//! The channel, the free list, the completion, and where an entry is prepared.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use kapok_engine::entry::Entry;
use kapok_engine::{AnyEngine, Completions, Config, Engine, Key, Kind, Op, Wait};

use crate::cell::{Cell, Landed};
use crate::channel::Channel;
use crate::free::{FreeList, home};
use crate::{Case, Way};

/// Places of a channel, as the pool has by default.
const PLACES: usize = 1024;

fn way(mut f: impl FnMut(u64) -> Duration + 'static) -> Way {
    Box::new(move |count| Ok(f(count)))
}

pub(crate) fn all() -> Vec<Case> {
    vec![
        Case {
            name: "channel: a number from each of two threads to a third",
            count: 400_000,
            ways: vec![
                ("a ring of sequenced cells", way(channel_ours)),
                ("crossbeam's array queue", way(channel_crossbeam)),
                ("std's bounded channel", way(channel_std)),
                ("a lock and a queue", way(channel_lock)),
            ],
        },
        Case {
            name: "channel: in and out, on one thread",
            count: 1_000_000,
            ways: vec![
                (
                    "a ring of sequenced cells",
                    way(|count| {
                        let channel = Channel::new(PLACES);
                        channel.open();
                        timed(count, |at| {
                            let _ = channel.push(at as u32);
                            black_box(channel.pop());
                        })
                    }),
                ),
                (
                    "crossbeam's array queue",
                    way(|count| {
                        let queue = ArrayQueue::new(PLACES);
                        timed(count, |at| {
                            let _ = queue.push(at as u32);
                            black_box(queue.pop());
                        })
                    }),
                ),
            ],
        },
        Case {
            name: "free list: taken and given back by two threads",
            count: 400_000,
            ways: vec![
                ("a shard for each processor", way(|count| free_ours(count, 2))),
                ("one shard", way(|count| free_ours(count, 1))),
                ("crossbeam's array queue", way(free_crossbeam)),
                ("a lock and a vector", way(free_lock)),
            ],
        },
        Case {
            name: "completion: polled, landed, polled again",
            count: 1_000_000,
            ways: vec![
                ("the cell, reused", way(completion_cell)),
                ("tokio's oneshot channel", way(completion_oneshot)),
            ],
        },
        Case {
            name: "entry of a read: prepared by the I/O thread, or before",
            count: 200_000,
            ways: vec![
                ("by the I/O thread", Box::new(|count| entries(count, false))),
                (
                    "copied, as the submitter has prepared it",
                    Box::new(|count| entries(count, true)),
                ),
            ],
        },
    ]
}

fn timed(count: u64, mut f: impl FnMut(u64)) -> Duration {
    let start = Instant::now();
    for at in 0..count {
        f(at);
    }
    start.elapsed()
}

/// Two threads that put in, and the time until a third has all.
fn through(
    count: u64,
    push: impl Fn(u32) -> bool + Sync,
    mut pop: impl FnMut() -> Option<u32>,
) -> Duration {
    let go = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !go.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                for at in 0..count / 2 {
                    while !push(at as u32) {
                        thread::yield_now();
                    }
                }
            });
        }
        let start = Instant::now();
        go.store(true, Ordering::Release);
        let mut left = count / 2 * 2;
        while left > 0 {
            match pop() {
                Some(value) => {
                    black_box(value);
                    left -= 1;
                }
                None => thread::yield_now(),
            }
        }
        start.elapsed()
    })
}

fn channel_ours(count: u64) -> Duration {
    let channel = Channel::new(PLACES);
    channel.open();
    through(count, |value| channel.push(value).is_ok(), || channel.pop())
}

fn channel_crossbeam(count: u64) -> Duration {
    let queue = ArrayQueue::new(PLACES);
    through(count, |value| queue.push(value).is_ok(), || queue.pop())
}

fn channel_std(count: u64) -> Duration {
    let (sender, receiver) = sync_channel(PLACES);
    through(count, |value| sender.try_send(value).is_ok(), || receiver.try_recv().ok())
}

fn channel_lock(count: u64) -> Duration {
    let queue = Mutex::new(VecDeque::with_capacity(PLACES));
    let lock = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let push = |value| {
        let mut queue = lock();
        let has_room = queue.len() < PLACES;
        if has_room {
            queue.push_back(value);
        }
        has_room
    };
    through(count, push, || lock().pop_front())
}

/// Slots, as the pool has by default.
const SLOTS: u32 = 4096;

/// How many a thread has at a time.
const HELD: usize = 16;

fn by_two(count: u64, turn: impl Fn(&mut Vec<u32>) + Sync) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut held = Vec::with_capacity(HELD);
                for _ in 0..count / 2 / HELD as u64 {
                    turn(&mut held);
                }
            });
        }
    });
    start.elapsed()
}

fn free_ours(count: u64, shards: usize) -> Duration {
    let list = FreeList::new(SLOTS, shards);
    by_two(count, |held| {
        held.extend((0..HELD).filter_map(|_| list.pop(home())));
        for index in held.drain(..) {
            list.push(index, home());
        }
    })
}

fn free_crossbeam(count: u64) -> Duration {
    let list = ArrayQueue::new(SLOTS as usize);
    for index in 0..SLOTS {
        let _ = list.push(index);
    }
    by_two(count, |held| {
        held.extend((0..HELD).filter_map(|_| list.pop()));
        for index in held.drain(..) {
            let _ = list.push(index);
        }
    })
}

fn free_lock(count: u64) -> Duration {
    let list: Mutex<Vec<u32>> = Mutex::new((0..SLOTS).collect());
    let lock = || list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    by_two(count, |held| {
        held.extend((0..HELD).filter_map(|_| lock().pop()));
        for index in held.drain(..) {
            lock().push(index);
        }
    })
}

fn completion_cell(count: u64) -> Duration {
    let cell = Cell::new();
    let waker = Waker::noop();
    timed(count, |at| {
        // SAFETY: this thread alone uses the cell, and plays both sides in their order.
        unsafe {
            cell.reset();
            black_box(cell.poll(waker));
            black_box(cell.land(Landed { res: at as i32, flags: 0 }));
            black_box(cell.poll(waker));
        }
    })
}

fn completion_oneshot(count: u64) -> Duration {
    let mut context = Context::from_waker(Waker::noop());
    timed(count, |at| {
        let (sender, mut receiver) = tokio::sync::oneshot::channel();
        let _ = black_box(Pin::new(&mut receiver).poll(&mut context));
        let _ = black_box(sender.send(Landed { res: at as i32, flags: 0 }));
        let _ = black_box(Pin::new(&mut receiver).poll(&mut context));
    })
}

/// Reads of nothing, as cheap as the kernel has them, in batches of 64.
fn entries(count: u64, prepared: bool) -> io::Result<Duration> {
    use std::os::fd::AsRawFd;
    const BATCH: u32 = 64;
    let file = std::fs::File::open("/dev/null")?;
    let mut byte = [0u8; 1];
    let (fd, buf) = (file.as_raw_fd(), byte.as_mut_ptr());
    let mut engine = AnyEngine::new(Kind::Uring, &Config::default())?;
    let ready: Vec<Entry> = (0..BATCH).map(|_| Entry::read(fd, buf, 1, 0)).collect();
    let mut out = Completions::new();
    let start = Instant::now();
    let mut generation = 0;
    for _ in 0..count / u64::from(BATCH) {
        generation = (generation + 1) % 1_000_000;
        for index in 0..BATCH {
            let op = if prepared {
                Op::Entry { entry: &raw const ready[index as usize] }
            } else {
                Op::Read { fd, buf, len: 1, offset: 0 }
            };
            // SAFETY: nothing is ever written to the byte, and it and the entries outlive the engine's
            // operations, which are awaited here.
            let _ = unsafe { engine.submit(Key::new(index, generation), op) };
        }
        while engine.in_flight() > 0 {
            engine.turn(Wait::No, &mut out)?;
            out.clear();
        }
    }
    Ok(start.elapsed())
}
