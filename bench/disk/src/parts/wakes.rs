//! How a thread that sleeps in its ring is woken: until it has answered, and another waits for that
//! awake.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

use crate::Case;

pub(crate) fn case() -> io::Result<Case> {
    Ok(Case {
        name: "wake-up of a thread that sleeps, until it answers",
        count: 2_000,
        ways: vec![
            ("an eventfd under a multishot poll", Box::new(|count| ring(count, By::Eventfd))),
            ("a ring message, from a ring", Box::new(|count| ring(count, By::Message))),
            ("a ring message, without a ring", Box::new(|count| ring(count, By::Registration))),
            ("a futex: what waits on a ring cannot", Box::new(futex)),
        ],
    })
}

#[derive(Clone, Copy, PartialEq)]
enum By {
    Eventfd,
    Message,
    Registration,
}

const STOP: u64 = u64::MAX;

/// Pauses, so that the other sleeps, wakes it, and waits for its answer.
fn ask(
    count: u64,
    answers: &AtomicU64,
    mut wake: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
    for at in 1..=count {
        let pause = Instant::now();
        while pause.elapsed() < Duration::from_micros(20) {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        wake(at)?;
        while answers.load(Ordering::Acquire) < at {
            std::hint::spin_loop();
        }
        total += start.elapsed();
    }
    Ok(total)
}

fn ring(count: u64, by: By) -> io::Result<Duration> {
    // SAFETY: a new descriptor.
    let event = unsafe {
        match libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) {
            -1 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    let answers = Arc::new(AtomicU64::new(0));
    let (sender, receiver) = std::sync::mpsc::channel::<RawFd>();
    let fd = event.as_raw_fd();
    let sleeper = {
        let answers = Arc::clone(&answers);
        thread::spawn(move || -> io::Result<()> {
            let mut ring: IoUring = IoUring::builder()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_coop_taskrun()
                .build(64)?;
            let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32)
                .multi(true)
                .build()
                .user_data(1 << 32);
            // SAFETY: a poll names no memory; the descriptor outlives the thread.
            unsafe { ring.submission().push(&poll) }.map_err(io::Error::other)?;
            ring.submit()?;
            sender.send(ring.as_raw_fd()).map_err(io::Error::other)?;
            let mut stops = false;
            while !stops {
                ring.submit_and_wait(1)?;
                for entry in ring.completion() {
                    stops |= entry.user_data() == STOP;
                    // An event of the descriptor's may be the last one.
                    stops |=
                        entry.user_data() == 1 << 32 && answers.load(Ordering::Relaxed) == STOP - 1;
                }
                if !stops {
                    answers.fetch_add(1, Ordering::Release);
                }
            }
            Ok(())
        })
    };
    let target = receiver.recv().map_err(io::Error::other)?;
    let mut own: IoUring = IoUring::new(8)?;
    let mut message = |data: u64| -> io::Result<()> {
        let entry = opcode::MsgRingData::new(types::Fd(target), 0, data, None).build();
        match by {
            By::Registration => {
                const SEND_MSG_RING: libc::c_uint = 31;
                // SAFETY: one entry, which outlives the call.
                let res = unsafe {
                    libc::syscall(
                        libc::SYS_io_uring_register,
                        -1,
                        SEND_MSG_RING,
                        &raw const entry,
                        1,
                    )
                };
                if res < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            }
            _ => {
                // SAFETY: a message names no memory.
                unsafe { own.submission().push(&entry) }.map_err(io::Error::other)?;
                own.submit()?;
                own.completion().for_each(drop);
                Ok(())
            }
        }
    };
    let took = ask(count, &answers, |at| match by {
        By::Eventfd => {
            let one = 1u64;
            // SAFETY: eight bytes of a local.
            let res = unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
            if res < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        }
        _ => message(at),
    });
    let mut end = opcode::MsgRingData::new(types::Fd(target), 0, STOP, None).build();
    end = end.user_data(0);
    // SAFETY: a message names no memory.
    unsafe { own.submission().push(&end) }.map_err(io::Error::other)?;
    own.submit()?;
    sleeper.join().map_err(|_| io::Error::other("the sleeper panicked"))??;
    took
}

fn futex(count: u64) -> io::Result<Duration> {
    let answers = Arc::new(AtomicU64::new(0));
    let asked = Arc::new(AtomicU64::new(0));
    let sleeper = {
        let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
        thread::spawn(move || {
            let mut seen = 0;
            loop {
                match asked.load(Ordering::Acquire) {
                    STOP => return,
                    at if at > seen => {
                        seen = at;
                        answers.store(at, Ordering::Release);
                    }
                    _ => thread::park(),
                }
            }
        })
    };
    let took = ask(count, &answers, |at| {
        asked.store(at, Ordering::Release);
        sleeper.thread().unpark();
        Ok(())
    });
    asked.store(STOP, Ordering::Release);
    sleeper.thread().unpark();
    sleeper.join().map_err(|_| io::Error::other("the sleeper panicked"))?;
    took
}
