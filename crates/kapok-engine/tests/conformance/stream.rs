//! Bytes over connected streams: order, ends, resets, flags.

use std::time::Duration;

use kapok_engine::{Engine as _, Kind, Readiness, Wait};

use crate::driver::Driver;
use crate::isolated::scale;
use crate::sockets::{
    Descriptor, Message, Ownership, Transport, fill, is_close_on_exec, pattern, pipe, put,
    raw_recv, raw_recv_soon, reset_on_close, set_option, shrink_send_buffer, stream_pair,
};
use crate::world::{is_simulated, now};

conformance! {
    echo,
    data_there_before,
    short_reads_are_not_drained,
    end_of_stream,
    data_and_end_at_once,
    half_close,
    an_empty_buffer_with_data_waiting,
    an_empty_buffer_without_data,
    peek_does_not_consume,
    wait_all,
    wait_all_meets_the_end,
    wait_all_meets_an_error,
    wait_all_meets_a_notification,
    wait_all_cancelled_in_the_middle,
    a_peek_for_all_sees_nothing_twice,
    wait_all_without_waiting,
    do_not_wait,
    send_waits_for_room,
    bulk,
    reset_while_receiving,
    reset_while_sending,
    unread_bytes_break_a_unix_stream,
    broken_pipe_raises_no_signal,
    shutdown_wakes_the_own_receive,
    scattered_and_gathered,
    descriptors_are_passed,
}

/// Runs `body` over both transports and every ownership.
fn over_all(kind: Kind, body: fn(&mut Driver, Descriptor, Descriptor)) {
    for transport in Transport::ALL {
        for ownership in Ownership::ALL {
            crate::isolated::doing(format_args!("{transport:?}, {ownership:?}"));
            let mut driver = Driver::new(kind);
            let (a, b) = stream_pair(transport, ownership);
            body(&mut driver, a, b);
        }
    }
}

fn echo(kind: Kind) {
    over_all(kind, |driver, a, b| {
        for round in 0..50 {
            let message = pattern(round * 7, 1 + round);
            let recv = driver.recv(b.fd(), 100);
            driver.turn(Wait::No);
            let send = driver.send(a.fd(), &message);
            assert_eq!(driver.wait_for(send).ok(), message.len());
            let got = driver.wait_for(recv).bytes().to_vec();
            assert_eq!(got, message);
            // And back, the send first.
            let send = driver.send(b.fd(), &got);
            assert_eq!(driver.wait_for(send).ok(), message.len());
            let recv = driver.recv(a.fd(), 100);
            assert_eq!(driver.wait_for(recv).bytes(), message);
        }
    });
}

fn data_there_before(kind: Kind) {
    over_all(kind, |driver, a, b| {
        put(b.fd(), b"early");
        let recv = driver.recv(a.fd(), 16);
        assert_eq!(driver.wait_for(recv).bytes(), b"early");
        // Between the submission and the turn.
        let recv = driver.recv(a.fd(), 16);
        put(b.fd(), b"between");
        assert_eq!(driver.wait_for(recv).bytes(), b"between");
        // And in the middle of the wait.
        let recv = driver.recv(a.fd(), 16);
        driver.still_pending(recv);
        put(b.fd(), b"late");
        assert_eq!(driver.wait_for(recv).bytes(), b"late");
    });
}

fn short_reads_are_not_drained(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let bytes = pattern(0, 200);
        let recv = driver.recv(a.fd(), 1);
        driver.still_pending(recv);
        put(b.fd(), &bytes);
        let mut got = driver.wait_for(recv).bytes().to_vec();
        // One arrival, many receives: no further edge comes.
        let mut len = 1;
        while got.len() < bytes.len() {
            let recv = driver.recv(a.fd(), len);
            got.extend_from_slice(driver.wait_for(recv).bytes());
            len = len % 7 + 1;
        }
        assert_eq!(got, bytes);
        let recv = driver.recv(a.fd(), 1);
        driver.still_pending(recv);
        put(b.fd(), b"x");
        assert_eq!(driver.wait_for(recv).bytes(), b"x");
    });
}

