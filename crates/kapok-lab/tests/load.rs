//! The load generator against servers that misbehave: nothing may pass for a good reply.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::Protocol;
use kapok_lab::load::{self, LoadConfig, LoadReport, Phase};

/// Serves each connection with `serve(number of the connection, stream)` on a thread of its own.
/// The threads end with their connections, the listener with the test process.
fn server(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let serve = Arc::clone(&serve);
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || serve(number, stream));
        }
    });
    addr
}

/// Calls `reply` with what was read, until the peer closes.
fn answer(mut stream: TcpStream, mut reply: impl FnMut(&mut TcpStream, &[u8]) -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if !reply(&mut stream, &buffer[..length]) {
            break;
        }
    }
}

fn config(addr: SocketAddr, protocol: Protocol) -> LoadConfig {
    LoadConfig {
        connections: 8,
        warmup: Duration::from_millis(50),
        duration: Duration::from_millis(300),
        ..LoadConfig::new(addr, protocol)
    }
}

fn run(config: &LoadConfig) -> LoadReport {
    load::run(config, &mut |_| {}).unwrap()
}

const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world!";

#[test]
fn an_honest_server_has_no_errors_and_every_reply_is_counted() {
    let addr = server(|_, stream| answer(stream, |to, bytes| to.write_all(bytes).is_ok()));
    for pipeline in [1, 16] {
        for threads in [1, 2] {
            let report = run(&LoadConfig { pipeline, threads, ..config(addr, Protocol::Echo) });
            assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
            assert_eq!(report.served, 8);
            assert!(report.requests > 0);
            // What was in flight at the edges of the interval differs, no more.
            let in_flight = 2 * 64 * 8 * pipeline as u64;
            assert!(report.bytes_received.abs_diff(report.requests * 64) <= in_flight);
            assert!(report.latency.count.abs_diff(report.requests) <= in_flight / 64);
        }
    }
}

#[test]
fn an_echo_that_comes_twice_is_an_error() {
    let addr = server(|number, stream| {
        let mut answered = 0;
        answer(stream, |to, bytes| {
            answered += 1;
            // The first connection behaves for a while, so that the run begins.
            let times = if number == 0 && answered > 10 { 2 } else { 1 };
            to.write_all(&bytes.repeat(times)).is_ok()
        });
    });
    let report = run(&config(addr, Protocol::Echo));
    assert!(report.errors.verify > 0, "{:?}", report.errors);
}

#[test]
fn an_http_reply_that_comes_twice_is_an_error_even_when_it_comes_last() {
    // One request in all: its surplus reply meets no further request that it could pass for.
    let addr = server(|_, stream| {
        let mut answered = 0;
        answer(stream, |to, _| {
            answered += 1;
            to.write_all(REPLY).unwrap();
            thread::sleep(Duration::from_millis(5));
            answered < 3 || to.write_all(REPLY).is_ok()
        });
    });
    // A machine that stands still may have the last of them come when nobody listens any more.
    let once = || run(&LoadConfig { connections: 1, ..config(addr, Protocol::Http) });
    let mut runs = (0..10).map(|_| once());
    let report = runs.find(|report| report.errors.verify > 0).expect("one of ten runs hears it");
    let example = &report.errors.examples[0];
    assert!(example.contains("after the last reply"), "{example}");
}

/// Answers with this body, and once, long after the first reply, with its fifth byte changed.
fn flips_one_byte(body: &'static str) -> SocketAddr {
    let replies = AtomicUsize::new(0);
    server(move |_, stream| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut reply = [head.as_bytes(), body.as_bytes()].concat();
        let wrong = head.len() + 4;
        answer(stream, |to, _| {
            let flip = u8::from(replies.fetch_add(1, Ordering::SeqCst) == 12);
            reply[wrong] ^= flip;
            let written = to.write_all(&reply).is_ok();
            reply[wrong] ^= flip;
            written
        });
    })
}

