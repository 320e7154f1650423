//! The one rule: what was lent to the kernel is not given back before the kernel is done with it.
//!
//! No sanitizer sees what the kernel writes. So memory that was given back is filled with a canary,
//! what the operation was for is brought afterwards, and the canary is looked at: no byte of it may
//! have changed. Stacks are looked at where they lie, in the pool or the arena of their loop; the
//! heap of this process is a quarantine that checks every block it frees.

#[path = "../harness/mod.rs"]
mod harness;
mod quarantine;
mod subjects;

use std::cell::Cell;
use std::hint::black_box;
use std::io::{self, Read, Seek, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use harness::{Numbers, alone, run, scale};
use kapok::net::UnixStream;
use kapok::{JoinError, JoinHandle, Runtime};
use quarantine::Quarantine;
use subjects::Subject;

const CANARY: u8 = 0xa5;
const HOUR: Duration = Duration::from_secs(3600);
const SIZE: usize = 4096;

/// A buffer of `SIZE` below what surely is more than the frames of two callers differ by, so that
/// the canary of [`watch`] covers all of it.
const FRAME: usize = SIZE + 1024;

#[global_allocator]
static HEAP: Quarantine = Quarantine::new();

/// A buffer on a fiber's stack.
#[derive(Default)]
struct Place(AtomicUsize);

impl Place {
    /// Notes where the buffer lies.
    fn lend<'a>(&self, frame: &'a mut [u8; FRAME]) -> &'a mut [u8] {
        let buf = &mut black_box(frame)[..SIZE];
        self.0.store(buf.as_mut_ptr().expose_provenance(), Ordering::SeqCst);
        buf
    }

    /// The buffer, if it was ever lent.
    fn memory(&self) -> Option<*mut [u8]> {
        let address = self.0.load(Ordering::SeqCst);
        let start = std::ptr::with_exposed_provenance_mut::<u8>(address);
        (address != 0).then(|| std::ptr::slice_from_raw_parts_mut(start, SIZE))
    }

    /// Fills what was given back.
    ///
    /// # Safety
    ///
    /// The fiber is over, nobody has its stack, and the slot of it is mapped.
    unsafe fn fill(&self) {
        if let Some(memory) = self.memory() {
            // SAFETY: by the caller.
            unsafe { memory.cast::<u8>().write_bytes(CANARY, memory.len()) };
        }
    }

    /// Looks whether it is as it was filled, and forgets the place.
    ///
    /// # Safety
    ///
    /// As for [`fill`](Place::fill), which was called before.
    unsafe fn check(&self, what: &str) {
        if let Some(memory) = self.memory() {
            let bytes = memory.cast::<u8>();
            // SAFETY: by the caller. The kernel may be writing: hence the volatile reads.
            let changed =
                (0..memory.len()).find(|&at| unsafe { bytes.add(at).read_volatile() } != CANARY);
            assert_eq!(changed, None, "{what}: memory that was given back was written to");
        }
        self.0.store(0, Ordering::SeqCst);
    }
}

/// How a wait is brought to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Cancelled,
    CancelledByAThread,
    TimedOut,
    /// The fiber panics after the call.
    Panicking,
    /// A parent panics in whose frame a child reads.
    PanickingAround,
    /// A parent is cancelled in whose frame a child reads.
    CancelledAround,
    /// The call is made in a future that is polled by a `select!`.
    InSelect,
    /// The buffer is on the heap, and freed when the call returns.
    OnTheHeap,
}

impl Ending {
    const ALL: [Ending; 8] = [
        Ending::Cancelled,
        Ending::CancelledByAThread,
        Ending::TimedOut,
        Ending::Panicking,
        Ending::PanickingAround,
        Ending::CancelledAround,
        Ending::InSelect,
        Ending::OnTheHeap,
    ];
}

/// A wait that lends memory of this frame.
#[inline(never)]
fn wait(subject: &Subject, place: &Place) -> io::Result<usize> {
    let mut frame = [0; FRAME];
    (subject.lend)(place.lend(&mut frame))
}

