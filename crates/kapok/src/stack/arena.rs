//! The arena: address space in chunks, slots carved from them, and the slots nobody holds.
//!
//! Every size class has its own chunks and its own lock, taken only when a pool runs out of warm
//! stacks or gives some back. The table of chunks is append-only and process-wide, so a signal
//! handler can look an address up without a lock.

use std::{
    fmt, io, mem, ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicPtr, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use corosensei::stack::{Stack, StackPointer};

use super::guard::{GUARD_BYTES, GuardKind};
use super::valgrind;

/// The smallest slot: 64 KiB of stack above its guard.
const MIN_SLOT_SHIFT: u8 = 17;
/// The largest slot: 1 GiB.
const MAX_SLOT_SHIFT: u8 = 30;
/// How many size classes there are, one for each power of two.
pub(super) const SIZE_CLASSES: usize = (MAX_SLOT_SHIFT - MIN_SLOT_SHIFT + 1) as usize;

/// The first chunk of a class. Each next one is as large as all before it, up to the largest.
const MIN_CHUNK_BYTES: usize = 64 << 20;
const MAX_CHUNK_BYTES: usize = 1 << 30;
/// What a reservation must leave of the address space, where that is limited: the heap grows beside
/// the stacks, with what every fiber has there, and ends the process where it is refused.
const HEADROOM_BYTES: usize = 32 << 20;
/// 4 TiB of the largest chunks, sixteen million stacks of the default size.
const MAX_CHUNKS: usize = 4096;

const CACHE_LINE_BYTES: usize = 64;
/// Colours are 0 to 23 cache lines, the largest 1,472 bytes.
pub(super) const COLOURS: usize = 24;
/// Coprime to the number of colours, and about as many lines as a parked fiber keeps hot: a few
/// neighbours already do not overlap.
const COLOUR_STEP: usize = 7;

/// By how much a slot is larger than a power of two: a page, or what is one on any machine of this
/// kind. Stacks a power of two apart would put the pages of all parked fibers into the same few sets
/// of the translation buffer, of which a thousand fibers then miss nearly every time. It lies above the base and is never touched.
#[cfg(target_arch = "x86_64")]
pub(super) const ODD_BYTES: usize = 4 << 10;
#[cfg(not(target_arch = "x86_64"))]
pub(super) const ODD_BYTES: usize = 64 << 10;

/// The size of a stack: a power of two, guard included, from 128 KiB to 1 GiB, and a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StackSize {
    shift: u8,
}

impl StackSize {
    /// 256 KiB: 192 KiB of stack and its guard.
    pub(crate) const DEFAULT: Self = Self { shift: 18 };

    /// 1 GiB.
    pub(crate) const LARGEST: Self = Self { shift: MAX_SLOT_SHIFT };

    /// The smallest size with `bytes` of stack above the guard, of which the colour takes up to
    /// 1,472 bytes.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for more than 1 GiB less the guard.
    pub(crate) fn for_usable(bytes: usize) -> io::Result<Self> {
        let largest = (1 << MAX_SLOT_SHIFT) - GUARD_BYTES;
        if bytes > largest {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a fiber stack of {bytes} bytes: the largest has {largest} bytes"),
            ));
        }
        let slot = (bytes + GUARD_BYTES).next_power_of_two().max(1 << MIN_SLOT_SHIFT);
        Ok(Self { shift: slot.trailing_zeros() as u8 })
    }

    /// Bytes of address space a stack takes, guard included.
    pub(crate) const fn slot_bytes(self) -> usize {
        (1 << self.shift) + ODD_BYTES
    }

    /// Bytes of stack above the guard, colour included.
    pub(crate) const fn usable_bytes(self) -> usize {
        self.slot_bytes() - ODD_BYTES - GUARD_BYTES
    }

    /// The next larger size, if there is one.
    pub(super) fn next_larger(self) -> Option<Self> {
        (self.shift < MAX_SLOT_SHIFT).then_some(Self { shift: self.shift + 1 })
    }

    /// How many times as large as the default, as a power of two; none for smaller ones.
    pub(super) const fn doublings_above_default(self) -> u8 {
        self.shift.saturating_sub(Self::DEFAULT.shift)
    }

    pub(super) const fn class(self) -> usize {
        (self.shift - MIN_SLOT_SHIFT) as usize
    }
}

