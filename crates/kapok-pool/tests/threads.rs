//! Many threads of submitters and of I/O.

mod harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use harness::{Scratch, block_on, eventually, has_uring, poll_once, scale};
use kapok_pool::{Balance, Listener, OpenOptions, Pool, PoolStats, Thresholds, Via};

#[test]
fn operations_of_many_tasks_over_two_threads_are_neither_lost_nor_doubled() {
    let _turn = harness::turn();
    has_uring();
    const TASKS: u64 = 8;
    const DEPTH: usize = 16;
    let pool = Pool::builder().threads(2).channel(32).slots(100).via(Via::Thread).build().unwrap();
    let rounds = scale(200_000, 100_000_000) / TASKS as usize / DEPTH;
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..TASKS {
            scope.spawn(|| {
                for _ in 0..rounds {
                    let mut nops: [_; DEPTH] = std::array::from_fn(|_| pool.nop());
                    let over = nops.each_mut().map(poll_once);
                    for (nop, over) in nops.into_iter().zip(over) {
                        let outcome = match over {
                            std::task::Poll::Ready(outcome) => outcome,
                            std::task::Poll::Pending => block_on(nop),
                        };
                        assert_eq!(outcome.unwrap(), 0);
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let all = TASKS * (rounds * DEPTH) as u64;
    assert_eq!(done.into_inner(), all);
    let stats = pool.stats();
    eventually("the threads have noted it", || pool.stats().pending() == 0);
    assert_eq!(stats.threads.iter().map(|thread| thread.submitted).sum::<u64>(), all);
    assert_eq!(stats.threads.iter().map(|thread| thread.completed).sum::<u64>(), all);
    assert!(stats.threads.iter().all(|thread| thread.submitted > 0), "{stats:?}");
}

#[test]
fn each_policy_uses_all_threads() {
    let _turn = harness::turn();
    has_uring();
    for balance in
        [Balance::LeastInFlight, Balance::TwoChoices, Balance::RoundRobin, Balance::ByFile]
    {
        let pool = Pool::builder().threads(3).balance(balance).via(Via::Thread).build().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_millis(50);
        let mut sleeps: Vec<_> = (0..60).map(|_| pool.sleep_until(deadline)).collect();
        sleeps.iter_mut().for_each(|sleep| assert!(poll_once(sleep).is_pending()));
        sleeps.into_iter().for_each(|sleep| assert_eq!(block_on(sleep).unwrap(), 0));
        let stats = pool.stats();
        let shares: Vec<u64> = stats.threads.iter().map(|thread| thread.submitted).collect();
        assert!(shares.iter().all(|&share| share >= 5), "{balance:?}: {shares:?}");
    }
}

#[test]
fn by_file_all_operations_on_a_file_go_to_one_thread() {
    let _turn = harness::turn();
    has_uring();
    let pool =
        Pool::builder().threads(4).balance(Balance::ByFile).via(Via::Thread).build().unwrap();
    let scratch = Scratch::new("by-file", b"");
    let file = block_on(OpenOptions::new().write(true).open(&pool, &scratch.0)).unwrap();
    let of_all = |stats: &PoolStats| -> Vec<u64> {
        stats.threads.iter().map(|thread| thread.submitted).collect()
    };
    eventually("the threads have noted it", || pool.stats().pending() == 0);
    let before = of_all(&pool.stats());
    for _ in 0..8 {
        block_on(file.write_at(vec![7; 16], 0)).0.unwrap();
        // Entries of io_uring are operations on their file too.
        block_on(file.allocate(0, 4096)).unwrap();
    }
    eventually("the threads have noted it", || pool.stats().pending() == 0);
    let shares: Vec<u64> =
        of_all(&pool.stats()).iter().zip(before).map(|(now, before)| now - before).collect();
    assert_eq!(shares.iter().filter(|&&share| share > 0).count(), 1, "{shares:?}");
    assert_eq!(shares.iter().sum::<u64>(), 16, "{shares:?}");
}

fn rings() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let is_ring = |link: &std::path::Path| {
        std::fs::read_link(link).is_ok_and(|to| to.to_string_lossy().contains("io_uring"))
    };
    links.flatten().filter(|link| is_ring(&link.path())).count()
}

#[test]
fn threads_come_and_go_with_the_load_and_their_rings_with_them() {
    let _turn = harness::turn();
    let has_uring = has_uring();
    // A pool that another test has dropped goes by itself.
    eventually("the rings of other tests are gone", || rings() == 0);
    let mut thresholds = Thresholds::default();
    thresholds.interval = Duration::from_millis(1);
    (thresholds.grow_at, thresholds.grow_after) = (16, 2);
    (thresholds.shrink_at, thresholds.shrink_after) = (4, 4);
    let pool = Pool::builder()
        .threads_between(1..=4)
        .scale(thresholds)
        .completion_wait(Duration::from_millis(2))
        .channel_wait(Duration::from_millis(2))
        .via(Via::Thread)
        .build()
        .unwrap();
    let one_serves = if has_uring { 1 } else { 0 };
    assert_eq!(rings(), one_serves);
    let mut operations = 0;
    for cycle in 0..scale(20, 1000) {
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let mut receives: Vec<_> = (0..200).map(|_| pool.recv(&near, vec![0; 1], 0)).collect();
        receives.iter_mut().for_each(|one| assert!(poll_once(one).is_pending()));
        let mut last = None;
        let began = std::time::Instant::now();
        while pool.stats().serving() < 4 {
            pool.nop().block().unwrap();
            operations += 1;
            last = Some(pool.stats());
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "not four in cycle {cycle}: {last:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(last);
        assert_eq!(rings(), 4 * one_serves, "in cycle {cycle}");
        far.write_all(&[7; 200]).unwrap();
        for receive in receives {
            let (count, buffer) = block_on(receive);
            assert_eq!((count.unwrap(), &buffer[..]), (1, &[7][..]));
            operations += 1;
        }
        eventually("one serves", || {
            pool.nop().block().unwrap();
            operations += 1;
            pool.stats().serving() == 1
        });
        // A thread that serves no more has its ring until all it had has landed.
        eventually("the rings of the retired are gone", || rings() == one_serves);
    }
    let stats = pool.stats();
    assert!(stats.grown >= 3 * scale(20, 1000) as u64 && stats.shrunk == stats.grown, "{stats:?}");
    assert_eq!(stats.threads.iter().map(|thread| thread.completed).sum::<u64>(), operations);
    pool.shutdown(Duration::from_secs(1));
    assert_eq!(rings(), 0);
}

#[test]
fn a_thread_can_be_pinned() {
    let _turn = harness::turn();
    has_uring();
    // A processor that this process may use.
    // SAFETY: reads the process's set into a local.
    let allowed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
        (0..libc::CPU_SETSIZE as usize).find(|&at| libc::CPU_ISSET(at, &set)).unwrap()
    };
    let pool = Pool::builder().name("pinned").pin([allowed]).build().unwrap();
    pool.nop().via(Via::Thread).block().unwrap();
    let status = std::fs::read_dir("/proc/self/task").unwrap().flatten().find_map(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        status.starts_with("Name:\tpinned-0").then_some(status)
    });
    let status = status.expect("the thread has its name");
    let list = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
    assert_eq!(list.split_whitespace().nth(1), Some(allowed.to_string().as_str()));
}

#[test]
fn a_connection_is_not_lost_with_the_future_that_waited_for_it() {
    let _turn = harness::turn();
    has_uring();
    let pool = Pool::builder().via(Via::Thread).build().unwrap();
    let listener = Listener::new(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let addr = listener.get_ref().local_addr().unwrap();
    let connect = |number: u8| {
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.write_all(&[number]).unwrap();
            stream
        })
    };
    for number in 0..scale(100, 2000) {
        let number = number as u8;
        let mut accept = pool.accept(&listener);
        assert!(poll_once(&mut accept).is_pending());
        let client = connect(number);
        if number.is_multiple_of(2) {
            std::thread::yield_now();
        } else {
            // It has been accepted, and nobody has taken it.
            let client = client.join().unwrap();
            drop(accept);
            let mut stream = block_on(pool.accept(&listener)).unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [number]);
            drop(client);
            continue;
        }
        drop(accept);
        let mut stream = block_on(pool.accept(&listener)).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [number]);
        client.join().unwrap();
    }
}