/// A wait on another fiber, that lends memory of this frame.
#[inline(never)]
fn wait_in_a_child(subject: &Subject, place: &Place, panics: Option<u64>) -> io::Result<usize> {
    let mut frame = [0; FRAME];
    let buf = place.lend(&mut frame);
    let result = Cell::new(Ok(0));
    kapok::scope(|scope| {
        let result = &result;
        scope.spawn_local(move || result.set((subject.lend)(buf)));
        if let Some(yields) = panics {
            for _ in 0..yields {
                kapok::yield_now();
            }
            resume_unwind(Box::new("beside a child"));
        }
    });
    result.into_inner()
}

/// Puts a canary where a buffer was, brings what the wait was for before the loop has turned, and
/// looks at the canary when it has.
#[inline(never)]
fn watch(subject: &Subject, place: &Place, what: &str) {
    let mut canary = [CANARY; 4 * SIZE];
    let canary = black_box(&mut canary);
    if let Some(memory) = place.memory() {
        let (front, range) = (memory.cast::<u8>().cast_const(), canary.as_ptr_range());
        let covered = range.contains(&front) && range.contains(&front.wrapping_add(SIZE - 1));
        assert!(covered, "{what}: the frames of the test do not lie as they should");
    }
    (subject.come)();
    for _ in 0..3 {
        kapok::yield_now();
    }
    let unchanged = black_box(&*canary).iter().all(|byte| *byte == CANARY);
    assert!(unchanged, "{what}: memory that was given back was written to");
    (subject.clear)();
}

/// What a fiber does that ends as `ending` says. Where somebody else ends it, that is yet to come.
fn lend_and_end(
    subject: &Subject,
    place: &Place,
    ending: Ending,
    chance: u64,
) -> io::Result<usize> {
    let shortly = Duration::from_micros(chance % 50);
    let result = catch_unwind(AssertUnwindSafe(|| match ending {
        Ending::Cancelled | Ending::CancelledByAThread => wait(subject, place),
        Ending::TimedOut | Ending::Panicking => kapok::timeout(shortly, || wait(subject, place)),
        Ending::PanickingAround => wait_in_a_child(subject, place, Some(chance % 4)),
        Ending::CancelledAround => wait_in_a_child(subject, place, None),
        Ending::InSelect => kapok::select! {
            biased;
            result = async { wait(subject, place) } => result,
            () = std::future::pending() => unreachable!(),
        },
        Ending::OnTheHeap => (subject.lend)(black_box(&mut vec![0; SIZE])),
    }));
    kapok::shield(|| watch(subject, place, &format!("{}, {ending:?}", subject.name)));
    match result {
        Ok(_) if ending == Ending::Panicking => resume_unwind(Box::new("after a call")),
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    }
}

/// Cancels fibers from a thread of its own.
struct Canceller {
    requests: mpsc::Sender<Arc<JoinHandle<io::Result<usize>>>>,
    thread: thread::JoinHandle<()>,
}

impl Canceller {
    fn start() -> Canceller {
        let (requests, handles) = mpsc::channel::<Arc<JoinHandle<io::Result<usize>>>>();
        let thread = thread::spawn(move || handles.iter().for_each(|handle| handle.cancel()));
        Canceller { requests, thread }
    }
}

/// One wait of each subject at once, all of which end early; then comes what they waited for.
fn round(subjects: &[Rc<Subject>], canceller: &Canceller, numbers: &mut Numbers, number: usize) {
    let mut fibers = Vec::new();
    for (at, subject) in subjects.iter().enumerate() {
        let ending = Ending::ALL[(at + number) % Ending::ALL.len()];
        let place = Rc::new(Place::default());
        let (of_fiber, lent, chance) = (Rc::clone(subject), Rc::clone(&place), numbers.next());
        let fiber = kapok::spawn_local(move || lend_and_end(&of_fiber, &lent, ending, chance));
        fibers.push((subject, place, ending, Arc::new(fiber)));
    }
    for _ in 0..numbers.below(5) {
        kapok::yield_now();
    }
    for (_, _, ending, fiber) in &fibers {
        match ending {
            Ending::CancelledByAThread => canceller.requests.send(Arc::clone(fiber)).unwrap(),
            Ending::TimedOut | Ending::Panicking | Ending::PanickingAround => {}
            _ => fiber.cancel(),
        }
    }
    for (_, _, _, fiber) in &fibers {
        harness::wait_until(|| fiber.is_finished() && Arc::strong_count(fiber) == 1);
    }
    let mut places = Vec::new();
    for (subject, place, ending, fiber) in fibers {
        let result = Arc::into_inner(fiber).expect("the thread has let it go").join();
        let what = format!("{}, {ending:?}", subject.name);
        match result {
            Ok(Ok(_)) if subject.may_succeed => {}
            Ok(Err(_)) => {}
            Err(JoinError::Panicked(panic))
                if panic.is::<&str>()
                    && matches!(ending, Ending::Panicking | Ending::PanickingAround) => {}
            other => panic!("{what}: {other:?} though nothing had come"),
        }
        // SAFETY: the fiber is over, and its stack in the pool of this loop, which starts no other
        // before the check.
        unsafe { place.fill() };
        places.push((place, what));
    }
    for subject in subjects {
        (subject.come)();
    }
    for _ in 0..3 {
        kapok::yield_now();
    }
    kapok::sleep(Duration::from_micros(50)).unwrap();
    for (place, what) in &places {
        // SAFETY: as above.
        unsafe { place.check(what) };
    }
    for subject in subjects {
        (subject.clear)();
    }
}

