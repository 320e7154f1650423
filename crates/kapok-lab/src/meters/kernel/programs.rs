//! The programs that count, and the maps they count in.
//!
//! All of them pass by quickly what is not watched. What they write:
//!
//! ```text
//! processes  process id         → itself          who is watched; children join
//! threads    thread id          → Thread          the timed call that a thread is in, and since when
//! calls      number of a call   → Calls           one for each processor
//! timed      0                  → how many calls are being timed now
//! requests   ring and request   → operation       which operation a completion belongs to
//!            ring and user data → operation       the same, for one of several completions
//! ring       operation          → Operations      one for each processor
//! wakes      0                  → Wakes           one for each processor
//! ```

use std::io;
use std::os::fd::AsFd;

use super::assembler::{
    Assembler, FRAME, Helper, Label, R0, R1, R2, R3, R6, R7, R8, When::AtMost, When::Equal,
    When::NotEqual, When::SignedAtLeast, Width::Byte, Width::Double, Width::Word,
};
use super::system::{Map, MapKind};
use super::types::Types;
use crate::meters::tracefs::Tracefs;

/// Processes and threads that can be watched at once.
const PROCESSES: u32 = 16_384;
const THREADS: u32 = 65_536;
/// Operations in flight whose kind is remembered.
const REQUESTS: u32 = 65_536;

/// More than there are system calls, the highest of which is 470.
pub(super) const CALLS: u32 = 600;

/// So many calls of a kind are timed, on each processor, before only one in sixteen is.
const RARE: i32 = 256;

