//! Faults end the process and memory figures are the whole process's, so many of these tests run
//! their body alone, in a child of this test binary.

use std::{
    collections::{BTreeMap, HashSet},
    env, fs, hint, mem,
    os::unix::process::ExitStatusExt,
    process::{Command, Output},
    ptr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use corosensei::{Coroutine, CoroutineResult, stack::Stack};
use proptest::prelude::*;

use super::arena::{COLOURS, ODD_BYTES};
use super::guard::{GUARD_BYTES, GuardKind};
use super::pool::DEFAULT_WARM_STACKS;
use super::*;

const CHILD: &str = "KAPOK_STACK_TEST_CHILD";
const DONE: &str = "the child's body ran to its end";

/// Runs `body` in a child process: this binary, asked for the test `name` only. `None` in the child.
fn alone(name: &str, body: impl FnOnce()) -> Option<Output> {
    if env::var(CHILD).is_ok_and(|child| child == name) {
        body();
        println!("{DONE}");
        return None;
    }
    let (_, module) = module_path!().split_once("::").expect("a module of the crate");
    let output = Command::new(env::current_exe().expect("path of the test binary"))
        .args([&format!("{module}::{name}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, name)
        .output()
        .expect("start the test binary");
    Some(output)
}

fn assert_done(output: Option<Output>) {
    if let Some(output) = output {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(DONE), "{output:?}");
    }
}

#[track_caller]
fn assert_died(output: Option<Output>, signal: i32, says: &[&str], never: &[&str]) {
    let Some(output) = output else { panic!("the child survived") };
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(signal), "{output:?}");
    for part in says {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    for part in never {
        assert!(!text.contains(part), "{part:?} in {text}");
    }
}

fn pool(arena: &'static Arena, warm_limit: usize) -> StackPool {
    StackPool::with_arena(arena, warm_limit)
}

fn usable_start(stack: &PooledStack) -> usize {
    stack.limit().get() + GUARD_BYTES
}

fn byte(address: usize) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address)
}

fn write(address: usize, value: u8) {
    // SAFETY: the tests write between a live stack's guard and its base, where no fiber runs.
    unsafe { byte(address).write_volatile(value) }
}

fn read(address: usize) -> u8 {
    // SAFETY: as in `write`.
    unsafe { byte(address).read_volatile() }
}

/// Whether the kernel may read a byte there on our behalf.
fn accessible(address: usize) -> bool {
    let mut ends = [0; 2];
    // SAFETY: a pipe of our own; write(2) says EFAULT for memory that cannot be read.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let written = libc::write(ends[1], byte(address).cast(), 1);
        libc::close(ends[0]);
        libc::close(ends[1]);
        written == 1
    }
}

fn assert_guarded(stack: &PooledStack) {
    let guard = stack.limit().get();
    for address in (guard..guard + GUARD_BYTES).step_by(4096) {
        assert!(!accessible(address), "{address:#x} in the guard of {stack:?}");
    }
    assert!(accessible(usable_start(stack)) && accessible(stack.base().get() - 1), "{stack:?}");
}

/// Resident bytes of the process and of its page tables.
fn memory() -> (usize, usize) {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let field = |name: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with(name)).expect(name);
        let kib = line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok());
        1024 * kib.expect("a number")
    };
    (field("VmRSS:"), field("VmPTE:"))
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").expect("procfs").lines().count()
}

/// Recurses until less than `left` bytes of the stack above `floor` remain, then calls `last`.
/// Returns the depth.
#[inline(never)]
fn descend(floor: usize, left: usize, last: &dyn Fn(usize)) -> usize {
    let frame = hint::black_box([0_u8; 256]);
    let here = frame.as_ptr().addr();
    let depth = if here < floor + left {
        last(here);
        0
    } else {
        descend(floor, left, last)
    };
    hint::black_box(&frame);
    depth + 1
}