#[test]
fn one_changed_byte_of_a_body_that_does_not_change_is_an_error() {
    // Who asks knows the body, or it is that of Kapok's own servers.
    for (body, body_bytes) in [("Hello, world!", Some(13)), ("Hello, World!", None)] {
        let addr = flips_one_byte(body);
        let report = run(&LoadConfig { body_bytes, ..config(addr, Protocol::Http) });
        let errors = &report.errors;
        assert_eq!((errors.verify, errors.total()), (1, 1), "{errors:?}");
        let expected = "verify: byte 4 of the body is 0x6e and 0x6f in the first reply";
        assert_eq!(errors.examples, [expected]);
        assert_eq!((report.reopened, report.other_bodies), (1, 0));
    }
}

#[test]
fn one_changed_byte_of_any_other_body_is_counted() {
    for threads in [1, 2] {
        let addr = flips_one_byte("Hello, world!");
        let report = run(&LoadConfig { threads, ..config(addr, Protocol::Http) });
        assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
        assert_eq!(report.other_bodies, 1, "{threads} threads");
    }
}

#[test]
fn a_page_with_the_time_in_it_can_be_measured() {
    let replies = AtomicUsize::new(0);
    let addr = server(move |_, stream| {
        answer(stream, |to, _| {
            let number = replies.fetch_add(1, Ordering::SeqCst);
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{number:020}");
            to.write_all(reply.as_bytes()).is_ok()
        });
    });
    let report = run(&config(addr, Protocol::Http));
    assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
    // Of the whole run, greetings among them, and all but the first reply.
    assert!(report.other_bodies >= report.requests && report.requests > 0, "{report:?}");
}

#[test]
fn a_body_that_takes_many_reads_is_compared_to_its_last_byte() {
    const BYTES: usize = 300_000;
    let replies = AtomicUsize::new(0);
    let addr = server(move |_, stream| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        let mut reply = head.into_bytes();
        reply.extend((0..BYTES).map(|at| (at % 251) as u8));
        answer(stream, |to, _| {
            let flip = u8::from(replies.fetch_add(1, Ordering::SeqCst) == 12);
            let last = reply.len() - 1;
            reply[last] ^= flip;
            let written = to.write_all(&reply).is_ok();
            reply[last] ^= flip;
            written
        });
    });
    let report = run(&LoadConfig {
        body_bytes: Some(BYTES),
        duration: Duration::from_millis(800),
        ..config(addr, Protocol::Http)
    });
    let example = format!("verify: byte {} of the body", BYTES - 1);
    assert_eq!((report.errors.verify, report.errors.total()), (1, 1), "{:?}", report.errors);
    assert!(report.errors.examples[0].starts_with(&example), "{:?}", report.errors);
}

#[test]
fn a_connection_that_is_closed_is_an_error_and_opened_again() {
    let addr = server(|number, stream| {
        let mut left = if number == 0 { 5 } else { usize::MAX };
        answer(stream, |to, bytes| {
            left -= 1;
            to.write_all(bytes).is_ok() && left > 0
        });
    });
    let report = run(&config(addr, Protocol::Echo));
    assert_eq!(report.errors.total(), 1, "{:?}", report.errors);
    assert_eq!(report.errors.read + report.errors.write, 1, "{:?}", report.errors);
    assert_eq!(report.reopened, 1);
}

#[test]
fn connections_that_are_not_served_are_told_apart_from_those_that_are() {
    let addr = server(|number, stream| {
        if number < 5 {
            answer(stream, |to, bytes| to.write_all(bytes).is_ok());
        } else {
            answer(stream, |_, _| true);
        }
    });
    let patience = Duration::from_millis(500);
    let report = run(&LoadConfig { patience, ..config(addr, Protocol::Echo) });
    assert_eq!((report.served, report.connections), (5, 8));
    assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
    assert!(report.requests > 0);
}

