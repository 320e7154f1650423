//! What threads, tokio's tasks and Kapok's fibers take to be made and to be switched to.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::thread;

use super::{Measure, Subject, each, nanoseconds, try_each};
use crate::compare::environment::pin;
use crate::meters::thread_cpu_time;

const TURNS: u32 = 2_000;

pub(super) fn subjects(cores: &[usize]) -> Vec<Subject> {
    let core = cores.first().copied();
    vec![
        Subject::new(
            "thread spawn",
            10_000.0,
            "made, run and joined on the core of its maker; it does nothing",
            move || {
                on_one_thread(core, || {
                    Ok(Box::new(|| {
                        try_each(100, || {
                            let made = thread::Builder::new().spawn(|| {})?;
                            made.join().map_err(|_| io::Error::other("it panicked"))
                        })
                    }))
                })
            },
        ),
        Subject::new(
            "task switch, tokio",
            None,
            "a yield among two tasks of a current-thread runtime",
            move || {
                on_one_thread(core, || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
                    Ok(Box::new(move || {
                        runtime.block_on(async {
                            let other = tokio::spawn(async {
                                for _ in 0..TURNS {
                                    tokio::task::yield_now().await;
                                }
                            });
                            let begun = thread_cpu_time();
                            for _ in 0..TURNS {
                                tokio::task::yield_now().await;
                            }
                            let time = nanoseconds(thread_cpu_time() - begun);
                            let _ = other.await;
                            // Each of the two was switched to so often.
                            Ok(time / f64::from(TURNS) / 2.0)
                        })
                    }))
                })
            },
        ),
        Subject::new(
            "task spawn, tokio",
            None,
            "made, run and joined on a current-thread runtime; it does nothing",
            move || {
                on_one_thread(core, || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
                    Ok(Box::new(move || {
                        runtime.block_on(async {
                            let begun = thread_cpu_time();
                            for _ in 0..TURNS {
                                let _ = tokio::spawn(async {}).await;
                            }
                            Ok(nanoseconds(thread_cpu_time() - begun) / f64::from(TURNS))
                        })
                    }))
                })
            },
        ),
        Subject::new("fiber switch", None, "a yield among two fibers of one loop", move || {
            on_one_thread(core, || {
                let runtime = kapok::Runtime::new()?;
                Ok(Box::new(move || {
                    Ok(runtime.run(|| {
                        let other = kapok::spawn_local(|| {
                            for _ in 0..TURNS {
                                kapok::yield_now();
                            }
                        });
                        let time = each(u64::from(TURNS), kapok::yield_now);
                        let _ = other.join();
                        time / 2.0
                    }))
                }))
            })
        }),
        Subject::new(
            "fiber spawn",
            None,
            "made, run and joined on one loop, with a stack that was used before; it does nothing",
            move || {
                on_one_thread(core, || {
                    let runtime = kapok::Runtime::new()?;
                    Ok(Box::new(move || {
                        Ok(runtime.run(|| {
                            each(u64::from(TURNS), || {
                                let _ = kapok::spawn_local(|| {}).join();
                            })
                        }))
                    }))
                })
            },
        ),
    ]
}

/// Runs all rounds on one thread of its own, that stays on a core: a runtime is bound to the thread it runs
/// on.
fn on_one_thread(
    core: Option<usize>,
    prepare: impl FnOnce() -> io::Result<Measure> + Send + 'static,
) -> io::Result<Measure> {
    use std::sync::mpsc;
    let (ask, asked) = mpsc::channel::<()>();
    let (answer, answers) = mpsc::channel();
    let worker = thread::spawn(move || {
        let prepared = core.map_or(Ok(()), |core| pin(&[core])).and_then(|()| prepare());
        let mut measure = match prepared {
            Ok(measure) => measure,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        for () in asked {
            if answer.send(measure()).is_err() {
                return;
            }
        }
    });
    // Joined with the last of the closure that asks.
    let worker = Rc::new(RefCell::new(Worker { ask: Some(ask), thread: Some(worker) }));
    Ok(Box::new(move || {
        let gone = || io::Error::other("the thread has ended");
        let asked = worker.borrow().ask.as_ref().map(|ask| ask.send(()));
        // One that failed to prepare has left its reason.
        match asked {
            Some(_) => answers.recv().map_err(|_| gone())?,
            None => Err(gone()),
        }
    }))
}

struct Worker {
    ask: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.ask.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