fn end_of_stream(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv(a.fd(), 16);
        driver.still_pending(recv);
        drop(b);
        assert_eq!(driver.wait_for(recv).ok(), 0);
        // The end stays the end.
        for _ in 0..3 {
            let recv = driver.recv(a.fd(), 16);
            assert_eq!(driver.wait_for(recv).ok(), 0);
        }
    });
}

fn data_and_end_at_once(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let bytes = pattern(3, 100);
        let recv = driver.recv(a.fd(), 64);
        driver.still_pending(recv);
        // Both are there before the engine looks: one edge for the two.
        put(b.fd(), &bytes);
        drop(b);
        let mut got = driver.wait_for(recv).bytes().to_vec();
        assert!(!got.is_empty(), "the end came before the data");
        loop {
            let recv = driver.recv(a.fd(), 64);
            let landed = driver.wait_for(recv);
            if landed.ok() == 0 {
                break;
            }
            got.extend_from_slice(landed.bytes());
        }
        assert_eq!(got, bytes);
    });
}

fn half_close(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv(a.fd(), 4096);
        driver.still_pending(recv);
        put(b.fd(), b"last words");
        let shutdown = driver.shutdown(b.fd(), libc::SHUT_WR);
        assert_eq!(driver.wait_for(shutdown).ok(), 0);
        let mut got = driver.wait_for(recv).bytes().to_vec();
        let recv = driver.recv(a.fd(), 4096);
        let landed = driver.wait_for(recv);
        got.extend_from_slice(landed.bytes());
        if landed.ok() != 0 {
            let recv = driver.recv(a.fd(), 4096);
            assert_eq!(driver.wait_for(recv).ok(), 0);
        }
        assert_eq!(got, b"last words");
        // The other half still works, pending receive included.
        let recv = driver.recv(b.fd(), 64);
        driver.still_pending(recv);
        let send = driver.send(a.fd(), b"answer");
        assert_eq!(driver.wait_for(send).ok(), 6);
        assert_eq!(driver.wait_for(recv).bytes(), b"answer");
        let send = driver.send(b.fd(), b"no more");
        driver.wait_for(send).failed_with(&[libc::EPIPE]);
    });
}

fn an_empty_buffer_with_data_waiting(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let send = driver.send(b.fd(), b"");
        assert_eq!(driver.wait_for(send).ok(), 0);
        put(b.fd(), b"data");
        let recv = driver.recv(a.fd(), 0);
        assert_eq!(driver.wait_for(recv).ok(), 0);
        goes_on(driver, &a, &b);
    });
}

/// recv(2) waits on an empty stream even for nothing, and then takes nothing.
fn an_empty_buffer_without_data(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv(a.fd(), 0);
        put(b.fd(), b"data");
        assert_eq!(driver.wait_for(recv).ok(), 0);
        goes_on(driver, &a, &b);
    });
}

/// That 0 was not the end, and it took nothing of what is there.
fn goes_on(driver: &mut Driver, a: &Descriptor, b: &Descriptor) {
    let recv = driver.recv(a.fd(), 16);
    assert_eq!(driver.wait_for(recv).bytes(), b"data");
    let recv = driver.recv(a.fd(), 16);
    driver.still_pending(recv);
    put(b.fd(), b"more");
    assert_eq!(driver.wait_for(recv).bytes(), b"more");
}

fn peek_does_not_consume(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let peek = driver.recv_with(a.fd(), 4, libc::MSG_PEEK);
        driver.still_pending(peek);
        put(b.fd(), b"peeked");
        assert_eq!(driver.wait_for(peek).bytes(), b"peek");
        for _ in 0..3 {
            let peek = driver.recv_with(a.fd(), 64, libc::MSG_PEEK);
            assert_eq!(driver.wait_for(peek).bytes(), b"peeked");
        }
        let recv = driver.recv(a.fd(), 64);
        assert_eq!(driver.wait_for(recv).bytes(), b"peeked");
        let peek = driver.recv_with(a.fd(), 4, libc::MSG_PEEK);
        driver.still_pending(peek);
        drop(b);
        assert_eq!(driver.wait_for(peek).ok(), 0);
    });
}