#[test]
fn nobody_served_and_nobody_there_are_errors_with_the_address() {
    let silent = server(|_, stream| answer(stream, |_, _| true));
    let patience = Duration::from_millis(200);
    let config = LoadConfig { patience, ..config(silent, Protocol::Echo) };
    let error = load::run(&config, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains(&silent.to_string()) && error.contains("no reply"), "{error}");

    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let config = LoadConfig { addr: gone, ..config };
    let error = load::run(&config, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains(&gone.to_string()) && error.contains("refused"), "{error}");
}

#[test]
fn replies_that_never_come_time_out() {
    let addr = server(|number, stream| {
        let mut left = if number == 0 { 3 } else { usize::MAX };
        answer(stream, |to, bytes| {
            left = left.saturating_sub(1);
            left == 0 || to.write_all(bytes).is_ok()
        });
    });
    let timeout = Duration::from_millis(300);
    let duration = Duration::from_millis(1500);
    let report = run(&LoadConfig { timeout, duration, ..config(addr, Protocol::Echo) });
    assert!(report.errors.timeout >= 1, "{:?}", report.errors);
}

#[test]
fn every_request_without_its_reply_is_counted() {
    // The greeting is answered, and nothing after it.
    let addr = server(|_, stream| {
        let mut greeted = false;
        answer(stream, |to, bytes| {
            let answers = !std::mem::replace(&mut greeted, true);
            !answers || to.write_all(bytes).is_ok()
        });
    });
    let report = run(&LoadConfig {
        connections: 1,
        pipeline: 4,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(500),
        timeout: Duration::from_millis(300),
        ..config(addr, Protocol::Echo)
    });
    assert!(report.errors.timeout >= 4, "{:?}", report.errors);
    assert_eq!(report.errors.timeout % 4, 0, "{:?}", report.errors);
}

#[test]
fn a_reply_that_trickles_in_is_late_all_the_same() {
    let addr = server(|_, stream| {
        let mut greeted = false;
        answer(stream, |to, bytes| {
            if !std::mem::replace(&mut greeted, true) {
                return to.write_all(bytes).is_ok();
            }
            bytes.iter().all(|byte| {
                thread::sleep(Duration::from_millis(50));
                to.write_all(&[*byte]).is_ok()
            })
        });
    });
    let report = run(&LoadConfig {
        connections: 1,
        duration: Duration::from_millis(1000),
        timeout: Duration::from_millis(300),
        ..config(addr, Protocol::Echo)
    });
    assert!(report.errors.timeout >= 1, "{:?}", report.errors);
}