impl fmt::Debug for StackSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StackSize({} KiB)", self.slot_bytes() / 1024)
    }
}

/// A run of slots in one reservation. Never unmapped, never freed.
pub(super) struct Chunk {
    start: usize,
    slots: usize,
    pub(super) size: StackSize,
    pub(super) arena: &'static Arena,
}

impl Chunk {
    fn slot(&'static self, index: usize) -> Slot {
        debug_assert!(index < self.slots);
        let end = self.start + (index + 1) * self.size.slot_bytes() - ODD_BYTES;
        let colour = index * COLOUR_STEP % COLOURS * CACHE_LINE_BYTES;
        let base = StackPointer::new(end - colour).expect("a mapping is not at address zero");
        Slot { base, chunk: self }
    }

    fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.start) < self.slots * self.size.slot_bytes()
    }

    /// The start of the slot that holds `address`, which lies in this chunk.
    pub(super) fn slot_start(&self, address: usize) -> usize {
        address - (address - self.start) % self.size.slot_bytes()
    }
}

/// Every chunk of every arena, in order of reservation; entries never change once set.
static CHUNKS: [AtomicPtr<Chunk>; MAX_CHUNKS] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CHUNKS];
/// How many entries of [`CHUNKS`] are taken; the last ones may still be null.
static CHUNK_COUNT: AtomicUsize = AtomicUsize::new(0);

/// The chunk that holds `address`. Takes no lock and allocates nothing: for signal handlers.
pub(super) fn chunk_of(address: usize) -> Option<&'static Chunk> {
    let count = CHUNK_COUNT.load(Relaxed);
    CHUNKS[..count].iter().find_map(|entry| {
        // SAFETY: an entry is null or a leaked, initialized chunk; Acquire pairs with `publish`.
        let chunk = unsafe { entry.load(Acquire).as_ref() }?;
        chunk.contains(address).then_some(chunk)
    })
}

/// Enters a chunk into the table; false if that is full.
fn publish(chunk: &'static Chunk) -> bool {
    let taken = CHUNK_COUNT
        .fetch_update(Relaxed, Relaxed, |count| (count < MAX_CHUNKS).then_some(count + 1));
    let Ok(index) = taken else { return false };
    CHUNKS[index].store(ptr::from_ref(chunk).cast_mut(), Release);
    true
}

/// A slot, as its one holder knows it: two words. Copies are the holder's own affair.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    base: StackPointer,
    pub(super) chunk: &'static Chunk,
}

impl Slot {
    /// The slot's lowest address, where its guard begins.
    fn start(self) -> usize {
        self.chunk.slot_start(self.base.get())
    }

    /// Gives the pages back to the kernel, and the slot to its arena.
    ///
    /// # Safety
    ///
    /// The caller holds the slot, no frame on it will run again and nothing refers to its memory.
    /// It gives the slot up.
    pub(super) unsafe fn give_back(self) {
        #[cfg(target_os = "linux")]
        const ADVICE: libc::c_int = libc::MADV_DONTNEED;
        #[cfg(not(target_os = "linux"))]
        const ADVICE: libc::c_int = libc::MADV_FREE;
        let usable = ptr::with_exposed_provenance_mut(self.start() + GUARD_BYTES);
        // SAFETY: the range is the usable part of a slot that the caller holds, and nothing there
        // is needed. Should the kernel refuse (locked memory) the pages merely stay.
        unsafe { libc::madvise(usable, self.chunk.size.usable_bytes(), ADVICE) };
        let arena = self.chunk.arena;
        arena.class(self.chunk.size).free.push(self);
    }
}

/// A stack to run a fiber on, handed out by a [`super::StackPool`].
///
/// Give it to [`super::StackPool::release`] when the fiber has ended, on any thread. Dropping it
/// instead gives its pages back to the kernel and its slot to the arena.
pub(crate) struct PooledStack(Slot);

impl PooledStack {
    pub(super) fn new(slot: Slot) -> Self {
        Self(slot)
    }

    pub(super) fn into_slot(self) -> Slot {
        let slot = self.0;
        mem::forget(self);
        slot
    }

    /// The size it was asked for.
    #[cfg(test)]
    pub(super) fn size(&self) -> StackSize {
        self.0.chunk.size
    }
}