/// Prepares this thread as a loop does, and runs `body` on a fiber of that name and size.
fn on_labelled_fiber(name: Option<&str>, size: StackSize, body: impl FnOnce(usize) + 'static) {
    install_overflow_handler();
    let _alternate = ensure_alternate_stack().expect("alternate stack");
    let mut pool = StackPool::new();
    let stack = pool.allocate(size).expect("stack");
    let floor = usable_start(&stack);
    let label = FiberLabel { id: 7, name: name.map(Arc::from) };
    // SAFETY: replaced by null below, while the label lives.
    unsafe { set_running(&label) };
    let mut fiber = Coroutine::with_stack(stack, move |_: &_, ()| body(floor));
    match fiber.resume(()) {
        CoroutineResult::Yield(()) => panic!("the fiber does not yield"),
        CoroutineResult::Return(()) => pool.release(fiber.into_stack()),
    }
    // SAFETY: null is always valid.
    unsafe { set_running(ptr::null()) };
}

#[test]
fn overflow_by_recursion_names_the_fiber_its_size_and_the_fix() {
    let output = alone("overflow_by_recursion_names_the_fiber_its_size_and_the_fix", || {
        on_labelled_fiber(Some("par\nser"), StackSize::DEFAULT, |_| {
            descend(0, 0, &|_| {});
        });
    });
    let says = ["fiber \"par\\nser\" (id 7)", "of 192 KiB", "Builder::stack_size", "448 KiB"];
    assert_died(output, libc::SIGABRT, &says, &["has overflowed"]);
}

#[test]
fn overflow_is_reported_with_page_protection_on_a_bigger_stack_without_a_name() {
    let name = "overflow_is_reported_with_page_protection_on_a_bigger_stack_without_a_name";
    let output = alone(name, || {
        static ARENA: Arena = Arena::new(Some(GuardKind::Protection));
        install_overflow_handler();
        let _alternate = ensure_alternate_stack().expect("alternate stack");
        let size = StackSize::for_usable(500 * 1024).expect("size");
        let stack = pool(&ARENA, 0).allocate(size).expect("stack");
        let mut fiber = Coroutine::<(), (), (), _>::with_stack(stack, |_, ()| {
            descend(0, 0, &|_| {});
        });
        fiber.resume(());
    });
    let says = ["fiber (unknown) overflowed its stack of 960 KiB"];
    assert_died(output, libc::SIGABRT, &says, &["has overflowed"]);
}

/// Code from C compilers has no stack probes: the first access may be far below the stack pointer.
/// Also: a thread that had no alternate stack.
#[test]
fn overflow_by_a_jump_of_40_kib_is_caught() {
    let output = alone("overflow_by_a_jump_of_40_kib_is_caught", || {
        let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: what the thread had is not in use, and nobody misses it in this process.
        assert_eq!(unsafe { libc::sigaltstack(&none, ptr::null_mut()) }, 0);
        on_labelled_fiber(None, StackSize::DEFAULT, |floor| {
            descend(floor, 20 * 1024, &|here| write(here - 40 * 1024, 1));
        });
    });
    assert_died(output, libc::SIGABRT, &["fiber 7 (unnamed) overflowed"], &[]);
}

#[test]
fn null_dereferences_still_die_by_sigsegv() {
    let output = alone("null_dereferences_still_die_by_sigsegv", || {
        on_labelled_fiber(Some("innocent"), StackSize::DEFAULT, |_| {
            // SAFETY: none; the fault is the point, and it ends this process.
            hint::black_box(unsafe { libc::strlen(hint::black_box(ptr::null())) });
        });
    });
    assert_died(output, libc::SIGSEGV, &[], &["overflowed", DONE]);
}

#[test]
fn a_stray_pointer_into_a_guard_is_not_called_an_overflow() {
    let output = alone("a_stray_pointer_into_a_guard_is_not_called_an_overflow", || {
        install_overflow_handler();
        let stack = StackPool::new().allocate(StackSize::DEFAULT).expect("stack");
        read(stack.limit().get() + 100);
    });
    assert_died(output, libc::SIGSEGV, &[], &["overflowed"]);
}

