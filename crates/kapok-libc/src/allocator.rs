//! Allocators that are not the C library's: what they do inside malloc(3) must not suspend a fiber.
//!
//! An allocator keeps a cache for each thread, in the thread's own variables. If a fiber was suspended
//! while it changes that, at a lock of the allocator's, the next fiber of the thread would find it half
//! changed. The C library's own malloc(3) waits inside of libc, where nothing is hooked. For others:
//!
//! - where malloc(3) is that of another library, who is about to be suspended looks whether it was called
//!   from there, and blocks the thread if so;
//! - adaptive mutexes, of which some allocators are made, block in any case (see the module of mutexes);
//! - an allocator of a Rust program is wrapped: [`Unsuspended`];
//! - for one that is linked into the program itself a warning says so.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};
use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local!(static DEPTH: Cell<u32> = const { Cell::new(0) });

/// Whether the code that runs is that of an allocator which is wrapped.
#[inline]
pub(crate) fn runs() -> bool {
    DEPTH.get() > 0
}

/// An allocator in which no fiber is suspended: its locks and its waits are the thread's. For allocators
/// other than the system's and jemalloc, in programs that link this crate.
///
/// ```
/// use std::alloc::System;
///
/// // In the place of `System`, an allocator with locks of its own.
/// #[global_allocator]
/// static ALLOCATOR: kapok_libc::Unsuspended<System> = kapok_libc::Unsuspended(System);
///
/// kapok_libc::install();
/// # let fiber = || assert_eq!(vec![1; 1000].len(), 1000);
/// # kapok::Runtime::new().unwrap().run(move || kapok::spawn(fiber).join().unwrap());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Unsuspended<A>(pub A);

/// Counts while an allocator runs; it may unwind.
struct Running;

impl Running {
    #[inline]
    fn new() -> Running {
        DEPTH.set(DEPTH.get() + 1);
        Running
    }
}

impl Drop for Running {
    #[inline]
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

// SAFETY: every call is the wrapped allocator's, with the same arguments and result.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Unsuspended<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _running = Running::new();
        // SAFETY: by the caller, here and below.
        unsafe { self.0.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let _running = Running::new();
        // SAFETY: as above.
        unsafe { self.0.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let _running = Running::new();
        // SAFETY: as above.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _running = Running::new();
        // SAFETY: as above.
        unsafe { self.0.realloc(block, layout, size) }
    }
}

/// Where the library is loaded whose malloc(3) the program has; nothing if that is the C library's, or the
/// program's own.
static BEGIN: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

/// Looks whose malloc(3) it is, before any hook works.
pub(crate) fn prepare() {
    if let Some(object) = foreign()
        && !object.is_program
    {
        BEGIN.store(object.begin, Ordering::Relaxed);
        END.store(object.end, Ordering::Relaxed);
    }
}

/// Whether the code that runs was called by an allocator, so that it must not suspend: asked by who is
/// about to. Neither allocates nor locks anything of ours.
#[inline]
pub(crate) fn has_called() -> bool {
    runs() || END.load(Ordering::Relaxed) != 0 && is_on_the_stack()
}

/// How many frames are looked at: those of hooks and of an allocator.
const FRAMES: u32 = 64;

#[cold]
fn is_on_the_stack() -> bool {
    unsafe extern "C" {
        fn _Unwind_Backtrace(
            look: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
            search: *mut c_void,
        ) -> c_int;
        fn _Unwind_GetIP(context: *mut c_void) -> usize;
    }
    struct Search {
        found: bool,
        frames: u32,
    }
    unsafe extern "C" fn look(context: *mut c_void, search: *mut c_void) -> c_int {
        /// `_URC_NO_REASON`, `_URC_NORMAL_STOP`.
        const GO_ON: c_int = 0;
        const STOP: c_int = 4;
        // SAFETY: what the unwinder passes: a frame, and what we have passed to it.
        let (address, search) = unsafe { (_Unwind_GetIP(context), &mut *search.cast::<Search>()) };
        search.frames += 1;
        search.found =
            (BEGIN.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)).contains(&address);
        if search.found || search.frames == FRAMES { STOP } else { GO_ON }
    }
    let mut search = Search { found: false, frames: 0 };
    // SAFETY: the function takes what is passed with it, a local.
    unsafe { _Unwind_Backtrace(look, (&raw mut search).cast()) };
    search.found
}