#[test]
fn late_arrivals_change_nothing_in_memory_given_back() {
    run(|| {
        let subjects = Subject::all();
        let canceller = Canceller::start();
        let mut numbers = Numbers(1);
        for number in 0..scale(4_000, 100_000) / subjects.len() {
            round(&subjects, &canceller, &mut numbers, number);
        }
        drop(canceller.requests);
        canceller.thread.join().unwrap();
        HEAP.check();
    });
}

/// Where readiness is made into completion a file is written by a thread, which nothing calls back
/// once it is at it: the fiber has to wait for it, cancelled or not.
#[test]
fn a_write_to_a_file_that_cannot_be_called_back_keeps_its_memory() {
    run(|| {
        let path = std::env::temp_dir().join(format!("kapok-rule-write-{}", std::process::id()));
        std::fs::write(&path, []).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        // Long enough to be cancelled in the middle of it.
        let mut bytes = vec![0; 16 << 20];
        for number in 0..scale(16, 500) {
            bytes.fill(b'!');
            let there = kapok::fs::File::from(file.try_clone().unwrap());
            let result = kapok::scope(|scope| {
                let bytes = &bytes;
                let writer = scope.spawn_local(move || there.write_at(bytes, 0));
                kapok::yield_now();
                kapok::sleep(Duration::from_micros(number % 8 * 250)).unwrap();
                writer.cancel();
                writer.join().unwrap()
            });
            bytes.fill(CANARY);
            kapok::sleep(Duration::from_millis(15)).unwrap();
            if let Err(error) = result {
                assert!(kapok::Canceled::is(&error), "{error}");
            }
            let mut written = Vec::new();
            { &file }.rewind().unwrap();
            { &file }.read_to_end(&mut written).unwrap();
            let late = written.iter().position(|byte| *byte != b'!');
            assert_eq!(late, None, "memory that was given back was written to a file");
        }
    });
}

/// A read of a fiber that nobody waits for.
fn read_to_the_end_of_the_loop(stream: UnixStream, place: &Place) {
    let mut frame = [0; FRAME];
    let result = { &stream }.read(place.lend(&mut frame));
    assert!(result.is_err(), "{result:?} though nobody has written");
}