/// The numbers of io_uring's operations, and one for those that began before anybody counted.
pub(super) const OPERATIONS: u32 = 256;
pub(super) const BEGUN_BEFORE: u8 = 255;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Thread {
    /// When it entered the call that it is in; 0 if that is not timed, or it is in none.
    pub(super) entered_ns: u64,
    pub(super) call: u32,
    pub(super) process: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls {
    pub(super) made: u64,
    /// Those whose end was seen; the rest is about them.
    pub(super) timed: u64,
    pub(super) nanoseconds: u64,
    pub(super) errors: u64,
    pub(super) would_block: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Operations {
    pub(super) submitted: u64,
    pub(super) landed: u64,
    pub(super) errors: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wakes {
    pub(super) taken: u64,
    pub(super) given: u64,
}

#[derive(Debug)]
pub(super) struct Maps {
    /// One of the processes that are watched, known without a look.
    first: u32,
    pub(super) processes: Map<u32, u32>,
    pub(super) threads: Map<u32, Thread>,
    pub(super) calls: Map<u32, Calls>,
    pub(super) timed: Map<u32, u64>,
    pub(super) requests: Map<[u64; 2], u32>,
    pub(super) ring: Map<u32, Operations>,
    pub(super) wakes: Map<u32, Wakes>,
}

impl Maps {
    pub(super) fn new(first: u32) -> io::Result<Maps> {
        Ok(Maps {
            first,
            processes: Map::new(MapKind::Hash, PROCESSES)?,
            threads: Map::new(MapKind::Hash, THREADS)?,
            calls: Map::new(MapKind::PerProcessorArray, CALLS)?,
            timed: Map::new(MapKind::Array, 1)?,
            requests: Map::new(MapKind::RecentHash, REQUESTS)?,
            ring: Map::new(MapKind::PerProcessorArray, OPERATIONS)?,
            wakes: Map::new(MapKind::PerProcessorArray, 1)?,
        })
    }
}

/// Where on the stack things are while a program runs.
const THREAD: i16 = -4;
const PROCESS: i16 = -8;
const KEY: i16 = -12;
const FRESH: i16 = -40;
const REQUEST: i16 = -64;

/// Leaves the running thread's and its process's numbers at `THREAD` and `PROCESS`.
fn identify(program: &mut Assembler) {
    program.call(Helper::CurrentProcess);
    program.store(Word, FRAME, THREAD, R0);
    program.upper_half(R0);
    program.store(Word, FRAME, PROCESS, R0);
}

/// Goes on if the running process is watched.
fn unless_watched(program: &mut Assembler, maps: &Maps, to: Label) {
    let ours = program.label();
    identify(program);
    program.jump_if(R0, Equal, maps.first as i32, ours);
    program.lookup(maps.processes.as_fd(), PROCESS);
    program.jump_if(R0, Equal, 0, to);
    program.place(ours);
}

/// At `raw_syscalls:sys_enter`, whose arguments are the registers and the number of the call. With `times`,
/// those of some calls are taken.
pub(super) fn call_begins(maps: &Maps, times: bool) -> Vec<u64> {
    let mut program = Assembler::default();
    let (timed, end) = (program.label(), program.label());
    program.copy(R6, R1);
    unless_watched(&mut program, maps, end);
    program.load(Double, R7, R6, 8);
    program.store(Word, FRAME, KEY, R7);
    program.lookup(maps.calls.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, end);
    program.set(R1, 1);
    program.count(R0, 0, R1);
    if !times {
        program.place(timed);
        return program.finish(end);
    }
    // Times are taken of rare calls, and of one in sixteen of frequent ones: of every sixteenth would
    // be of always the same connection, if there are so many.
    program.load(Double, R1, R0, 0);
    program.jump_if(R1, AtMost, RARE, timed);
    program.multiply_half(R1, 0x9e37_79b1);
    program.shift_right(R1, 28);
    program.jump_if(R1, NotEqual, 0, end);
    program.place(timed);
    program.call(Helper::Nanoseconds);
    program.store(Double, FRAME, FRESH, R0);
    program.store(Word, FRAME, FRESH + 8, R7);
    program.load(Word, R1, FRAME, PROCESS);
    program.store(Word, FRAME, FRESH + 12, R1);
    program.update(maps.threads.as_fd(), THREAD, FRESH);
    program.set(R1, 0);
    program.store(Word, FRAME, KEY, R1);
    program.lookup(maps.timed.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, end);
    program.set(R1, 1);
    program.count(R0, 0, R1);
    program.finish(end)
}

/// At `raw_syscalls:sys_exit`, whose arguments are the registers and what the call returns.
pub(super) fn call_ends(maps: &Maps) -> Vec<u64> {
    let mut program = Assembler::default();
    let (failed, counted, end) = (program.label(), program.label(), program.label());
    program.copy(R6, R1);
    program.set(R1, 0);
    program.store(Word, FRAME, KEY, R1);
    program.lookup(maps.timed.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, end);
    // Mostly there is nothing to look for.
    program.load(Double, R1, R0, 0);
    program.jump_if(R1, Equal, 0, end);
    program.copy(R8, R0);
    program.call(Helper::CurrentProcess);
    program.store(Word, FRAME, THREAD, R0);
    program.lookup(maps.threads.as_fd(), THREAD);
    program.jump_if(R0, Equal, 0, end);
    program.load(Double, R7, R0, 0);
    // This call is not timed, or it began before anybody counted.
    program.jump_if(R7, Equal, 0, end);
    program.set(R1, 0);
    program.store(Double, R0, 0, R1);
    program.load(Word, R1, R0, 8);
    program.store(Word, FRAME, KEY, R1);
    program.set(R1, -1);
    program.count(R8, 0, R1);
    program.call(Helper::Nanoseconds);
    program.subtract(R0, R7);
    program.copy(R7, R0);
    program.lookup(maps.calls.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, end);
    program.count(R0, 16, R7);
    program.set(R1, 1);
    program.count(R0, 8, R1);
    program.load(Double, R7, R6, 8);
    program.jump_if(R7, SignedAtLeast, 0, end);
    // What is less is no error but an address.
    program.jump_if(R7, SignedAtLeast, -4095, failed);
    program.jump(end);
    program.place(failed);
    program.count(R0, 24, R1);
    program.jump_if(R7, NotEqual, -libc::EAGAIN, counted);
    program.count(R0, 32, R1);
    program.place(counted);
    program.finish(end)
}

/// At `io_uring:io_uring_submit_req`, which hands over its argument: no record of it is made, as for the
/// program below.
pub(super) fn operation_is_handed_over(maps: &Maps, types: &Types) -> io::Result<Vec<u64>> {
    if !types.hands_over("io_uring_submit_req", "io_kiocb") {
        return Err(io::Error::other(
            "this kernel's io_uring_submit_req hands over something else",
        ));
    }
    let operation = types.offset("io_kiocb", "opcode", 1)?;
    let mut program = Assembler::default();
    let end = program.label();
    program.copy(R6, R1);
    unless_watched(&mut program, maps, end);
    program.set(R1, 0);
    program.store(Word, FRAME, KEY, R1);
    program.copy(R1, FRAME);
    program.add(R1, i32::from(KEY));
    program.set(R2, 1);
    program.load(Double, R3, R6, 0);
    program.add(R3, operation);
    program.call(Helper::ReadKernel);
    program.lookup(maps.ring.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, end);
    program.set(R1, 1);
    program.count(R0, 0, R1);
    Ok(program.finish(end))
}

/// At `io_uring:io_uring_submit_req`, by its record. With `landings`, it leaves word of what lands later.
pub(super) fn operation_begins(
    maps: &Maps,
    tracefs: &Tracefs,
    landings: bool,
) -> io::Result<Vec<u64>> {
    let fields = tracefs.fields("io_uring/io_uring_submit_req")?;
    let (ring, request) = (fields.offset("ctx", 8)?, fields.offset("req", 8)?);
    let user_data = fields.offset("user_data", 8)?;
    let operation = fields.offset("opcode", 1)?;
    let mut program = Assembler::default();
    let end = program.label();
    program.copy(R6, R1);
    unless_watched(&mut program, maps, end);
    program.load(Byte, R7, R6, operation);
    program.store(Word, FRAME, KEY, R7);
    program.load(Double, R1, R6, ring);
    program.store(Double, FRAME, REQUEST, R1);
    let names = if landings { &[request, user_data][..] } else { &[] };
    for &name in names {
        let (fresh, kept) = (program.label(), program.label());
        program.load(Double, R1, R6, name);
        program.store(Double, FRAME, REQUEST + 8, R1);
        // Rings use their requests and names again and again: to look is less than to enter.
        program.lookup(maps.requests.as_fd(), REQUEST);
        program.jump_if(R0, Equal, 0, fresh);
        program.store(Word, R0, 0, R7);
        program.jump(kept);
        program.place(fresh);
        program.update(maps.requests.as_fd(), REQUEST, KEY);
        program.place(kept);
    }
    program.lookup(maps.ring.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, end);
    program.set(R1, 1);
    program.count(R0, 0, R1);
    Ok(program.finish(end))
}

/// At `io_uring:io_uring_complete`, which may pass by on any thread, or on none of the process.
pub(super) fn operation_lands(maps: &Maps, tracefs: &Tracefs) -> io::Result<Vec<u64>> {
    let fields = tracefs.fields("io_uring/io_uring_complete")?;
    let (ring, request) = (fields.offset("ctx", 8)?, fields.offset("req", 8)?);
    let user_data = fields.offset("user_data", 8)?;
    let result = fields.offset("res", 4)?;
    let mut program = Assembler::default();
    let (known, count, end) = (program.label(), program.label(), program.label());
    let whole = program.label();
    program.copy(R6, R1);
    program.load(Double, R1, R6, ring);
    program.store(Double, FRAME, REQUEST, R1);
    program.load(Double, R1, R6, request);
    program.jump_if(R1, NotEqual, 0, whole);
    // One of several completions of a request, which is not named then.
    program.load(Double, R1, R6, user_data);
    program.place(whole);
    program.store(Double, FRAME, REQUEST + 8, R1);
    program.lookup(maps.requests.as_fd(), REQUEST);
    program.jump_if(R0, NotEqual, 0, known);
    unless_watched(&mut program, maps, end);
    program.set(R7, i32::from(BEGUN_BEFORE));
    program.jump(count);
    program.place(known);
    program.load(Word, R7, R0, 0);
    program.place(count);
    program.store(Word, FRAME, KEY, R7);
    program.lookup(maps.ring.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, end);
    program.set(R1, 1);
    program.count(R0, 8, R1);
    program.load(Word, R7, R6, result);
    program.extend_sign(R7);
    program.jump_if(R7, SignedAtLeast, 0, end);
    program.count(R0, 16, R1);
    Ok(program.finish(end))
}

/// At `sched:sched_wakeup`: a thread that waited is ready.
pub(super) fn wakes_taken(maps: &Maps, tracefs: &Tracefs) -> io::Result<Vec<u64>> {
    let woken = tracefs.fields("sched/sched_wakeup")?.offset("pid", 4)?;
    let mut program = Assembler::default();
    let end = program.label();
    program.load(Word, R1, R1, woken);
    program.store(Word, FRAME, KEY, R1);
    program.lookup(maps.threads.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, end);
    count_wake(&mut program, maps, 0, end);
    Ok(program.finish(end))
}

/// At `sched:sched_waking`, which is passed on the processor that wakes: `sched_wakeup` is left to an
/// idle one, where the thread that is woken will run. Who runs meanwhile is who wakes, or was
/// interrupted for it.
pub(super) fn wakes_given(maps: &Maps) -> Vec<u64> {
    let mut program = Assembler::default();
    let end = program.label();
    unless_watched(&mut program, maps, end);
    count_wake(&mut program, maps, 8, end);
    program.finish(end)
}

/// Counts one at `offset` of [`Wakes`].
fn count_wake(program: &mut Assembler, maps: &Maps, offset: i16, end: Label) {
    program.set(R1, 0);
    program.store(Word, FRAME, KEY, R1);
    program.lookup(maps.wakes.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, end);
    program.set(R1, 1);
    program.count(R0, offset, R1);
}

/// At `sched:sched_process_fork`: children of what is watched are watched. A thread's number, which
/// comes by here as well, is nobody's number of a process.
pub(super) fn child_begins(maps: &Maps, tracefs: &Tracefs) -> io::Result<Vec<u64>> {
    let child = tracefs.fields("sched/sched_process_fork")?.offset("child_pid", 4)?;
    let mut program = Assembler::default();
    let end = program.label();
    program.copy(R6, R1);
    unless_watched(&mut program, maps, end);
    program.load(Word, R1, R6, child);
    program.store(Word, FRAME, KEY, R1);
    program.update(maps.processes.as_fd(), KEY, KEY);
    program.set(R1, 0);
    program.store(Double, FRAME, FRESH, R1);
    program.store(Double, FRAME, FRESH + 8, R1);
    program.update(maps.threads.as_fd(), KEY, FRESH);
    Ok(program.finish(end))
}

/// At `sched:sched_process_exit`: a thread's number goes back, and may soon be somebody else's.
pub(super) fn thread_ends(maps: &Maps, tracefs: &Tracefs) -> io::Result<Vec<u64>> {
    let thread = tracefs.fields("sched/sched_process_exit")?.offset("pid", 4)?;
    let mut program = Assembler::default();
    let (untimed, end) = (program.label(), program.label());
    program.copy(R6, R1);
    program.load(Word, R1, R6, thread);
    program.store(Word, FRAME, KEY, R1);
    program.lookup(maps.threads.as_fd(), KEY);
    program.jump_if(R0, Equal, 0, untimed);
    program.load(Double, R1, R0, 0);
    program.jump_if(R1, Equal, 0, untimed);
    // The call in which it ends is timed, and has no end.
    program.set(R1, 0);
    program.store(Word, FRAME, PROCESS, R1);
    program.lookup(maps.timed.as_fd(), PROCESS);
    program.jump_if(R0, Equal, 0, untimed);
    program.set(R1, -1);
    program.count(R0, 0, R1);
    program.place(untimed);
    program.map_and_key(maps.threads.as_fd(), KEY);
    program.call(Helper::Delete);
    Ok(program.finish(end))
}

/// At `sched:sched_process_free`: nobody is left of a process, whose first thread may have ended long
/// before the others.
pub(super) fn process_ends(maps: &Maps, tracefs: &Tracefs) -> io::Result<Vec<u64>> {
    let process = tracefs.fields("sched/sched_process_free")?.offset("pid", 4)?;
    let mut program = Assembler::default();
    let end = program.label();
    program.load(Word, R1, R1, process);
    program.store(Word, FRAME, KEY, R1);
    program.map_and_key(maps.processes.as_fd(), KEY);
    program.call(Helper::Delete);
    Ok(program.finish(end))
}
