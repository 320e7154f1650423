//! M: how often a thread looks around before it sleeps.
//!
//! Looks are worth it where they find something sooner than a wake-up would. Two things speak against
//! them: waits that are long in any case, and a peer that cannot come while this thread looks, for both
//! share a processor. The second cannot be seen in the waits, which are short then. It is seen in this:
//! longer and longer spins find nothing, and whoever was waited for comes as soon as the thread sleeps.

use std::time::Duration;

/// With how many looks adaptive spinning begins again.
const FEWEST_LOOKS: u32 = 16;

/// So many spins in vain, each before a short wait, double up to 1,000 looks and go on there for two more.
const MOST_IN_VAIN: u32 = 8;

/// How many short waits pass without spinning after that, first and at most. They take about 20 µs each,
/// the spins in vain 150 µs together.
const REST: std::ops::RangeInclusive<u32> = 64..=4096;

pub(crate) struct Patience {
    looks: u32,
    most: u32,
    adaptive: bool,
    /// A wait that is over so soon would have been spun away.
    short: Duration,
    in_vain: u32,
    /// Short waits that are left before spinning is tried again, and how many it will be the next time.
    resting: u32,
    rest: u32,
}

impl Patience {
    /// Always so many looks.
    pub(crate) fn fixed(looks: u32) -> Patience {
        Patience { adaptive: false, ..Patience::adaptive(looks, looks, Duration::ZERO) }
    }

    /// Up to `most` looks, as long as waits are `short`.
    pub(crate) fn adaptive(looks: u32, most: u32, short: Duration) -> Patience {
        Patience { looks, most, adaptive: true, short, in_vain: 0, resting: 0, rest: *REST.start() }
    }

    #[inline]
    pub(crate) fn looks(&self) -> u32 {
        self.looks
    }

    /// A spin has found something. At the first look it was there before.
    #[inline]
    pub(crate) fn found(&mut self, looks: u32) {
        if looks > 1 {
            self.in_vain = 0;
            self.rest = *REST.start();
        }
    }

    /// A spin was in vain, or there was none, and the wait after it took so long. `called`: something came.
    pub(crate) fn waited(&mut self, waited: Duration, called: bool) {
        if !self.adaptive {
            return;
        }
        if waited >= self.short || !called {
            self.looks /= 2;
            return;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return;
        }
        self.in_vain += 1;
        if self.in_vain > MOST_IN_VAIN {
            self.in_vain = 0;
            self.looks = 0;
            self.resting = self.rest;
            self.rest = (self.rest * 2).min(*REST.end());
            return;
        }
        self.looks = self.looks.saturating_mul(2).clamp(FEWEST_LOOKS.min(self.most), self.most);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(80);
    const SOON: Duration = Duration::from_micros(20);

    #[test]
    fn a_peer_that_comes_only_when_the_thread_sleeps_is_not_spun_for() {
        let mut patience = Patience::adaptive(1000, 1000, SHORT);
        let mut looks = 0u64;
        for _ in 0..100_000 {
            looks += u64::from(patience.looks());
            patience.waited(SOON, true);
        }
        // A spin each time would be 100,000,000.
        assert!(looks < 500_000, "{looks} looks in vain");
        // It moves to another processor, and is spun for again within the longest rest.
        let mut waits = 0;
        while patience.looks() < 100 {
            patience.waited(SOON, true);
            waits += 1;
            assert!(waits <= REST.end() + MOST_IN_VAIN, "it never spins again");
        }
        for _ in 0..1000 {
            patience.found(90);
        }
        assert!(patience.looks() >= 100);
    }

    #[test]
    fn spins_that_find_something_now_and_then_go_on() {
        let mut patience = Patience::adaptive(0, 1000, SHORT);
        for round in 0..1000 {
            patience.waited(SOON, true);
            if round % 3 == 0 {
                patience.found(500);
            }
        }
        assert_eq!(patience.looks(), 1000);
    }

    #[test]
    fn what_was_there_before_the_spin_is_no_reason_for_it() {
        let mut patience = Patience::adaptive(0, 1000, SHORT);
        let mut rested = false;
        for _ in 0..100 {
            patience.waited(SOON, true);
            patience.found(1);
            rested |= patience.looks() == 0;
        }
        assert!(rested);
    }

    #[test]
    fn a_fixed_number_stays() {
        let mut patience = Patience::fixed(7);
        for called in [true, false] {
            for _ in 0..100 {
                patience.waited(SOON, called);
            }
        }
        assert_eq!(patience.looks(), 7);
    }
}