impl Drop for PooledStack {
    fn drop(&mut self) {
        // SAFETY: a `PooledStack` holds its slot, and its owner drops it when no frame is left on
        // it (corosensei: a coroutine has ended or was unwound before its stack is dropped).
        unsafe { self.0.give_back() };
    }
}

impl fmt::Debug for PooledStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PooledStack({:#x}..{:#x})", self.limit(), self.base())
    }
}

// SAFETY: the slot is readable and writable between guard and base, at least 62 KiB, and held by
// this value alone; the guard was installed before it was handed out. Base and limit are multiples
// of a cache line, which is more than STACK_ALIGNMENT.
unsafe impl Stack for PooledStack {
    #[inline]
    fn base(&self) -> StackPointer {
        self.0.base
    }

    #[inline]
    fn limit(&self) -> StackPointer {
        StackPointer::new(self.0.start()).expect("a mapping is not at address zero")
    }
}

/// What the stacks of a process's fibers come to, in stacks unless said otherwise.
///
/// What of it is resident only the kernel knows: see `Rss` in `/proc/self/smaps_rollup`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StackUsage {
    /// Bytes of address space reserved. It is used as it is touched.
    pub reserved_bytes: usize,
    /// Stacks ever made. Those that are neither free nor leaked are in use, or kept warm by a loop.
    pub stacks: usize,
    /// Stacks whose memory went back to the kernel and that any loop may take.
    pub free: usize,
    /// Stacks of fibers that did not end when their loop closed.
    pub leaked: usize,
}

/// Where stacks come from. The process has one; tests make more.
pub(crate) struct Arena {
    /// How its guards are made, if forced.
    guard: Option<GuardKind>,
    classes: [Mutex<SizeClass>; SIZE_CLASSES],
    guarded: AtomicUsize,
    leaked: AtomicUsize,
}

struct SizeClass {
    /// Slots given back: guarded, without pages.
    free: Vec<Slot>,
    /// Slots whose guard was refused; the next to try.
    unguarded: Vec<Slot>,
    /// The chunk that is being carved, and its next slot.
    chunk: Option<&'static Chunk>,
    next_slot: usize,
    reserved_bytes: usize,
}

impl Arena {
    /// The arena that loops use.
    pub(crate) fn process() -> &'static Self {
        static PROCESS: Arena = Arena::new(None);
        &PROCESS
    }

    /// An arena that makes its guards as told, or in the best way there is.
    pub(crate) const fn new(guard: Option<GuardKind>) -> Self {
        const EMPTY: SizeClass = SizeClass {
            free: Vec::new(),
            unguarded: Vec::new(),
            chunk: None,
            next_slot: 0,
            reserved_bytes: 0,
        };
        Self {
            guard,
            classes: [const { Mutex::new(EMPTY) }; SIZE_CLASSES],
            guarded: AtomicUsize::new(0),
            leaked: AtomicUsize::new(0),
        }
    }

    /// Counts a stack that nobody will ever give back.
    pub(crate) fn note_leaked(&self) {
        self.leaked.fetch_add(1, Relaxed);
    }

    /// Counts what there is; takes the lock of each size class in turn.
    pub(crate) fn stats(&self) -> StackUsage {
        let mut stats = StackUsage {
            stacks: self.guarded.load(Relaxed),
            leaked: self.leaked.load(Relaxed),
            ..StackUsage::default()
        };
        for class in &self.classes {
            let class = lock(class);
            stats.reserved_bytes += class.reserved_bytes;
            stats.free += class.free.len();
        }
        stats
    }

    /// A slot that the caller now holds: one that was given back, or a new one.
    pub(super) fn take(&'static self, size: StackSize) -> io::Result<Slot> {
        let mut class = self.class(size);
        if let Some(slot) = class.free.pop() {
            return Ok(slot);
        }
        let slot = match class.unguarded.pop() {
            Some(slot) => slot,
            None => class.carve(size, self)?,
        };
        drop(class);
        // Outside the lock: threads that start many fibers at once meet here.
        let kind = self.guard.unwrap_or_else(GuardKind::best);
        // SAFETY: the slot was just carved and is ours alone; its start is a multiple of a
        // page from a page-aligned chunk; no memory in it was ever handed out.
        match unsafe { kind.install(slot.start(), self.guarded.load(Relaxed)) } {
            Ok(()) => {
                self.guarded.fetch_add(1, Relaxed);
                valgrind::register(slot.start() + GUARD_BYTES..slot.start() + size.slot_bytes());
                Ok(slot)
            }
            Err(error) => {
                self.class(size).unguarded.push(slot);
                Err(error)
            }
        }
    }

    fn class(&self, size: StackSize) -> MutexGuard<'_, SizeClass> {
        lock(&self.classes[size.class()])
    }
}

