//! Pipes: waiting, atomic writes, ends; and that a blocking one does not block the loop.

use std::time::Duration;

use kapok_engine::{Key, Kind, Op, Wait};

use crate::driver::Driver;
use crate::sockets::{Descriptor, Ownership, pattern, pipe, raw_write, set_nonblocking};
use crate::world::now;

conformance! {
    through,
    end,
    an_empty_buffer_is_no_end,
    an_empty_buffer_waits_for_nobody,
    full,
    read_and_write_pend_together,
    a_blocking_pipe_does_not_block_the_loop,
    cancel_loses_nothing,
    fifo,
}

fn over_all(kind: Kind, body: fn(&mut Driver, Descriptor, Descriptor)) {
    for ownership in Ownership::ALL {
        crate::isolated::doing(format_args!("{ownership:?}"));
        let (reader, writer) = pipe(ownership);
        body(&mut Driver::new(kind), reader, writer);
    }
}

fn read(driver: &mut Driver, fd: &Descriptor, len: usize) -> Key {
    driver.read(fd.fd(), len, Op::CURRENT_POSITION)
}

fn write(driver: &mut Driver, fd: &Descriptor, bytes: &[u8]) -> Key {
    driver.write(fd.fd(), bytes, Op::CURRENT_POSITION)
}

fn through(kind: Kind) {
    over_all(kind, |driver, reader, writer| {
        for round in 0..30 {
            let bytes = pattern(round, 1 + round * 10);
            let reading = read(driver, &reader, 1000);
            driver.turn(Wait::No);
            let writing = write(driver, &writer, &bytes);
            assert_eq!(driver.wait_for(writing).ok(), bytes.len());
            assert_eq!(driver.wait_for(reading).bytes(), bytes);
            // The write first, and read in two.
            let writing = write(driver, &writer, b"in two");
            assert_eq!(driver.wait_for(writing).ok(), 6);
            let reading = read(driver, &reader, 2);
            assert_eq!(driver.wait_for(reading).bytes(), b"in");
            let reading = read(driver, &reader, 64);
            assert_eq!(driver.wait_for(reading).bytes(), b" two");
        }
    });
}

fn end(kind: Kind) {
    over_all(kind, |driver, reader, writer| {
        let reading = read(driver, &reader, 8);
        driver.still_pending(reading);
        assert_eq!(raw_write(writer.fd(), b"last words").unwrap(), 10);
        drop(writer);
        assert_eq!(driver.wait_for(reading).bytes(), b"last wor");
        let reading = read(driver, &reader, 8);
        assert_eq!(driver.wait_for(reading).bytes(), b"ds");
        for _ in 0..3 {
            let reading = read(driver, &reader, 8);
            assert_eq!(driver.wait_for(reading).ok(), 0);
        }
    });
    over_all(kind, |driver, reader, writer| {
        let reading = read(driver, &reader, 8);
        driver.still_pending(reading);
        drop(writer);
        assert_eq!(driver.wait_for(reading).ok(), 0);
    });
}

fn an_empty_buffer_is_no_end(kind: Kind) {
    over_all(kind, |driver, reader, writer| {
        let reading = read(driver, &reader, 0);
        assert_eq!(driver.wait_for(reading).ok(), 0);
        assert_eq!(raw_write(writer.fd(), b"data").unwrap(), 4);
        let reading = read(driver, &reader, 0);
        assert_eq!(driver.wait_for(reading).ok(), 0);
        let reading = read(driver, &reader, 8);
        assert_eq!(driver.wait_for(reading).bytes(), b"data");
    });
}

/// Not even for the reads before it, which wait for bytes.
fn an_empty_buffer_waits_for_nobody(kind: Kind) {
    over_all(kind, |driver, reader, writer| {
        let waiting = read(driver, &reader, 8);
        driver.still_pending(waiting);
        let empty = read(driver, &reader, 0);
        assert_eq!(driver.wait_for(empty).ok(), 0);
        driver.still_pending(waiting);
        assert_eq!(raw_write(writer.fd(), b"data").unwrap(), 4);
        assert_eq!(driver.wait_for(waiting).bytes(), b"data");
    });
}

/// Fills a pipe from position 0 of the pattern and returns how much went in.
fn fill(writer: &Descriptor, ownership_blocking: bool) -> usize {
    set_nonblocking(writer.fd(), true);
    let mut filled = 0;
    while let Ok(n) = raw_write(writer.fd(), &pattern(filled, 4096)) {
        filled += n;
    }
    set_nonblocking(writer.fd(), !ownership_blocking);
    filled
}

/// Reads what is in the pipe and what the pending `writing` adds to it, and no more.
fn drain(driver: &mut Driver, reader: &Descriptor, writing: Key, in_the_pipe: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let mut total = None;
    let deadline = now() + crate::driver::PATIENCE;
    while total.is_none_or(|total| got.len() < total) {
        let reading = read(driver, reader, 5000);
        while !driver.has_landed(reading) && !driver.has_landed(writing) {
            assert!(now() < deadline, "neither the read nor the write goes on");
            driver.progress(deadline);
        }
        if let Some(landed) = driver.take(writing) {
            total = Some(in_the_pipe + landed.ok());
        }
        // If the write landed first, there may be nothing left for the read.
        let landed = if total == Some(got.len()) {
            driver.cancel_and_wait(reading)
        } else {
            driver.wait_for(reading)
        };
        if !landed.was_cancelled() {
            got.extend_from_slice(landed.bytes());
        }
    }
    assert_eq!(Some(got.len()), total);
    got
}