#[test]
fn values_beyond_all_reason_are_refused_at_once() {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let base = || LoadConfig { connections: 2_000, ..config(addr, Protocol::Echo) };
    for wrong in [
        LoadConfig { rate: Some(1e13), ..base() },
        LoadConfig { rate: Some(1e-300), ..base() },
        LoadConfig { rate: Some(f64::NAN), ..base() },
        LoadConfig { threads: 2_000, ..base() },
        LoadConfig { duration: Duration::MAX, ..base() },
        LoadConfig { timeout: Duration::MAX, ..base() },
    ] {
        let error = load::run(&wrong, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    }
}

#[test]
fn a_stall_shows_at_a_fixed_rate_and_hides_in_a_closed_loop() {
    let stalls = Duration::from_millis(400);
    let stalling = || {
        let began = Instant::now();
        let stalled = AtomicUsize::new(0);
        server(move |_, stream| {
            answer(stream, |to, bytes| {
                // Once, in the middle of the measured interval.
                if began.elapsed() > Duration::from_millis(400)
                    && stalled.fetch_add(1, Ordering::SeqCst) == 0
                {
                    thread::sleep(stalls);
                }
                to.write_all(bytes).is_ok()
            });
        })
    };
    let duration = Duration::from_millis(1500);
    let base = |addr| LoadConfig { connections: 1, duration, ..config(addr, Protocol::Echo) };

    let closed = run(&base(stalling()));
    let fixed = run(&LoadConfig { rate: Some(1000.0), ..base(stalling()) });
    // A third of the requests came due during the stall of 400 ms: at least a tenth of all waited
    // for most of it. The closed loop met it with a single request.
    assert!(fixed.latency.p90_us > 100_000.0, "{:?}", fixed.latency);
    assert!(closed.latency.max_us > 300_000.0, "{:?}", closed.latency);
    assert!(closed.latency.p90_us < fixed.latency.p90_us / 4.0, "{:?}", closed.latency);
    let backlog = fixed.backlog.unwrap();
    // All requests are 1500, and a closed loop's backlog is 1.
    assert!((200..=1000).contains(&backlog.most), "{backlog:?}");
}

/// As wrk2 does it: the k-th reply is held against the k-th intended time, which is known from the first
/// request and the rate. The server keeps the times, so the reference knows nothing of the generator.
#[test]
fn a_stall_of_200_ms_is_in_the_latencies_as_by_the_method_of_wrk2() {
    const RATE: f64 = 1000.0;
    let done: Arc<Mutex<Vec<(Instant, Instant)>>> = Arc::default();
    let addr = server({
        let done = Arc::clone(&done);
        move |_, mut stream| {
            let mut message = [0; 64];
            let mut first = None;
            let mut stalled = false;
            while stream.read_exact(&mut message).is_ok() {
                let now = Instant::now();
                if done.lock().unwrap().len() == 500 && !stalled {
                    stalled = true;
                    thread::sleep(Duration::from_millis(200));
                }
                if stream.write_all(&message).is_err() {
                    break;
                }
                // The very first is the greeting.
                done.lock().unwrap().push((*first.get_or_insert(now), Instant::now()));
            }
        }
    });
    let report = run(&LoadConfig {
        connections: 1,
        rate: Some(RATE),
        warmup: Duration::ZERO,
        duration: Duration::from_secs(2),
        ..config(addr, Protocol::Echo)
    });
    assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
    let done = done.lock().unwrap();
    // The schedule begins with the first request after the greeting, which leaves at its time. Whatever
    // delayed that one on the way shortens all the others by as much: the smallest of all such
    // beginnings is the true one.
    let replies: Vec<Instant> = done[1..].iter().map(|(_, at)| *at).collect();
    let intended = |begin: Instant, k: usize| begin + Duration::from_secs_f64(k as f64 / RATE);
    let begin = replies
        .iter()
        .enumerate()
        .filter_map(|(k, at)| at.checked_sub(Duration::from_secs_f64(k as f64 / RATE)))
        .min()
        .unwrap();
    let mut reference: Vec<f64> = replies
        .iter()
        .enumerate()
        .map(|(k, at)| at.saturating_duration_since(intended(begin, k)).as_secs_f64() * 1e6)
        .collect();
    reference.sort_by(f64::total_cmp);
    let at = |quantile: f64| reference[(quantile * (reference.len() - 1) as f64) as usize];
    // A tenth of the requests came due during the stall, and every one of them waited for its end.
    assert!(at(0.95) > 60_000.0 && at(0.99) > 140_000.0, "the reference saw no stall");
    for (ours, quantile) in [
        (report.latency.p90_us, 0.9),
        (report.latency.p99_us, 0.99),
        (report.latency.p999_us, 0.999),
        (report.latency.max_us, 1.0),
    ] {
        // The reply's way back, and what the machine does with the generator meanwhile.
        let difference = (ours - at(quantile)).abs();
        let allowed = 0.05 * at(quantile) + 15_000.0;
        assert!(difference < allowed, "at {quantile}: {ours} and {}", at(quantile));
    }
}

#[test]
fn a_fixed_rate_is_kept() {
    let addr = server(|_, stream| answer(stream, |to, bytes| to.write_all(bytes).is_ok()));
    let duration = Duration::from_millis(1000);
    let requests = (0..3).map(|_| {
        let config = LoadConfig { rate: Some(500.0), duration, ..config(addr, Protocol::Echo) };
        let report = run(&config);
        assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
        report.requests
    });
    let requests = sorted(requests);
    assert!((450..=550).contains(&requests[1]), "{requests:?}");
}

/// Counts whose middle one a machine that stands still once or twice does not move.
fn sorted(counts: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut counts: Vec<u64> = counts.into_iter().collect();
    counts.sort_unstable();
    counts
}

#[test]
fn connections_wear_out_and_idle_ones_stay() {
    let opened = Arc::new(AtomicUsize::new(0));
    let addr = server({
        let opened = Arc::clone(&opened);
        move |_, stream| {
            opened.fetch_add(1, Ordering::SeqCst);
            answer(stream, |to, bytes| to.write_all(bytes).is_ok());
        }
    });
    let config = LoadConfig { active: Some(2), churn: Some(10), ..config(addr, Protocol::Echo) };
    let report = run(&config);
    assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
    assert!(report.reopened > 0);
    let opened = opened.load(Ordering::SeqCst) as u64;
    // The last ones may not have been accepted when the run ended.
    assert!(opened <= 8 + report.reopened && opened + 2 >= 8 + report.reopened, "{opened}");
}

#[test]
fn connections_may_have_one_request_each() {
    let addr = server(|_, stream| answer(stream, |to, bytes| to.write_all(bytes).is_ok()));
    for rate in [None, Some(200.0)] {
        let config = LoadConfig { churn: Some(1), rate, ..config(addr, Protocol::Echo) };
        let report = run(&config);
        assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
        assert!(report.requests > 10, "at {rate:?}: {}", report.requests);
        assert!(report.reopened >= report.requests, "{} {}", report.reopened, report.requests);
    }
}

#[test]
fn the_phases_come_once_each_and_in_order() {
    let addr = server(|_, stream| answer(stream, |to, bytes| to.write_all(bytes).is_ok()));
    let mut phases = Vec::new();
    let mut served = Vec::new();
    load::run(&config(addr, Protocol::Echo), &mut |progress| {
        if progress.phase == Phase::Connecting && progress.served == 0 {
            return;
        }
        if phases.last() != Some(&progress.phase) {
            phases.push(progress.phase);
            served.push(progress.served);
        }
    })
    .unwrap();
    assert_eq!(
        phases,
        [Phase::Connecting, Phase::WarmUp, Phase::Settling, Phase::Measuring, Phase::Draining]
    );
    assert_eq!(served, [1, 8, 8, 8, 8]);
}

#[test]
fn what_a_slow_meter_holds_up_is_over_when_the_interval_begins() {
    let addr = server(|_, stream| answer(stream, |to, bytes| to.write_all(bytes).is_ok()));
    let duration = Duration::from_millis(400);
    let config = LoadConfig { rate: Some(500.0), duration, ..config(addr, Protocol::Echo) };
    let counts = (0..5).map(|_| {
        let (mut is_settling, mut since_settling) = (false, 0);
        let report = load::run(&config, &mut |progress| {
            if progress.phase == Phase::Settling && !is_settling {
                is_settling = true;
                thread::sleep(Duration::from_millis(200));
            }
            since_settling = progress.since_settling;
        })
        .unwrap();
        (report.requests, since_settling - report.requests)
    });
    let (requests, before): (Vec<u64>, Vec<u64>) = counts.unzip();
    let (requests, before) = (sorted(requests), sorted(before));
    // Without the time to settle there would be 100 more.
    assert!((160..=240).contains(&requests[2]), "{requests:?}");
    // They came before.
    assert!(before[2] >= 80, "{before:?} before {requests:?}");
}

#[test]
fn a_thread_of_which_nobody_is_served_does_not_end_the_others() {
    let addr = server(|index, stream| {
        if index == 0 {
            answer(stream, |to, bytes| to.write_all(bytes).is_ok());
        }
    });
    let config = LoadConfig { threads: 2, connections: 4, ..config(addr, Protocol::Echo) };
    let report = run(&config);
    assert_eq!(report.served, 1);
    assert!(report.requests > 0);
    assert!(report.errors.total() > 0);
}