#[test]
fn threads_that_overflow_are_still_reported_by_std() {
    let output = alone("threads_that_overflow_are_still_reported_by_std", || {
        on_labelled_fiber(Some("innocent"), StackSize::DEFAULT, |_| {});
        let deep = || descend(0, 0, &|_| {});
        let thread = thread::Builder::new().name("deep thread".into()).spawn(deep);
        let _ = thread.expect("thread").join();
    });
    let says = ["deep thread", "has overflowed its stack"];
    assert_died(output, libc::SIGABRT, &says, &["kapok: fiber"]);
}

#[test]
fn a_sigsegv_that_was_sent_takes_the_default_action() {
    let output = alone("a_sigsegv_that_was_sent_takes_the_default_action", || {
        // SAFETY: as in a program without std's handlers; the signal ends this process.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            install_overflow_handler();
            libc::raise(libc::SIGSEGV);
        }
    });
    assert_died(output, libc::SIGSEGV, &[], &["overflowed", DONE]);
}

/// The kind of handler a garbage collector has.
extern "C" fn make_accessible(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid pointer, and the fault is in the test's own page.
    unsafe {
        let page = (*info).si_addr().map_addr(|address| address & !4095);
        assert_eq!(libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE), 0);
    }
}

#[test]
fn a_previous_handler_still_mends_its_own_faults() {
    assert_done(alone("a_previous_handler_still_mends_its_own_faults", || {
        // SAFETY: the handler has the type that SA_SIGINFO asks for; a fresh mapping is ours.
        let page = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = make_accessible as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(ptr::null_mut(), 4096, libc::PROT_NONE, flags, -1, 0)
        };
        let address = page.expose_provenance();
        on_labelled_fiber(None, StackSize::DEFAULT, move |_| write(address + 5, 42));
        assert_eq!(read(address + 5), 42);
    }));
}

fn alternate_stack() -> libc::stack_t {
    let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: only reads, into a valid stack_t.
    assert_eq!(unsafe { libc::sigaltstack(ptr::null(), &mut stack) }, 0);
    stack
}

#[test]
fn alternate_stacks_are_kept_if_big_enough_and_restored_if_replaced() {
    let body = || {
        let of_std = alternate_stack();
        let mut memory = vec![0_u8; 256 * 1024];
        let start = memory.as_mut_ptr().cast();
        let smallest = super::overflow::frame_bytes();
        for (size, flags, kept) in
            [(memory.len(), 0, true), (smallest, 0, false), (0, libc::SS_DISABLE, false)]
        {
            let before = libc::stack_t { ss_sp: start, ss_flags: flags, ss_size: size };
            // SAFETY: the memory outlives its use: std's stack is put back below.
            assert_eq!(unsafe { libc::sigaltstack(&before, ptr::null_mut()) }, 0);
            let alternate = ensure_alternate_stack().expect("alternate stack");
            let during = alternate_stack();
            assert_eq!(during.ss_flags & libc::SS_DISABLE, 0);
            assert_eq!(during.ss_sp == start, kept, "size {size}");
            assert!(during.ss_size >= smallest + 4096);
            drop(alternate);
            let after = alternate_stack();
            assert_eq!(after.ss_flags & libc::SS_DISABLE, flags);
            assert!(flags == libc::SS_DISABLE || (after.ss_sp, after.ss_size) == (start, size));
        }
        // SAFETY: std's alternate stack lives as long as this thread.
        assert_eq!(unsafe { libc::sigaltstack(&of_std, ptr::null_mut()) }, 0);
    };
    thread::spawn(body).join().expect("no panic");
}