fn full(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (reader, writer) = pipe(ownership);
        let filled = fill(&writer, ownership == Ownership::ForeignBlocking);
        let writing = write(&mut driver, &writer, &pattern(filled, 10_000));
        driver.still_pending(writing);
        let got = drain(&mut driver, &reader, writing, filled);
        assert!(got == pattern(0, got.len()), "the bytes are not those that were written");
    }
}

fn read_and_write_pend_together(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (one_reader, one_writer) = pipe(ownership);
        let (two_reader, two_writer) = pipe(ownership);
        let filled = fill(&two_writer, ownership == Ownership::ForeignBlocking);
        let reading = read(&mut driver, &one_reader, 16);
        let writing = write(&mut driver, &two_writer, b"later");
        driver.still_pending(reading);
        driver.still_pending(writing);
        assert_eq!(raw_write(one_writer.fd(), b"now").unwrap(), 3);
        assert_eq!(driver.wait_for(reading).bytes(), b"now");
        let mut drained = 0;
        while drained < filled {
            let reading = read(&mut driver, &two_reader, 65536);
            drained += driver.wait_for(reading).ok();
        }
        assert_eq!(driver.wait_for(writing).ok(), 5);
    }
}

fn a_blocking_pipe_does_not_block_the_loop(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (reader, writer) = pipe(Ownership::ForeignBlocking);
    // Two readers, one piece: whoever comes second must not call read(2) and stay there.
    let readings = [read(&mut driver, &reader, 16), read(&mut driver, &reader, 16)];
    driver.settle();
    let timer = driver.timer(now() + Duration::from_millis(3));
    assert_eq!(driver.wait_for(timer).ok(), 0);
    assert_eq!(raw_write(writer.fd(), b"one").unwrap(), 3);
    let timer = driver.timer(now() + Duration::from_millis(3));
    assert_eq!(driver.wait_for(timer).ok(), 0);
    let landed = readings.map(|key| driver.has_landed(key));
    assert_eq!(landed.iter().filter(|&&landed| landed).count(), 1, "one piece, {landed:?}");
    assert_eq!(raw_write(writer.fd(), b"two").unwrap(), 3);
    let mut got = readings.map(|key| driver.wait_for(key).bytes().to_vec());
    got.sort();
    assert_eq!(got, [b"one".to_vec(), b"two".to_vec()]);
    // A write of more than the free room.
    let filled = fill(&writer, true);
    let first = read(&mut driver, &reader, 4096);
    assert_eq!(driver.wait_for(first).ok(), 4096);
    let writing = write(&mut driver, &writer, &pattern(filled, 200_000));
    let timer = driver.timer(now() + Duration::from_millis(3));
    assert_eq!(driver.wait_for(timer).ok(), 0);
    let got = drain(&mut driver, &reader, writing, filled - 4096);
    assert!(got == pattern(4096, got.len()), "the bytes are not those that were written");
}

fn cancel_loses_nothing(kind: Kind) {
    over_all(kind, |driver, reader, writer| {
        let (mut sent, mut got) = (0, Vec::new());
        for round in 0..200 {
            let reading = read(driver, &reader, 3);
            if round % 3 == 0 {
                driver.turn(Wait::No);
            }
            sent += raw_write(writer.fd(), &pattern(sent, 1 + round % 4)).unwrap();
            let landed = driver.cancel_and_wait(reading);
            if !landed.was_cancelled() {
                got.extend_from_slice(landed.bytes());
            }
        }
        while got.len() < sent {
            let reading = read(driver, &reader, 4096);
            got.extend_from_slice(driver.wait_for(reading).bytes());
        }
        assert_eq!(got, pattern(0, sent));
    });
}

fn fifo(kind: Kind) {
    let directory = crate::sockets::Directory::new();
    let path = directory.join("fifo");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a NUL.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let mut driver = Driver::new(kind);
    let flags = libc::O_RDONLY | libc::O_NONBLOCK;
    let opening = driver.open(libc::AT_FDCWD, path.to_str().unwrap(), flags, 0);
    let reader = crate::sockets::landed_descriptor(driver.wait_for(opening).ok());
    // Opening the other end waits for nobody: the reader is there.
    let opening = driver.open(libc::AT_FDCWD, path.to_str().unwrap(), libc::O_WRONLY, 0);
    let writer = crate::sockets::landed_descriptor(driver.wait_for(opening).ok());
    let reading = read(&mut driver, &reader, 16);
    driver.still_pending(reading);
    let writing = write(&mut driver, &writer, b"named");
    assert_eq!(driver.wait_for(writing).ok(), 5);
    assert_eq!(driver.wait_for(reading).bytes(), b"named");
    drop(writer);
    let reading = read(&mut driver, &reader, 16);
    assert_eq!(driver.wait_for(reading).ok(), 0);
}
