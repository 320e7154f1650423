//! Which thread an operation is handed to.

use std::cell::Cell;
use std::os::fd::RawFd;

use crate::port::Port;

/// How operations are spread over the threads. Whatever is chosen, an operation whose thread has a full
/// channel goes to the next one that has room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Balance {
    /// To the thread with the fewest operations queued and in flight; among equals to the first, so
    /// that few operations keep few threads awake.
    #[default]
    LeastInFlight,
    /// To the one with fewer of two that are drawn: nearly as even, and looks at two threads whatever
    /// their number.
    TwoChoices,
    /// To one after the other, each submitting thread by its own count.
    RoundRobin,
    /// All operations on a descriptor to the same thread, as long as the number of threads stays.
    ByFile,
}

impl Balance {
    /// One of the first `active` ports.
    #[inline]
    pub(crate) fn choose(self, ports: &[Port], active: usize, fd: Option<RawFd>) -> usize {
        if active <= 1 {
            return 0;
        }
        match self {
            Balance::LeastInFlight => least((0..active).map(|at| (at, ports[at].load()))),
            Balance::TwoChoices => {
                let drawn = draw();
                let one = (drawn as u32 as usize) % active;
                // Another one than the first.
                let other = (one + 1 + (drawn >> 32) as usize % (active - 1)) % active;
                least([one, other].into_iter().map(|at| (at, ports[at].load())))
            }
            Balance::RoundRobin => count() % active,
            Balance::ByFile => match fd {
                Some(fd) => (scramble(fd as u64) >> 32) as usize % active,
                None => count() % active,
            },
        }
    }
}

/// The number of the least load, the first among equals.
fn least(loads: impl Iterator<Item = (usize, usize)>) -> usize {
    loads.min_by_key(|&(_, load)| load).map_or(0, |(at, _)| at)
}

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static STATE: Cell<u64> = const { Cell::new(0) };
}

fn count() -> usize {
    COUNT
        .try_with(|count| {
            count.set(count.get().wrapping_add(1));
            count.get()
        })
        .unwrap_or(0)
}

/// A random number: SplitMix64 (Steele, Lea and Flood), from where this thread's counter lies.
fn draw() -> u64 {
    STATE
        .try_with(|state| {
            let seed = if state.get() == 0 { state.as_ptr() as u64 } else { state.get() };
            let next = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            state.set(next);
            scramble(next)
        })
        .unwrap_or(0)
}

fn scramble(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    fn ports(loads: &[u32]) -> Vec<Port> {
        loads
            .iter()
            .map(|&load| {
                let port = Port::new(8);
                port.in_flight.store(load, Ordering::Relaxed);
                port
            })
            .collect()
    }

    #[test]
    fn least_in_flight_takes_the_first_of_the_least() {
        let ports = ports(&[3, 1, 1, 0]);
        assert_eq!(Balance::LeastInFlight.choose(&ports, 4, None), 3);
        // A thread that does not serve is not looked at.
        assert_eq!(Balance::LeastInFlight.choose(&ports, 3, None), 1);
        assert_eq!(Balance::LeastInFlight.choose(&ports, 1, None), 0);
    }

    #[test]
    fn two_choices_never_takes_the_most_loaded_and_takes_all_others() {
        let ports = ports(&[5, 5, 900, 5]);
        let mut taken = [0; 4];
        for _ in 0..4000 {
            taken[Balance::TwoChoices.choose(&ports, 4, None)] += 1;
        }
        assert_eq!(taken[2], 0, "{taken:?}");
        assert!([0, 1, 3].iter().all(|&at| taken[at] > 200), "{taken:?}");
    }

    #[test]
    fn round_robin_is_even() {
        let ports = ports(&[0, 100, 0]);
        let mut taken = [0; 3];
        for _ in 0..300 {
            taken[Balance::RoundRobin.choose(&ports, 3, None)] += 1;
        }
        assert_eq!(taken, [100; 3]);
    }

    #[test]
    fn by_file_keeps_to_a_thread_and_uses_all() {
        let ports = ports(&[0; 4]);
        let mut taken = [0; 4];
        for fd in 3..403 {
            let one = Balance::ByFile.choose(&ports, 4, Some(fd));
            assert_eq!(one, Balance::ByFile.choose(&ports, 4, Some(fd)));
            taken[one] += 1;
        }
        assert!(taken.iter().all(|&count| count > 50), "{taken:?}");
    }
}
