//! What the processor and its memory take.

use std::hint::black_box;
use std::sync::Mutex;

use super::{Subject, each};

/// From here on no cache is large enough.
const LARGE: usize = 256 << 20;
const LINE: usize = 64;

pub(super) fn subjects() -> Vec<Subject> {
    let [first, second] = [1, 2].map(cache_bytes);
    let first = first.unwrap_or(32 << 10) / 2;
    let second = second.unwrap_or(512 << 10) / 2;
    vec![
        Subject::new(
            "instruction",
            0.3,
            "a chain of shifts and exclusive ors, each waiting for the one before",
            || Ok(Box::new(|| Ok(instruction()))),
        ),
        Subject::new(
            "branch mispredicted",
            5.0,
            "a branch on random bits less the same on equal ones, over the half that is guessed wrong",
            || {
                let random: Vec<u8> =
                    random_numbers(BRANCHES).map(|number| number as u8 & 1).collect();
                let equal = vec![0; BRANCHES];
                Ok(Box::new(move || {
                    let surprise = branches(&random) - branches(&equal);
                    Ok(surprise.max(0.0) * 2.0)
                }))
            },
        ),
        chase("L1 cache", 1.0, first),
        chase("L2 cache", 4.0, second),
        chase("memory", 100.0, LARGE),
        Subject::new(
            "mutex, free",
            25.0,
            "lock and unlock of a std Mutex nobody else wants",
            || {
                let mutex = Mutex::new(0_u64);
                Ok(Box::new(move || {
                    Ok(each(100_000, || {
                        if let Ok(mut value) = black_box(&mutex).lock() {
                            *value += 1;
                        }
                    }))
                }))
            },
        ),
        Subject::new(
            "copy of 1 MiB",
            10_000.0,
            "from one part of 256 MiB to another, neither in a cache",
            || {
                let mut memory = vec![1_u8; LARGE];
                let mut at = 0;
                Ok(Box::new(move || {
                    Ok(each(32, || {
                        at = (at + (5 << 20)) % (LARGE / 2);
                        let (from, to) = memory.split_at_mut(LARGE / 2);
                        let end = (at + (1 << 20)).min(LARGE / 2);
                        to[at..end].copy_from_slice(&from[at..end]);
                        black_box(&mut to[at]);
                    }))
                }))
            },
        ),
    ]
}

fn instruction() -> f64 {
    /// Single instructions in a step: three shifts and three exclusive ors.
    const STEP: f64 = 6.0;
    let mut value = black_box(88_172_645_463_325_252_u64);
    let time = each(500_000, || {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
    });
    black_box(value);
    time / STEP
}

const BRANCHES: usize = 1 << 20;

fn branches(bits: &[u8]) -> f64 {
    let mut taken = 0_u64;
    let mut bits = bits.iter();
    let time = each(BRANCHES as u64, || {
        if bits.next() == Some(&1) {
            // What the compiler must not turn into an addition without a branch.
            taken = black_box(taken + 1);
        }
    });
    black_box(taken);
    time
}

/// A walk over `bytes` in random order, each step to where the one before says.
fn chase(name: &'static str, book_ns: f64, bytes: usize) -> Subject {
    let method = format!(
        "a walk over {} in random order, each step told by the one before; large pages, if the kernel has \
         some{}",
        if bytes >= 1 << 20 {
            format!("{} MiB", bytes >> 20)
        } else {
            format!("{} KiB", bytes >> 10)
        },
        if bytes == LARGE { ", else misses of the translation buffer are in it" } else { "" }
    );
    Subject::new(name, book_ns, method, move || {
        let mut memory = Memory::new(bytes / size_of::<u32>());
        ring(memory.words());
        let memory = memory;
        let mut at = 0_usize;
        // All of it once, to have it in the cache it is for; large memory needs no more than a part.
        let steps = if bytes == LARGE { 50_000 } else { 1_000_000 };
        Ok(Box::new(move || {
            let words = memory.shared();
            let time = each(steps, || at = words[at] as usize);
            black_box(at);
            Ok(time)
        }))
    })
}

/// Words that begin where a large page does.
///
/// A cache of the second level finds its lines by physical addresses: how many of them fit at once depends
/// on which small pages a process was given. Within a large page all addresses are there once.
struct Memory {
    words: Vec<u32>,
    from: usize,
    length: usize,
}

impl Memory {
    const LARGE_PAGE: usize = 2 << 20;

    fn new(length: usize) -> Memory {
        // Untouched memory of the allocator, of whole large pages.
        let bytes = (length * size_of::<u32>()).next_multiple_of(Memory::LARGE_PAGE);
        let words = vec![0_u32; (bytes + Memory::LARGE_PAGE) / size_of::<u32>()];
        let from = words.as_ptr().align_offset(Memory::LARGE_PAGE);
        let start = words[from..].as_ptr().cast_mut().cast();
        // SAFETY: the vector owns the range, which the advice neither reads nor writes. That there are no
        // large pages to be had is no error of ours.
        unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
        Memory { words, from, length }
    }

    fn words(&mut self) -> &mut [u32] {
        &mut self.words[self.from..self.from + self.length]
    }

    fn shared(&self) -> &[u32] {
        &self.words[self.from..self.from + self.length]
    }
}

/// One ring through all cache lines of `memory`, in random order: the first word of a line is the index
/// of the next.
fn ring(memory: &mut [u32]) {
    const WORDS: usize = LINE / size_of::<u32>();
    let lines = memory.len() / WORDS;
    let mut order: Vec<u32> = (0..lines as u32).collect();
    for (place, random) in (1..lines).rev().zip(random_numbers(lines)) {
        order.swap(place, (random % (place as u64 + 1)) as usize);
    }
    for (place, &line) in order.iter().enumerate() {
        memory[line as usize * WORDS] = order[(place + 1) % lines] * WORDS as u32;
    }
}

fn random_numbers(count: usize) -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..count).map(move |_| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

/// The size of this core's data cache of a level.
fn cache_bytes(level: u32) -> Option<usize> {
    (0..8).find_map(|index| {
        let read = |file: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}");
            Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
        };
        let is_it = read("level")? == level.to_string() && read("type")? != "Instruction";
        let kib: usize = is_it.then(|| read("size"))??.strip_suffix('K')?.parse().ok()?;
        Some(kib << 10)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_comes_by_every_line_once() {
        let mut memory = vec![0; (64 << 10) / size_of::<u32>()];
        ring(&mut memory);
        let mut seen = vec![false; (64 << 10) / LINE];
        let mut at = 0;
        for _ in 0..seen.len() {
            assert!(!std::mem::replace(&mut seen[at / 16], true), "{at} twice");
            at = memory[at] as usize;
        }
        assert_eq!(at, 0, "and back to its beginning");
    }
}
