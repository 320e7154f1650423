//! Fibers and futures: a fiber awaits any future, and `select!` waits for the first of several.
//!
//! ```text
//! cargo run -p kapok --example await_future [ADDRESS]
//! ```
//!
//! At first the main fiber awaits an `async fn` that depends on a plain thread. Then it serves
//! echo connections, and hears from a timer and from the fibers that serve, all in one `select!`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use kapok::net::TcpListener;
use kapok::signal::Signals;
use kapok::sync::channel;

/// A future made by hand: ready when some thread has rung. It knows of no fibers.
#[derive(Clone, Default)]
struct Doorbell(Arc<Mutex<Ring>>);

#[derive(Default)]
struct Ring {
    rung: bool,
    waker: Option<Waker>,
}

impl Doorbell {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        let mut ring = self.lock();
        ring.rung = true;
        let waker = ring.waker.take();
        drop(ring);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Doorbell {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut ring = self.lock();
        if ring.rung {
            return Poll::Ready(());
        }
        ring.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Any async code will do, whoever wrote it.
async fn wait_for_visitor(bell: Doorbell) -> &'static str {
    bell.await;
    "the bell has rung"
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    kapok::Runtime::new()?.run(move || {
        let bell = Doorbell::default();
        let visitor = bell.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            visitor.ring();
        });
        // Suspends this fiber, and not the thread.
        println!("{}", kapok::block_on(wait_for_visitor(bell)));

        serve(&address)
    })
}

fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let mut signals = Signals::termination()?;
    println!("listening on {}", listener.local_addr()?);
    let (sender, finished) = channel::bounded(16);

    let period = Duration::from_millis(500);
    let mut next_report = Instant::now() + period;
    let (mut connections, mut bytes) = (0, 0);
    loop {
        // The losers are dropped, and lose nothing: a connection accepted too late, say, goes to
        // the next accept.
        kapok::select! {
            accepted = listener.accept_async() => {
                let (stream, _) = accepted?;
                connections += 1;
                let sender = sender.clone();
                kapok::spawn(move || {
                    let echoed = io::copy(&mut &stream, &mut &stream).unwrap_or(0);
                    // An error only at the end, when nobody listens any more.
                    let _ = sender.send(echoed);
                })
                .detach();
            }
            echoed = finished.recv_async() => {
                // Never disconnected: this fiber has a sender, too.
                let echoed = echoed.unwrap_or(0);
                bytes += echoed;
                println!("a connection has ended after {echoed} bytes");
            }
            () = kapok::time::sleep_until_async(next_report) => {
                println!("report: {connections} connections, {bytes} bytes");
                next_report += period;
            }
            signal = signals.recv_async() => {
                println!("told to stop by signal {}", signal?);
                return Ok(());
            }
        }
    }
}