fn wait_all(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let bytes = pattern(11, 100);
        let recv = driver.recv_with(a.fd(), 100, libc::MSG_WAITALL);
        for piece in bytes.chunks(23) {
            driver.still_pending(recv);
            put(b.fd(), piece);
        }
        assert_eq!(driver.wait_for(recv).bytes(), bytes);
        // All there from the start, and something behind it.
        put(b.fd(), &pattern(0, 50));
        let recv = driver.recv_with(a.fd(), 40, libc::MSG_WAITALL);
        assert_eq!(driver.wait_for(recv).bytes(), pattern(0, 40));
        let recv = driver.recv(a.fd(), 40);
        assert_eq!(driver.wait_for(recv).bytes(), pattern(40, 10));
    });
}

fn wait_all_meets_the_end(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv_with(a.fd(), 100, libc::MSG_WAITALL);
        driver.still_pending(recv);
        put(b.fd(), b"only this");
        driver.still_pending(recv);
        drop(b);
        assert_eq!(driver.wait_for(recv).bytes(), b"only this");
        let recv = driver.recv_with(a.fd(), 100, libc::MSG_WAITALL);
        assert_eq!(driver.wait_for(recv).ok(), 0);
    });
}

/// First the bytes, and then the error, as recv(2) has it: who takes the end of them for the end of
/// the stream has lost the news that it was cut off.
fn wait_all_meets_an_error(kind: Kind) {
    for (transport, ownership) in
        Transport::ALL.into_iter().flat_map(|one| Ownership::ALL.map(|other| (one, other)))
    {
        crate::isolated::doing(format_args!("{transport:?}, {ownership:?}"));
        let mut driver = Driver::new(kind);
        let (a, b) = stream_pair(transport, ownership);
        let recv = driver.recv_with(a.fd(), 100, libc::MSG_WAITALL);
        driver.still_pending(recv);
        put(b.fd(), b"first, ");
        driver.still_pending(recv);
        put(b.fd(), b"second");
        // What makes the close of a Unix stream a reset is what its peer has sent in vain.
        put(a.fd(), b"unread");
        reset_on_close(b.fd());
        drop(b);
        assert_eq!(driver.wait_for(recv).bytes(), b"first, second");
        let recv = driver.recv(a.fd(), 100);
        let landed = driver.wait_for(recv);
        // io_uring's own retry takes the error out of the socket and lands with the bytes alone, as
        // recv(2) does on Unix streams.
        if !(matches!(kind, Kind::Uring) || transport == Transport::Unix) || landed.res < 0 {
            landed.failed_with(&[libc::ECONNRESET]);
            let recv = driver.recv(a.fd(), 100);
            assert_eq!(driver.wait_for(recv).ok(), 0);
        }
    }
}

/// What TCP has to say of what it sends comes as an error, to poll(2), and is none.
fn wait_all_meets_a_notification(kind: Kind) {
    #[cfg(target_os = "linux")]
    for ownership in Ownership::ALL.into_iter().filter(|_| !is_simulated()) {
        let mut driver = Driver::new(kind);
        let (a, b) = stream_pair(Transport::Tcp, ownership);
        let times = libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
        set_option(a.fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPING, times);
        let recv = driver.recv_with(a.fd(), 13, libc::MSG_WAITALL);
        driver.still_pending(recv);
        put(b.fd(), b"first, ");
        driver.still_pending(recv);
        put(a.fd(), b"when was this sent?");
        let notified = driver.poll(a.fd(), Readiness(libc::POLLPRI));
        let seen = Readiness(driver.wait_for(notified).ok() as i16);
        assert!(seen.intersects(Readiness(libc::POLLERR)), "{seen:?}");
        driver.still_pending(recv);
        put(b.fd(), b"second");
        assert_eq!(driver.wait_for(recv).bytes(), b"first, second");
    }
}

/// What the operation took out of the socket is what it lands with: it did not do nothing.
fn wait_all_cancelled_in_the_middle(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv_with(a.fd(), 100, libc::MSG_WAITALL);
        driver.still_pending(recv);
        put(b.fd(), b"first half");
        driver.still_pending(recv);
        let landed = driver.cancel_and_wait(recv);
        let mut got = if landed.was_cancelled() { Vec::new() } else { landed.bytes().to_vec() };
        put(b.fd(), b", second half");
        while got.len() < 23 {
            let recv = driver.recv(a.fd(), 100);
            got.extend_from_slice(driver.wait_for(recv).bytes());
        }
        assert_eq!(got, b"first half, second half");
    });
}

