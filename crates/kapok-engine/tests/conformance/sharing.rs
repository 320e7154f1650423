//! Several operations on one descriptor, and several descriptors of one file.

use std::time::Duration;

use kapok_engine::{Kind, Wait};

use crate::driver::{Driver, PATIENCE};
use crate::sockets::{
    Descriptor, Ownership, Transport, fill, pattern, put, raw_recv, shrink_send_buffer, stream_pair,
};
use crate::world::now;

conformance! {
    each_byte_goes_to_one_receiver,
    one_byte_wakes_one_receiver,
    all_receivers_see_the_end,
    reader_and_writer_pend_together,
    senders_take_turns,
    duplicates_pend_together,
    duplicate_is_closed_while_the_other_waits,
    both_ends_of_a_pair,
}

fn over_all(kind: Kind, body: fn(&mut Driver, Descriptor, Descriptor)) {
    for transport in Transport::ALL {
        for ownership in Ownership::ALL {
            crate::isolated::doing(format_args!("{transport:?}, {ownership:?}"));
            let (a, b) = stream_pair(transport, ownership);
            body(&mut Driver::new(kind), a, b);
        }
    }
}

fn each_byte_goes_to_one_receiver(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recvs: Vec<_> = (0..8).map(|_| driver.recv(a.fd(), 3)).collect();
        driver.settle();
        // One edge has enough for all of them.
        let bytes: Vec<u8> = (0..24).collect();
        put(b.fd(), &bytes);
        let mut got: Vec<u8> = driver
            .wait_for_all(&recvs)
            .iter()
            .flat_map(|landed| {
                assert_eq!(landed.ok(), 3);
                landed.bytes().to_vec()
            })
            .collect();
        got.sort();
        assert_eq!(got, bytes);
    });
}

fn one_byte_wakes_one_receiver(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let mut recvs: Vec<_> = (0..6).map(|_| driver.recv(a.fd(), 8)).collect();
        for byte in 0..6u8 {
            driver.settle();
            put(b.fd(), &[byte]);
            let deadline = now() + PATIENCE;
            while !recvs.iter().any(|&recv| driver.has_landed(recv)) {
                assert!(now() < deadline, "byte {byte} wakes nobody");
                driver.progress(deadline);
            }
            driver.settle();
            let (landed, rest): (Vec<_>, Vec<_>) =
                recvs.iter().partition(|&&recv| driver.has_landed(recv));
            assert_eq!(landed.len(), 1, "one byte landed {} receives", landed.len());
            assert_eq!(driver.wait_for(landed[0]).bytes(), [byte]);
            recvs = rest;
        }
    });
}

fn all_receivers_see_the_end(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recvs: Vec<_> = (0..5).map(|_| driver.recv(a.fd(), 100)).collect();
        driver.settle();
        put(b.fd(), b"last");
        drop(b);
        let got: Vec<_> =
            driver.wait_for_all(&recvs).iter().flat_map(|l| l.bytes().to_vec()).collect();
        assert_eq!(got, b"last");
    });
}

fn reader_and_writer_pend_together(kind: Kind) {
    over_all(kind, |driver, a, b| {
        shrink_send_buffer(a.fd());
        let mut sent = fill(a.fd(), 0);
        for reader_first in [true, false] {
            let mut recv = None;
            if reader_first {
                recv = Some(driver.recv(a.fd(), 64));
            }
            let send = driver.send(a.fd(), &pattern(sent, 20_000));
            let recv = recv.unwrap_or_else(|| driver.recv(a.fd(), 64));
            driver.settle();
            // News for the one is none for the other.
            put(b.fd(), b"for the reader");
            assert_eq!(driver.wait_for(recv).bytes(), b"for the reader");
            let recv = driver.recv(a.fd(), 64);
            let deadline = now() + PATIENCE;
            while !driver.has_landed(send) {
                assert!(now() < deadline, "the send does not go on");
                let _ = raw_recv(b.fd(), 65536);
                driver.turn(Wait::Until(now() + Duration::from_millis(1)));
            }
            sent += driver.wait_for(send).ok();
            driver.still_pending(recv);
            put(b.fd(), b"again");
            assert_eq!(driver.wait_for(recv).bytes(), b"again");
            sent += fill(a.fd(), sent);
        }
    });
}

/// Several sends into a full socket: all land, and what they say went out is what arrives.
fn senders_take_turns(kind: Kind) {
    over_all(kind, |driver, a, b| {
        shrink_send_buffer(a.fd());
        let filled = fill(a.fd(), 0);
        let sends: Vec<_> = (1..=5u8).map(|byte| driver.send(a.fd(), &[byte; 500])).collect();
        driver.settle();
        let mut got = Vec::new();
        let deadline = now() + PATIENCE;
        while !sends.iter().all(|&send| driver.has_landed(send)) {
            assert!(now() < deadline, "a send does not go on");
            got.extend(raw_recv(b.fd(), 65536).unwrap_or_default());
            driver.turn(Wait::Until(now() + Duration::from_millis(1)));
        }
        let sent: Vec<_> = driver.wait_for_all(&sends).iter().map(|l| l.ok()).collect();
        let total = filled + sent.iter().sum::<usize>();
        while got.len() < total {
            let recv = driver.recv(b.fd(), 65536);
            got.extend_from_slice(driver.wait_for(recv).bytes());
        }
        assert_eq!(got.len(), total);
        assert!(got[..filled] == pattern(0, filled), "wrong bytes before the sends");
        for (at, &sent) in sent.iter().enumerate() {
            let byte = at as u8 + 1;
            let arrived = got[filled..].iter().filter(|&&b| b == byte).count();
            assert_eq!(arrived, sent, "send {byte} landed with {sent}");
        }
    });
}

fn duplicates_pend_together(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let duplicate = a.duplicate();
        for _ in 0..10 {
            let recvs = [driver.recv(a.fd(), 1), driver.recv(duplicate.fd(), 1)];
            driver.settle();
            put(b.fd(), b"12");
            let mut got = recvs.map(|recv| driver.wait_for(recv).bytes().to_vec());
            got.sort();
            assert_eq!(got, [b"1".to_vec(), b"2".to_vec()]);
        }
    });
}

fn duplicate_is_closed_while_the_other_waits(kind: Kind) {
    over_all(kind, |driver, a, b| {
        for _ in 0..5 {
            let duplicate = a.duplicate();
            let other = driver.recv(duplicate.fd(), 8);
            let recv = driver.recv(a.fd(), 8);
            driver.settle();
            assert!(driver.cancel_and_wait(other).was_cancelled());
            let close = driver.close(duplicate.into_number());
            assert_eq!(driver.wait_for(close).ok(), 0);
            driver.still_pending(recv);
            put(b.fd(), b"x");
            assert_eq!(driver.wait_for(recv).bytes(), b"x");
        }
    });
}

fn both_ends_of_a_pair(kind: Kind) {
    over_all(kind, |driver, a, b| {
        for _ in 0..20 {
            let recvs = [driver.recv(a.fd(), 8), driver.recv(b.fd(), 8)];
            let sends = [driver.send(a.fd(), b"from a"), driver.send(b.fd(), b"from b")];
            driver.wait_for_all(&sends);
            assert_eq!(driver.wait_for(recvs[0]).bytes(), b"from b");
            assert_eq!(driver.wait_for(recvs[1]).bytes(), b"from a");
        }
    });
}
