//! Fiber-local values.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

use super::contain;
use super::control::Fiber;
use crate::runtime::Loop;

/// The values of one fiber: few, so a list. Found by the address of the [`FiberLocal`].
pub(crate) struct Locals(Vec<(usize, Rc<dyn Any>)>);

impl Locals {
    pub(crate) const fn new() -> Locals {
        Locals(Vec::new())
    }

    /// Whether there are none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get(&self, address: usize) -> Option<Rc<dyn Any>> {
        self.0.iter().find(|entry| entry.0 == address).map(|entry| Rc::clone(&entry.1))
    }
}

thread_local! {
    /// The values of code that runs on no fiber.
    static THREAD: RefCell<Locals> = const { RefCell::new(Locals::new()) };
}

/// A value of which each fiber has its own, made when the fiber first asks for it and dropped, on
/// the fiber, when it ends. Code on no fiber has one for each thread.
///
/// ```
/// use std::cell::Cell;
///
/// static VISITS: kapok::FiberLocal<Cell<u32>> = kapok::FiberLocal::new(|| Cell::new(0));
///
/// # fn main() -> std::io::Result<()> {
/// kapok::Runtime::new()?.run(|| {
///     VISITS.with(|visits| visits.set(7));
///     let other = kapok::spawn(|| VISITS.with(Cell::get));
///     assert_eq!(other.join().unwrap(), 0);
///     assert_eq!(VISITS.with(Cell::get), 7);
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FiberLocal<T: 'static> {
    make: fn() -> T,
    // A zero-sized static has no address of its own.
    _address: u8,
}

impl<T: 'static> FiberLocal<T> {
    /// A fiber-local value that `make` makes. For a `static`.
    pub const fn new(make: fn() -> T) -> FiberLocal<T> {
        FiberLocal { make, _address: 0 }
    }

    /// Runs `f` with the value of the current fiber.
    ///
    /// The value stays alive while `f` runs, even across a suspension.
    pub fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        let address = std::ptr::from_ref(self).addr();
        let value = with_locals(|locals| locals.get(address)).unwrap_or_else(|| {
            // Made with nothing borrowed: `make` may use other locals, and suspend.
            let made: Rc<dyn Any> = Rc::new((self.make)());
            with_locals(|locals| {
                locals.get(address).unwrap_or_else(|| {
                    locals.0.push((address, Rc::clone(&made)));
                    made
                })
            })
        });
        f(value.downcast_ref().expect("an address stands for one type"))
    }
}

fn with_locals<R>(f: impl FnOnce(&mut Locals) -> R) -> R {
    Loop::with_running(|running| match running {
        // SAFETY: on the fiber itself; `f` is one of the closures above, which neither suspend nor
        // run code of the user's.
        Some((_, fiber)) => unsafe { f(&mut (*fiber.as_ref().local()).locals) },
        None => THREAD.with_borrow_mut(f),
    })
}

/// Drops the values of `fiber`, the last made first. A destructor may make new ones, and one that
/// panics does no more than that.
///
/// # Safety
///
/// `fiber` is the one that runs, on its loop.
#[inline]
pub(super) unsafe fn drop_all_of(fiber: &Fiber) {
    // SAFETY: on the fiber itself, by the caller; nothing is borrowed while a destructor runs.
    while let Some(value) = unsafe { (*fiber.local()).locals.0.pop() } {
        contain(|| drop(value));
    }
}
