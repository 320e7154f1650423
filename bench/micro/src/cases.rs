//! The cases. Each function does one thing `count` times and says how long that took, without what
//! it took to set up.

use std::future::Future;
use std::thread;
use std::time::{Duration, Instant};

use corosensei::{Coroutine, CoroutineResult};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::Case;

pub(crate) const ALL: &[Case] = &[
    Case {
        name: "spawn and join",
        peer: "tokio",
        goal: 0.5,
        ours: kapok_spawn,
        theirs: tokio_spawn,
    },
    Case {
        name: "yield among 100",
        peer: "tokio",
        goal: 0.6,
        ours: kapok_yield,
        theirs: tokio_yield,
    },
    Case { name: "switch", peer: "corosensei", goal: 1.5, ours: kapok_yield, theirs: bare_switch },
    Case { name: "channel", peer: "tokio", goal: 1.0, ours: kapok_channel, theirs: tokio_channel },
    Case {
        name: "wake across cores",
        peer: "tokio",
        goal: 1.0,
        ours: |count| kapok_wake(count, Cores::Two),
        theirs: |count| tokio_wake(count, Cores::Two, Drivers::All),
    },
    Case {
        name: "wake across cores",
        peer: "tokio, no I/O",
        goal: 1.0,
        ours: |count| kapok_wake(count, Cores::Two),
        theirs: |count| tokio_wake(count, Cores::Two, Drivers::Time),
    },
    Case {
        name: "wake on a core",
        peer: "tokio",
        goal: 1.0,
        ours: |count| kapok_wake(count, Cores::One),
        theirs: |count| tokio_wake(count, Cores::One, Drivers::All),
    },
    Case {
        name: "wake on a core",
        peer: "tokio, no I/O",
        goal: 1.0,
        ours: |count| kapok_wake(count, Cores::One),
        theirs: |count| tokio_wake(count, Cores::One, Drivers::Time),
    },
    Case { name: "contended lock", peer: "tokio", goal: 1.0, ours: kapok_lock, theirs: tokio_lock },
    Case { name: "lock", peer: "tokio", goal: 1.0, ours: kapok_free_lock, theirs: tokio_free_lock },
    Case { name: "time-out", peer: "tokio", goal: 1.0, ours: kapok_timeout, theirs: tokio_timeout },
];

fn on_kapok(f: impl FnOnce() -> Duration + 'static) -> Duration {
    kapok::Runtime::new().expect("a runtime").run(f)
}

/// What a runtime of tokio's waits for.
#[derive(Clone, Copy)]
enum Drivers {
    /// As `#[tokio::main]` builds it: for I/O, in epoll_wait(2), and time.
    All,
    /// Time and other threads, on a condition variable. It can do no I/O.
    Time,
}

fn on_tokio(future: impl Future<Output = Duration>) -> Duration {
    on_tokio_with(Drivers::Time, future)
}

fn on_tokio_with(drivers: Drivers, future: impl Future<Output = Duration>) -> Duration {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    match drivers {
        Drivers::All => builder.enable_all(),
        Drivers::Time => builder.enable_time(),
    };
    builder.build().expect("a runtime").block_on(async {
        // What is measured must run as a task: the outer future is polled in another way.
        tokio::task::LocalSet::new().run_until(future).await
    })
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

async fn timed_async(future: impl Future<Output = ()>) -> Duration {
    let start = Instant::now();
    future.await;
    start.elapsed()
}

fn kapok_spawn(count: u64) -> Duration {
    on_kapok(move || {
        timed(|| (0..count).for_each(|_| kapok::spawn_local(|| ()).join().expect("no panic")))
    })
}

fn tokio_spawn(count: u64) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async move {
        tokio::spawn(timed_async(async move {
            for _ in 0..count {
                tokio::spawn(async {}).await.expect("no panic");
            }
        }))
        .await
        .expect("no panic")
    })
}

const YIELDERS: u64 = 100;

fn kapok_yield(count: u64) -> Duration {
    on_kapok(move || {
        timed(|| {
            let fibers: Vec<_> = (0..YIELDERS)
                .map(|_| {
                    kapok::spawn_local(move || {
                        (0..count / YIELDERS).for_each(|_| kapok::yield_now())
                    })
                })
                .collect();
            fibers.into_iter().for_each(|fiber| fiber.join().expect("no panic"));
        })
    })
}