/// `KAPOK_SCALE=full`: a million.
#[test]
fn a_hundred_thousand_stacks_take_a_page_each_and_few_mappings() {
    assert_done(alone("a_hundred_thousand_stacks_take_a_page_each_and_few_mappings", || {
        if GuardKind::best() == GuardKind::Protection {
            return; // Cannot hold so many; the limit has a test of its own.
        }
        let full = env::var("KAPOK_SCALE").is_ok_and(|scale| scale == "full");
        let count = if full { 1_000_000 } else { 100_000 };
        let mut pool = StackPool::new();
        let mut stacks = Vec::with_capacity(count);
        let (mappings_before, (resident_before, tables_before)) = (mappings(), memory());
        let begin = Instant::now();
        for _ in 0..count {
            let stack = pool.allocate(StackSize::DEFAULT).expect("stack");
            write(stack.base().get() - 64, 1);
            stacks.push(stack);
        }
        let each = begin.elapsed() / count as u32;
        let (resident, tables) = memory();
        let page = (resident - resident_before) as f64 / count as f64;
        let table = (tables - tables_before) as f64 / count as f64;
        let mappings = mappings() - mappings_before;
        println!(
            "{count} stacks: {page:.0} B resident and {table:.0} B of page tables each, \
             {mappings} mappings more, {each:?} each"
        );
        assert!(page + table <= 4.7 * 1024.0, "{page} + {table} bytes a stack");
        assert!(mappings < 1000, "{mappings} mappings");
        assert_eq!(Arena::process().stats().stacks, count);
        stacks.into_iter().for_each(|stack| pool.release(stack));
        assert_eq!(pool.stats().warm, DEFAULT_WARM_STACKS);
        drop(pool);
        assert_eq!(Arena::process().stats().free, count);
        assert!(memory().0 - resident_before < 64 << 20, "pages stayed");
    }));
}

#[test]
fn stacks_given_back_hold_no_memory_and_keep_their_guards() {
    assert_done(alone("stacks_given_back_hold_no_memory_and_keep_their_guards", || {
        static BEST: Arena = Arena::new(None);
        static PROTECTED: Arena = Arena::new(Some(GuardKind::Protection));
        const COUNT: usize = 200;
        for arena in [&BEST, &PROTECTED] {
            let mut pool = pool(arena, 0);
            let mut known = HashSet::new();
            for round in 0..3 {
                let before = memory().0;
                let stacks: Vec<_> =
                    (0..COUNT).map(|_| pool.allocate(StackSize::DEFAULT).expect("stack")).collect();
                for stack in &stacks {
                    assert!(known.insert(stack.base()) == (round == 0), "a slot was not reused");
                    assert_eq!(read(stack.base().get() - 1), 0, "left over from the last use");
                    for address in (usable_start(stack)..stack.base().get()).step_by(4096) {
                        write(address, 1);
                    }
                    write(stack.base().get() - 1, 1);
                    assert_guarded(stack);
                }
                let touched = memory().0 - before;
                assert!(touched > COUNT * 190 * 1024, "{touched} bytes");
                stacks.into_iter().for_each(|stack| pool.release(stack));
                let kept = memory().0.saturating_sub(before);
                assert!(kept < touched / 20, "{kept} of {touched} bytes stayed");
            }
        }
    }));
}

#[test]
fn page_protection_says_what_its_limit_is() {
    assert_done(alone("page_protection_says_what_its_limit_is", || {
        static ARENA: Arena = Arena::new(Some(GuardKind::Protection));
        let mut pool = pool(&ARENA, 0);
        let mut stacks = Vec::new();
        let error = loop {
            match pool.allocate(StackSize::DEFAULT) {
                Ok(stack) => stacks.push(stack),
                Err(error) => break error,
            }
        };
        let text = error.to_string();
        println!("{text}");
        assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory);
        for part in [&format!("{} stacks exist", stacks.len()), "vm.max_map_count is ", "sysctl -w"]
        {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        // The process goes on: threads start, and a stack that is released can be had again.
        thread::spawn(|| vec![1_u8; 1 << 24].len()).join().expect("no panic");
        pool.release(stacks.pop().expect("a stack"));
        assert_guarded(&pool.allocate(StackSize::DEFAULT).expect("the one released"));
        assert_eq!(ARENA.stats().stacks, stacks.len() + 1);
    }));
}