fn a_peek_for_all_sees_nothing_twice(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let peek = driver.recv_with(a.fd(), 100, libc::MSG_PEEK | libc::MSG_WAITALL);
        driver.still_pending(peek);
        put(b.fd(), b"once");
        assert_eq!(driver.wait_for(peek).bytes(), b"once");
        let peek = driver.recv_with(a.fd(), 100, libc::MSG_PEEK | libc::MSG_WAITALL);
        assert_eq!(driver.wait_for(peek).bytes(), b"once");
        let recv = driver.recv(a.fd(), 100);
        assert_eq!(driver.wait_for(recv).bytes(), b"once");
    });
}

fn wait_all_without_waiting(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let flags = libc::MSG_WAITALL | libc::MSG_DONTWAIT;
        let recv = driver.recv_with(a.fd(), 100, flags);
        driver.wait_for(recv).failed_with(&[libc::EAGAIN]);
        put(b.fd(), b"what is there");
        let recv = driver.recv_with(a.fd(), 100, flags);
        assert_eq!(driver.wait_for(recv).bytes(), b"what is there");
    });
}

fn do_not_wait(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv_with(a.fd(), 16, libc::MSG_DONTWAIT);
        driver.wait_for(recv).failed_with(&[libc::EAGAIN]);
        put(b.fd(), b"now");
        let recv = driver.recv_with(a.fd(), 16, libc::MSG_DONTWAIT);
        assert_eq!(driver.wait_for(recv).bytes(), b"now");
        fill(a.fd(), 0);
        let send = driver.send_with(a.fd(), &pattern(0, 1 << 20), libc::MSG_DONTWAIT);
        let landed = driver.wait_for(send);
        // A late acknowledgement may have made a little room.
        assert!(landed.res == -libc::EAGAIN || landed.ok() < 1 << 20, "{}", landed.res);
    });
}

fn send_waits_for_room(kind: Kind) {
    over_all(kind, |driver, a, b| {
        shrink_send_buffer(a.fd());
        let mut sent = fill(a.fd(), 0);
        let mut got = Vec::new();
        // One send after the other, each into a full socket.
        for _ in 0..3 {
            let send = driver.send(a.fd(), &pattern(sent, 30_000));
            driver.settle();
            let deadline = now() + crate::driver::PATIENCE;
            while !driver.has_landed(send) {
                assert!(now() < deadline, "the send does not go on");
                match raw_recv(b.fd(), 20_000) {
                    Ok(bytes) => got.extend_from_slice(&bytes),
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EAGAIN)),
                }
                driver.turn(Wait::Until(now() + Duration::from_millis(1)));
            }
            sent += driver.wait_for(send).ok();
        }
        while got.len() < sent {
            got.extend_from_slice(&raw_recv_soon(b.fd(), 65536));
        }
        assert!(got == pattern(0, sent), "the bytes are not those that were sent");
    });
}

/// Both directions at once, far more than fits, through one engine.
fn bulk(kind: Kind) {
    let total = 400_000 * scale();
    for transport in Transport::ALL {
        let mut driver = Driver::new(kind);
        let (a, b) = stream_pair(transport, Ownership::Owned);
        let ends = [a.fd(), b.fd()];
        let mut sent = [0usize; 2];
        let mut got = [0usize; 2];
        let mut sends = [None; 2];
        let mut recvs = [None; 2];
        let deadline = now() + crate::driver::PATIENCE * scale() as u32;
        while got[0] < total || got[1] < total {
            assert!(now() < deadline, "{got:?} of {total} bytes, and no further");
            for end in 0..2 {
                if sends[end].is_none() && sent[end] < total {
                    let bytes = pattern(sent[end] + end, (total - sent[end]).min(150_000));
                    sends[end] = Some(driver.send(ends[end], &bytes));
                }
                if recvs[end].is_none() && got[end] < total {
                    recvs[end] = Some(driver.recv(ends[end], 40_001));
                }
            }
            driver.progress(deadline);
            for end in 0..2 {
                if let Some(landed) = sends[end].and_then(|key| driver.take(key)) {
                    sent[end] += landed.ok();
                    sends[end] = None;
                }
                if let Some(landed) = recvs[end].and_then(|key| driver.take(key)) {
                    let bytes = landed.bytes();
                    assert!(!bytes.is_empty(), "the end in mid-stream");
                    // What this end receives, the other sent.
                    let expected = pattern(got[end] + (1 - end), bytes.len());
                    assert!(bytes == expected, "wrong bytes after {}", got[end]);
                    got[end] += bytes.len();
                    recvs[end] = None;
                }
            }
        }
        for send in sends.into_iter().flatten() {
            sent[0] += driver.wait_for(send).ok();
        }
    }
}