fn tokio_yield(count: u64) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(timed_async(async move {
        let tasks: Vec<_> = (0..YIELDERS)
            .map(|_| {
                tokio::spawn(async move {
                    for _ in 0..count / YIELDERS {
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
    }))
}

/// A resume and a suspend for each, among as many stacks.
fn bare_switch(count: u64) -> Duration {
    let mut coroutines: Vec<Coroutine<(), (), ()>> = (0..YIELDERS)
        .map(|_| {
            Coroutine::new(move |yielder, ()| {
                for _ in 0..count / YIELDERS {
                    yielder.suspend(());
                }
            })
        })
        .collect();
    timed(|| {
        while !coroutines.is_empty() {
            coroutines.retain_mut(|one| matches!(one.resume(()), CoroutineResult::Yield(())));
        }
    })
}

const CAPACITY: usize = 64;

fn kapok_channel(count: u64) -> Duration {
    on_kapok(move || {
        let (sender, receiver) = kapok::sync::channel::bounded(CAPACITY);
        timed(|| {
            let reader = kapok::spawn_local(move || while receiver.recv().is_ok() {});
            (0..count).for_each(|n| sender.send(n).expect("it is received"));
            drop(sender);
            reader.join().expect("no panic");
        })
    })
}

fn tokio_channel(count: u64) -> Duration {
    on_tokio(async move {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(CAPACITY);
        timed_async(async {
            let reader =
                tokio::task::spawn_local(async move { while receiver.recv().await.is_some() {} });
            let writer = tokio::task::spawn_local(async move {
                for n in 0..count {
                    sender.send(n).await.expect("it is received");
                }
            });
            writer.await.expect("no panic");
            reader.await.expect("no panic");
        })
        .await
    })
}

/// Where two threads run. Left to itself, the scheduler of the kernel now has them on one core and now
/// on two, at a tenfold difference.
#[derive(Clone, Copy)]
enum Cores {
    One,
    Two,
}

impl Cores {
    /// Keeps the calling thread to a core, `f` in the meantime.
    fn hold<R>(self, other: bool, f: impl FnOnce() -> R) -> R {
        let before = sched_getaffinity(Pid::from_raw(0)).expect("a thread has cores");
        let cores: Vec<_> =
            (0..CpuSet::count()).filter(|&core| before.is_set(core) == Ok(true)).collect();
        let mut held = CpuSet::new();
        let core = match self {
            Cores::Two if other => cores[cores.len() - 1],
            _ => cores[0],
        };
        held.set(core).expect("a core that was there");
        sched_setaffinity(Pid::from_raw(0), &held).expect("a core that was there");
        let result = f();
        sched_setaffinity(Pid::from_raw(0), &before).expect("cores that were there");
        result
    }
}

/// A message there and one back, for each, between two threads.
fn kapok_wake(count: u64, cores: Cores) -> Duration {
    let (there, hear) = kapok::sync::channel::bounded(1);
    let (back, heard) = kapok::sync::channel::bounded(1);
    let other = thread::spawn(move || {
        cores.hold(true, || {
            on_kapok(move || {
                while let Ok(n) = hear.recv() {
                    if back.send(n).is_err() {
                        break;
                    }
                }
                Duration::ZERO
            })
        })
    });
    let took = cores.hold(false, || {
        on_kapok(move || {
            timed(|| {
                for n in 0..count {
                    there.send(n).expect("it is heard");
                    assert_eq!(heard.recv().expect("it is answered"), n);
                }
            })
        })
    });
    other.join().expect("no panic");
    took
}

fn tokio_wake(count: u64, cores: Cores, drivers: Drivers) -> Duration {
    let (there, mut hear) = tokio::sync::mpsc::channel(1);
    let (back, mut heard) = tokio::sync::mpsc::channel(1);
    let other = thread::spawn(move || {
        cores.hold(true, || {
            on_tokio_with(drivers, async move {
                while let Some(n) = hear.recv().await {
                    if back.send(n).await.is_err() {
                        break;
                    }
                }
                Duration::ZERO
            })
        })
    });
    let took = cores.hold(false, || {
        on_tokio_with(drivers, async move {
            timed_async(async move {
                for n in 0..count {
                    there.send(n).await.expect("it is heard");
                    assert_eq!(heard.recv().await.expect("it is answered"), n);
                }
            })
            .await
        })
    });
    other.join().expect("no panic");
    took
}

const CONTENDERS: u64 = 10;

/// Each holds the lock while the others run and want it.
fn kapok_lock(count: u64) -> Duration {
    on_kapok(move || {
        let lock = std::rc::Rc::new(kapok::sync::Mutex::new(0));
        timed(|| {
            let fibers: Vec<_> = (0..CONTENDERS)
                .map(|_| {
                    let lock = lock.clone();
                    kapok::spawn_local(move || {
                        for _ in 0..count / CONTENDERS {
                            let mut guard = lock.lock();
                            *guard += 1;
                            kapok::yield_now();
                        }
                    })
                })
                .collect();
            fibers.into_iter().for_each(|fiber| fiber.join().expect("no panic"));
        })
    })
}

fn tokio_lock(count: u64) -> Duration {
    on_tokio(async move {
        let lock = std::rc::Rc::new(tokio::sync::Mutex::new(0));
        timed_async(async {
            let tasks: Vec<_> = (0..CONTENDERS)
                .map(|_| {
                    let lock = lock.clone();
                    tokio::task::spawn_local(async move {
                        for _ in 0..count / CONTENDERS {
                            let mut guard = lock.lock().await;
                            *guard += 1;
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
        })
        .await
    })
}

fn kapok_free_lock(count: u64) -> Duration {
    on_kapok(move || {
        let lock = kapok::sync::Mutex::new(0);
        timed(|| (0..count).for_each(|_| *lock.lock() += 1))
    })
}

fn tokio_free_lock(count: u64) -> Duration {
    on_tokio(async move {
        let lock = tokio::sync::Mutex::new(0);
        timed_async(async {
            for _ in 0..count {
                *lock.lock().await += 1;
            }
        })
        .await
    })
}

/// A wait that ends long before its limit.
fn kapok_timeout(count: u64) -> Duration {
    on_kapok(move || {
        let (sender, receiver) = kapok::sync::channel::bounded(1);
        let writer = kapok::spawn_local(move || while sender.send(()).is_ok() {});
        let took = timed(|| {
            for _ in 0..count {
                kapok::timeout(Duration::from_secs(5), || receiver.recv()).expect("in time");
            }
        });
        drop(receiver);
        writer.join().expect("no panic");
        took
    })
}

fn tokio_timeout(count: u64) -> Duration {
    on_tokio(async move {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let writer =
            tokio::task::spawn_local(async move { while sender.send(()).await.is_ok() {} });
        let took = timed_async(async {
            for _ in 0..count {
                let received = tokio::time::timeout(Duration::from_secs(5), receiver.recv());
                received.await.expect("in time").expect("sent");
            }
        })
        .await;
        drop(receiver);
        writer.await.expect("no panic");
        took
    })
}
