//! What the kernel takes: a call, a switch, a page.

use std::io::{self, Read, Write};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use super::{Measure, Subject, each, middle_of};
use crate::compare::environment::pin;

pub(super) fn subjects(cores: &[usize]) -> Vec<Subject> {
    let mut subjects = vec![
        Subject::new("system call", 100.0, "getppid(2), which does nothing", || {
            Ok(Box::new(|| {
                Ok(each(20_000, || {
                    // SAFETY: getppid takes nothing.
                    unsafe { libc::syscall(libc::SYS_getppid) };
                }))
            }))
        }),
        Subject::new(
            "page fault",
            1_000.0,
            "the first write to a fresh page of 4 KiB, which the kernel clears",
            || Ok(Box::new(page_faults)),
        ),
    ];
    if let Some(&core) = cores.first() {
        subjects.push(Subject::new(
            "thread switch",
            3_000.0,
            "two threads on one core, a byte to and fro over two pipes: half of the middle one of 200 \
             rounds, which is a switch, a write and a read",
            move || ping_pong(core, core),
        ));
    }
    if let &[one, .., other] = cores {
        subjects.push(Subject::new(
            "thread wake-up, other core",
            5_000.0,
            "the same with a core for each thread",
            move || ping_pong(one, other),
        ));
    }
    subjects
}

fn page_faults() -> io::Result<f64> {
    const PAGES: usize = 2_000;
    const PAGE: usize = 4_096;
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGES * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is ours and of that size. A large page would be one fault for 512.
    unsafe { libc::madvise(memory, PAGES * PAGE, libc::MADV_NOHUGEPAGE) };
    let mut page = 0;
    let time = each(PAGES as u64, || {
        // SAFETY: within the mapping, which nobody else knows.
        unsafe { memory.cast::<u8>().add(page * PAGE).write_volatile(1) };
        page += 1;
    });
    // SAFETY: the mapping is ours, and nothing refers to it any more.
    unsafe { libc::munmap(memory, PAGES * PAGE) };
    Ok(time)
}

/// Two threads, and what they say to each other.
struct PingPong {
    /// Asks the first for so many rounds, which answers with the nanoseconds of the middle one.
    ask: Option<mpsc::Sender<usize>>,
    answers: mpsc::Receiver<io::Result<f64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for PingPong {
    fn drop(&mut self) {
        // The first ends for want of questions and closes its pipe, the second at the end of that.
        drop(self.ask.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn ping_pong(one: usize, other: usize) -> io::Result<Measure> {
    let (mut there, mut to_there) = io::pipe()?;
    let (mut here, mut to_here) = io::pipe()?;
    let (ask, asked) = mpsc::channel::<usize>();
    let (answer, answers) = mpsc::channel();
    let first = thread::spawn(move || {
        let pinned = pin(&[one]);
        for rounds in asked {
            let time = middle_of(rounds, || {
                to_there.write_all(&[1])?;
                here.read_exact(&mut [0])
            });
            let failed = pinned.as_ref().err().map(|error| io::Error::other(error.to_string()));
            if answer.send(failed.map_or(time, Err)).is_err() {
                return;
            }
        }
    });
    let second = thread::spawn(move || {
        // The first says so if a core is refused.
        let _ = pin(&[other]);
        while there.read_exact(&mut [0]).and_then(|()| to_here.write_all(&[1])).is_ok() {}
    });
    let pair = PingPong { ask: Some(ask), answers, threads: vec![first, second] };
    Ok(Box::new(move || {
        let gone = || io::Error::other("the threads have ended");
        pair.ask.as_ref().and_then(|ask| ask.send(200).ok()).ok_or_else(gone)?;
        let round = pair.answers.recv().map_err(|_| gone())??;
        Ok(round / 2.0)
    }))
}