fn reset_while_receiving(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (a, b) = stream_pair(Transport::Tcp, ownership);
        let recv = driver.recv(a.fd(), 16);
        driver.still_pending(recv);
        reset_on_close(b.fd());
        drop(b);
        driver.wait_for(recv).failed_with(&[libc::ECONNRESET]);
        let send = driver.send(a.fd(), b"x");
        driver.wait_for(send).failed_with(&[libc::EPIPE, libc::ECONNRESET]);
        let recv = driver.recv(a.fd(), 16);
        assert_eq!(driver.wait_for(recv).ok(), 0);
    }
}

fn reset_while_sending(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (a, b) = stream_pair(Transport::Tcp, ownership);
        shrink_send_buffer(a.fd());
        fill(a.fd(), 0);
        let send = driver.send(a.fd(), &pattern(0, 4 << 20));
        driver.linger(Duration::from_millis(5));
        let mut sends = vec![send];
        // A late acknowledgement may have let some of it in: then the next one waits.
        while driver.has_landed(*sends.last().unwrap()) {
            sends.push(driver.send(a.fd(), &pattern(0, 4 << 20)));
            driver.linger(Duration::from_millis(5));
        }
        reset_on_close(b.fd());
        drop(b);
        let last = sends.pop().unwrap();
        let landed = driver.wait_for(last);
        // It may have been in the middle: then what went in is the result, and the next one fails.
        if landed.res < 0 {
            landed.failed_with(&[libc::ECONNRESET, libc::EPIPE]);
        } else {
            let send = driver.send(a.fd(), b"x");
            driver.wait_for(send).failed_with(&[libc::ECONNRESET, libc::EPIPE]);
        }
        for send in sends {
            driver.wait_for(send).ok();
        }
    }
}

/// The sender finds a broken pipe, the receiver the error, once, and then the end.
fn unread_bytes_break_a_unix_stream(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (a, b) = stream_pair(Transport::Unix, ownership);
        put(a.fd(), b"never read");
        drop(b);
        for _ in 0..2 {
            let send = driver.send(a.fd(), b"more");
            driver.wait_for(send).failed_with(&[libc::EPIPE]);
        }
        let recv = driver.recv(a.fd(), 16);
        driver.wait_for(recv).failed_with(&[libc::ECONNRESET]);
        let recv = driver.recv(a.fd(), 16);
        assert_eq!(driver.wait_for(recv).ok(), 0);
        // Told to a receive that has bytes to return, the error is gone.
        let (a, b) = stream_pair(Transport::Unix, ownership);
        put(a.fd(), b"never read");
        put(b.fd(), b"read");
        drop(b);
        let recv = driver.recv_with(a.fd(), 16, libc::MSG_WAITALL);
        assert_eq!(driver.wait_for(recv).bytes(), b"read");
        let recv = driver.recv(a.fd(), 16);
        assert_eq!(driver.wait_for(recv).ok(), 0);
    }
}