#[test]
fn late_bytes_change_nothing_where_the_stacks_of_an_ended_loop_were() {
    // Alone: the stacks are in the arena, which all loops of a process share.
    alone("late_bytes_change_nothing_where_the_stacks_of_an_ended_loop_were", || {
        let _watchdog = harness::Watchdog::new();
        const FIBERS: usize = 50;
        let pairs: Arc<Vec<_>> =
            Arc::new((0..FIBERS).map(|_| StdUnixStream::pair().unwrap()).collect());
        let places: Arc<Vec<Place>> = Arc::new((0..FIBERS).map(|_| Place::default()).collect());
        for number in 0..scale(40, 100_000 / FIBERS) {
            let (pairs_there, places_there) = (Arc::clone(&pairs), Arc::clone(&places));
            let main = move || {
                for at in 0..FIBERS {
                    let stream = pairs_there[at].0.try_clone().unwrap();
                    let places = Arc::clone(&places_there);
                    kapok::spawn_local(move || {
                        let stream = UnixStream::try_from(stream).unwrap();
                        read_to_the_end_of_the_loop(stream, &places[at]);
                    })
                    .detach();
                }
                for _ in 0..1 + number % 4 {
                    kapok::yield_now();
                }
                if number % 2 == 0 {
                    resume_unwind(Box::new("on purpose"));
                }
            };
            let runtime = Runtime::new().unwrap();
            let result = catch_unwind(AssertUnwindSafe(|| runtime.run(main)));
            assert_eq!(result.is_err(), number % 2 == 0);
            for place in &*places {
                assert!(place.memory().is_some(), "a fiber never began to read");
                // SAFETY: its fiber is over, its loop too, and this process runs no other.
                unsafe { place.fill() };
            }
            for (_, peer) in &*pairs {
                { peer }.write_all(&[b'!'; SIZE]).unwrap();
            }
            thread::sleep(Duration::from_micros(100));
            for place in &*places {
                // SAFETY: as above.
                unsafe { place.check("a loop that has ended") };
            }
            for (stream, _) in &*pairs {
                { stream }.read_exact(&mut [0; SIZE]).unwrap();
            }
        }
        HEAP.check();
    });
}

/// A read that is not to be cancelled.
fn read_for_ever(stream: &UnixStream, place: &Place) {
    let mut frame = [CANARY; FRAME];
    let buf = place.lend(&mut frame);
    loop {
        let result = kapok::shield(|| { stream }.read(buf));
        // The loop itself calls the operation back, at its very end.
        black_box(result.is_err());
    }
}

/// Notes an address of the calling fiber's stack.
#[inline(never)]
fn stand_somewhere(place: &Place) {
    place.lend(&mut [0; FRAME]);
}

#[test]
fn the_stack_of_a_leaked_fiber_is_nobodys_and_late_bytes_go_to_the_next_reader() {
    alone("the_stack_of_a_leaked_fiber_is_nobodys_and_late_bytes_go_to_the_next_reader", || {
        let _watchdog = harness::Watchdog::new();
        let limit = Duration::from_millis(5);
        let runtime = Runtime::builder().close_limit(limit).build().unwrap();
        let mut leaked: Vec<usize> = Vec::new();
        for _ in 0..scale(20, 400) {
            let (stream, mut peer) = StdUnixStream::pair().unwrap();
            let mut next_reader = stream.try_clone().unwrap();
            let place = Arc::new(Place::default());
            let of_fiber = Arc::clone(&place);
            runtime.run(move || {
                let stream = UnixStream::try_from(stream).unwrap();
                kapok::spawn_local(move || read_for_ever(&stream, &of_fiber)).detach();
                kapok::sleep(Duration::from_millis(1)).unwrap();
            });
            leaked.push(place.0.load(Ordering::SeqCst));
            peer.write_all(&[b'!'; SIZE]).unwrap();
            // Those that come after stand elsewhere.
            let others: Arc<Vec<Place>> = Arc::new((0..64).map(|_| Place::default()).collect());
            let of_main = Arc::clone(&others);
            runtime.run(move || {
                let fibers: Vec<_> = (0..of_main.len())
                    .map(|at| {
                        let others = Arc::clone(&of_main);
                        kapok::spawn_local(move || {
                            stand_somewhere(&others[at]);
                            // All of them at once.
                            kapok::sleep(Duration::from_millis(1)).unwrap();
                        })
                    })
                    .collect();
                fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
            });
            for other in &*others {
                let other = other.0.load(Ordering::SeqCst);
                let near = leaked.iter().find(|leaked| leaked.abs_diff(other) < 128 << 10);
                assert_eq!(near, None, "a fiber stands on the stack of one that was leaked");
            }
            let mut late = [0; SIZE];
            next_reader.set_read_timeout(Some(HOUR / 100)).unwrap();
            next_reader.read_exact(&mut late).unwrap();
            assert!(late.iter().all(|byte| *byte == b'!'));
            // SAFETY: what is leaked is never unmapped, and nobody runs there.
            unsafe { place.check("a leaked fiber") };
        }
        HEAP.check();
    });
}