/// The same where the rest of the process has taken the mappings.
#[test]
fn page_protection_reports_a_refusal_by_the_kernel() {
    assert_done(alone("page_protection_reports_a_refusal_by_the_kernel", || {
        static ARENA: Arena = Arena::new(Some(GuardKind::Protection));
        let limit = fs::read_to_string("/proc/sys/vm/max_map_count").expect("procfs");
        let fill: usize = limit.trim().parse::<usize>().expect("a number") - 4000;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mut pool = pool(&ARENA, 0);
        let mut stacks = Vec::with_capacity(fill);
        // SAFETY: a fresh mapping of our own, split into pages of alternating protection.
        let filler = unsafe {
            let filler = libc::mmap(ptr::null_mut(), fill * 4096, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(filler, libc::MAP_FAILED);
            for page in (0..fill).step_by(2) {
                libc::mprotect(filler.byte_add(page * 4096), 4096, libc::PROT_READ);
            }
            filler
        };
        let error = loop {
            match pool.allocate(StackSize::DEFAULT) {
                Ok(stack) => stacks.push(stack),
                Err(error) => break error,
            }
        };
        // SAFETY: nothing refers to it.
        unsafe { libc::munmap(filler, fill * 4096) };
        let text = error.to_string();
        assert!(text.contains("mprotect: ") && text.contains("vm.max_map_count is "), "{text}");
        assert!(text.contains(&format!("{} stacks exist", stacks.len())), "{text}");
        // The slot that was refused its guard gets one now.
        assert_guarded(&pool.allocate(StackSize::DEFAULT).expect("there is room again"));
    }));
}

#[test]
fn stacks_may_come_back_on_another_thread() {
    static ARENA: Arena = Arena::new(None);
    let mut here = pool(&ARENA, 16);
    let stacks: Vec<_> =
        (0..10).map(|_| here.allocate(StackSize::DEFAULT).expect("stack")).collect();
    let bases: HashSet<_> = stacks.iter().map(|stack| stack.base()).collect();
    let there = thread::spawn(|| {
        let mut there = pool(&ARENA, 4);
        stacks.into_iter().for_each(|stack| there.release(stack));
        let stats = there.stats();
        assert_eq!((stats.released, stats.warm, stats.given_back), (10, 4, 6));
        assert_eq!(ARENA.stats().free, 6);
    });
    there.join().expect("no panic");
    // The other pool was dropped with its thread.
    assert_eq!(ARENA.stats().free, 10);
    let again: HashSet<_> = (0..10)
        .map(|_| mem::ManuallyDrop::new(here.allocate(StackSize::DEFAULT).expect("stack")).base())
        .collect();
    assert_eq!(again, bases);
    assert_eq!((ARENA.stats().stacks, ARENA.stats().free), (10, 0));
}

#[test]
fn trimming_leaves_stacks_in_use_alone() {
    static ARENA: Arena = Arena::new(None);
    let mut pool = pool(&ARENA, 16);
    let used = pool.allocate(StackSize::DEFAULT).expect("stack");
    let idle = pool.allocate(StackSize::DEFAULT).expect("stack");
    for stack in [&used, &idle] {
        write(stack.base().get() - 1, 5);
    }
    pool.release(idle);
    assert_eq!(pool.stats().warm, 1);
    assert_eq!(pool.trim(), 1);
    let idle = pool.allocate(StackSize::DEFAULT).expect("stack");
    assert_eq!((read(used.base().get() - 1), read(idle.base().get() - 1)), (5, 0));
    let stats = pool.stats();
    assert_eq!((stats.allocated, stats.reused, stats.released), (3, 0, 1));
    assert_eq!((stats.given_back, stats.warm), (1, 0));
}

#[test]
fn a_leaked_stack_never_comes_back() {
    static ARENA: Arena = Arena::new(None);
    let mut pool = pool(&ARENA, 16);
    let stack = pool.allocate(StackSize::DEFAULT).expect("stack");
    let base = stack.base();
    write(base.get() - 1, 9);
    mem::forget(stack);
    ARENA.note_leaked();
    assert_eq!((ARENA.stats().stacks, ARENA.stats().free, ARENA.stats().leaked), (1, 0, 1));
    let next = pool.allocate(StackSize::DEFAULT).expect("stack");
    assert_ne!(next.base(), base);
    drop((next, pool));
    assert_eq!(read(base.get() - 1), 9);
}

#[test]
fn fewer_large_stacks_are_kept_warm() {
    static ARENA: Arena = Arena::new(None);
    let mut pool = pool(&ARENA, 16);
    for (usable, kept) in [(1, 16), (192 << 10, 16), (448 << 10, 8), (8 << 20, 0)] {
        let size = StackSize::for_usable(usable).expect("size");
        let stacks: Vec<_> = (0..20).map(|_| pool.allocate(size).expect("stack")).collect();
        assert!(stacks.iter().all(|stack| stack.size() == size));
        stacks.into_iter().for_each(|stack| pool.release(stack));
        assert_eq!(pool.stats().warm, kept, "{size:?}");
        pool.trim();
    }
}

#[test]
fn sizes_are_a_page_more_than_powers_of_two_with_room_for_what_was_asked() {
    assert_eq!(StackSize::for_usable(192 << 10).expect("size"), StackSize::DEFAULT);
    assert_eq!(StackSize::for_usable(0).expect("size").usable_bytes(), 64 << 10);
    for bytes in [1, 65_536, 65_537, 196_609, 8 << 20, (1 << 30) - GUARD_BYTES] {
        let size = StackSize::for_usable(bytes).expect("size");
        assert!(size.usable_bytes() >= bytes, "{size:?}");
        assert!((size.slot_bytes() - ODD_BYTES).is_power_of_two(), "{size:?}");
    }
    for bytes in [(1 << 30) - GUARD_BYTES + 1, usize::MAX] {
        let error = StackSize::for_usable(bytes).expect_err("too large");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[test]
fn colours_spread_evenly_and_stay_low() {
    static ARENA: Arena = Arena::new(None);
    let mut pool = pool(&ARENA, 0);
    let stacks: Vec<_> =
        (0..10 * COLOURS).map(|_| pool.allocate(StackSize::DEFAULT).expect("stack")).collect();
    let mut colours = BTreeMap::new();
    for stack in &stacks {
        let end = stack.limit().get() + stack.size().slot_bytes() - ODD_BYTES;
        let colour = end - stack.base().get();
        assert!(colour.is_multiple_of(64) && colour < 1536, "{colour}");
        *colours.entry(colour).or_insert(0) += 1;
    }
    assert_eq!(colours.len(), COLOURS);
    assert!(colours.values().all(|&count| count == 10), "{colours:?}");
}

#[test]
fn fibers_run_deep_and_come_back() {
    static BEST: Arena = Arena::new(None);
    static PROTECTED: Arena = Arena::new(Some(GuardKind::Protection));
    for arena in [&BEST, &PROTECTED] {
        let mut pool = pool(arena, 16);
        for usable in [64 << 10, 192 << 10, 8 << 20] {
            let size = StackSize::for_usable(usable).expect("size");
            let stack = pool.allocate(size).expect("stack");
            let floor = usable_start(&stack);
            let mut fiber = Coroutine::with_stack(stack, move |yielder, first: usize| {
                let second = yielder.suspend(descend(floor, 2048, &|_| {}));
                first + second
            });
            match fiber.resume(40) {
                CoroutineResult::Yield(depth) => {
                    assert!(depth > usable / 1024, "only {depth} frames");
                }
                CoroutineResult::Return(_) => panic!("returned early"),
            }
            match fiber.resume(2) {
                CoroutineResult::Return(sum) => assert_eq!(sum, 42),
                CoroutineResult::Yield(_) => panic!("yielded twice"),
            }
            pool.release(fiber.into_stack());
        }
    }
}

#[test]
fn reusing_a_kept_stack_is_far_cheaper_than_a_fresh_one() {
    static ARENA: Arena = Arena::new(None);
    let time = |warm_limit: usize, count: u32| -> Duration {
        let mut pool = pool(&ARENA, warm_limit);
        // The best of several rounds: others use the machine too.
        let round = |_| {
            let begin = Instant::now();
            for _ in 0..count {
                let stack = pool.allocate(StackSize::DEFAULT).expect("stack");
                write(stack.base().get() - 64, 1);
                pool.release(hint::black_box(stack));
            }
            begin.elapsed() / count
        };
        (0..10).map(round).min().expect("ten rounds")
    };
    let (kept, fresh) = (time(16, 10_000), time(0, 1_000));
    println!("kept {kept:?}, fresh {fresh:?}");
    assert!(kept * 8 < fresh, "kept {kept:?}, fresh {fresh:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { pool: usize, size: usize },
    Release { pool: usize, stack: usize },
    Drop { stack: usize },
    Trim { pool: usize },
    NewPool { pool: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2_usize, 0..3_usize).prop_map(|(pool, size)| Step::Allocate { pool, size }),
        4 => (0..2_usize, any::<usize>()).prop_map(|(pool, stack)| Step::Release { pool, stack }),
        1 => any::<usize>().prop_map(|stack| Step::Drop { stack }),
        1 => (0..2_usize).prop_map(|pool| Step::Trim { pool }),
        1 => (0..2_usize).prop_map(|pool| Step::NewPool { pool }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done with stacks, those that are out are apart from each other, keep what was
    /// written to their ends, and none is lost.
    #[test]
    fn live_stacks_never_overlap(steps in proptest::collection::vec(step(), 1..200)) {
        static ARENA: Arena = Arena::new(None);
        let sizes = [1, 192 << 10, 448 << 10].map(|n| StackSize::for_usable(n).expect("size"));
        let mut pools = [pool(&ARENA, 4), pool(&ARENA, 4)];
        let mut live: Vec<(PooledStack, u8)> = Vec::new();
        let check = |(stack, tag): &(PooledStack, u8)| {
            assert_eq!(read(usable_start(stack)), *tag);
            assert_eq!(read(stack.base().get() - 1), *tag);
        };
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Allocate { pool, size } => {
                    let stack = pools[pool].allocate(sizes[size]).expect("stack");
                    for (other, _) in &live {
                        prop_assert!(
                            stack.base() <= other.limit() || other.base() <= stack.limit(),
                            "{stack:?} and {other:?}"
                        );
                    }
                    write(usable_start(&stack), number as u8);
                    write(stack.base().get() - 1, number as u8);
                    live.push((stack, number as u8));
                }
                Step::Release { pool, stack } if !live.is_empty() => {
                    let entry = live.swap_remove(stack % live.len());
                    check(&entry);
                    pools[pool].release(entry.0);
                }
                Step::Drop { stack } if !live.is_empty() => {
                    let entry = live.swap_remove(stack % live.len());
                    check(&entry);
                    drop(entry);
                }
                Step::Release { .. } | Step::Drop { .. } => {}
                Step::Trim { pool } => {
                    pools[pool].trim();
                }
                Step::NewPool { pool: index } => pools[index] = pool(&ARENA, 4),
            }
            let warm: usize = pools.iter().map(|pool| pool.stats().warm).sum();
            let stats = ARENA.stats();
            prop_assert_eq!(stats.stacks, stats.free + warm + live.len());
        }
        live.iter().for_each(check);
    }
}