/// The process has SIGPIPE at its default here: a single one ends it.
fn broken_pipe_raises_no_signal(kind: Kind) {
    over_all(kind, |driver, a, b| {
        drop(b);
        // The first may still be taken by TCP.
        for _ in 0..3 {
            let send = driver.send(a.fd(), b"x");
            driver.wait_for(send);
            driver.linger(Duration::from_millis(1));
        }
        let send = driver.send(a.fd(), b"x");
        driver.wait_for(send).failed_with(&[libc::EPIPE]);
        let message = Message::new(vec![b"x".to_vec()], None, vec![]);
        let send = driver.send_message(a.fd(), message, 0);
        driver.wait_for(send).failed_with(&[libc::EPIPE]);
    });
    if is_simulated() {
        return; // no pipes there
    }
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (reader, writer) = pipe(ownership);
        drop(reader);
        for _ in 0..3 {
            let write = driver.write(writer.fd(), b"x", kapok_engine::Op::CURRENT_POSITION);
            driver.wait_for(write).failed_with(&[libc::EPIPE]);
        }
    }
}

fn shutdown_wakes_the_own_receive(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv(a.fd(), 16);
        driver.still_pending(recv);
        let shutdown = driver.shutdown(a.fd(), libc::SHUT_RDWR);
        assert_eq!(driver.wait_for(shutdown).ok(), 0);
        assert_eq!(driver.wait_for(recv).ok(), 0);
        let recv = driver.recv(b.fd(), 16);
        assert_eq!(driver.wait_for(recv).ok(), 0);
        let poll = driver.poll(b.fd(), Readiness::READABLE);
        assert!(driver.wait_for(poll).ok() > 0);
    });
}

fn scattered_and_gathered(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv_message(a.fd(), Message::room(&[3, 1, 40]), 0);
        driver.still_pending(recv);
        let parts = vec![b"gathered ".to_vec(), vec![], b"and ".to_vec(), b"scattered".to_vec()];
        let send = driver.send_message(b.fd(), Message::new(parts, None, vec![]), 0);
        assert_eq!(driver.wait_for(send).ok(), 22);
        let landed = driver.wait_for(recv);
        let message = landed.lent.message.as_ref().unwrap();
        assert_eq!(&message.bytes()[..landed.ok()], b"gathered and scattered");
        // A full socket makes a gathered send wait, too.
        shrink_send_buffer(b.fd());
        let filled = fill(b.fd(), 0);
        let parts = vec![pattern(filled, 1000), pattern(filled + 1000, 50_000)];
        let send = driver.send_message(b.fd(), Message::new(parts, None, vec![]), 0);
        driver.settle();
        let mut got = Vec::new();
        let deadline = now() + crate::driver::PATIENCE;
        while !driver.has_landed(send) {
            assert!(now() < deadline, "the send does not go on");
            if let Ok(bytes) = raw_recv(a.fd(), 65536) {
                got.extend_from_slice(&bytes);
            }
            driver.turn(Wait::Until(now() + Duration::from_millis(1)));
        }
        let total = filled + driver.wait_for(send).ok();
        while got.len() < total {
            got.extend_from_slice(&raw_recv_soon(a.fd(), 65536));
        }
        assert!(got == pattern(0, total), "the bytes are not those that were sent");
        let recv = driver.recv_message(a.fd(), Message::room(&[3]), 0);
        driver.still_pending(recv);
        drop(b);
        assert_eq!(driver.wait_for(recv).ok(), 0);
    });
}

fn descriptors_are_passed(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (a, b) = stream_pair(Transport::Unix, ownership);
        let (reader, writer) = pipe(Ownership::Foreign);
        let recv = driver.recv_message(a.fd(), Message::room(&[16]), 0);
        driver.still_pending(recv);
        let control = Message::passing(writer.fd());
        let message = Message::new(vec![b"have this".to_vec()], None, control);
        let send = driver.send_message(b.fd(), message, 0);
        assert_eq!(driver.wait_for(send).ok(), 9);
        let landed = driver.wait_for(recv);
        assert_eq!(landed.ok(), 9);
        let passed = landed.lent.message.as_ref().unwrap().passed().expect("a descriptor");
        drop(writer);
        assert!(is_close_on_exec(passed), "a received descriptor is not close-on-exec");
        assert_eq!(crate::sockets::raw_write(passed, b"through it").unwrap(), 10);
        crate::sockets::close_number(passed);
        let read = driver.read(reader.fd(), 64, kapok_engine::Op::CURRENT_POSITION);
        assert_eq!(driver.wait_for(read).bytes(), b"through it");
        assert_eq!(driver.engine().in_flight(), 0);
    }
}