/// Nothing panics half-way through a change to a class, so a poisoned one is whole.
fn lock(class: &Mutex<SizeClass>) -> MutexGuard<'_, SizeClass> {
    class.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SizeClass {
    fn carve(&mut self, size: StackSize, arena: &'static Arena) -> io::Result<Slot> {
        let chunk = match self.chunk {
            Some(chunk) if self.next_slot < chunk.slots => chunk,
            _ => {
                let chunk = self.reserve(size, arena)?;
                self.chunk = Some(chunk);
                self.next_slot = 0;
                chunk
            }
        };
        self.next_slot += 1;
        Ok(chunk.slot(self.next_slot - 1))
    }

    fn reserve(&mut self, size: StackSize, arena: &'static Arena) -> io::Result<&'static Chunk> {
        let slot = size.slot_bytes();
        // The odd pages come on top, or two stacks of half a chunk would not fit into one.
        let bytes = self.reserved_bytes.clamp(MIN_CHUNK_BYTES, MAX_CHUNK_BYTES);
        let mut bytes = bytes.next_multiple_of(slot);
        let start = loop {
            match map(bytes) {
                Ok(start) => break start,
                // Under RLIMIT_AS or strict overcommit a smaller one may still fit.
                Err(_) if bytes / 2 >= slot => bytes = bytes / 2 / slot * slot,
                Err(error) => {
                    return Err(io::Error::new(
                        io::ErrorKind::OutOfMemory,
                        format!(
                            "cannot reserve {} KiB of address space for fiber stacks, {} KiB of this \
                             size are reserved: {error}. Look at the limits on address space \
                             (ulimit -v, vm.overcommit_memory=2) or ask for smaller stacks",
                            bytes / 1024,
                            self.reserved_bytes / 1024,
                        ),
                    ));
                }
            }
        };
        let chunk = Box::leak(Box::new(Chunk { start, slots: bytes / slot, size, arena }));
        if !publish(chunk) {
            // SAFETY: the mapping was made above, and nobody else knows of it.
            unsafe { libc::munmap(ptr::with_exposed_provenance_mut(start), bytes) };
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("cannot reserve more fiber stacks: all {MAX_CHUNKS} chunks are in use"),
            ));
        }
        self.reserved_bytes += bytes;
        Ok(chunk)
    }
}

/// Reserves address space that commits as it is touched, always with the same attributes so that
/// neighbours merge. Refused if less than [`HEADROOM_BYTES`] would be left.
fn map(bytes: usize) -> io::Result<usize> {
    #[cfg(target_os = "linux")]
    // MAP_STACK means no huge pages since Linux 6.7; set at once, the new mapping merges at once.
    const FLAGS: libc::c_int =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    // Elsewhere MAP_STACK may mean a mapping that grows.
    #[cfg(not(target_os = "linux"))]
    const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANON;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let tried = bytes + HEADROOM_BYTES;
    // SAFETY: a fresh anonymous mapping touches nothing that exists.
    let low = unsafe { libc::mmap(ptr::null_mut(), tried, access, FLAGS, -1, 0) };
    if low == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // The low end, so that the next reservation, which the kernel puts below, is its neighbour.
    // SAFETY: the first part of a mapping that nobody knows of. Should it be refused it stays, which
    // costs address space and no more.
    let start = unsafe {
        libc::munmap(low, HEADROOM_BYTES);
        low.byte_add(HEADROOM_BYTES)
    };
    #[cfg(target_os = "linux")]
    // SAFETY: the mapping was just made. Kernels without huge pages refuse, which is as good.
    unsafe {
        libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE)
    };
    Ok(start.expose_provenance())
}