/// Says so, once, if malloc(3) is in the program itself, where its frames cannot be told from others.
/// Called when the first loop turns: without fibers there is nothing to be said.
pub(crate) fn warn() {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        if foreign().is_some_and(|object| object.is_program) {
            let _ = writeln!(
                std::io::stderr(),
                "kapok: the program has a malloc of its own: a fiber may be suspended inside it, which \
                 is not safe with more than one thread; link that as a shared library"
            );
        }
    });
}

/// A loaded object.
struct Loaded {
    begin: usize,
    end: usize,
    is_program: bool,
}

/// The object whose malloc(3) the program has, if that is not the C library. Checkers of memory make their
/// system calls themselves.
fn foreign() -> Option<Loaded> {
    let malloc = symbol(c"malloc")?;
    // A program at fixed addresses has a place that jumps to the function, and that is what it goes by.
    let malloc = if is_defined(malloc) { malloc } else { next(c"malloc")? };
    let (base, name) = object_of(malloc)?;
    let is_there =
        |wanted: &CStr| symbol(wanted).and_then(object_of).is_some_and(|(other, _)| other == base);
    let fine = [c"gnu_get_libc_version", c"__asan_init", c"__tsan_init"];
    if name.contains("vgpreload_") || fine.into_iter().any(is_there) {
        return None;
    }
    unsafe extern "C" fn look(
        object: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        found: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader passes an object, with its headers, and what we have passed.
        let (object, found) = unsafe { (&*object, &mut *found.cast::<(usize, Option<Loaded>)>()) };
        // SAFETY: as above.
        let headers =
            unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        let loads = || {
            headers.iter().filter(|header| header.p_type == libc::PT_LOAD).map(|header| {
                let begin = (object.dlpi_addr + header.p_vaddr) as usize;
                begin..begin + header.p_memsz as usize
            })
        };
        if !loads().any(|range| range.contains(&found.0)) {
            return 0;
        }
        // SAFETY: a string of the loader's; the program itself has an empty one.
        let is_program = unsafe { object.dlpi_name.is_null() || *object.dlpi_name == 0 };
        let begin = loads().map(|range| range.start).min().unwrap_or(0);
        let end = loads().map(|range| range.end).max().unwrap_or(0);
        found.1 = Some(Loaded { begin, end, is_program });
        1
    }
    let mut found: (usize, Option<Loaded>) = (malloc.addr(), None);
    // SAFETY: the function takes what is passed with it, a local.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    found.1
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a NUL-terminated name.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// The symbol in the objects after this one.
fn next(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a NUL-terminated name.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// Whether the object that has this address defines what is there.
fn is_defined(address: *mut c_void) -> bool {
    /// From dlfcn.h.
    const RTLD_DL_SYMENT: c_int = 1;
    // SAFETY: integers and pointers, for which zero is a value.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    let mut entry: *mut libc::Elf64_Sym = std::ptr::null_mut();
    let to = (&raw mut entry).cast::<*mut c_void>();
    // SAFETY: an address is looked up, not read; writes to locals, with these flags a pointer to an entry of
    // the object's table.
    unsafe {
        libc::dladdr1(address, &raw mut found, to, RTLD_DL_SYMENT) == 0
            || entry.is_null()
            || (*entry).st_shndx != 0
    }
}

/// Where the object that has this address begins, and its name.
fn object_of(address: *mut c_void) -> Option<(usize, String)> {
    // SAFETY: integers and pointers, for which zero is a value.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: an address is looked up, not read; writes to a local.
    if unsafe { libc::dladdr(address, &raw mut found) } == 0 || found.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a string of the loader's, whose object is loaded.
    let name = unsafe { CStr::from_ptr(found.dli_fname) }.to_string_lossy().into_owned();
    Some((found.dli_fbase.addr(), name))
}
