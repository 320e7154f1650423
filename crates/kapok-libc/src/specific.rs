//! Thread-specific data, which is a fiber's: pthread_getspecific(3) and C11's `tss_get`.
//!
//! A fiber has values of its own for all keys, empty at first, whose destructors run when it ends, on
//! the fiber, as they would at the end of a thread. What threads have is untouched: their values and
//! destructors are the C library's.
//!
//! Thread-locals of ELF (`__thread`, `thread_local`) stay the thread's. A library that keeps its state
//! there, and uses a key only to be told when the thread ends, is told when the fiber ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use kapok::FiberLocal;
use libc::pthread_key_t;

use crate::hook::Hook;
use crate::locks::owner;
use crate::locks::watched::watched;
use crate::real;

/// `PTHREAD_KEYS_MAX`.
const KEYS: usize = 1024;

/// `PTHREAD_DESTRUCTOR_ITERATIONS`.
const ROUNDS: usize = 4;

struct Key {
    /// Changed when the key is made and when it is deleted: values of before mean nothing.
    generation: AtomicU32,
    destructor: AtomicPtr<c_void>,
}

static REGISTRY: [Key; KEYS] =
    [const { Key { generation: AtomicU32::new(0), destructor: AtomicPtr::new(ptr::null_mut()) } };
        KEYS];

type Destructor = unsafe extern "C-unwind" fn(*mut c_void);

/// A fiber's values, by key: of which generation, and what.
#[derive(Default)]
struct Values(Vec<(u32, *mut c_void)>);

thread_local! {
    /// The values of the fibers of this thread, which never leave it. Empty at the thread's end, and
    /// never destroyed: after the thread-locals come the functions of atexit(3), which may look.
    static FIBERS: ManuallyDrop<RefCell<BTreeMap<u64, Box<Values>>>> =
        const { ManuallyDrop::new(RefCell::new(BTreeMap::new())) };
    /// Those that were used last.
    static LAST: Cell<(u64, *mut Values)> = const { Cell::new((0, ptr::null_mut())) };
}

/// Dropped at the end of each fiber that has values.
struct End(u64);

static END: FiberLocal<End> = FiberLocal::new(|| End(kapok::current_id().unwrap_or(0)));

impl Drop for End {
    fn drop(&mut self) {
        destroy_rounds(self.0);
        forget(self.0);
    }
}

/// Destroys the values of the fiber that runs, whose thread of the program's has ended.
pub(crate) fn end() {
    drop(End(kapok::current_id().unwrap_or(0)));
}

/// Runs destructors until there is nothing left, or they have had their rounds.
fn destroy_rounds(fiber: u64) {
    for _ in 0..ROUNDS {
        if !destroy_all(fiber) {
            break;
        }
    }
}

/// Runs the destructors of the fiber that runs, which is about to end.
pub(crate) fn destroy_values() {
    if let Some(fiber) = kapok::current_id() {
        destroy_rounds(fiber);
    }
}

/// Runs the destructors of all values there are. `false`: there was none.
fn destroy_all(fiber: u64) -> bool {
    let mut any = false;
    for (key, registered) in REGISTRY.iter().enumerate() {
        let value = get(fiber, key);
        let destructor = registered.destructor.load(Ordering::Acquire);
        if value.is_null() || destructor.is_null() {
            continue;
        }
        any = true;
        set(fiber, key, ptr::null_mut());
        // SAFETY: what was registered with the key is such a function.
        let destructor: Destructor = unsafe { std::mem::transmute(destructor) };
        // SAFETY: by whoever made the key: it destroys the key's values.
        unsafe { destructor(value) };
    }
    any
}

fn forget(fiber: u64) {
    LAST.set((0, ptr::null_mut()));
    let values = FIBERS.with(|fibers| fibers.borrow_mut().remove(&fiber));
    drop(values);
}

/// The values of a fiber of this thread. Null: it has none.
#[inline]
fn values(fiber: u64) -> *mut Values {
    let (last, values) = LAST.get();
    if last == fiber {
        return values;
    }
    let found = FIBERS.with(|fibers| {
        fibers.borrow_mut().get_mut(&fiber).map_or(ptr::null_mut(), |values| &raw mut **values)
    });
    if !found.is_null() {
        LAST.set((fiber, found));
    }
    found
}

#[inline]
fn get(fiber: u64, key: usize) -> *mut c_void {
    let values = values(fiber);
    if values.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: of a fiber of this thread, boxed, and there until the fiber ends; nobody refers to it
    // beyond a statement.
    let values = unsafe { &(*values).0 };
    match values.get(key) {
        Some(&(generation, value))
            if generation == REGISTRY[key].generation.load(Ordering::Acquire) =>
        {
            value
        }
        _ => ptr::null_mut(),
    }
}