#[test]
fn sockets_send_receive_and_tell_when_they_are_ready() {
    let _turn = harness::turn();
    has_uring();
    for via in [Via::Auto, Via::Thread] {
        let pool = Pool::builder().via(via).build().unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let (near, far) = (Arc::new(near), Arc::new(far));
        let ready = pool.ready(&far, kapok_engine::Readiness::READABLE);
        let (sent, _) = pool.send(&near, "hello", 0).block();
        assert_eq!(sent.unwrap(), 5);
        assert!(ready.block().unwrap().intersects(kapok_engine::Readiness::READABLE));
        let (received, buffer) = pool.recv(&far, Vec::with_capacity(16), 0).block();
        assert_eq!((received.unwrap(), &buffer[..]), (5, &b"hello"[..]));
        drop(near);
        let (received, _) = pool.recv(&far, vec![0; 4], 0).block();
        assert_eq!(received.unwrap(), 0);
    }
}

#[test]
fn bytes_that_tcp_throws_away_are_no_memory_of_others() {
    let _turn = harness::turn();
    has_uring();
    for via in [Via::Auto, Via::Thread] {
        let pool = Pool::builder().via(via).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = Arc::new(listener.accept().unwrap().0);
        far.write_all(&[7; 100]).unwrap();
        // What the vector held before is no content of it.
        let mut buffer = vec![0xaa; 4096];
        buffer.truncate(10);
        let (count, buffer) = pool.recv(&near, buffer, libc::MSG_TRUNC).block();
        assert_eq!((count.unwrap(), buffer.len()), (100, 100));
        assert!(buffer[10..].iter().all(|&byte| byte == 0 || byte == 7), "{via:?}: {buffer:?}");
    }
}

#[test]
fn options_without_limit_are_none_that_abort() {
    let _turn = harness::turn();
    has_uring();
    let mut thresholds = Thresholds::default();
    (thresholds.interval, thresholds.grow_at) = (Duration::MAX, usize::MAX);
    (thresholds.shrink_at, thresholds.grow_after) = (usize::MAX, u32::MAX);
    let pool = Pool::builder()
        .threads_between(1..=2)
        .scale(thresholds)
        .take(usize::MAX)
        .completion_batch(usize::MAX)
        .device_batch(usize::MAX)
        .in_flight(usize::MAX)
        .completion_wait(Duration::MAX)
        .channel_wait(Duration::MAX)
        .via(Via::Thread)
        .build()
        .unwrap();
    for _ in 0..3 {
        pool.nop().block().unwrap();
        // It has gone to sleep meanwhile, or not.
        std::thread::sleep(Duration::from_millis(20));
    }
    pool.sleep_until(std::time::Instant::now() + Duration::from_millis(5)).block().unwrap();
    pool.shutdown(Duration::MAX);
}