fn set(fiber: u64, key: usize, value: *mut c_void) {
    let mut values = values(fiber);
    if values.is_null() {
        if value.is_null() {
            return;
        }
        FIBERS.with(|fibers| fibers.borrow_mut().insert(fiber, Box::default()));
        if kapok::on_fiber() {
            END.with(|_| ());
        }
        values = self::values(fiber);
    }
    let generation = REGISTRY[key].generation.load(Ordering::Acquire);
    // SAFETY: as in `get`.
    let values = unsafe { &mut (*values).0 };
    if values.len() <= key {
        values.resize(key + 1, (0, ptr::null_mut()));
    }
    values[key] = (generation, value);
}

/// Notes a key that was made, or deleted.
fn note(key: pthread_key_t, destructor: *mut c_void) {
    let Some(registered) = REGISTRY.get(key as usize) else { return };
    registered.destructor.store(destructor, Ordering::Release);
    registered.generation.fetch_add(1, Ordering::AcqRel);
}

/// pthread_setspecific(3) on a fiber.
fn set_specific(key: pthread_key_t, value: *const c_void) -> c_int {
    // Whether there is such a key the C library knows: it is asked to leave the thread's value as it is.
    // SAFETY: no conditions.
    if unsafe { real::pthread_setspecific(key, real::pthread_getspecific(key)) } != 0 {
        return libc::EINVAL;
    }
    if let Some(fiber) = owner::fiber() {
        set(fiber, key as usize, value.cast_mut());
    }
    0
}

fn get_specific(key: pthread_key_t) -> *mut c_void {
    match owner::fiber() {
        Some(fiber) if (key as usize) < KEYS => get(fiber, key as usize),
        _ => ptr::null_mut(),
    }
}

unsafe fn made(error: c_int, key: *mut pthread_key_t, destructor: *mut c_void) -> c_int {
    if error == 0 {
        // SAFETY: by the caller: it was just written.
        note(unsafe { *key }, destructor);
    }
    error
}

/// Defines hooks that note keys, and `KEY_HOOKS` of them. They do so whoever calls, and from the first
/// call on: other libraries' constructors make keys before [`install`](crate::install).
macro_rules! noting {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $returned:ty = |$real:ident| $body:block
    )*) => {
        /// Those that are not made by the other macros.
        pub(crate) static KEY_HOOKS: &[&Hook] = &[$(&$name::HOOK),*];
        $(
            /// Beside the function of this name.
            pub(crate) mod $name {
                pub(crate) static HOOK: crate::hook::Hook = crate::hook::Hook::new(
                    // SAFETY: the one NUL is at the end.
                    unsafe {
                        std::ffi::CStr::from_bytes_with_nul_unchecked(
                            concat!(stringify!($name), "\0").as_bytes(),
                        )
                    },
                    super::$name as *const (),
                );
            }

            $(#[$attribute])*
            ///
            /// # Safety
            ///
            /// As for the C library's function of this name.
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C-unwind" fn $name($($argument: $type),*) -> $returned {
                let Some(real) = $name::HOOK.real() else {
                    return <$returned as crate::hook::Failing>::FAILED;
                };
                type Real = unsafe extern "C-unwind" fn($($type),*) -> $returned;
                // SAFETY: the function of this name has this signature.
                let real = unsafe { std::mem::transmute::<*mut c_void, Real>(real) };
                if kapok::on_fiber() {
                    $name::HOOK.count_call(false);
                } else {
                    $name::HOOK.count_bypass();
                }
                // SAFETY: by the caller.
                let $real = |$($argument: $type),*| unsafe { real($($argument),*) };
                $body
            }
        )*
    };
}

noting! {
    /// pthread_key_create(3).
    fn pthread_key_create(key: *mut pthread_key_t, destructor: *mut c_void) -> c_int = |real| {
        // SAFETY: by the caller.
        unsafe { made(real(key, destructor), key, destructor) }
    }

    /// pthread_key_delete(3).
    fn pthread_key_delete(key: pthread_key_t) -> c_int = |real| {
        note(key, ptr::null_mut());
        real(key)
    }

    /// tss_create(3).
    fn tss_create(key: *mut pthread_key_t, destructor: *mut c_void) -> c_int = |real| {
        // SAFETY: by the caller.
        unsafe { made(real(key, destructor), key, destructor) }
    }

    /// tss_delete(3).
    fn tss_delete(key: pthread_key_t) -> () = |real| {
        note(key, ptr::null_mut());
        real(key)
    }
}

watched! {
    /// pthread_setspecific(3).
    fn pthread_setspecific(key: pthread_key_t, value: *const c_void) -> c_int
        = |_me| { set_specific(key, value) }, |real| { real(key, value) };

    /// pthread_getspecific(3).
    fn pthread_getspecific(key: pthread_key_t) -> *mut c_void
        = |_me| { get_specific(key) }, |real| { real(key) };

    /// tss_set(3).
    fn tss_set(key: pthread_key_t, value: *mut c_void) -> c_int
        = |_me| { if set_specific(key, value) == 0 { 0 } else { 2 } },
        |real| { real(key, value) };

    /// tss_get(3).
    fn tss_get(key: pthread_key_t) -> *mut c_void
        = |_me| { get_specific(key) }, |real| { real(key) };
}
